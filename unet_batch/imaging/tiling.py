"""Tiles: their places in a fitted picture, and how their logits are blended into one map (as MONAI or nnU-Net do).

Boxes, weights and sums only. The picture is already padded to at least one tile (`preprocess`).
Legend: H, W pixels; K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import ShapeMismatch
from unet_batch.imaging.resize import resize_logits
from unet_batch.spec import Placement, TilingSpec

LOWEST_WEIGHT = 1e-3
"""Smallest Gaussian weight (MONAI): corners still count, and a sum of weights is never 0."""
NNUNET_PEAK = 10
"""Largest weight of nnU-Net's Gaussian; it decides which small weights float16 can hold."""
CACHED_PIXELS = 1 << 22
"""Largest picture whose sums of weights are cached for the next picture of the same geometry (16 MiB each)."""


@dataclass(frozen=True, slots=True)
class Halo:
    """The border of a tile that the model reads and that has no output."""

    margin: int = 0
    """Its width on each side, in pixels (`output.margin`)."""
    step: int = 1
    """With a margin, tiles start at multiples of this (`input.multiple`): pooling then sees the same windows as in the
    whole picture, and every tile gives the whole picture's output."""


NO_HALO = Halo()


@dataclass(frozen=True, slots=True)
class Box:
    """The place of a tile's output in the fitted picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices: `image_hwc[box.slices]` is the tile, `logits_khw[:, *box.slices]` its logits."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def with_border(self, margin: int) -> tuple[slice, slice]:
        """Row and column slices of the whole tile in the picture with its border of `margin` pixels."""
        bottom, right = self.top + self.height + 2 * margin, self.left + self.width + 2 * margin
        return slice(self.top, bottom), slice(self.left, right)


def grid(
    size_hw: tuple[int, int],
    tile_hw: tuple[int, int],
    overlap: float,
    placement: Placement = "stride",
    halo: Halo = NO_HALO,
) -> list[Box]:
    """The tiles of a picture, row by row, all of one size; together they cover every pixel.

    tile_hw: size of a tile's output, without its halo. The last tile of an axis ends at the picture's edge. overlap,
    placement: see `starts`. Raises ShapeMismatch if the picture is smaller than a tile.
    """
    if size_hw[0] < tile_hw[0] or size_hw[1] < tile_hw[1]:
        raise ShapeMismatch(f"a picture of {size_hw} is smaller than its tile of {tile_hw}: fit pads it first")
    tops, lefts = (starts(n, r, overlap, placement, halo) for n, r in zip(size_hw, tile_hw, strict=True))
    return [Box(top, left, *tile_hw) for top, left in product(tops, lefts)]


def starts(length: int, side: int, overlap: float, placement: Placement = "stride", halo: Halo = NO_HALO) -> list[int]:
    """Where the tiles of one axis start.

    overlap: share of a tile that its neighbour also covers. stride: max(1, int(side · (1 − overlap))), the last tile
    pulled back (MONAI 1.6 dense_patch_slices); with a halo, which counts as overlap, outputs overlap only as far as the
    halo is narrower than that. even: as many tiles as strides of at most side · (1 − overlap) need, at equal distances,
    rounded half to even (nnU-Net 2.8 compute_steps_for_sliding_window).
    """
    if side >= length:
        return [0]
    if placement == "even":
        step = round(1 - overlap, 12)  # overlap 0.9 means nnU-Net's tile_step_size of 0.1, not 0.09999999999999998
        last = math.ceil((length - side) / (side * step))
        # Equal starts can come only from a stride below a pixel; each tile counts once.
        return list(dict.fromkeys(round((length - side) / last * k) for k in range(last + 1)))
    # In floating point, as MONAI does: side 10 and overlap 0.8 give stride 1, not 2.
    stride = max(1, int((side + 2 * halo.margin) * (1 - overlap)))
    if halo.margin:
        stride = min(stride, side)
        step = halo.step if side >= halo.step else 1
        stride = max(stride // step, 1) * step
    return [min(k * stride, length - side) for k in range(-(-(length - side) // stride) + 1)]


class Canvas:
    """Blends the logits of the tiles of one fitted picture: float32 sums of weight · logits.

    The logits of a picture with a single tile are returned as they were added: no sum, no copy, their own size.
    Labels and masks of 0 and 1 are not averaged: each tile writes only the pixels that it owns (`_owned`).
    """

    def __init__(
        self,
        size_hw: tuple[int, int],
        tile_hw: tuple[int, int],
        tiling: TilingSpec,
        *,
        decided: bool = False,
        halo: Halo = NO_HALO,
    ) -> None:
        """size_hw: of the fitted picture. tile_hw: size of a tile's output, without its halo."""
        self._halo = halo
        self._decided = decided
        self._size_hw = (size_hw[0], size_hw[1])
        self._tile_hw = (tile_hw[0], tile_hw[1])
        self._tiling = tiling
        self._missing = set(grid(self._size_hw, self._tile_hw, tiling.overlap, tiling.placement, halo))
        self._one_tile = len(self._missing) == 1
        self._sum_khw: NDArray[np.float32] | None = None

    def add(self, box: Box, logits_khw: NDArray[Any]) -> None:
        """Add the logits of one tile, in any order.

        logits_khw: any float (K, h, w); resized to the box if the network returns another resolution.
        Raises ShapeMismatch if the box is not in the grid, was added before, or K differs from earlier tiles.
        """
        if box not in self._missing:
            raise ShapeMismatch(f"{box} is not a tile of this picture of {self._size_hw}, or was added twice")
        if self._sum_khw is not None and len(logits_khw) != len(self._sum_khw):
            raise ShapeMismatch(f"{box} has {len(logits_khw)} classes, earlier tiles have {len(self._sum_khw)}")
        self._missing.remove(box)
        if self._one_tile:
            self._sum_khw = logits_khw.astype(np.float32, copy=False)
            return
        if self._sum_khw is None:
            self._sum_khw = np.zeros((len(logits_khw), *self._size_hw), np.float32)
        if self._decided:
            self._fill(box, logits_khw)
            return
        if logits_khw.shape[1:] != self._tile_hw:
            logits_khw = resize_logits(logits_khw, self._tile_hw)
        rows, columns = box.slices
        self._sum_khw[:, rows, columns] += logits_khw * _weights(self._tile_hw, self._tiling.blend, self._tiling.sigma)

    def finished(self) -> NDArray[np.float32]:
        """The logits of the whole picture, float32 (K, H, W). Call it once, at the end.

        Raises ShapeMismatch if a tile is missing, or on a second call.
        """
        if self._sum_khw is None or self._missing:
            state = f"{len(self._missing)} tile(s) were never added" if self._missing else "it was finished before"
            raise ShapeMismatch(f"the picture of {self._size_hw} cannot be finished: {state}")
        finished, self._sum_khw = self._sum_khw, None
        if not self._one_tile and not self._decided:
            finished /= _sum_of_weights(self._size_hw, self._tile_hw, self._tiling, self._halo)
        return finished

    def _fill(self, box: Box, decided_khw: NDArray[Any]) -> None:
        """Write the pixels that the tile owns; from the nearest pixel if the network returns another resolution."""
        rows, columns = (
            _owned(length, side, self._tiling.overlap, self._tiling.placement, self._halo)[start]
            for length, side, start in zip(self._size_hw, self._tile_hw, (box.top, box.left), strict=True)
        )
        down, across = (
            ((2 * np.arange(first - start, last - start) + 1) * found) // (2 * side)
            for (first, last), start, found, side in zip(
                (rows, columns), (box.top, box.left), decided_khw.shape[1:], self._tile_hw, strict=True
            )
        )
        cast(NDArray[np.float32], self._sum_khw)[:, slice(*rows), slice(*columns)] = decided_khw[
            :, down[:, None], across
        ]


