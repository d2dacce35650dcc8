"""Pages: the result of decoding, the conversion of samples to the contract's channels, and the reader of `.npy`.

Independent of Pillow. `decode` selects the reader of a source and checks the pixel limit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from unet_batch.contract import ModelInput
from unet_batch.errors import ImageError, Reason

RGB_TO_GRAY_16 = (19595, 38470, 7471)
"""ITU-R 601-2 luma weights × 65536, as in Pillow's `convert("L")`; their sum is 65536."""
RGB_TO_GRAY = (0.299, 0.587, 0.114)
"""ITU-R 601-2 luma weights, for floats."""

_NPY_DTYPES: dict[str, tuple[type[np.generic], float | None]] = {
    "b1": (np.uint8, 1.0), "u1": (np.uint8, 255.0), "u2": (np.uint16, 65535.0), "u4": (np.float32, 4294967295.0),
    "i1": (np.float32, None), "i2": (np.float32, None), "i4": (np.float32, None),
    "f2": (np.float32, 1.0), "f4": (np.float32, 1.0), "f8": (np.float32, 1.0),
}  # fmt: skip
"""NumPy's dtype → the dtype it is read in, and the largest value of its depth (`Page.largest`)."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a source: its pixels in the contract's channels, or its rejection."""

    page: int
    """Number of this page in its source, from 0."""
    pages: int
    """Number of pages of the source; 1 if it could not be opened."""
    content: np.ndarray | ImageError
    """uint8, uint16 or float32, C-contiguous (H, W, spec.channels), possibly read-only; or the rejection."""
    height: int = 0
    """Rows of the source after orientation, at full scale; 0 if unknown."""
    width: int = 0
    """Columns of the source after orientation, at full scale; 0 if unknown."""
    largest: float | None = None
    """Largest value of the source's declared bit depth, the divisor of `unit`: 255, 4095 for 12 bits, 65535; 1 for
    floats and booleans. None for signed integers, and if there are no pixels."""


def complete(pages: Iterable[Page]) -> Iterator[Page]:
    """The pages of one source, each exactly once, from 0 to `Page.pages` − 1; at least one page.

    A page that the decoder leaves out or yields twice becomes a rejection. Other images of the unit are not affected.
    """
    expected, count = 0, 1
    for page in pages:
        if page.page != expected or (expected and page.pages != count) or page.page >= page.pages:
            break
        expected, count = expected + 1, page.pages
        yield page
    what = "the decoder gave no pixels and no reason for this page"
    yield from (Page(n, count, ImageError(Reason.DECODE_CRASHED, what)) for n in range(expected, count))


@dataclass(frozen=True, slots=True)
class Pixels:
    """Oriented samples of a file, before the conversion to the contract's channels."""

    image_hwc: np.ndarray
    """uint8, uint16 or float32 (H, W, samples)."""
    colors: int
    """Number of leading samples that are gray (1) or red, green, blue (3); 0 if all samples are bands."""
    alpha: bool = False
    """Whether the sample after the colours is an alpha."""
    premultiplied: bool = False
    """Whether the colours were multiplied by that alpha."""
    largest: float | None = None
    """As in `Page`; an alpha of this value is opaque."""


class Reader(Protocol):
    """One opened source. Methods may raise any exception, because the bytes are untrusted."""

    pages: int

    def size(self, page: int) -> tuple[int, int]:
        """Rows and columns after orientation, from the header alone."""

    def pixels(self, page: int) -> Pixels:
        """All samples of one page, oriented."""


# Channels ----------------------------------------------------------------------------------------------------------


def to_channels(pixels: Pixels, spec: ModelInput) -> np.ndarray:
    """The contract's channels, C-contiguous (H, W, spec.channels) in the source's dtype.

    Gray becomes three equal channels; colour becomes gray by ITU-R 601-2, rounded half up for integers. `bands` keep
    their order; an alpha is dropped only if the number of channels requires it. Raises ImageError if the samples do not
    match the contract.
    """
    image_hwc, colors = pixels.image_hwc, pixels.colors
    samples = image_hwc.shape[2]
    wrong = f"the image has {samples} bands, the contract says {spec.color} of {spec.channels} channel(s)"
    if spec.color == "bands":
        if samples == spec.channels:
            return np.ascontiguousarray(image_hwc)
        if pixels.alpha and samples - 1 == pixels.colors == spec.channels:
            return _without_alpha(pixels, spec)
        raise ImageError(Reason.IMAGE_CHANNELS_MISMATCH, wrong)
    if colors == 0:
        colors = samples if samples in (1, 3) else 0
    if colors == 0:
        raise ImageError(Reason.IMAGE_CHANNELS_MISMATCH, wrong)
    if pixels.alpha:
        image_hwc = _without_alpha(pixels, spec)
    elif samples > colors:
        image_hwc = image_hwc[..., :colors]
    if spec.color == "gray":
        return np.ascontiguousarray(image_hwc) if colors == 1 else _gray(image_hwc)
    if colors == 1:
        return np.repeat(image_hwc, 3, axis=2)
    return _reversed(image_hwc) if spec.color == "bgr" else np.ascontiguousarray(image_hwc)


