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
BLOCK_PX = 1 << 18
"""Pixels of the columns that are transposed and compared at once: they stay in the second-level cache."""
FEW_CHANGES = 1 / 16
"""Share of pixels that start a run, up to which their places are sorted. Above, the label map is transposed."""
CHUNK = 1 << 15
"""Runs or counts that are computed at once: they stay in the second-level cache."""
LONGEST_COUNT = 7
"""Characters of the longest count COCO can hold: 32 bits in groups of five."""

Places = NDArray[np.signedinteger[Any]]
"""Pixels, counted down the columns from the left; 32 bits if all pixels of the map can be counted with them."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The pixels of one label, as runs down the columns of a label map."""

    size_hw: tuple[int, int]
    bounds: Places
    """First pixel of each run and one past its last, alternating; a run always ends before the next one starts."""

    def area_px(self) -> int:
        """Number of pixels."""
        return int((self.bounds[1::2] - self.bounds[::2]).sum(dtype=np.int64))

    def bbox(self) -> Bbox:
        """The smallest box around all pixels; (0, 0, 0, 0) around none."""
        if not self.bounds.size:
            return 0, 0, 0, 0
        height = self.size_hw[0]
        x = int(self.bounds[0]) // height
        width = (int(self.bounds[-1]) - 1) // height - x + 1
        y, bottom = height - 1, 0
        for first in range(0, self.bounds.size, 2 * CHUNK):
            pairs = self.bounds[first : first + 2 * CHUNK]
            above = pairs[::2] // height * height  # the first pixel of the run's first column
            y, bottom = min(y, int((pairs[::2] - above).min())), max(bottom, int((pairs[1::2] - above).max()) - 1)
            if bottom >= height:  # a run that continues in the next column touches the last and the first row
                y, bottom = 0, height - 1
            if (y, bottom) == (0, height - 1):
                break
        return x, y, width, bottom - y + 1

    def edges(self) -> Edges:
        """Start and stop of each run, alternating."""
        return self.bounds.astype(np.int64)

    def rle(self) -> str:
        """COCO's `counts`, as text; pycocotools reads it with `size` = [height, width]."""
        pixels, runs = self.size_hw[0] * self.size_hw[1], self.bounds.size
        counts = np.empty(runs + 1, self.bounds.dtype)
        counts[0], counts[-1] = 0, pixels
        counts[:runs] = self.bounds
        counts[1:] -= self.bounds
        return _pack(counts if counts.size == 1 or counts[-1] else counts[:-1])


