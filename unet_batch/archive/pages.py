"""Pages: what decoding yields, and the readers that need no Pillow (`.npy`, exact TIFF).

Knows how samples become the contract's channels and how an orientation turns an array. Does not know which reader a
source needs, nor Pillow: `decode` decides, and holds the one place where the pixel limit is checked.
"""

from __future__ import annotations

import io
import logging
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unet_batch.contract import ModelInput
from unet_batch.errors import ImageError, Reason

RGB_TO_GRAY_16 = (19595, 38470, 7471)
"""ITU-R 601-2 luma weights × 65536, as in Pillow's `convert("L")`; their sum is 65536."""
RGB_TO_GRAY = (0.299, 0.587, 0.114)
"""ITU-R 601-2 luma weights, for floats."""

_NPY_DTYPES: dict[str, type[np.generic]] = {
    "b1": np.uint8, "u1": np.uint8, "u2": np.uint16,
    "i2": np.float32, "i4": np.float32, "f2": np.float32, "f4": np.float32, "f8": np.float32,
}  # fmt: skip
_TIFF_GRAY = (0, 1)  # WhiteIsZero, BlackIsZero: TIFF 6.0, PhotometricInterpretation
_TIFF_WHITE_IS_ZERO = 0
_TIFF_RGB = 2
_TIFF_ALPHA = (1, 2)  # associated, unassociated: TIFF 6.0, ExtraSamples
_TIFF_ORIENTATION = 274


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a source: its pixels in the contract's channels, or why there are none."""

    page: int
    """Number of this page in its source, from 0."""
    pages: int
    """How many pages the source holds; 1 where it could not be opened."""
    content: np.ndarray | ImageError
    """uint8, uint16 or float32, C-contiguous (H, W, spec.channels), perhaps read-only; or the rejection."""
    height: int = 0
    """Rows of the whole picture after orientation, before any reduced-scale decode; 0 where unknown."""
    width: int = 0
    """Columns of the whole picture after orientation, before any reduced-scale decode; 0 where unknown."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Samples as their file holds them, turned as displayed, before they become the contract's channels."""

    image_hwc: np.ndarray
    """uint8, uint16 or float32 (H, W, samples)."""
    colors: int
    """Leading samples that are one gray (1) or red, green, blue (3); 0 where all are bands without a meaning."""
    alpha: bool = False
    """Whether the sample after the colours is an alpha."""
    premultiplied: bool = False
    """Whether the colours were multiplied by that alpha."""


class Reader(Protocol):
    """One opened source. Any method may raise anything: the bytes are not ours."""

    pages: int

    def size(self, page: int) -> tuple[int, int]:
        """Rows and columns after orientation, from the header alone."""

    def pixels(self, page: int) -> Pixels:
        """All samples of one page, oriented."""


# Channels ----------------------------------------------------------------------------------------------------------


def to_channels(pixels: Pixels, spec: ModelInput) -> np.ndarray:
    """The contract's channels, C-contiguous (H, W, spec.channels) in the source's dtype.

    Gray becomes three equal channels; colour becomes gray by ITU-R 601-2, rounded half up for integers. `bands` are
    taken as they come, and lose an alpha only where the count says so. Raises ImageError where the samples do not fit.
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
    if color.dtype == np.float32:
        lit = color if pixels.premultiplied else color * alpha
        if spec.alpha == "drop":
            return np.asarray(np.divide(color, alpha, out=np.zeros_like(color), where=alpha != 0))
        return np.ascontiguousarray(lit + (1 - alpha) * np.float32(spec.alpha == "white"))
    top = np.iinfo(color.dtype).max
    wide, cover = color.astype(np.uint64), alpha.astype(np.uint64)
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
    for channel in range(3):  # a copy of the reversed view takes six times as long
        bgr_hwc[..., channel] = rgb_hwc[..., 2 - channel]
    return bgr_hwc


def oriented(image_hwc: np.ndarray, orientation: int) -> np.ndarray:
    """The array as displayed, a view. orientation: EXIF tag 274, 1..8 (CIPA DC-008); anything else turns nothing."""
    if orientation in (5, 6, 7, 8):
        image_hwc = image_hwc.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return image_hwc[::rows, ::columns]


# Readers -----------------------------------------------------------------------------------------------------------


class NpyReader:
    """A `.npy` array: (H, W), (H, W, C) or (C, H, W). Objects are never unpickled.

    The channel axis of three is the last where it has spec.channels entries, else the first where that has; else, for
    gray, rgb and bgr, an axis of 1 or 3 in the same order. Three channels are red, green, blue.
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
            raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"a .npy array of dtype {self._dtype}")
        self._data, self._offset = data, file.tell()
        self._channel_axis = _channel_axis(self._shape, spec)
        needed = math.prod(self._shape) * self._dtype.itemsize
        if needed == 0:
            raise ImageError(Reason.DECODE_CORRUPT, f"a .npy array of shape {self._shape} has no pixels")
        if needed > len(data) - self._offset:
            raise ImageError(
                Reason.DECODE_TRUNCATED, f"the .npy array needs {needed} bytes, {len(data) - self._offset} are there"
            )

    def size(self, page: int) -> tuple[int, int]:  # noqa: ARG002 - one page
        height, width = (n for axis, n in enumerate(self._shape) if axis != self._channel_axis)
        return height, width

    def pixels(self, page: int) -> Pixels:  # noqa: ARG002 - one page
        flat = np.frombuffer(self._data, self._dtype, count=math.prod(self._shape), offset=self._offset)
        array = flat.reshape(self._shape, order="F" if self._fortran else "C")
        image_hwc = array[..., None] if self._channel_axis is None else np.moveaxis(array, self._channel_axis, 2)
        return Pixels(_as_dtype(image_hwc, _NPY_DTYPES[self._dtype.str[1:]]), colors=0)


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


