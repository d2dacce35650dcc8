"""Masks as runs: COCO run-length text, areas and boxes, all from one pass over a label map.

COCO's text (maskApi.c): column-major runs that start with background; every count from the fourth on is stored as the
difference to the count two before; five bits per character and a continuation bit, from chr(48) on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import ShapeMismatch

Bbox = tuple[int, int, int, int]
"""x, y, width, height in pixels."""

Edges = NDArray[np.int64]
"""Start and stop of each run, alternating and ascending, in column-major pixel order; an even number of values."""

STRIP_ROWS = 16
"""Rows copied at once while transposing: keeps the written columns in the first-level cache."""
LONGEST_COUNT = 7
"""Characters of the longest count COCO can hold: 32 bits in groups of five."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The pixels of one label, as runs down the columns of a label map."""

    size_hw: tuple[int, int]
    starts: NDArray[np.intp]
    """First pixel of each run, counted down the columns from the left."""
    stops: NDArray[np.intp]
    """One past the last pixel of each run; always less than the next start."""

    def area_px(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())

    def bbox(self) -> Bbox:
        """The smallest box around all pixels; (0, 0, 0, 0) around none."""
        if not self.starts.size:
            return 0, 0, 0, 0
        height = self.size_hw[0]
        left, top = np.divmod(self.starts, height)
        right, bottom = np.divmod(self.stops - 1, height)
        x, y, end = int(left[0]), int(top.min()), int(bottom.max())
        if (left != right).any():  # a run that continues in the next column touches the last and the first row
            y, end = 0, height - 1
        return x, y, int(right[-1]) - x + 1, end - y + 1

    def edges(self) -> Edges:
        """Start and stop of each run, alternating."""
        return np.stack([self.starts, self.stops], axis=1).ravel().astype(np.int64)

    def rle(self) -> str:
        """COCO's `counts`, as text; pycocotools reads it with `size` = [height, width]."""
        pixels = self.size_hw[0] * self.size_hw[1]
        edges = np.empty(2 * self.starts.size + 2, np.int64)
        edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = 0, self.starts, self.stops, pixels
        counts = np.diff(edges)
        if counts.size > 1 and counts[-1] == 0:
            counts = counts[:-1]
        return _pack(counts)


def runs_by_label(labels_hw: NDArray[Any]) -> dict[int, Runs]:
    """Label → its runs, for every label that occurs. labels_hw: any integer or bool array (H, W)."""
    height, width = labels_hw.shape
    flat = _transposed(labels_hw).ravel()
    cuts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0], cuts)) if flat.size else cuts
    stops = np.concatenate((cuts, [flat.size])) if flat.size else cuts
    values = flat[starts]
    found = {}
    for label in np.unique(values):
        chosen = values == label
        found[int(label)] = Runs((height, width), starts[chosen], stops[chosen])
    return found


def rle(mask_hw: NDArray[np.bool_]) -> str:
    """COCO's `counts` of a bool mask (H, W)."""
    nowhere = np.empty(0, np.intp)
    return runs_by_label(mask_hw).get(1, Runs((mask_hw.shape[0], mask_hw.shape[1]), nowhere, nowhere)).rle()


def unrle(counts: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The bool mask (H, W) of COCO's `counts`, column-major in memory. Raises ShapeMismatch for invalid counts."""
    height, width = size_hw
    lengths = _lengths(counts, size_hw)
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height).T


def edges(counts: str, size_hw: tuple[int, int]) -> Edges:
    """The edges of the mask of COCO's `counts`. Raises ShapeMismatch if they do not describe a mask of this size."""
    lengths = _lengths(counts, size_hw)
    return np.cumsum(lengths)[: lengths.size // 2 * 2]


def filled(runs: Edges, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The bool mask (H, W) of the edges of its runs, column-major in memory."""
    height, width = size_hw
    lengths = np.diff(runs, prepend=0, append=height * width)
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height).T


def bbox(mask_hw: NDArray[np.bool_]) -> Bbox:
    """The smallest box around the pixels of a bool mask (H, W); (0, 0, 0, 0) around none."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _transposed(labels_hw: NDArray[Any]) -> NDArray[Any]:
    """A contiguous (W, H) copy, in strips: twice as fast as one strided copy if H is a power of two."""
    height, width = labels_hw.shape
    columns = np.empty((width, height), labels_hw.dtype)
    for first in range(0, height, STRIP_ROWS):
        columns[:, first : first + STRIP_ROWS] = labels_hw[first : first + STRIP_ROWS].T
    return columns


def _pack(counts: NDArray[np.int64]) -> str:
    deltas = counts.copy()
    deltas[3:] -= counts[1:-2]
    magnitudes = deltas ^ (deltas >> 63)  # x, or -x - 1 if negative: the bits beside the sign bit
    largest = int(magnitudes.max())
    # Loop over character positions, not counts: nearly every count has one or two characters.
    long = [np.flatnonzero(magnitudes >= 1 << bits) for bits in range(4, 5 * LONGEST_COUNT, 5) if largest >= 1 << bits]
    characters = np.ones(counts.size, np.intp)
    for places in long:
        characters[places] += 1
    offsets = np.cumsum(characters) - characters
    codes = np.empty(int(offsets[-1] + characters[-1]), np.uint8)
    codes[offsets] = (deltas & 31) + 48
    for place, places in enumerate(long, start=1):
        at = offsets[places] + place
        codes[at - 1] += 32  # continuation bit
        codes[at] = ((deltas[places] >> (5 * place)) & 31) + 48
    return codes.tobytes().decode("ascii")


def _lengths(counts: str, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """The lengths of the runs, which start with background."""
    lengths = _unpack(counts)
    height, width = size_hw
    if (lengths < 0).any() or int(lengths.sum()) != height * width:
        pixels = int(lengths.sum())
        raise ShapeMismatch(f"COCO RLE has {pixels} pixels, not {height} x {width}: use the size it was made with")
    return lengths


def _unpack(text: str) -> NDArray[np.int64]:
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ShapeMismatch(f"not a COCO RLE: {text[:40]!r}")
    stops = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate(([0], stops[:-1] + 1))
    characters = stops - starts + 1
    if characters.max() > LONGEST_COUNT:
        raise ShapeMismatch(f"not a COCO RLE, a count has {int(characters.max())} characters: {text[:40]!r}")
    places = np.arange(codes.size) - np.repeat(starts, characters)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    values -= np.where(codes[stops] & 16, np.int64(1) << (5 * characters), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
