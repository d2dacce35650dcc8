"""One image on two sides: figures from runs equal those of pycocotools and of dense arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from unet_batch.errors import ShapeMismatch
from unet_batch.table import pairs
from unet_batch.table.pairs import (
    OK,
    ClassMask,
    ImageAgreement,
    Row,
    covered_px,
    differing,
    edges,
    inside_px,
    same_size,
)

SIZES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@st.composite
def stacks(draw, count: int) -> list[np.ndarray]:
    """Bool masks of one size, which may overlap."""
    size_hw = draw(SIZES)
    return [draw(arrays(bool, size_hw)) for _ in range(count)]


@st.composite
def label_maps(draw) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps of one size, whose labels exclude each other."""
    size_hw = draw(SIZES)
    return tuple(draw(arrays(np.uint8, size_hw, elements=st.integers(0, 3))) for _ in range(2))


def encoded(mask_hw: np.ndarray) -> dict:
    return coco.encode(np.asfortranarray(mask_hw, np.uint8))


def edges_of(mask_hw: np.ndarray) -> np.ndarray:
    return edges(encoded(mask_hw)["counts"].decode(), mask_hw.shape)


def row(masks: dict[str, np.ndarray], *, rle: bool = True, source_px: int = 0) -> Row:
    """A prediction with these masks, written by pycocotools."""
    cells = {
        name: ClassMask(
            int(m.sum()),
            m.sum() / m.size,
            m.shape if rle else None,
            encoded(m)["counts"].decode() if rle else None,
        )
        for name, m in masks.items()
        if m.any()
    }
    return Row("memory://a/1.png", None, 0, OK, source_px, None, cells)


def measure(a: Row, b: Row) -> ImageAgreement:
    return pairs.measure("key", a, b)


@pytest.mark.slow
@given(stacks(2))
def test_the_intersection_of_runs_equals_that_of_pycocotools(masks):
    """Areas less their difference, halved, is what both masks have."""
    a, b = masks
    shared = (inside_px(edges_of(a)) + inside_px(edges_of(b)) - inside_px(differing(edges_of(a), edges_of(b)))) // 2

    assert shared == int(coco.area(coco.merge([encoded(a), encoded(b)], intersect=True)))
    assert inside_px(edges_of(a)) == int(coco.area(encoded(a)))


@given(st.integers(0, 4).flatmap(stacks))
def test_the_union_of_runs_equals_that_of_dense_masks(masks):
    """A pixel that several masks have counts once."""
    assert covered_px([edges_of(m) for m in masks]) == (int(np.any(masks, axis=0).sum()) if masks else 0)


@given(label_maps())
def test_flips_of_label_maps_are_the_pixels_whose_label_differs(maps):
    """Where classes exclude each other, the class set is the label."""
    a, b = maps
    found = measure(*(row({f"c{k}": m == k for k in (1, 2, 3)}) for m in maps))

    assert found.flipped_px == int((a != b).sum())
    assert {p.name: (p.area_a_px, p.area_b_px, p.shared_px) for p in found.classes} == {
        f"c{k}": (int((a == k).sum()), int((b == k).sum()), int(((a == k) & (b == k)).sum()))
        for k in (1, 2, 3)
        if (a == k).any() or (b == k).any()
    }


@given(stacks(6))
def test_flips_of_overlapping_classes_are_the_pixels_whose_class_set_differs(masks):
    """A pixel that changes two of its classes is one flipped pixel."""
    names = ("x", "y", "z")
    a, b = dict(zip(names, masks[:3], strict=True)), dict(zip(names, masks[3:], strict=True))
    wanted = np.any([a[name] != b[name] for name in names], axis=0)

    assert measure(row(a), row(b)).flipped_px == int(wanted.sum())


@given(stacks(2))
def test_dice_follows_from_the_iou_of_pycocotools(masks):
    """Dice = 2 IoU / (1 + IoU)."""
    a, b = masks
    found = measure(row({"x": a}), row({"x": b})).classes
    iou = float(coco.iou([encoded(a)], [encoded(b)], [0])[0, 0]) if a.any() and b.any() else 0.0

    assert [p.dice for p in found] == ([pytest.approx(2 * iou / (1 + iou))] if a.any() or b.any() else [])


def test_an_image_by_hand():
    """A is the first row of 3², B the first column and a second class: 5 pixels flip, Dice is 2 · 1 / 6 and 0."""
    a, b, other = (np.zeros((3, 3), bool) for _ in range(3))
    a[0, :] = b[:, 0] = other[1, 1] = True
    found = measure(row({"x": a}), row({"x": b, "y": other}))

    assert (found.pixels, found.flipped_px, found.flipped_share) == (9, 5, 5 / 9)
    assert [(p.name, p.dice) for p in found.classes] == [("x", 1 / 3), ("y", 0.0)]
    assert found.lowest.name == "y"


def test_classes_meet_by_name_whatever_their_order():
    """Two models may give one class different channels."""
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :2], right[:, 2:] = True, True

    assert measure(row({"x": left, "y": right}), row({"y": right, "x": left})).flipped_px == 0


def test_two_empty_masks_agree_in_every_pixel_of_the_source():
    """Nothing on both sides is agreement, and counts in the share of flipped pixels."""
    found = measure(row({}, source_px=12), row({}, source_px=12))

    assert (found.pixels, found.flipped_px, found.flipped_share, found.lowest) == (12, 0, 0.0, None)


def test_without_runs_areas_are_compared_and_dice_is_a_bound():
    """Areas of 4 and 2 allow a Dice of 2 · 2 / 6 at most; flips stay unknown."""
    a, b = np.zeros((3, 3), bool), np.zeros((3, 3), bool)
    a.flat[:4] = b.flat[:2] = True
    for found in (measure(row({"x": a}, rle=False), row({"x": b})), measure(row({"x": a}), row({"x": b}, rle=False))):
        assert (found.flipped_px, found.flipped_share, found.pixels) == (None, None, 9)
        assert [(p.area_a_px, p.area_b_px, p.shared_px, p.dice) for p in found.classes] == [(4, 2, None, 2 / 3)]


def test_masks_of_another_size_are_seen_with_runs_and_without():
    """Turned masks have as many pixels, so only runs tell them apart; an empty mask fits any."""
    wide, tall, small = np.ones((2, 4), bool), np.ones((4, 2), bool), np.ones((2, 2), bool)

    assert not same_size(row({"x": wide}), row({"x": tall}))
    assert same_size(row({"x": wide}), row({"y": wide}))
    assert same_size(row({"x": wide}), row({}, source_px=99))
    assert not same_size(row({"x": wide}, rle=False), row({"x": small}))
    assert same_size(row({"x": wide}, rle=False), row({"x": tall}, rle=False))


@pytest.mark.parametrize(
    ("counts", "fault"),
    [("", "not a COCO RLE"), ("124", "has 7 pixels"), ("O7", "has 6 pixels")],
)
def test_runs_that_are_no_mask_of_their_size_are_refused(counts, fault):
    """Empty text, a wrong total, and a negative count."""
    with pytest.raises(ShapeMismatch, match=fault):
        edges(counts, (3, 2))


def test_runs_that_contradict_their_area_are_refused():
    """area_px is what other engines sum up: a row that contradicts itself is no witness."""
    mask = np.ones((2, 2), bool)
    honest, lying = row({"x": mask}), row({"x": mask})
    lying.classes["x"] = ClassMask(3, 0.75, (2, 2), encoded(~mask)["counts"].decode())
    with pytest.raises(ShapeMismatch, match="area_px is 3"):
        measure(honest, lying)
