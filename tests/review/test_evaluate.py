"""`unet-batch evaluate`: published masks against label images, with figures of MONAI and NumPy as oracles."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from models import threshold_model, unet_model
from PIL import Image, ImageOps
from project_fixture import SIZE, last_json, png, project

from unet_batch.cli.review import _limits
from unet_batch.decode.labels import read_labels
from unet_batch.errors import ExitCode, ImageError, JobError
from unet_batch.planning.survey import window_of
from unet_batch.review.evaluate import Evaluation, evaluate
from unet_batch.review.evaluation_tables import tables
from unet_batch.review.masks.rows import Labels
from unet_batch.review.truth.images import NO_TRUTH, LabelImages, filled, masks_in
from unet_batch.spec import LimitsSpec

__all__ = ["project"]

DAY, NAME = "2026/11/21", "2026-11-21"
PATTERN = "truth/{date}/{stem}.png"


def encoded(labels: np.ndarray, format_: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(labels).save(out, format_)
    return out.getvalue()


def rows_of_class_1(count: int, value: int = 1) -> np.ndarray:
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[:count] = value
    return labels


def put_truth(project, stem: str, labels: np.ndarray | bytes, day: str = NAME) -> None:
    path = project.folder / "truth" / day / f"{stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(labels if isinstance(labels, bytes) else encoded(labels))


def evaluated(project, *overrides: str, pattern: str = PATTERN, window: str = "all", top: int = 10) -> Evaluation:
    pattern = f"{project.folder}/{pattern}"
    return evaluate(project.prepared(*overrides), window_of(window), pattern, top=top)


@pytest.fixture
def scored(project):
    """Predicted are the first 8 rows of 32; `dark` has no mask. The truth is 8 rows, 16 rows and none."""
    project.fill(DAY, 3)
    project.put(f"{DAY}/dark.png", png(1, bright_rows=0))
    project.put(f"{DAY}/broken.png", b"no picture")
    project.run()
    for stem, rows in (("000", 8), ("001", 16), ("002", 0), ("dark", 0)):
        put_truth(project, stem, rows_of_class_1(rows))
    return project


def test_figures_by_hand(scored):
    """Of all pixels together: 16 of 24 predicted rows are true, 16 of 24 true rows were found."""
    found = evaluated(scored)
    score = found.classes["class_1"]
    pair = score.overlap
    assert (found.images, found.compared, found.not_compared) == (5, 4, {"rejected: decode.unrecognized": 1})
    assert (pair.area_a_px, pair.area_b_px, pair.shared_px) == (24 * SIZE, 24 * SIZE, 16 * SIZE)
    assert pair.dice == pytest.approx(2 / 3)
    assert pair.iou == pytest.approx(1 / 2)
    assert (score.images_predicted, score.images_truth, score.found_in_vain) == (3, 2, 1)
    figures = found.to_json()["classes"]["class_1"]
    assert (figures["precision"], figures["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_empty_masks_by_both_rules(scored):
    """Two images have the class in their truth; of the others, one was found in vain and one is empty on both sides."""
    found = evaluated(scored)
    score = found.classes["class_1"]
    assert score.mean_dice == pytest.approx((1 + 2 / 3) / 2)
    assert score.mean_dice_with_empty(found.compared) == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    assert "ignore_empty" in found.to_json()["rules"]


def test_the_confusion_has_every_pixel_once(scored):
    found = evaluated(scored)
    assert found.confusion == {
        ("class_1", "class_1"): 16 * SIZE,
        ("class_1", None): 8 * SIZE,
        (None, "class_1"): 8 * SIZE,
        (None, None): 96 * SIZE,
    }
    assert sum(found.confusion.values()) == found.pixels == 4 * SIZE * SIZE


def test_the_worst_images_come_first(scored):
    found = evaluated(scored, top=2)
    assert [(dice, key.rpartition("/")[2]) for dice, _, key in found.worst] == [
        (0.0, "002.png"),
        (pytest.approx(2 / 3), "001.png"),
    ]


def test_every_image_has_its_rows_in_a_parquet_file(scored):
    rows = pq.read_table(io.BytesIO(evaluated(scored).parquet())).to_pylist()
    by_name = {row["image_key"].rpartition("/")[2]: row for row in rows}
    assert len(rows) == len(by_name) == 5
    assert by_name["001.png"] == {
        "image_key": f"file://{scored.folder}/archive/{DAY}/001.png",
        "partition": f"date={NAME}",
        "note": None,
        "class": "class_1",
        "predicted_px": 8 * SIZE,
        "truth_px": 16 * SIZE,
        "shared_px": 8 * SIZE,
        "dice": pytest.approx(2 / 3),
        "iou": 0.5,
        "precision": 1.0,
        "recall": 0.5,
    }
    assert (by_name["002.png"]["recall"], by_name["002.png"]["dice"]) == (None, 0.0)
    assert by_name["dark.png"]["class"] is None
    assert by_name["broken.png"]["note"] == "rejected: decode.unrecognized"


def multiclass(project, activation: str = "logits") -> tuple[Evaluation, np.ndarray, np.ndarray]:
    """A U-Net of four classes with random weights on noise, random truth; the evaluation, predicted and true labels."""
    random = np.random.default_rng(5)
    made = unet_model(32, 4, 2, classes=4, seed=1)
    (project.folder / "model.onnx").write_bytes(made.data)
    (project.folder / "model.yaml").write_text(made.contract_yaml)
    true = random.integers(0, 4, (6, 40, 56)).astype(np.uint8)
    true[0][true[0] == 2] = 0  # a truth without the class
    for i in range(6):
        project.put(f"{DAY}/{i}.png", encoded(random.integers(0, 255, (40, 56, 3), np.uint8)))
        put_truth(project, str(i), true[i])
    project.run("output.masks=[rle,png]")
    rows = project.rows(NAME)
    predicted = np.stack([np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"]))) for row in rows])
    return evaluated(project, "output.masks=[rle,png]"), predicted, true


def test_the_confusion_matrix_of_many_classes_is_that_of_dense_labels(project):
    """NumPy's bincount over the label maps is the oracle."""
    found, predicted, true = multiclass(project)
    wanted = np.bincount(predicted.ravel() * 4 + true.ravel(), minlength=16).reshape(4, 4)
    names = [None, "class_1", "class_2", "class_3"]
    assert [[found.confusion[a, b] for b in names] for a in names] == wanted.tolist()


