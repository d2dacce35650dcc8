"""Masks as polygons: the outlines of connected regions, along the edges of their pixels.

Coordinates are x to the right and y down, in pixels; pixel (row 0, column 0) covers the square from (0, 0) to (1, 1).
So a polygon's area is the region's number of pixels, and drawing it gives the same pixels again.

Regions are 4-connected: pixels that touch at a corner only are two polygons. All rings are simple (no ring meets
itself), and rings of one polygon meet in points at most, so polygons are valid by the rules of OGC Simple Features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.int64]
"""(N, 2): x and y of each corner; the first one is not repeated. Clockwise on the screen for an outside, else for a
hole counter-clockwise (RFC 7946's right-hand rule, read with y upwards)."""


@dataclass(frozen=True, slots=True)
class Polygon:
    """One connected region."""

    outside: Ring
    holes: tuple[Ring, ...]


def polygons(mask_hw: NDArray[np.bool_]) -> list[Polygon]:
    """The regions of a bool mask (H, W), ordered by their first pixel from the top, then from the left."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not rows.size:
        return []
    top, left = int(rows[0]), int(columns[0])
    inside = np.pad(mask_hw[top : rows[-1] + 1, left : columns[-1] + 1], 1)  # pixel (y, x) is inside[y + 1, x + 1]
    rings = list(_rings(inside))
    outsides = [number for number, ring in enumerate(rings) if _area(ring) > 0]
    outsides.sort(key=lambda number: _first(rings[number]))
    holes: dict[int, list[Ring]] = {number: [] for number in outsides}
    for hole, owner in _owners(inside, rings, set(outsides)):
        holes[owner].append(rings[hole])
    corner = np.array([left, top])
    return [Polygon(rings[n] + corner, tuple(hole + corner for hole in holes[n])) for n in outsides]


def _first(ring: Ring) -> tuple[int, int]:
    """y and x of the ring's topmost corner, of several the leftmost one."""
    y = int(ring[:, 1].min())
    return y, int(ring[ring[:, 1] == y, 0].min())


def _area(ring: Ring) -> int:
    """Signed area in pixels: positive for an outside."""
    x, y = ring.T
    around = int(x[-1]) * int(y[0]) - int(x[0]) * int(y[-1])
    return (int(x[:-1] @ y[1:]) - int(x[1:] @ y[:-1]) + around) // 2


def _rings(inside: NDArray[np.bool_]) -> Iterator[Ring]:
    """All simple rings of corners, with the mask on the right-hand side. inside: with a frame of background.

    A corner is a lattice point around which one, three or two diagonal pixels lie inside. It ends one horizontal and
    one vertical side. A diagonal one counts twice, once for each of its two pixels.
    """
    upper, lower = inside[:-1], inside[1:]
    nw, ne, sw, se = upper[:, :-1], upper[:, 1:], lower[:, :-1], lower[:, 1:]
    diagonal = (nw == se) & (ne == sw) & (nw != ne)
    corner = diagonal | (nw ^ ne ^ sw ^ se)
    y, x = np.nonzero(corner)
    twice = diagonal[y, x]
    y, x, twice = np.repeat(y, 1 + twice), np.repeat(x, 1 + twice), np.repeat(twice, 1 + twice)
    second = np.zeros(y.size, bool)
    second[1:] = twice[1:] & (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    # Horizontal sides join neighbours of a row: in row order, the corners 0 and 1, 2 and 3, ... At a diagonal corner
    # the first one ends the side on the left, the second one begins the side on the right.
    begin, end = np.arange(0, y.size, 2), np.arange(1, y.size, 2)
    rightwards = se[y[begin], x[begin]]  # the mask is below: it is on the right-hand side of who walks to the right
    start, stop = np.where(rightwards, begin, end), np.where(rightwards, end, begin)
    # Vertical sides likewise, in column order. At a diagonal corner the upper side comes first: it belongs to the left
    # one of the two where the left pixel is the upper one (nw).
    below = np.where(twice, second == nw[y, x], 0)
    order = np.lexsort((below, y, x))
    across = np.empty(y.size, np.intp)
    across[order[::2]], across[order[1::2]] = order[1::2], order[::2]
    following = np.empty(y.size, np.intp)
    following[start] = across[stop]
    yield from _walked(x.tolist(), y.tolist(), start.tolist(), stop[np.argsort(start)].tolist(), following.tolist())


def _walked(x: list[int], y: list[int], starts: list[int], stops: list[int], following: list[int]) -> Iterator[Ring]:
    """The rings of the sides. following: by the corner that begins a horizontal side, the one that begins the next.

    stops: by the rank of `starts`, where each horizontal side ends.
    """
    end_of = dict(zip(sorted(starts), stops, strict=True))
    walked: set[int] = set()
    for first in starts:
        if first in walked:
            continue
        here = first
        walk: list[tuple[int, int]] = []
        seen: dict[tuple[int, int], int] = {}
        while True:
            walked.add(here)
            for corner in (here, end_of[here]):
                point = x[corner], y[corner]
                if point in seen:  # the walk was here before: what lies between is a ring of its own
                    yield np.array(walk[seen[point] :], np.int64)
                    for passed in walk[seen[point] :]:
                        del seen[passed]
                    del walk[len(seen) :]
                seen[point] = len(walk)
                walk.append(point)
            here = following[here]
            if here == first:
                break
        yield np.array(walk, np.int64)


def _owners(inside: NDArray[np.bool_], rings: list[Ring], outsides: set[int]) -> Iterator[tuple[int, int]]:
    """Each hole and the outside of its region.

    The pixel to the left of a hole's leftmost side begins a row of pixels of the same region. The side at the other end
    of that row belongs to the region's outside, or to a hole that lies further to the left.
    """
    holes = [number for number in range(len(rings)) if number not in outsides]
    if not holes:
        return
    sides = _vertical_sides(rings)
    owner = {number: number for number in outsides}
    for number in sorted(holes, key=lambda hole: int(rings[hole][:, 0].min())):
        ring = rings[number]
        x = int(ring[:, 0].min())
        y = int(ring[ring[:, 0] == x, 1].min())
        row = inside[y + 1, : x + 1]  # ends with the pixel on the left of the side
        begin = int(np.flatnonzero(~row)[-1])
        owner[number] = owner[sides(begin, y)]
        yield number, owner[number]


class _Sides:
    """Looks vertical sides up by a place on them."""

    def __init__(self, places: NDArray[np.int64], rings: NDArray[np.int64], height: int) -> None:
        order = np.argsort(places)
        self._places, self._rings, self._height = places[order], rings[order], height

    def __call__(self, x: int, y: int) -> int:
        """The ring whose side covers the row of pixels y at x."""
        return int(self._rings[np.searchsorted(self._places, x * self._height + y, side="right") - 1])


def _vertical_sides(rings: list[Ring]) -> _Sides:
    sizes = np.array([len(ring) for ring in rings])
    x, y = np.concatenate(rings).T
    after = np.arange(1, x.size + 1)
    after[np.cumsum(sizes) - 1] = np.cumsum(sizes) - sizes  # behind its last corner, a ring goes on with its first
    height = 1 + int(y.max())
    vertical = x == x[after]
    places = x * height + np.minimum(y, y[after])
    return _Sides(places[vertical], np.repeat(np.arange(sizes.size), sizes)[vertical], height)
