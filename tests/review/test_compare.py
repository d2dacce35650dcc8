"""Two runs side by side: what readers would see change, figure by figure, before a model is promoted."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from models import threshold_model, unet_model
from PIL import Image
from project_fixture import SIZE, Project, png
from pycocotools import mask as coco

from unet_batch.cli.terminal import print_table
from unet_batch.errors import Damaged, ExitCode, JobError
from unet_batch.planning.survey import window_of
from unet_batch.review.agreement import OK, OTHER_SIZE, CountedImages
from unet_batch.review.compare import ONLY_A, ONLY_B, OTHER_VERSION, Comparison, compare
from unet_batch.review.differences.compare_tables import tables
from unet_batch.review.sides import AREAS_ONLY

DAY, NAME = "2026/11/21", "2026-11-21"
BRIGHT = 8 * SIZE
"""Pixels of class_1 in the fixture's pictures: their first 8 rows."""
DOUBLED = "tiling.overlap=0.5"
"""Another fingerprint that gives the same masks."""


def model(project: Project, name: str, made) -> str:
    """The override that scores with another model."""
    (project.folder / f"{name}.onnx").write_bytes(made.data)
    (project.folder / f"{name}.yaml").write_text(made.contract_yaml)
    return f"model.path={project.folder}/{name}.onnx"


@pytest.fixture
def three(project) -> str:
    """A model of three classes: the bright rows are class_2, pixels of level 90 are class_1, darker ones nothing."""
    return model(project, "three", threshold_model("nchw", 1, 3, size=SIZE))


def compared(project: Project, a: str, b: str, *overrides: str, window: str = "all", **options) -> Comparison:
    return compare(project.prepared(*overrides), a, b, window_of(window), **options)


def names(images) -> list[str]:
    return [image.key.rpartition("/")[2] for image in images]


