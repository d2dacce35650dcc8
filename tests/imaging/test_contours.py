"""Polygons of masks: filled again they are the masks, and they are valid geometries."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from unet_batch.imaging.contours import polygons


def filled(ring: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Winding number of each pixel, by counting the vertical sides to the right of it."""
    winding = np.zeros(shape, int)
    for (x, y), (to_x, to_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if x == to_x:
            winding[min(y, to_y) : max(y, to_y), :x] += 1 if to_y > y else -1
    return winding


def drawn(polygon, shape: tuple[int, int]) -> np.ndarray:
    return filled(polygon.outside, shape) + sum((filled(hole, shape) for hole in polygon.holes), np.zeros(shape, int))


def connected(region: np.ndarray) -> bool:
    """Whether the pixels are one region of neighbours that share a side."""
    left = set(zip(*np.nonzero(region), strict=True))
    todo = [left.pop()]
    while todo:
        y, x = todo.pop()
        for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if near in left:
                left.remove(near)
                todo.append(near)
    return not left


def test_a_ring_with_a_hole_by_hand():
    """x to the right, y down, along the outer edges of the pixels; the outside clockwise on the screen."""
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2:5] = True
    mask[2, 3] = False
    [found] = polygons(mask)
    assert found.outside.tolist() == [[2, 1], [5, 1], [5, 4], [2, 4]]
    [hole] = found.holes
    assert sorted(hole.tolist()) == [[3, 2], [3, 3], [4, 2], [4, 3]]
    assert filled(hole, mask.shape).sum() == -1


def test_pixels_that_touch_at_a_corner_are_two_polygons():
    assert [p.outside.tolist() for p in polygons(np.eye(2, dtype=bool))] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]


def test_an_outside_that_would_meet_itself_becomes_an_outside_and_a_hole():
    """The ring of pixels is closed by a corner only: shapely calls a self-touching outside invalid."""
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    [found] = polygons(mask)
    assert len(found.outside) == 6
    [hole] = found.holes
    assert sorted(hole.tolist()) == [[1, 1], [1, 2], [2, 1], [2, 2]]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_polygons_filled_again_are_the_mask(share):
    """400 random masks of up to 12²: every pixel once, each polygon one region, no ring meets itself."""
    random = np.random.default_rng(int(share * 10))
    for _ in range(400):
        mask = random.random(random.integers(1, 13, 2)) < share
        total = np.zeros(mask.shape, int)
        for polygon in polygons(mask):
            region = drawn(polygon, mask.shape)
            assert set(np.unique(region)) <= {0, 1}, mask
            assert connected(region), mask
            for ring in (polygon.outside, *polygon.holes):
                assert len({tuple(corner) for corner in ring.tolist()}) == len(ring), mask
                steps = np.roll(ring, -1, axis=0) - ring
                turns = (steps != 0).argmax(axis=1)
                assert ((steps != 0).sum(axis=1) == 1).all(), mask
                assert (turns != np.roll(turns, 1)).all(), mask
            total += region
        np.testing.assert_array_equal(total, mask)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_shapely_takes_every_polygon_and_finds_its_area(share):
    """200 random masks of up to 24²: valid geometries that do not overlap, of as many pixels as the mask has."""
    random = np.random.default_rng(int(share * 10))
    for _ in range(200):
        mask = random.random(random.integers(1, 25, 2)) < share
        found = [shapely.Polygon(polygon.outside, polygon.holes) for polygon in polygons(mask)]
        assert all(polygon.is_valid for polygon in found), mask
        assert shapely.union_all(found).area == sum(polygon.area for polygon in found) == mask.sum(), mask


def test_an_empty_mask_has_no_polygon():
    assert polygons(np.zeros((3, 4), bool)) == []