@pytest.mark.slow
def test_mean_dice_is_monais(project):
    """DiceMetric with `ignore_empty` on and off, and ConfusionMatrixMetric's precision and recall over all pixels."""
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    found, predicted, true = multiclass(project)
    one_hot = [
        torch.nn.functional.one_hot(torch.from_numpy(x.astype(np.int64)), 4).movedim(-1, 1) for x in (predicted, true)
    ]
    for ignore in (True, False):
        metric = metrics.DiceMetric(include_background=False, ignore_empty=ignore, reduction="mean_batch")
        metric(*one_hot)
        wanted = metric.aggregate().tolist()
        scores = found.classes.values()
        got = [s.mean_dice if ignore else s.mean_dice_with_empty(found.compared) for s in scores]
        assert got == pytest.approx(wanted, abs=1e-6)
    for name, figure in (("precision", "precision"), ("sensitivity", "recall")):
        metric = metrics.ConfusionMatrixMetric(include_background=False, metric_name=name, reduction="sum_batch")
        metric(*one_hot)
        wanted = metric.aggregate()[0].tolist()
        got = [c[figure] for c in found.to_json()["classes"].values()]
        got = [float("nan") if value is None else value for value in got]  # a class that is nowhere predicted
        assert got == pytest.approx(wanted, abs=1e-6, nan_ok=True)


# The truth ------------------------------------------------------------------------------------------------------------


def test_masks_of_this_package_are_a_truth(scored):
    """`masks --to png` writes what `evaluate` reads: a perfect score."""
    from unet_batch.review.masks.export import export

    export(scored.prepared(), window_of("all"), "png", f"{scored.folder}/copied")
    found = evaluated(scored, pattern="copied/{folder}/{stem}.png")
    assert (found.compared, found.classes["class_1"].overlap.dice) == (4, 1.0)