@lru_cache(maxsize=64)
def _owned(length: int, side: int, overlap: float, placement: Placement, halo: Halo) -> dict[int, tuple[int, int]]:
    """Start of a tile → first and end pixel of the axis that it owns.

    Each of two neighbours owns half of their overlap. So every pixel has one owner, and pixels near a tile's edge,
    where the model has the least context, belong to the neighbour.
    """
    begins = starts(length, side, overlap, placement, halo)
    borders = [0, *((before + side + after) // 2 for before, after in pairwise(begins)), length]
    return dict(zip(begins, pairwise(borders), strict=True))


@lru_cache(maxsize=16)
def _weights(tile_hw: tuple[int, int], blend: str, sigma: float) -> NDArray[np.float32]:
    """Weight of each pixel of a tile, float32 (H, W): 1, or a Gaussian.

    gaussian: exp(−(i − (R−1)/2)² / 2(sigma·R)²) per axis, at least LOWEST_WEIGHT (MONAI 1.6 compute_importance_map).
    gaussian_nnunet: about R//2, and rounded to float16 (nnU-Net 2.8 compute_gaussian).
    """
    weights: NDArray[np.float32]
    if blend == "constant":
        weights = np.ones(tile_hw, np.float32)
    elif blend == "gaussian_nnunet":
        rows, columns = (_nnunet_taper(side, sigma) for side in tile_hw)
        weights = (NNUNET_PEAK * (rows[:, None] * columns)).astype(np.float16).astype(np.float32)
        np.maximum(weights, weights[weights > 0].min(), out=weights)
    else:
        down, across = (_taper(side, sigma) for side in tile_hw)
        weights = down[:, None] * across
        np.maximum(weights, max(float(weights.min()), LOWEST_WEIGHT), out=weights)
    weights.flags.writeable = False
    return weights


def _taper(side: int, sigma: float) -> NDArray[np.float32]:
    distance = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
    taper: NDArray[np.float32] = np.exp(distance**2 / np.float32(-2 * (sigma * side) ** 2))
    return taper


def _nnunet_taper(side: int, sigma: float) -> NDArray[np.float64]:
    """What SciPy's gaussian_filter makes of a unit impulse at side // 2, with a peak of 1: cut off after 4 sigma."""
    distance = np.arange(side) - side // 2
    taper: NDArray[np.float64] = np.exp(-0.5 * (distance / (sigma * side)) ** 2)
    taper[np.abs(distance) > int(4 * sigma * side + 0.5)] = 0
    return taper


def _sum_of_weights(
    size_hw: tuple[int, int], tile_hw: tuple[int, int], tiling: TilingSpec, halo: Halo
) -> NDArray[np.float32]:
    """The sum of the weights of all tiles at each pixel, float32 (H, W)."""
    compute = _cached_sum if size_hw[0] * size_hw[1] <= CACHED_PIXELS else _cached_sum.__wrapped__
    return compute(size_hw, tile_hw, tiling.overlap, tiling.placement, tiling.blend, tiling.sigma, halo)


@lru_cache(maxsize=8)
def _cached_sum(
    size_hw: tuple[int, int],
    tile_hw: tuple[int, int],
    overlap: float,
    placement: Placement,
    blend: str,
    sigma: float,
    halo: Halo,
) -> NDArray[np.float32]:
    total = np.zeros(size_hw, np.float32)
    for box in grid(size_hw, tile_hw, overlap, placement, halo):
        total[box.slices] += _weights(tile_hw, blend, sigma)
    total.flags.writeable = False
    return total
