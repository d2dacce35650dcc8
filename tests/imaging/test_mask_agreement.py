"""Two masks of one image: figures from runs equal those of pycocotools and of dense arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from unet_batch.errors import ShapeMismatch
from unet_batch.imaging.mask_agreement import ImageAgreement, Overlap, agree
from unet_batch.imaging.masks import edges

SIZES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@st.composite
def stacks(draw, count: int) -> list[np.ndarray]:
    """Bool masks of one size, which may overlap."""
    size_hw = draw(SIZES)
    return [draw(arrays(bool, size_hw)) for _ in range(count)]


@st.composite
def label_maps(draw) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps of one size."""
    size_hw = draw(SIZES)
    return tuple(draw(arrays(np.uint8, size_hw, elements=st.integers(0, 3))) for _ in range(2))


def encoded(mask_hw: np.ndarray) -> dict:
    return coco.encode(np.asfortranarray(mask_hw, np.uint8))


def compared(a: dict[str, np.ndarray], b: dict[str, np.ndarray], pixels: int | None = None) -> ImageAgreement:
    """Masks by class name, as pycocotools writes their runs; empty ones are left out, as in a row."""
    sides = [
        {name: edges(encoded(m)["counts"].decode(), m.shape) for name, m in side.items() if m.any()} for side in (a, b)
    ]
    return agree(*sides, next(iter([*a.values(), *b.values()])).size if pixels is None else pixels)


def by_class(labels_hw: np.ndarray) -> dict[str, np.ndarray]:
    return {f"c{k}": labels_hw == k for k in (1, 2, 3)}


@pytest.mark.slow
@given(stacks(2))
def test_areas_and_intersection_equal_those_of_pycocotools(masks):
    """One class on both sides."""
    a, b = masks
    found = compared({"x": a}, {"x": b}).classes.get("x", Overlap())
    shared = int(coco.area(coco.merge([encoded(a), encoded(b)], intersect=True)))

    assert found == Overlap(int(coco.area(encoded(a))), int(coco.area(encoded(b))), shared)


@given(stacks(2))
def test_iou_is_that_of_pycocotools_and_dice_follows_from_it(masks):
    """Dice = 2 IoU / (1 + IoU)."""
    a, b = masks
    found = compared({"x": a}, {"x": b}).classes
    iou = float(coco.iou([encoded(a)], [encoded(b)], [0])[0, 0]) if a.any() and b.any() else 0.0

    assert [(p.iou, p.dice) for p in found.values()] == (
        [(pytest.approx(iou), pytest.approx(2 * iou / (1 + iou)))] if a.any() or b.any() else []
    )


@given(label_maps())
def test_flips_and_confusion_of_label_maps_are_those_of_dense_arrays(maps):
    """With exclusive classes, the set of classes is the label; None is label 0. Confusion counts only flips."""
    a, b = maps
    found = compared(by_class(a), by_class(b))
    names = {0: None, 1: "c1", 2: "c2", 3: "c3"}
    wanted = {(names[i], names[j]): int(((a == i) & (b == j)).sum()) for i in names for j in names if i != j}

    assert (found.flipped_px, found.pixels) == (int((a != b).sum()), a.size)
    assert found.confusion == {pair: pixels for pair, pixels in wanted.items() if pixels}


@given(stacks(6))
def test_flips_of_overlapping_classes_are_the_pixels_whose_class_set_differs(masks):
    """A pixel that changes two of its classes is one flipped pixel."""
    names = ("x", "y", "z")
    a, b = dict(zip(names, masks[:3], strict=True)), dict(zip(names, masks[3:], strict=True))
    found = compared(a, b)

    assert found.flipped_px == int(np.any([a[name] != b[name] for name in names], axis=0).sum())
    lost_x, gained_y = a["x"] & ~b["x"], b["y"] & ~a["y"]
    lost_any = np.any([a[name] & ~b[name] for name in names], axis=0)
    assert found.confusion.get(("x", "y"), 0) == int((lost_x & gained_y).sum())
    assert found.confusion.get((None, "y"), 0) == int((~lost_any & gained_y).sum())


def test_an_image_by_hand():
    """A is the first row of 3², B the first column and a second class: 5 pixels flip, Dice is 2 · 1 / 6 and 0."""
    a, b, other = (np.zeros((3, 3), bool) for _ in range(3))
    a[0, :] = b[:, 0] = other[1, 1] = True
    found = compared({"x": a}, {"x": b, "y": other})

    assert (found.pixels, found.flipped_px, found.flipped_share) == (9, 5, 5 / 9)
    assert {name: (p.dice, p.iou) for name, p in found.classes.items()} == {"x": (1 / 3, 1 / 5), "y": (0.0, 0.0)}
    assert found.lowest == ("y", 0.0)
    assert found.confusion == {("x", None): 2, (None, "x"): 2, (None, "y"): 1}


def test_classes_are_matched_by_name_and_not_by_order():
    """Two models may give one class different channels."""
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :2], right[:, 2:] = True, True

    assert compared({"x": left, "y": right}, {"y": right, "x": left}).flipped_px == 0


def test_two_empty_masks_agree_in_every_pixel():
    """Two empty masks agree, and their pixels count in the share of flipped pixels; no class has a Dice."""
    found = agree({}, {}, 12)

    assert (found.pixels, found.flipped_px, found.flipped_share) == (12, 0, 0.0)
    assert (found.classes, found.lowest, found.confusion) == ({}, None, {})


def test_a_class_on_one_side_only_has_a_dice_of_0_and_on_neither_side_none():
    """The rule is the same for Dice and IoU."""
    assert (Overlap(4, 0, 0).dice, Overlap(4, 0, 0).iou) == (0.0, 0.0)
    assert (Overlap().dice, Overlap().iou) == (None, None)


def test_an_image_of_no_pixels_has_no_flips():
    """An image that was never decoded."""
    found = agree({}, {}, 0)

    assert (found.flipped_px, found.flipped_share, found.confusion) == (0, 0.0, {})


@pytest.mark.parametrize(
    ("counts", "fault"),
    [("", "not a COCO RLE"), ("124", "has 7 pixels"), ("O7", "has 6 pixels")],
)
def test_runs_that_do_not_match_their_size_are_refused(counts, fault):
    """Empty text, a wrong total, and a negative count."""
    with pytest.raises(ShapeMismatch, match=fault):
        edges(counts, (3, 2))