def test_images_without_a_truth_are_counted(scored):
    (scored.folder / "truth" / NAME / "001.png").unlink()
    found = evaluated(scored)
    assert (found.compared, found.not_compared[NO_TRUTH]) == (3, 1)
    assert found.exit_code([]) == ExitCode.COMPLETE


def test_nnunets_names_of_pictures_have_a_field_of_their_own(scored):
    """`case_0000.png` is a picture, and `case.png` its label image."""
    uri = "file:///archive/2026/case_0000.png"
    row = {"image_key": uri, "uri": uri, "page": 0, "member": None}
    assert filled("labels/{case}.png", row, "date=2026", "file:///archive") == "labels/case.png"
    other = row | {"uri": "file:///archive/a_1.png"}
    assert filled("labels/{case}.png", other, "date=2026", "file:///archive") == "labels/a_1.png"
    truth = LabelImages(scored.prepared(), f"{scored.folder}/nowhere/{{stem}}.png")
    assert truth.of(row, "date=2026") == NO_TRUTH
    assert truth.notes[0].endswith("write {case} in the place of {stem}")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (rows_of_class_1(8, value=7), "truth has the value 7, which is no class"),
        (np.zeros((SIZE, SIZE + 1), np.uint8), "truth has another size"),
        (np.zeros((SIZE, SIZE, 3), np.uint8), "truth cannot be read: a label image is indexed or gray"),
        (b"no picture", "truth cannot be read"),
    ],
)
def test_a_truth_that_cannot_be_used_needs_a_person(scored, labels, said):
    put_truth(scored, "000", labels)
    found = evaluated(scored)
    assert any(why.startswith(said) for why in found.not_compared), found.not_compared
    assert (found.compared, found.exit_code([])) == (3, ExitCode.NEEDS_ACTION)


def test_255_is_the_class_where_there_is_one_only(scored):
    put_truth(scored, "000", rows_of_class_1(8, value=255))
    assert evaluated(scored).compared == 4
    several = masks_in(rows_of_class_1(8, value=255), Labels({1: "a", 2: "b"}, 0, 0))
    assert several == "truth has the value 255, which is no class"


def test_palette_indices_are_values_and_not_colours():
    labels = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.fromarray(labels).convert("L")
    indexed = Image.frombytes("P", image.size, image.tobytes())
    indexed.putpalette([0, 0, 0, 250, 0, 0, 0, 0, 250])
    out = io.BytesIO()
    indexed.save(out, "PNG")
    np.testing.assert_array_equal(read_labels(out.getvalue(), LimitsSpec()), labels)


ORIENTATION = 274


