"""Resize kernels: pictures by the contract's kernel, logits by two-tap bilinear, whole or in strips.

Arrays only; of the contract, only the name of the kernel.
Legend: H, W pixels; C channels; K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unet_batch.contract import Kernel

STRIP_BYTES = 1 << 18
"""Bytes of float pixels that are resized at once: a strip and its temporaries stay in the second-level cache."""


def resize(image_hwc: NDArray[Any], size_hw: tuple[int, int], kernel: Kernel) -> NDArray[Any]:
    """The picture in another size, in its own dtype; the same array if it already has that size.

    image_hwc: uint8, uint16 or float32, any number of channels. Integers are computed in float32 and rounded.
    pil_bilinear_u8: area-scaled triangle; on uint8 Pillow's fixed-point BILINEAR to the bit, else as triangle_f32.
    triangle_f32: area-scaled triangle in float32 (Pillow mode F; torch `bilinear, antialias=True`).
    torch_bilinear: two taps, half-pixel centres, no antialias (torch `bilinear`; cv2 INTER_LINEAR).
    nearest: source pixel floor(i · scale), scale in float32 (torch `nearest`).
    """
    if image_hwc.shape[:2] == tuple(size_hw):
        return image_hwc
    if kernel == "nearest":
        rows, columns = (_nearest(n, m) for n, m in zip(image_hwc.shape, size_hw, strict=False))
        return np.ascontiguousarray(image_hwc[rows[:, None], columns])
    if kernel == "pil_bilinear_u8" and image_hwc.dtype == np.uint8:
        return _pillow_uint8(image_hwc, size_hw)
    if kernel == "torch_bilinear":
        return _two_taps(image_hwc, size_hw)
    return _by_band(image_hwc, size_hw, np.float32)


def resize_logits(logits_khw: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Logits in another size, float32 (K, H, W): two-tap bilinear, half-pixel centres, edges repeated."""
    return resize_rows(logits_khw, size_hw, 0, size_hw[0])


def resize_rows(logits_khw: NDArray[Any], size_hw: tuple[int, int], first: int, last: int) -> NDArray[np.float32]:
    """Rows [first, last) of `resize_logits(logits_khw, size_hw)`, bit-identical, at the cost of these rows only."""
    rows, columns = (axis(m, n / m, first=0, last=n - 1) for n, m in zip(logits_khw.shape[1:], size_hw, strict=True))
    return sample(logits_khw, rows.part(first, last), columns)