class TiffReader:
    """TIFF pages that Pillow cannot read, or would read with fewer bits or bands. Pages are the file's main IFDs."""

    def __init__(self, data: bytes, spec: ModelInput) -> None:
        import tifffile  # most archives hold no such file, and tifffile costs 0.1 s

        logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # what it logs, we raise
        self._length, self._spec = len(data), spec
        self._tiff: Any = tifffile.TiffFile(io.BytesIO(data))  # its pages are typed as one of two classes
        self.pages = len(self._tiff.pages)

    def size(self, page: int) -> tuple[int, int]:
        ifd = self._tiff.pages[page]
        height, width = ifd.imagelength, ifd.imagewidth
        return (width, height) if self._orientation(page) >= 5 else (height, width)

    def pixels(self, page: int) -> Pixels:
        ifd = self._tiff.pages[page]
        self._check(page)
        # (planes, depth, H, W, samples): one of planes and samples is 1, depends on PlanarConfiguration
        array = ifd.asarray(squeeze=False, maxworkers=1)
        image_hwc = np.moveaxis(array[:, 0], 0, 2).reshape(*array.shape[2:4], -1)
        photometric = int(ifd.photometric)
        extra = int(ifd.extrasamples[0]) if ifd.extrasamples else 0
        alone = ifd.samplesperpixel == 1 + (extra in _TIFF_ALPHA)
        colors = 3 if photometric == _TIFF_RGB else int(photometric in _TIFF_GRAY and alone)
        if photometric == _TIFF_WHITE_IS_ZERO and image_hwc.dtype.kind == "u":
            image_hwc = np.iinfo(image_hwc.dtype).max - image_hwc
        target = image_hwc.dtype.type if image_hwc.dtype.str[1:] in ("u1", "u2") else np.float32
        alpha = extra in _TIFF_ALPHA and colors > 0
        turned_hwc = oriented(_as_dtype(image_hwc, target), self._orientation(page))
        return Pixels(turned_hwc, colors, alpha, premultiplied=alpha and extra == _TIFF_ALPHA[0])

    def _orientation(self, page: int) -> int:
        tag = self._tiff.pages[page].tags.get(_TIFF_ORIENTATION)
        value = tag.value if tag is not None and self._spec.exif == "apply" else 1
        return value if isinstance(value, int) else 1

    def _check(self, page: int) -> None:
        ifd = self._tiff.pages[page]
        known = ifd.photometric in (*_TIFF_GRAY, _TIFF_RGB) or self._spec.color == "bands"
        if ifd.dtype is None or ifd.dtype.kind not in "uif" or ifd.imagedepth != 1 or not known:
            what = f"photometric {ifd.photometric}, {ifd.bitspersample} bits, sample format {ifd.sampleformat}"
            raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"a TIFF page of {what}")
        ends = (offset + count for offset, count in zip(ifd.dataoffsets, ifd.databytecounts, strict=True))
        if max(ends, default=0) > self._length:  # tifffile would fill some of these with zeros
            raise ImageError(Reason.DECODE_TRUNCATED, "the TIFF page's strips or tiles end behind the file's end")


def _as_dtype(array: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is then refused as such
        return array.astype(dtype, copy=False)