@pytest.fixture
def shown(monkeypatch, capsys):
    """The comparison as people see it."""

    def show(comparison: Comparison, width: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        for table in tables(comparison):
            print_table(*table)
        return capsys.readouterr().err

    return show


# Figures ----------------------------------------------------------------------------------------------------------


def test_two_models_by_hand(project, three):
    """The bright rows change their class; of one picture, the rest becomes class_1; one is empty on both sides."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/gray.png", level=90)
    project.put(f"{DAY}/dark.png", png(1, bright_rows=0))
    a, b = project.run().run, project.run(three).run
    found = compared(project, a, b).total

    assert (found.compared, found.unchanged, found.pixels) == (4, 1, 4 * SIZE * SIZE)
    assert found.flipped_px == 2 * BRIGHT + SIZE * SIZE
    first, second = found.classes["class_1"], found.classes["class_2"]
    assert (first.images_a, first.images_b) == (3, 1)
    assert (first.overlap.area_a_px, first.overlap.area_b_px, first.overlap.dice) == (3 * BRIGHT, 3 * BRIGHT, 0.0)
    assert (second.images_a, second.images_b, second.overlap.area_a_px) == (0, 3, 0)
    assert found.confusion == {
        ("class_1", "class_2"): 3 * BRIGHT,
        (None, "class_1"): SIZE * SIZE - BRIGHT,
    }
    assert names(found.most_flipped) == ["gray.png", "000.png", "001.png"]


def test_every_image_has_its_rows_in_a_parquet_file(project, three):
    """One for each class of either side; one without a class where there is none, or with the reason."""
    project.fill(DAY, 1)
    project.put(f"{DAY}/dark.png", png(1, bright_rows=0))
    project.put(f"{DAY}/broken.png", b"no image")
    a = project.run("limits.max_rejected=1").run
    project.put(f"{DAY}/late.png")
    b = project.run(three, "limits.max_rejected=1").run
    rows = pq.read_table(io.BytesIO(compared(project, a, b).parquet())).to_pylist()
    assert {row["partition"] for row in rows} == {f"date={NAME}"}
    found = [(row["image_key"].rpartition("/")[2], row["class"], row["a_px"], row["b_px"], row["dice"]) for row in rows]
    assert sorted(found, key=str) == [
        ("000.png", "class_1", BRIGHT, 0, 0.0),
        ("000.png", "class_2", 0, BRIGHT, 0.0),
        ("broken.png", None, None, None, None),
        ("dark.png", None, None, None, None),
        ("late.png", None, None, None, None),
    ]
    notes = {row["image_key"].rpartition("/")[2]: row["note"] for row in rows if row["note"]}
    assert notes == {
        "broken.png": "decode.unrecognized in A, decode.unrecognized in B",
        "late.png": "no row in A, a row in B",
    }


def test_figures_equal_those_of_dense_masks(project):
    """Two U-Nets with random weights on noise; the published masks drawn by pycocotools, compared as arrays."""
    random = np.random.default_rng(3)
    for i in range(6):
        out = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (40, 56, 3), np.uint8)).save(out, "PNG")
        project.put(f"{DAY}/{i}.png", out.getvalue())
    jobs = [model(project, f"unet{s}", unet_model(32, 4, 2, classes=4, seed=s)) for s in (1, 2)]
    runs, labels = [], []
    for job in jobs:
        runs.append(project.run(job).run)
        rows = project.rows(NAME)
        labels.append(np.stack([label_map(row) for row in rows]))
    found = compared(project, *runs).total
    a, b = labels

    assert (a != b).mean() > 0.1
    assert (found.flipped_px, found.pixels) == (int((a != b).sum()), a.size)
    shares = [*(a != b).mean(axis=(1, 2))]
    assert [i.found.flipped_share for i in found.most_flipped] == pytest.approx(sorted(shares, reverse=True))
    dice = {k: 2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in (1, 2, 3)}
    assert {n: c.overlap.dice for n, c in found.classes.items()} == pytest.approx({f"class_{k}": dice[k] for k in dice})
    names = {None: 0, "class_1": 1, "class_2": 2, "class_3": 3}
    counts = {(i, j): int(((a == names[i]) & (b == names[j])).sum()) for i in names for j in names if i != j}
    assert found.confusion == {pair: pixels for pair, pixels in counts.items() if pixels}


def label_map(row: dict) -> np.ndarray:
    """Dense, by pycocotools."""
    drawn = np.zeros((row["height"], row["width"]), np.uint8)
    for c in row["classes"]:
        drawn[coco.decode({"size": c["rle"]["size"], "counts": c["rle"]["counts"].encode()}) == 1] = c["id"]
    return drawn


def test_images_that_one_side_rejects_are_named_with_their_reasons(project):
    """ok → rejected and back, and images that are rejected alike."""
    project.fill(DAY, 3)
    large = np.zeros((SIZE, 2 * SIZE), np.uint8)
    out = io.BytesIO()
    Image.fromarray(large).save(out, "PNG")
    key = f"file://{project.put(f'{DAY}/large.png', out.getvalue())}"
    project.put(f"{DAY}/bad.png", b"no picture")
    strict = f"limits.max_image_pixels={SIZE * SIZE}"
    a, b = project.run().run, project.run(strict).run
    there, back = compared(project, a, b).total, compared(project, b, a).total

    bad = f"file://{project.folder}/archive/{DAY}/bad.png"
    alike = {("decode.unrecognized", "decode.unrecognized"): CountedImages(1, bad)}
    assert there.compared == 3
    assert there.not_compared == {(OK, "decode.too_many_pixels"): CountedImages(1, key), **alike}
    assert back.not_compared == {("decode.too_many_pixels", OK): CountedImages(1, key), **alike}


def test_pages_and_members_are_images(project, three):
    """The images that differ most are named with the page of a file and the member of a tar."""
    pages = [Image.fromarray(np.full((SIZE, SIZE), level, np.uint8)) for level in (0, 90)]
    stack, packed = io.BytesIO(), io.BytesIO()
    pages[0].save(stack, "TIFF", save_all=True, append_images=pages[1:])
    project.put(f"{DAY}/stack.tif", stack.getvalue())
    with tarfile.open(fileobj=packed, mode="w") as tar:
        header = tarfile.TarInfo("in/side.png")
        header.size = len(png(1))
        tar.addfile(header, io.BytesIO(png(1)))
    project.put(f"{DAY}/shard.tar", packed.getvalue())
    found = compared(project, project.run().run, project.run(three).run).total

    assert found.compared == 3
    assert names(found.most_flipped) == ["stack.tif#page=1", "side.png"]


# Sides ------------------------------------------------------------------------------------------------------------


def test_a_run_a_fingerprint_its_beginning_and_a_word_name_the_same_rows(project, three):
    """A was replaced and lies in staged parts, B is what readers see and what the job would score."""
    project.fill(DAY, 2)
    a, b = project.run(), project.run(three)
    found = [
        compared(project, *sides, three)
        for sides in (
            (a.run, b.run),
            (a.fingerprint, b.fingerprint),
            (a.fingerprint[:8].upper(), b.fingerprint[:40]),
            (a.fingerprint[:9], "published"),
            (a.run, "job"),
        )
    ]

    assert {c.total.flipped_px for c in found} == {2 * BRIGHT}
    assert [[*c.a.models, *c.b.models] for c in found] == [[a.fingerprint, b.fingerprint]] * len(found)
    assert {(c.a.images, c.b.images) for c in found} == {(2, 2)}


@pytest.mark.parametrize("word", ["20260101T000000-test-1", "0123456", "01234567", "../job", "", "Published", "0" * 64])
def test_a_run_nobody_knows_is_an_error_that_names_those_that_are_known(project, word):
    """Exit code 2, before any row is read."""
    project.fill(DAY, 1)
    run = project.run().run
    with pytest.raises(JobError, match=run) as raised:
        compared(project, "job", word)
    assert raised.value.exit_code == 2


def test_the_beginning_of_two_fingerprints_is_refused(project):
    """Which one was meant is not guessed."""
    project.fill(DAY, 1)
    run = project.run()
    mark, runs = run.fingerprint, project.folder / "out" / "_work" / "runs"
    record = json.loads((runs / f"{run.run}.json").read_text())
    record["fingerprint"] = mark[:31] + ("0" if mark[31] != "0" else "1") + mark[32:]
    (runs / "20260101T000000-other.json").write_text(json.dumps(record))
    with pytest.raises(JobError, match="several fingerprints"):
        compared(project, mark[:31], "job")

    assert compared(project, mark[:32], "job").total.compared == 1


def test_a_damaged_record_is_an_error(project):
    """A run whose fingerprint cannot be read names no rows."""
    project.fill(DAY, 1)
    run = project.run().run
    (project.folder / "out" / "_work" / "runs" / f"{run}.json").write_text("{}")
    with pytest.raises(JobError, match="damaged"):
        compared(project, run, "job")


def test_published_rows_are_found_when_the_parts_were_swept(project, three):
    """By the fingerprint that their own column holds."""
    project.fill(DAY, 2)
    a = project.run().fingerprint
    project.fill("2026/11/22", 1)
    project.run(three, window="2026-11-22")
    shutil.rmtree(project.folder / "out" / "_work" / "parts")
    found = compared(project, a[:12], "published")

    assert {name: c.compared for name, c in found.partitions.items()} == {f"date={NAME}": 2, "date=2026-11-22": 0}
    assert {words: there.images for words, there in found.total.not_compared.items()} == {ONLY_B: 1}


def test_the_side_without_rows_is_named_with_its_partitions(project, three):
    """One sentence; what the other side has counts as only there."""
    for day in ("2026/11/19", "2026/11/20", DAY):
        project.fill(day, 2)
    a, b = project.run().run, project.run(three, window=NAME).run
    found = compared(project, a, b)

    assert found.notes == ("B has no rows in 2 partition(s) of the window: date=2026-11-19, date=2026-11-20",)
    first = f"file://{project.folder}/archive/2026/11/19/000.png"
    assert (found.total.compared, found.total.not_compared) == (2, {ONLY_A: CountedImages(4, first)})


def test_nothing_on_either_side_is_said(project, three):
    """A job that never ran has a fingerprint and no rows."""
    project.fill(DAY, 1)
    project.run()
    found = compared(project, "job", "job", three)

    assert (found.partitions, found.total.compared) == ({}, 0)
    assert found.notes[0] == f"A and B have no rows in 1 partition(s) of the window: date={NAME}"
    assert found.notes[-1] == "A and B are the same rows"


def test_a_side_without_rows_is_no_success(project, three):
    """Exit code 3: a run may publish them. The sentence names the side."""
    project.fill(DAY, 1)
    project.run()
    nothing = compared(project, "published", "job", three)
    assert nothing.exit_code([]) == ExitCode.UNFINISHED
    assert nothing.nothing_compared() == (
        "nothing was compared: B has no rows in the window; `unet-batch status` says what is published"
    )
    assert compared(project, "published", "published", window="2026-01-01").exit_code([]) == ExitCode.UNFINISHED


def test_images_that_all_are_rejected_are_no_success(project):
    """Exit code 5: another comparison finds the same rows. No gate passes."""
    project.put(f"{DAY}/broken.png", b"no picture")
    a, b = project.run("limits.max_rejected=1").run, project.run(DOUBLED, "limits.max_rejected=1").run
    found = compared(project, a, b)
    assert "1 × decode.unrecognized in A, decode.unrecognized in B" in str(found.nothing_compared())
    assert found.exit_code([]) == ExitCode.NEEDS_ACTION
    assert found.failures({"class_1": 0.5}) == ["mean Dice of class_1 is unknown: no image that was compared has it"]


def test_rows_that_are_compared_with_themselves_pass_no_gate(project, three):
    """`published` and `job` are the same rows once the job's model is published."""
    project.fill(DAY, 1)
    project.run()
    found = compared(project, "published", "job")
    assert (found.total.compared, found.notes) == (1, ("A and B are the same rows",))
    [sentence] = found.failures({"class_1": 0.0})
    assert (sentence, found.exit_code([sentence])) == (
        "mean Dice of class_1 is not measured: A and B are the same rows",
        ExitCode.NEEDS_ACTION,
    )
    assert found.exit_code([]) == ExitCode.COMPLETE
    other = compared(project, "published", project.run(three).run)
    assert other.notes == ("A and B are the same rows",)


def test_two_models_with_equal_masks_are_not_the_same_rows(project):
    """Equal masks are a measurement: the gate passes."""
    project.fill(DAY, 1)
    a, b = project.run().run, project.run(DOUBLED).run
    found = compared(project, a, b)
    assert (found.notes, found.failures({"class_1": 1.0})) == ((), [])


def test_another_jobs_output_can_be_side_b(project, three):
    """The same archive, scored into two outputs with another number of buckets."""
    project.fill(DAY, 5)
    project.run()
    elsewhere = project.folder / "elsewhere"
    b = project.run(three, f"output.uri={elsewhere}", "output.buckets=3")
    found = compared(project, "published", b.run, b_output=str(elsewhere) + "/")

    assert list(found.partitions) == [f"date={NAME}"]
    assert (found.total.compared, found.total.flipped_px) == (5, 5 * BRIGHT)
    assert (found.a.output, found.b.output) == (f"file://{project.folder}/out", f"file://{elsewhere}")
    with pytest.raises(JobError, match="no runs yet"):
        compared(project, "published", b.run, b_output=str(project.folder / "nothing"))


def test_only_the_partitions_of_the_window_are_compared(project):
    """A range takes its days, `last` the newest day that either side has."""
    for day in ("2026/11/19", "2026/11/20", DAY):
        project.fill(day, 1)
    a, b = project.run(window="2026-11-19..2026-11-20").run, project.run(DOUBLED, window="2026-11-19..2026-11-20").run
    project.run("tiling.overlap=0.4", window=NAME)

    assert list(compared(project, a, b, window="2026-11-20..2026-11-21").partitions) == ["date=2026-11-20"]
    assert list(compared(project, a, b, window="last").partitions) == ["date=2026-11-20"]
    assert list(compared(project, a, b, window="all").partitions) == ["date=2026-11-19", "date=2026-11-20"]


# What cannot be compared ------------------------------------------------------------------------------------------


def test_an_image_that_changed_between_the_runs_is_not_compared(project):
    """Two versions are two images; one that both sides scored is compared."""
    project.fill(DAY, 3)
    a = project.run().run
    project.put(f"{DAY}/001.png", png(1, bright_rows=20))
    changed = f"file://{project.folder}/archive/{DAY}/001.png"
    b = project.run(DOUBLED).run
    before = compared(project, a, b).total
    project.run()
    after = compared(project, a, b).total

    assert (before.compared, before.not_compared) == (2, {OTHER_VERSION: CountedImages(1, changed)})
    assert (after.compared, after.unchanged, after.not_compared) == (3, 3, {})


def test_images_whose_masks_one_side_does_not_keep_are_not_compared(project, three, shown):
    """output.masks without rle leaves areas; an empty mask is known nevertheless."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/dark.png", png(1, bright_rows=0))
    a, b = project.run().run, project.run(three, "output.masks=[]").run
    found = compared(project, a, b)

    assert (found.total.compared, found.total.unchanged) == (1, 1)
    assert {words: there.images for words, there in found.total.not_compared.items()} == {(OK, AREAS_ONLY): 2}
    assert "areas only (output.masks without rle)" in shown(found, width=160)


def test_masks_of_another_geometry_are_not_comparable(project):
    """Masks at the model's size have other pixels than masks at the source's."""
    made = threshold_model("nchw", 1, 2, size=SIZE)
    contract = made.contract.model_dump(mode="json", exclude_none=True)
    contract["input"]["fit"] = "stretch"
    (project.folder / "model.yaml").write_text(json.dumps(contract))
    large = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    large[:SIZE] = 255
    out = io.BytesIO()
    Image.fromarray(large).save(out, "PNG")
    key = f"file://{project.put(f'{DAY}/large.png', out.getvalue())}"
    project.fill(DAY, 1)
    a, b = project.run().run, project.run("output.geometry=model").run
    found = compared(project, a, b).total

    assert (found.compared, found.unchanged) == (1, 1)
    assert found.not_compared == {(OK, OTHER_SIZE): CountedImages(1, key)}


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_published_object_ends_the_comparison(project, three, cut):
    """Figures without its rows could decide about a model. Cut, or with a bit turned over in a page of masks."""
    project.fill(DAY, 2)
    a = project.run().run
    project.run(three)
    data = project.data(NAME)
    data.write_bytes(data.read_bytes()[:-100]) if cut else turn_a_bit_of_the_masks(data)
    with pytest.raises(Damaged, match=f"{data} is .*damaged"):
        compared(project, a, "published")


def test_a_damaged_part_does_not_count(project, three):
    """As in a publication: its images are scored again by the next run."""
    project.fill(DAY, 2)
    a = project.run("limits.unit_images=1").run
    for part in project.parts()[:1]:
        turn_a_bit_of_the_masks(part)
    found = compared(project, a, project.run(three).run).total

    assert (found.compared, [there.images for there in found.not_compared.values()]) == (1, [1])


def turn_a_bit_of_the_masks(path: Path) -> None:
    """One bit in the page of COCO counts."""
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    counts = next(c for c in columns if c.path_in_schema.endswith("rle.counts"))
    data = bytearray(path.read_bytes())
    data[counts.data_page_offset + counts.total_compressed_size - 2] ^= 1
    path.write_bytes(data)


# For people and programs ------------------------------------------------------------------------------------------


def test_the_tables_show_every_figure_and_names_as_they_are(project, three, shown):
    """On 80 columns no number is broken; a file name that looks like markup is a file name."""
    project.put(f"{DAY}/[bold]a.png", level=90)
    project.put(f"{DAY}/[red", b"no picture")
    text = shown(compared(project, project.run().run, project.run(three).run))

    assert "│ class_2 │        0 │        1 │ 0.0000 │ 0.0000 │    0.0000 │" in text
    assert "[bold]a.png" in "".join(line.split("│")[-2].strip() for line in text.splitlines() if "│" in line)
    assert max(map(len, text.splitlines())) <= 80


def test_a_dice_just_below_one_is_not_shown_as_perfect(project, shown):
    """39,999 of 40,000 pixels is 0.99999, which is cut and not rounded: 1.0000 means every pixel."""
    levels = np.full((200, 200), 255, np.uint8)
    levels[0, 0] = 140  # a probability of 0.73
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    project.put(f"{DAY}/a.png", out.getvalue())
    made = threshold_model("nchw", 1, 1, size=SIZE)
    runs = []
    for threshold in (0.5, 0.9):
        job = model(project, f"above{threshold}", made)
        contract = made.contract.model_dump(mode="json", exclude_none=True)
        contract["output"]["threshold"] = threshold
        (project.folder / f"above{threshold}.yaml").write_text(json.dumps(contract))
        runs.append(project.run(job).run)
    found = compared(project, *runs)

    assert (found.total.flipped_px, found.total.classes["foreground"].overlap.dice) == (1, 2 * 39_999 / 79_999)
    assert "0.9999" in shown(found)
    assert "1.0000" not in shown(found)
    assert "1.0000" in shown(compared(project, runs[0], runs[0]))


def test_the_json_holds_the_sides_every_partition_and_the_worst_images(project, three):
    """Plain values only, and as many images as were asked for."""
    project.fill("2026/11/20", 1)
    project.fill(DAY, 4)
    a, b = project.run(), project.run(three)
    tree = json.loads(json.dumps(compared(project, a.run, b.run, top=2).to_json(), allow_nan=False))

    assert (tree["a"]["asked"], tree["b"]["fingerprints"]) == (a.run, [b.fingerprint])
    assert [p["compared"] for p in tree["partitions"].values()] == [1, 4]
    assert (tree["total"]["flipped_share"], tree["total"]["classes"]["class_2"]["iou"]) == (0.25, 0.0)
    assert tree["total"]["confusion"] == [{"a": "class_1", "b": "class_2", "pixels": 5 * BRIGHT}]
    assert len(tree["total"]["most_flipped"]) == 2
    assert tree["total"]["most_flipped"][0]["dice"] == {"class_1": 0.0, "class_2": 0.0}


def test_comparing_changes_nothing(project, three):
    """Every file of the output is as it was."""
    project.fill(DAY, 2)
    a, b = project.run().run, project.run(three).run
    before = contents(project.folder / "out")
    compared(project, a, b)

    assert contents(project.folder / "out") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_rows_are_the_same_however_they_are_divided(project, three, monkeypatch):
    """Buckets, units of two images and rows read three at a time change no figure."""
    project.fill(DAY, 11)
    project.put(f"{DAY}/gray.png", level=90)
    whole = compared(project, project.run().run, project.run(three).run).total
    monkeypatch.setattr("unet_batch.review.compare.ROWS_AT_ONCE", 3)
    shutil.rmtree(project.folder / "out")
    cut = ("output.buckets=3", "limits.unit_images=2")
    divided = compared(project, project.run(*cut).run, project.run(three, *cut).run)

    assert list(divided.partitions) == [f"date={NAME}"]
    assert divided.total.to_json() == whole.to_json()
    assert divided.total.most_flipped == whole.most_flipped
    assert len(list(project.folder.glob("out/predictions/date=*/bucket=*/data.parquet"))) == 3
