"""The truth from a COCO file: pycocotools says what a segmentation covers, and label images say the same figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from project_fixture import SIZE, png, project
from pycocotools import mask as pycoco

from unet_batch.errors import ExitCode, JobError, ShapeMismatch
from unet_batch.planning.survey import window_of
from unet_batch.review.evaluate import Evaluation, evaluate
from unet_batch.review.masks.export import export
from unet_batch.review.truth.coco import mask_of

__all__ = ["project"]

DAY = "2026/11/21"


def top_rows(count: int) -> np.ndarray:
    mask_hw = np.zeros((SIZE, SIZE), bool)
    mask_hw[:count] = True
    return mask_hw


def compressed(mask_hw: np.ndarray) -> dict:
    found = pycoco.encode(np.asfortranarray(mask_hw, np.uint8))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def coco(images: dict[str, list], *, category: str = "class_1", **fields) -> dict:
    """A file with one category: file name → segmentations."""
    entries = list(enumerate(images, start=1))
    return {
        "images": [{"id": n, "file_name": name, "height": SIZE, "width": SIZE} for n, name in entries],
        "categories": [{"id": 7, "name": category}],
        "annotations": [
            {"image_id": n, "category_id": 7, "segmentation": segmentation}
            for n, name in entries
            for segmentation in images[name]
        ],
        **fields,
    }


def evaluated(project, truth: dict | str | bytes) -> Evaluation:
    path = project.folder / "truth.json"
    text = json.dumps(truth) if isinstance(truth, dict) else truth
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return evaluate(project.prepared(), window_of("all"), str(path), top=10)


@pytest.fixture
def scored(project):
    """Predicted are the first 8 rows of 32; `dark` has no mask."""
    project.fill(DAY, 3)
    project.put(f"{DAY}/dark.png", png(1, bright_rows=0))
    project.run()
    return project


def test_annotations_of_one_class_are_one_mask(scored):
    """Truth of `000` is 8 rows in two pieces, of `001` 16 rows, of `002` none; `dark` is not in the file."""
    pieces = [compressed(top_rows(3)), compressed(top_rows(8) & ~top_rows(2))]
    found = evaluated(scored, coco({f"{DAY}/000.png": pieces, "001.png": [compressed(top_rows(16))], "002.png": []}))
    pair = found.classes["class_1"].overlap
    assert (found.images, found.compared, found.not_compared) == (4, 3, {"no truth": 1})
    assert (pair.area_a_px, pair.area_b_px, pair.shared_px) == (24 * SIZE, 24 * SIZE, 16 * SIZE)


@pytest.mark.parametrize(
    "segmentation",
    [
        compressed(top_rows(5)),
        {"size": [SIZE, SIZE], "counts": [0, *[5, SIZE - 5] * SIZE]},
        [[0, 0, SIZE, 0, SIZE, 5, 0, 5]],
        [[3.5, 2.25, 20.0, 4.5, 11.0, 17.75], [25, 25, 30, 25, 30, 30, 25, 30]],
    ],
    ids=["compressed", "counts", "polygon", "polygons"],
)
def test_a_segmentation_covers_what_pycocotools_says(segmentation):
    """Two polygons are one object."""
    runs = pycoco.frPyObjects(segmentation, SIZE, SIZE) if not isinstance(segmentation, dict) else None
    if runs is None:
        plain = isinstance(segmentation["counts"], list)
        runs = [pycoco.frPyObjects(segmentation, SIZE, SIZE) if plain else segmentation]
    expected = np.asarray(pycoco.decode(pycoco.merge(runs)), bool)
    assert expected.any()
    np.testing.assert_array_equal(mask_of(segmentation, (SIZE, SIZE)), expected)


def test_masks_that_this_package_exports_are_a_truth(scored):
    """Equal to themselves, image by image."""
    export(scored.prepared(), window_of("all"), "coco", str(scored.folder / "exported"))
    found = evaluated(scored, (scored.folder / "exported" / "annotations.json").read_bytes())
    assert (found.compared, found.classes["class_1"].mean_dice) == (4, 1.0)


def test_an_image_is_found_by_its_last_name_only_where_that_is_unique(project):
    """Two days with an `000.png` each need their folders in the file."""
    project.fill(DAY, 1)
    project.fill("2026/11/22", 1)
    project.run()
    rows = [compressed(top_rows(8))]
    ambiguous = coco({"a/000.png": rows, "b/000.png": rows})
    assert evaluated(project, ambiguous).not_compared == {"no truth": 2}
    named = coco({f"{DAY}/000.png": rows, "2026/11/22/000.png": []})
    found = evaluated(project, named)
    assert (found.compared, found.classes["class_1"].images_truth) == (2, 1)


def test_one_image_of_the_file_is_not_the_truth_of_two_rows(project):
    """The name alone fits both days: each would be held against the same masks."""
    project.fill(DAY, 1)
    project.fill("2026/11/22", 1)
    project.run()
    with pytest.raises(JobError, match=r"000\.png belongs to .*21/000\.png and to .*22/000\.png"):
        evaluated(project, coco({"000.png": [compressed(top_rows(8))]}))


def test_a_name_that_two_images_of_the_file_have_names_none(scored):
    """Which of the two is meant, nothing says."""
    truth = coco({"000.png": [compressed(top_rows(8))]})
    truth["images"].append({**truth["images"][0], "id": 2})
    assert evaluated(scored, truth).not_compared == {"no truth": 4}


def test_categories_that_are_no_class_are_told(scored):
    """Beside a class they do not count; where no category is a class, names are wrong and the command ends."""
    other = {"categories": [{"id": 7, "name": "class_1"}, {"id": 8, "name": "dust"}]}
    truth = coco({"000.png": [compressed(top_rows(8))]}, **other)
    truth["annotations"].append({"image_id": 1, "category_id": 8, "segmentation": compressed(top_rows(1))})
    assert evaluated(scored, truth).notes == ("1 annotation(s) of dust do not count: the model has no such class",)
    with pytest.raises(JobError, match=r"none of its categories \(Class_1\) is a class of the model \(class_1\)"):
        evaluated(scored, coco({"000.png": [compressed(top_rows(8))]}, category="Class_1"))


@pytest.mark.parametrize(
    ("truth", "sentence"),
    [
        (b"\xff\xfe", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ([], "it has no list `images`"),
        ({"images": [], "annotations": []}, "it has no list `categories`"),
        ({"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}, r"images\[0\] has no valid `height`"),
    ],
)
def test_a_file_that_is_no_coco_file_is_refused_in_a_sentence(scored, truth, sentence):
    """Before any row is read."""
    with pytest.raises(JobError, match=sentence):
        evaluated(scored, json.dumps(truth) if isinstance(truth, list) else truth)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 2, 3]],
        [["a"] * 6],
        {"size": [SIZE, 1], "counts": "0"},
        {"size": [SIZE, SIZE], "counts": "0"},
        {"size": [SIZE, SIZE], "counts": {}},
    ],
)
def test_a_segmentation_that_cannot_be_read_needs_a_person(scored, segmentation):
    """Its image is not compared, and the exit code says so."""
    found = evaluated(scored, coco({"000.png": [segmentation], "001.png": []}))
    [why] = [why for why in found.not_compared if why != "no truth"]
    assert why.startswith("truth cannot be read: ")
    assert found.exit_code([]) == ExitCode.NEEDS_ACTION


def test_counts_beyond_the_image_are_refused():
    """pycocotools alone would write past them."""
    with pytest.raises(ShapeMismatch):
        mask_of({"size": [4, 4], "counts": [0, 17]}, (4, 4))