def _without_alpha(pixels: Pixels, spec: ModelInput) -> np.ndarray:
    """Colours alone: alpha dropped, or composed over black or white; integers rounded to nearest.

    Over a background b the formula is c·a + b·(1 − a), Porter-Duff "over" with an opaque background.
    """
    count = pixels.colors
    color, alpha = pixels.image_hwc[..., :count], pixels.image_hwc[..., count : count + 1]
    if spec.alpha == "drop" and not pixels.premultiplied:
        return np.ascontiguousarray(color)
    if pixels.largest is None:
        what = "an alpha of signed integers has no value for opaque: save the image without alpha"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
    if color.dtype == np.float32:
        cover = alpha / np.float32(pixels.largest)
        if spec.alpha == "drop":
            return np.asarray(np.divide(color, cover, out=np.zeros_like(color), where=cover != 0))
        lit = color if pixels.premultiplied else color * cover
        return np.ascontiguousarray(lit + (1 - cover) * np.float32(pixels.largest * (spec.alpha == "white")))
    top = int(pixels.largest)
    wide, cover = color.astype(np.uint64), np.minimum(alpha, top).astype(np.uint64)
    if spec.alpha == "drop":
        over = (wide * top + cover // 2) // np.maximum(cover, 1) * (cover > 0)
    else:
        lit = wide * top if pixels.premultiplied else wide * cover
        over = (lit + (top - cover) * top * (spec.alpha == "white") + top // 2) // top
    return np.asarray(np.minimum(over, top), color.dtype)


def _gray(rgb_hwc: np.ndarray) -> np.ndarray:
    if rgb_hwc.dtype == np.float32:
        return np.asarray(rgb_hwc @ np.array(RGB_TO_GRAY, np.float32)[:, None])
    weighted = rgb_hwc.astype(np.uint32) @ np.array(RGB_TO_GRAY_16, np.uint32)[:, None]  # 65535 · 65536 + 2^15 < 2^32
    return np.asarray((weighted + 0x8000) >> 16, rgb_hwc.dtype)


def _reversed(rgb_hwc: np.ndarray) -> np.ndarray:
    bgr_hwc = np.empty(rgb_hwc.shape, rgb_hwc.dtype)
    for channel in range(3):  # copying the reversed view takes six times as long
        bgr_hwc[..., channel] = rgb_hwc[..., 2 - channel]
    return bgr_hwc


def oriented(image_hwc: np.ndarray, orientation: int) -> np.ndarray:
    """The oriented array, a view. orientation: EXIF tag 274, 1..8 (CIPA DC-008); other values change nothing."""
    if orientation in (5, 6, 7, 8):
        image_hwc = image_hwc.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return image_hwc[::rows, ::columns]


# Readers -----------------------------------------------------------------------------------------------------------


class NpyReader:
    """A `.npy` array: (H, W), (H, W, C) or (C, H, W). Pickled objects are never loaded.

    The channel axis is the last axis if it has spec.channels entries, else the first if it has; else, for gray, rgb and
    bgr, an axis of 1 or 3 entries, tried in the same order. Three channels are red, green, blue.
    """

    pages = 1

    def __init__(self, data: bytes, spec: ModelInput) -> None:
        """Reads the header only. Raises ImageError for a dtype, a shape or a length that cannot be an image."""
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"a .npy file of version {version[0]}.{version[1]}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self._shape, self._fortran, self._dtype = read(file)
        if self._dtype.str[1:] not in _NPY_DTYPES:
            what = f"a .npy array of dtype {self._dtype} is not read: save it as uint8, uint16 or float32"
            raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
        self._data, self._offset = data, file.tell()
        self._channel_axis = _channel_axis(self._shape, spec)
        needed = math.prod(self._shape) * self._dtype.itemsize
        if needed == 0:
            raise ImageError(Reason.DECODE_CORRUPT, f"a .npy array of shape {self._shape} has no pixels")
        if needed > len(data) - self._offset:
            raise ImageError(
                Reason.DECODE_TRUNCATED, f"the .npy array needs {needed} bytes, but has {len(data) - self._offset}"
            )

    def size(self, page: int) -> tuple[int, int]:  # noqa: ARG002 - one page
        height, width = (n for axis, n in enumerate(self._shape) if axis != self._channel_axis)
        return height, width

    def pixels(self, page: int) -> Pixels:  # noqa: ARG002 - one page
        flat = np.frombuffer(self._data, self._dtype, count=math.prod(self._shape), offset=self._offset)
        array = flat.reshape(self._shape, order="F" if self._fortran else "C")
        image_hwc = array[..., None] if self._channel_axis is None else np.moveaxis(array, self._channel_axis, 2)
        dtype, largest = _NPY_DTYPES[self._dtype.str[1:]]
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is rejected later
            return Pixels(image_hwc.astype(dtype, copy=False), colors=0, largest=largest)


def _channel_axis(shape: tuple[int, ...], spec: ModelInput) -> int | None:
    if len(shape) == 2:
        return None
    if len(shape) == 3:
        for counts in ((spec.channels,), () if spec.color == "bands" else (1, 3)):
            for axis in (2, 0):
                if shape[axis] in counts:
                    return axis
    what = f"a .npy array of shape {shape} has no axis of {spec.channels} channels"
    raise ImageError(Reason.IMAGE_CHANNELS_MISMATCH, what)
