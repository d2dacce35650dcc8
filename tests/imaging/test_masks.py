"""Masks as runs: equal to pycocotools, exact in both directions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from unet_batch.errors import ShapeMismatch
from unet_batch.imaging.masks import bbox, rle, runs_by_label, unrle

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
LABELS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24), elements=st.integers(0, 3))


def coco_counts(mask_hw: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask_hw, np.uint8))["counts"].decode()


@given(MASKS)
@settings(max_examples=150, deadline=None)
def test_rle_equals_pycocotools(mask):
    """The text is the library's own, character by character."""
    assert rle(mask) == coco_counts(mask)


@given(MASKS)
@settings(max_examples=150, deadline=None)
def test_unrle_reads_what_pycocotools_wrote(mask):
    """Reading back is exact."""
    np.testing.assert_array_equal(unrle(coco_counts(mask), mask.shape), mask)


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_boxes_equal_pycocotools(mask):
    """x, y, width, height, by both ways to a box; zeros for an empty mask."""
    wanted = tuple(int(v) for v in coco.toBbox({"size": list(mask.shape), "counts": coco_counts(mask).encode()}))

    assert bbox(mask) == wanted
    assert not mask.any() or runs_by_label(mask)[1].bbox() == wanted


@given(LABELS)
@settings(max_examples=100, deadline=None)
def test_the_runs_of_a_label_map_are_those_of_each_mask(labels):
    """One pass over the map gives every label its own area, box and text."""
    runs = runs_by_label(labels)

    assert sorted(runs) == np.unique(labels).tolist()
    assert {k: r.rle() for k, r in runs.items()} == {k: coco_counts(labels == k) for k in runs}
    assert {k: r.area_px() for k, r in runs.items()} == {k: int((labels == k).sum()) for k in runs}
    assert {k: r.bbox() for k, r in runs.items()} == {k: bbox(labels == k) for k in runs}


def noise(share: float, size_hw: tuple[int, int], labels: int) -> np.ndarray:
    """Stripes with a share of their pixels drawn anew: few runs or many, of labels 0 to `labels` − 1."""
    random = np.random.default_rng(11)
    rows = np.arange(size_hw[0])[:, None] // 37 + np.arange(size_hw[1]) // 53
    drawn = random.integers(0, labels, size_hw)
    return np.where(random.random(size_hw) < share, drawn, rows % labels).astype(np.uint8)


@pytest.mark.parametrize("labels", [2, 3, 9])
@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.3, 1])
@pytest.mark.parametrize("size_hw", [(700, 1100), (3, 100_000), (100_000, 3)])
def test_large_maps_have_the_runs_of_each_mask_from_none_to_all_noise(size_hw, share, labels):
    """Few changes are sorted, many are found in blocks of columns; boxes and texts are made in chunks."""
    map_hw = noise(share, size_hw, labels)
    runs = runs_by_label(map_hw, without=0)

    assert sorted(runs) == [label for label in range(1, labels) if (map_hw == label).any()]
    assert {k: r.rle() for k, r in runs.items()} == {k: coco_counts(map_hw == k) for k in runs}
    assert {k: r.area_px() for k, r in runs.items()} == {k: int((map_hw == k).sum()) for k in runs}
    assert {k: r.bbox() for k, r in runs.items()} == {k: bbox(map_hw == k) for k in runs}


@pytest.mark.parametrize("share", [0.01, 1])
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.astype(np.int64) - 4,
        lambda m: m.astype(np.int64) * 10**12,
        lambda m: m.astype(np.uint16) * 21_845,
        lambda m: m > 1,
        lambda m: m.T,
        lambda m: m[::-1, ::2],
    ],
    ids=["negative", "huge", "uint16", "bool", "column-major", "strided"],
)
def test_labels_may_be_of_any_integer_type_and_lie_in_memory_in_any_order(change, share):
    """The runs are those of each label's mask."""
    map_hw = change(noise(share, (130, 90), 4))
    runs = runs_by_label(map_hw)

    assert sorted(runs) == np.unique(map_hw).tolist()
    assert {k: r.rle() for k, r in runs.items()} == {k: coco_counts(map_hw == k) for k in runs}
    assert {k: r.edges().tolist() for k, r in runs.items()} == {
        k: np.flatnonzero(np.diff((map_hw == k).ravel(order="F"), prepend=False, append=False)).tolist() for k in runs
    }


@pytest.mark.parametrize("size_hw", [(2000, 700), (1024, 1024), (3, 100_000)])
def test_long_runs_take_as_many_characters_as_pycocotools(size_hw):
    """Counts of more than 5, 10, 15 and 20 bits."""
    mask = np.zeros(size_hw, bool)
    mask[1:, 13:600:7] = True
    mask[:, 640:] = True

    assert rle(mask) == coco_counts(mask)
    np.testing.assert_array_equal(unrle(rle(mask), size_hw), mask)


def test_a_small_mask_by_hand():
    """Golden: 1 zero, 2 ones, 1 zero, 2 ones (minus the count two before: 0), down the columns."""
    mask = np.array([[0, 0], [1, 1], [1, 1]], bool)

    assert rle(mask) == "1210"


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        ("", "not a COCO RLE"),
        ("1 2", "not a COCO RLE"),
        ("1é", "not a COCO RLE"),
        ("12P", "not a COCO RLE"),
        ("P" * 9 + "1", "10 characters"),
        ("124", "has 7 pixels"),
        ("O7", "has 6 pixels"),
    ],
)
def test_text_that_does_not_match_the_size_is_refused(counts, fault):
    """Bad characters, an unfinished or endless count, a wrong total, a negative count."""
    with pytest.raises(ShapeMismatch, match=fault):
        unrle(counts, (3, 2))