def runs_by_label(labels_hw: NDArray[Any], *, without: int | None = None) -> dict[int, Runs]:
    """Label → its runs, for every label that occurs. labels_hw: any integer or bool array (H, W).

    without: a label that is not wanted, such as the background.
    """
    if not labels_hw.size:
        return {}
    height, width = labels_hw.shape
    lowest, highest = int(labels_hw.min()), int(labels_hw.max())
    bounds, labels = _runs(np.ascontiguousarray(labels_hw), labelled=highest - lowest > 1)
    found = {}
    if labels is None:  # at most two labels, which alternate
        first = int(labels_hw[0, 0])
        for label in range(lowest, highest + 1):
            begin = int(label != first)
            found[label] = bounds[begin : begin + (bounds.size - begin) // 2 * 2]
    else:
        for value in _occurring(labels, lowest, highest):
            if value != without:
                found[value] = _pairs(bounds, labels == value)
    return {label: Runs((height, width), pairs) for label, pairs in found.items() if label != without}


def rle(mask_hw: NDArray[np.bool_]) -> str:
    """COCO's `counts` of a bool mask (H, W)."""
    nowhere = Runs((mask_hw.shape[0], mask_hw.shape[1]), np.empty(0, np.int32))
    return runs_by_label(mask_hw, without=0).get(1, nowhere).rle()


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


def _runs(labels_hw: NDArray[Any], *, labelled: bool) -> tuple[Places, NDArray[Any] | None]:
    """The first pixel of every run of equal labels and, last, the number of pixels; the label of each run if wanted.

    labels_hw: C-contiguous, not empty.
    """
    height, width = labels_hw.shape
    wide = labels_hw.size > np.iinfo(np.int32).max
    dtype: np.dtype[np.signedinteger[Any]] = np.dtype(np.int64 if wide else np.int32)
    changed_hw = labels_hw[1:] != labels_hw[:-1]
    changes = np.count_nonzero(changed_hw)
    if changes > FEW_CHANGES * labels_hw.size:
        return _dense_runs(labels_hw, dtype, labelled=labelled)
    tops = np.flatnonzero(labels_hw[0, 1:] != labels_hw[-1, :-1]) + 1  # a column that continues the one before has none
    bounds = np.empty(1 + tops.size + changes + 1, dtype)
    bounds[0], bounds[-1] = 0, labels_hw.size
    np.multiply(tops, height, out=bounds[1 : 1 + tops.size], casting="same_kind")
    place = np.flatnonzero(changed_hw).astype(dtype)
    row = place // width
    column = place - row * width
    bounds[1 + tops.size : -1] = column * height + (row + 1)
    bounds.sort()
    if not labelled:
        return bounds, None
    column = bounds[:-1] // height
    return bounds, labels_hw[bounds[:-1] - column * height, column]


def _dense_runs(
    labels_hw: NDArray[Any], dtype: np.dtype[np.signedinteger[Any]], *, labelled: bool
) -> tuple[Places, NDArray[Any] | None]:
    """As `_runs`, for many runs: blocks of columns are transposed and compared."""
    height, width = labels_hw.shape
    wide = max(1, BLOCK_PX // height)
    bounds, labels = [], []
    above = None
    for left in range(0, width, wide):
        block = _transposed(labels_hw[:, left : left + wide]).ravel()
        changed = np.empty(block.size, bool)
        changed[0] = above is None or block[0] != above
        np.not_equal(block[1:], block[:-1], out=changed[1:])
        above = block[-1]
        place = np.flatnonzero(changed)
        if labelled:
            labels.append(block[place])
        place += left * height
        bounds.append(place.astype(dtype))
    bounds.append(np.array([labels_hw.size], dtype))
    return np.concatenate(bounds), np.concatenate(labels) if labelled else None


def _occurring(labels: NDArray[Any], lowest: int, highest: int) -> list[int]:
    """The different labels, ascending."""
    if lowest < 0 or highest >= CHUNK:
        return [int(value) for value in np.unique(labels)]
    occurs = np.zeros(highest + 1, bool)
    for first in range(0, labels.size, CHUNK):
        occurs[labels[first : first + CHUNK]] = True
    return [int(value) for value in np.flatnonzero(occurs)]


def _pairs(bounds: Places, chosen: NDArray[np.bool_]) -> Places:
    """Start and stop of the chosen runs, alternating. bounds: of all runs, as in `_runs`."""
    pairs = np.empty((np.count_nonzero(chosen), 2), bounds.dtype)
    done = 0
    for first in range(0, chosen.size, CHUNK):
        run = np.flatnonzero(chosen[first : first + CHUNK])
        run += first
        some = pairs[done : done + run.size]
        some[:, 0] = bounds[run]
        run += 1
        some[:, 1] = bounds[run]
        done += run.size
    return pairs.ravel()


def _transposed(labels_hw: NDArray[Any]) -> NDArray[Any]:
    """A contiguous (W, H) copy, in strips: twice as fast as one strided copy if H is a power of two."""
    height, width = labels_hw.shape
    columns = np.empty((width, height), labels_hw.dtype)
    for first in range(0, height, STRIP_ROWS):
        columns[:, first : first + STRIP_ROWS] = labels_hw[first : first + STRIP_ROWS].T
    return columns


def _pack(counts: NDArray[Any]) -> str:
    """COCO's text of counts, int32 or int64, at least one."""
    return b"".join(_packed(counts, first) for first in range(0, counts.size, CHUNK)).decode("ascii")


def _packed(counts: NDArray[Any], first: int) -> bytes:
    """The characters of the counts [first, first + CHUNK)."""
    deltas = counts[first : first + CHUNK].copy()
    head = max(3 - first, 0)
    deltas[head:] -= counts[max(first - 2, 1) : first - 2 + deltas.size]
    magnitudes = deltas ^ (deltas >> (8 * deltas.itemsize - 1))  # x, or -x - 1 if negative: the bits beside the sign
    largest = int(magnitudes.max())
    characters = 1 + sum(largest >= 1 << bits for bits in range(4, 5 * LONGEST_COUNT, 5))
    # One row for each count: its characters, and zeros, which are removed. A scatter takes three times as long.
    codes = np.empty((deltas.size, characters), np.uint8)
    longer = None
    for place in range(characters):
        code = (deltas & 31).astype(np.uint8)
        code += 48
        if longer is not None:
            code *= longer
        longer = (magnitudes >= 16).view(np.uint8)
        if place + 1 < characters:
            code += longer << 5  # continuation bit
            magnitudes >>= 5
            deltas >>= 5
        codes[:, place] = code
    return codes.tobytes() if characters == 1 else codes.tobytes().translate(None, b"\0")


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