@dataclass(frozen=True, slots=True)
class Axis:
    """The inputs of each output pixel of one axis: pixel `low` with weight 1 − `weight`, `high` with `weight`."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float32]

    @property
    def is_slice(self) -> bool:
        """Whether the output pixels are consecutive input pixels, unchanged."""
        return not self.weight.any() and bool(self.low[-1] - self.low[0] == len(self.low) - 1)

    def part(self, first: int, last: int) -> Axis:
        """Output pixels [first, last) of this axis."""
        return Axis(self.low[first:last], self.high[first:last], self.weight[first:last])


def axis(length: int, step: float, *, origin: float = 0.0, first: int, last: int) -> Axis:
    """The map src = (i + ½) · step + origin − ½ for i < length, clamped to the input pixels first..last.

    Half-pixel centres: with step = n_in / n_out and origin 0 it is torch's `align_corners=False`.
    """
    source = np.clip((np.arange(length) + 0.5) * step + (origin - 0.5), first, last)
    low = np.floor(source).astype(np.intp)
    return Axis(low, np.minimum(low + 1, last), (source - low).astype(np.float32))


def sample(logits_khw: NDArray[Any], rows: Axis, columns: Axis) -> NDArray[np.float32]:
    """Logits at the points of two axes, float32 (K, rows, columns); a view if the input is float32 and both axes are
    slices."""
    # Columns first: gathering along a row is slow, and the input usually has fewer rows than the output. The fixed
    # order gives each output value the same operations in every strip.
    first, last = int(rows.low[0]), int(rows.high[-1]) + 1
    wide_khw = _interpolate(logits_khw[:, first:last], columns, 2)
    return _interpolate(wide_khw, Axis(rows.low - first, rows.high - first, rows.weight), 1)


def _interpolate(logits_khw: NDArray[Any], along: Axis, dimension: int) -> NDArray[np.float32]:
    if along.is_slice:
        cut = slice(int(along.low[0]), int(along.low[-1]) + 1)
        return (logits_khw[:, cut] if dimension == 1 else logits_khw[:, :, cut]).astype(np.float32, copy=False)
    low = np.take(logits_khw, along.low, axis=dimension, mode="clip").astype(np.float32, copy=False)
    high = np.take(logits_khw, along.high, axis=dimension, mode="clip").astype(np.float32, copy=False)
    high -= low
    high *= along.weight[:, None] if dimension == 1 else along.weight
    low += high
    return low


def _two_taps(image_hwc: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """`resize_logits` of a picture, bit for bit, in strips. The channels of a row lie side by side and stay there, and
    only the rows that have a weight are read."""
    height, width, channels = image_hwc.shape
    rows, columns = (axis(m, n / m, first=0, last=n - 1) for n, m in zip((height, width), size_hw, strict=True))
    low, high = ((side[:, None] * channels + np.arange(channels)).ravel() for side in (columns.low, columns.high))
    samples = Axis(low, high, columns.weight.repeat(channels))
    image_hs = image_hwc.reshape(height, width * channels)
    resized_hs = np.empty((size_hw[0], size_hw[1] * channels), image_hwc.dtype)
    step = max(1, STRIP_BYTES // (resized_hs.shape[1] * 4))
    for first in range(0, size_hw[0], step):
        part = rows.part(first, min(first + step, size_hw[0]))
        read, place = np.unique(np.concatenate((part.low, part.high)), return_inverse=True)
        along = Axis(place[: len(part.low)], place[len(part.low) :], part.weight)
        strip = sample(image_hs[None, read], along, samples)[0]
        resized_hs[first : first + step] = _rounded(strip, image_hwc.dtype)
    return resized_hs.reshape(*size_hw, channels)


def _rounded(resized: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The pixels in this dtype. Floats that become integers are rounded to nearest and stay in range."""
    if resized.dtype != dtype and dtype.kind == "u":
        resized = np.clip(np.rint(resized), 0, np.iinfo(dtype).max)
    return np.ascontiguousarray(resized, dtype=dtype)


def _nearest(n_in: int, n_out: int) -> NDArray[np.intp]:
    scale = np.float32(n_in) / np.float32(n_out)  # float32, as in torch: integer arithmetic can differ
    index: NDArray[np.intp] = np.floor(np.arange(n_out, dtype=np.float32) * scale).astype(np.intp)
    return np.minimum(index, n_in - 1)


def _pillow_uint8(image_hwc: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    if image_hwc.shape[2] == 3:
        return np.asarray(_pillow(np.ascontiguousarray(image_hwc), size_hw))
    return _by_band(image_hwc, size_hw, np.uint8)  # Pillow would multiply by alpha in modes LA and RGBA


def _by_band(image_hwc: NDArray[Any], size_hw: tuple[int, int], dtype: type[np.uint8 | np.float32]) -> NDArray[Any]:
    """Every band resized alone, in this dtype, and then in its own."""
    resized = np.empty((*size_hw, image_hwc.shape[2]), image_hwc.dtype)
    for band in range(image_hwc.shape[2]):
        if band and _same(image_hwc[:, :, band - 1], image_hwc[:, :, band]):  # gray in three channels
            resized[:, :, band] = resized[:, :, band - 1]
        else:
            picture = _pillow(np.ascontiguousarray(image_hwc[:, :, band], dtype), size_hw)
            resized[:, :, band] = _rounded(np.asarray(picture), image_hwc.dtype)
    return resized


def _same(one_hw: NDArray[Any], other_hw: NDArray[Any]) -> bool:
    return np.array_equal(one_hw[0], other_hw[0]) and np.array_equal(one_hw, other_hw)


def _pillow(image: NDArray[Any], size_hw: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(image)
    return picture.resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)
