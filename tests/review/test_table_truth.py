"""The truth from a column of a Parquet file: label images and RLE give the figures of label images in a folder."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from project_fixture import SIZE, last_json, png, project
from pycocotools import mask as pycoco

from unet_batch.errors import ExitCode, JobError
from unet_batch.planning.survey import window_of
from unet_batch.review.evaluate import Evaluation, evaluate
from unet_batch.review.truth.table import SEVERAL

__all__ = ["project"]

DAY, NAME = "2026/11/21", "2026-11-21"


def label_image(rows: int) -> bytes:
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[:rows] = 1
    out = io.BytesIO()
    Image.fromarray(labels).save(out, "PNG")
    return out.getvalue()


def counts(rows: int) -> str:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:rows] = 1
    return pycoco.encode(np.asfortranarray(mask))["counts"].decode()


def area(rows: int, name: str = "class_1") -> dict:
    return {"name": name, "rle": {"size": [SIZE, SIZE], "counts": counts(rows)}}


def put(project, columns: dict, name: str = "truth.parquet", **options) -> None:
    pq.write_table(pa.table(columns), project.folder / name, **options)


def evaluated(project, pattern: str = "truth.parquet#mask", key: str | None = None, window: str = "all") -> Evaluation:
    pattern = f"{project.folder}/{pattern}"
    return evaluate(project.prepared(), window_of(window), pattern, top=10, key_column=key)


def shared(found: Evaluation) -> tuple[int, int, int]:
    pair = found.classes["class_1"].overlap
    return pair.area_a_px // SIZE, pair.area_b_px // SIZE, pair.shared_px // SIZE


@pytest.fixture
def scored(project):
    """Predicted are the first 8 rows of 32; `dark` has no mask."""
    project.fill(DAY, 3)
    project.put(f"{DAY}/dark.png", png(1, bright_rows=0))
    project.put(f"{DAY}/broken.png", b"no picture")
    project.run()
    return project


NAMES = [f"{DAY}/000.png", f"{DAY}/001.png", f"{DAY}/002.png", f"{DAY}/dark.png"]
"""Below the archive."""


@pytest.mark.parametrize(
    "cells",
    [
        [label_image(rows) for rows in (8, 16, 0, 0)],
        [{"bytes": label_image(rows), "path": None} for rows in (8, 16, 0, 0)],
        [[area(8)], [area(16)], [], []],
        [counts(rows) for rows in (8, 16, 0, 0)],
    ],
    ids=["bytes", "struct", "classes", "rle"],
)
def test_every_form_of_a_mask_gives_the_same_figures(scored, cells):
    """Predicted are 8 rows of three images; true are 8, 16, none, and none of the dark one."""
    put(scored, {"file_name": [name.rpartition("/")[2] for name in NAMES], "mask": cells})
    found = evaluated(scored)
    assert (found.images, found.compared) == (5, 4)
    assert shared(found) == (24, 24, 16)
    assert found.exit_code([]) == ExitCode.COMPLETE


def test_published_rows_of_another_job_are_a_truth(scored):
    """The column `classes` of a table of this program, with its keys; broken images have no masks in either."""
    scored.run("output.uri=" + str(scored.folder / "other"))
    found = evaluated(scored, "other/predictions/date={date}/data.parquet#classes")
    assert shared(found) == (24, 24, 24)
    assert (found.compared, found.confusion[None, None]) == (4, 4 * SIZE * SIZE - 24 * SIZE)


def test_rows_are_found_by_key_by_name_and_by_the_last_part(scored):
    """In any order and in many groups of rows; names that end alike decide nothing."""
    keys = [f"file://{scored.folder}/archive/{DAY}/000.png", NAMES[1], "else/002.png", "x/dark.png", "y/dark.png"]
    cells = [label_image(rows) for rows in (8, 4, 8, 0, 0)]
    put(scored, {"image_key": keys[::-1], "mask": cells[::-1]}, row_group_size=1)
    found = evaluated(scored)
    assert (found.compared, found.not_compared["no truth"]) == (3, 1)
    assert shared(found) == (24, 20, 20)


def test_an_image_without_a_row_or_with_an_empty_cell_has_no_truth(scored):
    put(scored, {"file_name": NAMES[:2], "mask": [label_image(8), None]})
    found = evaluated(scored)
    assert (found.compared, found.not_compared["no truth"]) == (1, 3)


def test_an_image_with_two_rows_is_not_compared_and_needs_a_person(scored):
    """Which one is true is not for the program to say."""
    put(scored, {"file_name": [NAMES[0], NAMES[0], NAMES[1]], "mask": [label_image(8), label_image(4), label_image(8)]})
    found = evaluated(scored)
    assert (found.compared, found.not_compared[SEVERAL]) == (1, 1)
    assert found.exit_code([]) == ExitCode.NEEDS_ACTION


def test_a_row_is_never_the_truth_of_two_images(scored):
    """Two days have a file of that name."""
    scored.put("2026/11/22/000.png")
    scored.run()
    put(scored, {"file_name": ["000.png"], "mask": [label_image(8)]})
    with pytest.raises(JobError, match=r"row 0 belongs to .*21/000.png and to .*22/000.png"):
        evaluated(scored)


def test_a_file_for_each_day_may_be_missing(scored):
    scored.put("2026/11/22/000.png")
    scored.run()
    put(scored, {"file_name": NAMES, "mask": [label_image(8)] * 4}, f"truth-{NAME}.parquet")
    found = evaluated(scored, "truth-{date}.parquet#mask")
    assert (found.compared, found.not_compared["no truth"]) == (4, 1)


def test_classes_that_the_model_does_not_have_are_counted_in_a_note(scored):
    put(scored, {"file_name": NAMES, "mask": [[area(8), area(2, "vessel")], [], [], []]})
    assert evaluated(scored).notes == ("1 mask(s) of vessel do not count: the model has no such class",)


def test_a_cell_that_is_no_label_image_is_named(scored):
    put(scored, {"file_name": NAMES, "mask": [b"no picture", label_image(8), label_image(8), label_image(8)]})
    [why] = [why for why in evaluated(scored).not_compared if why.startswith("truth")]
    assert why.startswith("truth cannot be read: ")


@pytest.mark.parametrize(
    ("pattern", "key", "said"),
    [
        ("nowhere.parquet#mask", None, "does not exist"),
        ("truth.parquet#", None, "names no column: write e.g. truth.parquet#mask"),
        ("truth.parquet#masks", None, "has no column masks: its columns are name, mask, size"),
        ("truth.parquet#mask", None, "has no column image_key or file_name: its columns are name, mask, size; --truth"),
        ("truth.parquet#mask", "names", "has no column names: "),
        ("truth.parquet#size", "name", "the column size is int64: masks are bytes of label images"),
        ("job.yaml.parquet#mask", None, "cannot be read as Parquet"),
        ("truth/{stem}.png", "name", "--truth-key name belongs to a table"),
        ("{week}.parquet#mask", None, "has a field {week}; there are {case}, {date}, {folder}"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_sentence(scored, pattern, key, said):
    put(scored, {"name": NAMES, "mask": [label_image(8)] * 4, "size": [1] * 4})
    (scored.folder / "job.yaml.parquet").write_text("no table")
    with pytest.raises(JobError) as error:
        evaluated(scored, pattern, key)
    assert said in str(error.value)


@pytest.mark.parametrize("areas", [[area(2), area(8)], [area(8), area(2)], [area(8), area(0)]])
def test_several_rle_of_a_class_are_together_its_mask(project, areas):
    """One entry for each object, as in COCO; the last entry alone counted."""
    project.fill(DAY, 1)
    project.run()
    put(project, {"file_name": ["000.png"], "mask": [areas]})
    assert shared(evaluated(project)) == (8, 8, 8)


def test_rle_of_several_sizes_are_no_truth_also_where_the_first_is_empty(project):
    project.fill(DAY, 1)
    project.run()
    small = {
        "name": "class_1",
        "rle": {
            "size": [SIZE, 2 * SIZE],
            "counts": pycoco.encode(np.zeros((SIZE, 2 * SIZE), np.uint8, "F"))["counts"].decode(),
        },
    }
    put(project, {"file_name": ["000.png"], "mask": [[small, area(8)]]})
    [why] = evaluated(project).not_compared
    assert why.startswith("truth cannot be read: an RLE has the size")


def test_one_rle_for_each_image_needs_a_model_of_one_class(project):
    from models import threshold_model

    made = threshold_model("nchw", 1, 3, size=SIZE)
    (project.folder / "model.onnx").write_bytes(made.data)
    (project.folder / "model.yaml").write_text(made.contract_yaml)
    project.fill(DAY, 1)
    project.run()
    put(project, {"file_name": [f"{DAY}/000.png"], "mask": [counts(8)]})
    with pytest.raises(JobError, match="the model has 2 classes: write a list of name and rle"):
        evaluated(project)


@pytest.mark.slow
def test_the_command_takes_a_table(scored):
    put(scored, {"name": NAMES, "mask": [label_image(8)] * 4})
    words = ("--truth", "truth.parquet#mask", "--truth-key", "name", "--min-dice", "class_1=0.7")
    result = scored.command("evaluate", "job.yaml", *words)
    assert result.returncode == ExitCode.COMPLETE, result.stderr
    assert last_json(result)["classes"]["class_1"]["mean_dice"] == pytest.approx(0.75)