def with_orientation(labels: np.ndarray, orientation: int, format_: str) -> bytes:
    """A label image that viewers show turned."""
    out = io.BytesIO()
    if format_ == "TIFF":
        tifffile.imwrite(out, labels, extratags=[(ORIENTATION, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(labels).save(out, "PNG", exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_a_label_image_is_turned_as_pillow_turns_pictures(format_, orientation):
    """Its orientation is applied, as to pictures; `exif: ignore` leaves both as they are stored."""
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    data = with_orientation(labels, orientation, format_)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(read_labels(data, LimitsSpec()), upright)
    np.testing.assert_array_equal(read_labels(data, LimitsSpec(), turned=False), labels)


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("form", ["label images", "table"])
def test_a_truth_with_the_orientation_of_its_picture_is_compared_pixel_by_pixel(project, exif, form):
    """The truth was drawn on the stored pixels and has the picture's tag: upside down, as the picture is."""
    contract = project.prepared().model.contract.model_dump(mode="json", exclude_none=True)
    contract["input"]["exif"] = exif
    (project.folder / "model.yaml").write_text(json.dumps(contract))
    upside_down, bright = 3, rows_of_class_1(8, 255)
    project.put(f"{DAY}/000.png", with_orientation(bright, upside_down, "PNG"))
    project.run()
    truth = with_orientation(rows_of_class_1(8), upside_down, "PNG")
    put_truth(project, "000", truth)
    pq.write_table(pa.table({"file_name": ["000.png"], "mask": [truth]}), project.folder / "truth.parquet")
    found = evaluated(project, pattern=PATTERN if form == "label images" else "truth.parquet#mask")
    assert (found.compared, found.classes["class_1"].overlap.dice) == (1, 1.0)


def test_sixteen_bits_and_tiff_are_read():
    labels = np.array([[0, 300], [65535, 1]], np.uint16)
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, labels)
    np.testing.assert_array_equal(read_labels(encoded(labels), LimitsSpec()), labels)
    np.testing.assert_array_equal(read_labels(tiff.getvalue(), LimitsSpec()), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_per_pixel_are_values_too(bits):
    """Pillow stretches gray of 2 and 4 bits to 0..255; optimisers of PNG files write such files."""
    labels = np.array([[0, 1, 1, 0], [(1 << bits) - 1, 0, 0, 1]], np.uint8)
    assert (read_labels(shallow_png(labels, bits), LimitsSpec()) == labels).all()


def shallow_png(values: np.ndarray, bits: int) -> bytes:
    """A gray PNG of few bits, by the PNG specification: Pillow writes only 1, 8 and 16."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    planes = (values[..., None] >> np.arange(bits)[::-1]) & 1
    rows = b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in planes.astype(np.uint8))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_jpeg_is_no_label_image():
    with pytest.raises(ImageError):
        read_labels(encoded(rows_of_class_1(8), "JPEG"), LimitsSpec())


def test_the_limit_on_pixels_holds_before_a_pixel_is_decoded():
    limits = LimitsSpec(max_image_pixels=SIZE * SIZE - 1)
    with pytest.raises(ImageError, match="max_image_pixels"):
        read_labels(encoded(rows_of_class_1(8)), limits)


@pytest.mark.parametrize(("pattern", "said"), [("truth/{day}/{stem}.png", "{day}"), ("truth/all.png", "one file")])
def test_a_pattern_that_names_no_file_of_an_image_is_refused(scored, pattern, said):
    with pytest.raises(JobError, match=said.replace("{", r"\{")):
        evaluated(scored, pattern=pattern)


def test_one_label_image_is_not_the_truth_of_two_rows(scored):
    """Days repeat names, and pages share their file's: without the field, one mask would judge them all."""
    scored.put("2026/11/22/000.png", png(0))
    scored.run("window=all")
    put_truth(scored, "000", rows_of_class_1(8), day="2026-11-22")
    assert evaluated(scored).compared == 5
    with pytest.raises(JobError, match=r"2026-11-21/000.png belongs to .*2026/11/21/000.png and to .*2026/11/22/000"):
        evaluated(scored, pattern="truth/2026-11-21/{stem}.png")


def test_classes_that_overlap_are_compared_one_by_one(project):
    """A label image has one class for each pixel; values begin at 1, as in `masks --to png`."""
    made = threshold_model("nchw", 1, 2, size=SIZE, activation="sigmoid")
    (project.folder / "model.onnx").write_bytes(made.data)
    (project.folder / "model.yaml").write_text(made.contract_yaml)
    project.fill(DAY, 1)
    project.run()
    put_truth(project, "000", rows_of_class_1(8, value=1))
    found = evaluated(project)
    first, second = found.classes.values()
    assert (first.overlap.dice, second.overlap.shared_px, second.images_predicted) == (1.0, 0, 1)
    assert (None, None) not in found.confusion


# The command ----------------------------------------------------------------------------------------------------------


def test_a_dice_below_the_limit_is_one_sentence(scored):
    found = evaluated(scored)
    assert found.failures({"class_1": 0.8}) == []
    [sentence] = found.failures({"class_1": 0.9})
    assert sentence == "mean Dice of class_1 is 0.8333, below --min-dice 0.9"
    assert found.exit_code([sentence]) == ExitCode.NEEDS_ACTION


def test_nothing_compared_is_not_success(project):
    found = evaluated(project)
    assert found.exit_code([]) == ExitCode.UNFINISHED
    assert "nothing is published" in str(found.nothing_compared())


def test_a_truth_that_is_nowhere_needs_a_person_and_the_place_is_named(scored):
    """Another run cannot find it: the pattern is wrong, or the truth is not there yet."""
    found = evaluated(scored, pattern="elsewhere/{stem}.png")
    assert found.exit_code([]) == ExitCode.NEEDS_ACTION
    assert found.nothing_compared() == (
        "none of 5 published image(s) was compared with a truth: 4 × no truth, 1 × rejected: decode.unrecognized"
    )
    assert found.notes == (f"there is no label image at {scored.folder}/elsewhere/000.png",)


def test_a_table_without_the_images_needs_a_person(scored):
    """The same for the other kinds of truth."""
    pq.write_table(pa.table({"image_key": ["other.png"], "mask": [b""]}), scored.folder / "truth.parquet")
    found = evaluated(scored, pattern="truth.parquet#mask")
    assert (found.compared, found.exit_code([])) == (0, ExitCode.NEEDS_ACTION)


def test_rows_that_cannot_be_compared_are_not_success(project):
    """Areas without masks have no figures; a person must choose output.masks. The empty mask is compared."""
    project.fill(DAY, 1)
    project.put(f"{DAY}/dark.png", png(1, bright_rows=0))
    project.run("output.masks=[]")
    for stem in ("000", "dark"):
        put_truth(project, stem, rows_of_class_1(8))
    found = evaluated(project, "output.masks=[]")
    assert (found.compared, found.exit_code([])) == (1, ExitCode.NEEDS_ACTION)


def test_a_gate_that_was_not_measured_does_not_pass(scored):
    """No truth that was compared has the class."""
    for stem in ("000", "001"):
        put_truth(scored, stem, rows_of_class_1(0))
    found = evaluated(scored)
    [sentence] = found.failures({"class_1": 0.0})
    assert "unknown" in sentence
    assert found.exit_code([sentence]) == ExitCode.NEEDS_ACTION


def test_rows_of_another_model_are_evaluated_with_a_note(scored):
    """Published rows count, whoever made them; a changed model that was not run yet is not what was measured."""
    scored.put("2026/11/22/new.png", png(1))
    scored.run("tiling.overlap=0.5", window="2026-11-22")
    put_truth(scored, "new", rows_of_class_1(8), "2026-11-22")
    [note] = evaluated(scored, "tiling.overlap=0.5").notes
    assert note.startswith("4 of 5 compared image(s) have rows of another model or other settings than the job's now")
    assert evaluated(scored, window=NAME).notes == ()


def test_a_class_has_one_limit():
    """Of two, the last one would win without a word."""
    with pytest.raises(JobError, match="another limit"):
        _limits(("cell=0.9", "cell=0.1"))


def test_tables_show_what_the_json_has(scored):
    shown = {title: rows for title, _, rows in tables(evaluated(scored))}
    classes, confusion, worst = shown.values()
    assert classes == [("class_1", "2", "0.6666", "0.5000", "0.6666", "0.6666", "0.8333", "0.6666")]
    assert confusion == [("class_1", "512", "256"), ("(none)", "256", "3,072")]
    assert worst[0][:2] == ("0.0000", "class_1")


@pytest.mark.slow
def test_the_command_is_a_gate(scored):
    """Exit code 5 below --min-dice, 2 for a class that there is not, and a Parquet file beside the reports."""
    words = ("evaluate", "job.yaml", "--truth", PATTERN)
    fine = scored.command(*words, "--min-dice", "class_1=0.8")
    low = scored.command(*words, "--min-dice", "class_1=0.9")
    wrong = scored.command(*words, "--min-dice", "background=0.9")
    assert (fine.returncode, low.returncode, wrong.returncode) == (0, 5, 2), fine.stderr + wrong.stderr
    assert "below --min-dice 0.9" in low.stderr
    page = last_json(fine)["page"].removeprefix("file://")
    with open(page, "rb") as file:
        assert b"data:image/jpeg" in file.read()
    rows = last_json(fine)["rows"].removeprefix("file://")
    assert pq.read_table(rows).num_rows == 5
    assert "/out/reports/" in rows
