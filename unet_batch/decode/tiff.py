"""TIFF: the pictures of a file with their sizes and samples, read by tifffile and imagecodecs.

Converts photometric interpretations to gray, red-green-blue or bands. Pillow is not used: for many layouts its samples
differ from those of the file, and after an unreadable page it stays at another page.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from unet_batch.contract import ModelInput
from unet_batch.decode.pages import Pixels, oriented
from unet_batch.decode.signatures import refused
from unet_batch.decode.tiff_chain import chain_of
from unet_batch.decode.tiff_planes import DNG_VERSION, Directories, Picture, Plane, pictures_of
from unet_batch.decode.tiff_samples import JPEG, check_readable, samples_of
from unet_batch.errors import ImageError, Reason

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
"""TIFF 6.0, PhotometricInterpretation."""
ALPHA = (1, 2)  # associated, unassociated: TIFF 6.0, ExtraSamples
MOSAIC = (32803, 34892)
"""Raw samples of a camera: colour filter array, linear raw (Adobe DNG specification)."""
PHOTOMETRIC, COLOR_MAP, ORIENTATION, INK_SET, COEFFICIENTS, REFERENCE = 262, 320, 274, 332, 529, 532
MAKE = 271
RAW = (32767, 32769, 32770, 32772, 32867, 34713, 65000, 65535)
"""Compressions of camera raws: Sony, Epson, Samsung, Kodak, Nikon and Pentax (as exiftool lists them)."""
CMYK = 1
WHOLE = (8, 16, 32)
"""Bits of unsigned samples that fill their dtype."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, the default of YCbCrCoefficients."""

LabToRgb = Callable[[np.ndarray], np.ndarray]


class TiffReader:
    """The pictures of a TIFF. A broken chain of pages counts as one more picture, with the reason."""

    def __init__(self, data: bytes, spec: ModelInput, *, most_pixels: int, lab_to_rgb: LabToRgb) -> None:
        """most_pixels: limits.max_image_pixels. lab_to_rgb: (H, W, 3) CIELAB as stored → sRGB, both uint8.

        Raises ImageError if there is no page, and the errors of tifffile.
        """
        import tifffile  # imported late: it takes 0.1 s, and most archives hold no TIFF

        logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # its log lines repeat our errors
        self._data, self._spec, self._most, self._lab_to_rgb = data, spec, most_pixels, lab_to_rgb
        chain = chain_of(data)
        if not chain.offsets and chain.broken is not None:
            raise chain.broken
        # _multifile: an OME-TIFF may refer to other files, which must not be opened
        tiff: Any = tifffile.TiffFile(io.BytesIO(data), _multifile=False)
        self._directories = Directories(tiff)
        offsets = [page.offset for page in tiff.pages] if tiff.is_ndpi else chain.offsets
        pictures = pictures_of(self._directories, offsets, spec, length=len(data))
        self._maker = _maker(self._directories.at(offsets[0])) if offsets else ""
        self._pictures: list[Picture] = pictures if chain.broken is None else [*pictures, chain.broken]
        self.pages = len(self._pictures)

    def size(self, page: int) -> tuple[int, int]:
        ifd = self._directory(self._planes(page)[0])
        height, width = ifd.imagelength, ifd.imagewidth
        return (width, height) if self._orientation(ifd) >= 5 else (height, width)

    def pixels(self, page: int) -> Pixels:
        planes = self._planes(page)
        if len(planes) == 1:
            return self._pixels(planes[0])
        channels = [self._pixels(plane) for plane in planes]
        first = channels[0]
        for other in channels:
            if (other.image_hwc.shape, other.image_hwc.dtype) != (first.image_hwc.shape, first.image_hwc.dtype):
                what = "the channels of this image have different sizes or types"
                raise ImageError(Reason.IMAGE_CHANNELS_MISMATCH, what)
        joined_hwc = np.concatenate([channel.image_hwc for channel in channels], axis=2)
        return Pixels(joined_hwc, colors=0, largest=first.largest)

    def _planes(self, page: int) -> tuple[Plane, ...]:
        picture = self._pictures[page]
        if isinstance(picture, ImageError):
            raise picture
        return picture

    def _directory(self, plane: Plane) -> Any:
        return self._directories.at(plane.ifd)

    def _orientation(self, ifd: Any) -> int:
        value = ifd.tags.valueof(ORIENTATION, 1) if self._spec.exif == "apply" else 1
        return value if isinstance(value, int) else 1

    def _pixels(self, plane: Plane) -> Pixels:
        ifd = self._directory(plane)
        colors, alpha = self._colors(ifd)
        samples_hwc = samples_of(ifd, plane, self._data, most_pixels=self._most)
        meaning = _photometric(ifd)
        if meaning == WHITE_IS_ZERO and colors:
            samples_hwc[..., :1] = _inverted(samples_hwc[..., :1], ifd)
        image_hwc, largest = _declared(samples_hwc, ifd)
        bands = self._spec.color == "bands"
        if meaning == PALETTE:
            image_hwc, largest = _of_palette(samples_hwc, ifd), 255.0
        elif meaning == SEPARATED and not bands:
            image_hwc = _of_cmyk(image_hwc, largest)
        elif meaning == YCBCR and ifd.compression not in JPEG:
            image_hwc = _of_ycbcr(image_hwc)
        elif meaning == CIELAB:
            image_hwc = self._lab_to_rgb(image_hwc)
        turned_hwc = oriented(image_hwc, self._orientation(ifd))
        return Pixels(turned_hwc, colors, alpha is not None, premultiplied=alpha == ALPHA[0], largest=largest)

    def _colors(self, ifd: Any) -> tuple[int, int | None]:
        """Number of leading colour samples, and the type of the alpha after them (ExtraSamples); decodes nothing."""
        meaning, samples = _photometric(ifd), int(ifd.samplesperpixel)
        if self._spec.color != "bands" and (meaning in MOSAIC or (self._maker and ifd.compression in RAW)):
            if not self._maker:
                what = "a raw mosaic (CFA) is not read: develop it to a TIFF or PNG in colour first"
                raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
            raise refused(f"a camera raw ({self._maker})", "develop it to a TIFF or JPEG first")
        check_readable(ifd, self._most)
        extra = int(ifd.extrasamples[0]) if ifd.extrasamples else 0
        if samples > max(self._spec.channels, 4) + 16:
            what = f"the image has {samples} bands, the contract says {self._spec.color} of {self._spec.channels}"
            raise ImageError(Reason.IMAGE_CHANNELS_MISMATCH, what)
        shallow = ifd.bitspersample == 8
        bands = self._spec.color == "bands"
        if meaning in (WHITE_IS_ZERO, BLACK_IS_ZERO):
            alone = samples == 1 + (extra in ALPHA)
            return int(alone), extra if alone and extra in ALPHA else None
        known = (
            (meaning == RGB and samples >= 3)
            or (meaning == PALETTE and samples == 1 and ifd.bitspersample in (1, 2, 4, 8, 16))
            or (meaning == SEPARATED and samples == 4 and ifd.tags.valueof(INK_SET, CMYK) == CMYK and not bands)
            or (meaning == YCBCR and samples == 3 and shallow and (ifd.compression in JPEG or _is_plain_ycbcr(ifd)))
            or (meaning == CIELAB and samples == 3 and shallow)
        )
        if known:
            return 3, extra if samples > 3 and extra in ALPHA and meaning == RGB else None
        if bands:
            return 0, None
        what = f"a TIFF page of photometric interpretation {meaning}, {samples} samples of {ifd.bitspersample} bits"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"{what} is not read: save it in gray or RGB")


def _maker(ifd: Any) -> str:
    """The camera's maker, from the first page of a raw file; empty if there is none."""
    make = ifd.tags.valueof(MAKE)
    name = " ".join(make.split()) if isinstance(make, str) else ""
    return "DNG" if DNG_VERSION in ifd.tags else name[:40]


def _photometric(ifd: Any) -> int:
    """The photometric interpretation; libtiff's default if the tag is missing."""
    if PHOTOMETRIC in ifd.tags or ifd.compression in JPEG:
        return int(ifd.photometric)
    if ifd.samplesperpixel >= 3:
        return RGB
    return WHITE_IS_ZERO if ifd.compression in (2, 3, 4) else BLACK_IS_ZERO


def _declared(samples_hwc: np.ndarray, ifd: Any) -> tuple[np.ndarray, float | None]:
    """Samples as uint8, uint16 or float32, and the largest value of their declared depth.

    Fewer than 8 bits are scaled to 0..255, as in PNG; 9 to 15 bits keep their values. The largest value is None for
    signed integers and 1 for floats.
    """
    kind, bits = samples_hwc.dtype.kind, ifd.bitspersample
    if kind == "b":
        return samples_hwc.astype(np.uint8) * np.uint8(255), 255.0
    if kind == "u":
        if not isinstance(bits, int):  # unequal depths, which tifffile scales to the dtype
            return samples_hwc, float(np.iinfo(samples_hwc.dtype).max)
        if bits < 8:
            top = (1 << bits) - 1
            return np.asarray((samples_hwc.astype(np.uint16) * 255 + top // 2) // top, np.uint8), 255.0
        largest = float((1 << bits) - 1)
        if bits not in WHOLE and samples_hwc.max(initial=0) > largest:  # tifffile unpacks big-endian 24 bits wrongly
            what = f"a TIFF page of {bits} bits has the sample {samples_hwc.max()}: save it with 8, 16 or 32 bits"
            raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
        return (samples_hwc, largest) if bits <= 16 else (samples_hwc.astype(np.float32), largest)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is rejected later
        return samples_hwc.astype(np.float32, copy=False), 1.0 if kind == "f" else None


def _inverted(samples_hwc: np.ndarray, ifd: Any) -> np.ndarray:
    """Inverted samples, by the declared bits: black becomes 0. Signed integers and floats stay, as white is unknown."""
    if samples_hwc.dtype.kind == "b":
        return ~samples_hwc
    if samples_hwc.dtype.kind != "u":
        return samples_hwc
    return np.asarray(samples_hwc.dtype.type((1 << int(ifd.bitspersample)) - 1) - samples_hwc)


def _of_palette(samples_hwc: np.ndarray, ifd: Any) -> np.ndarray:
    """Indices become the palette's colours, 8 bits each. Entries have 16 bits, or 8 if no entry is larger (libtiff)."""
    colors = ifd.tags.valueof(COLOR_MAP)
    entries = 1 << ifd.bitspersample
    if colors is None or np.size(colors) != 3 * entries:
        raise ImageError(Reason.DECODE_CORRUPT, "a palette TIFF page without a whole palette")
    table = np.asarray(colors, np.uint16).reshape(3, entries).T
    shallow = table.max(initial=0) < 256
    return np.asarray(table if shallow else table >> 8, np.uint8)[samples_hwc[..., 0].astype(np.intp)]


def _of_cmyk(image_hwc: np.ndarray, largest: float | None) -> np.ndarray:
    """(1 − ink) · (1 − black) of each ink, rounded, as Pillow converts CMYK."""
    if image_hwc.dtype.kind != "u" or largest is None:
        what = "a CMYK TIFF page of floats or more than 16 bits is not read: save it as RGB"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
    top = int(largest)
    white = top - image_hwc.astype(np.uint32)
    return np.asarray((white[..., :3] * white[..., 3:] + top // 2) // top, image_hwc.dtype)


def _is_plain_ycbcr(ifd: Any) -> bool:
    """Whether it is JFIF's YCbCr without subsampling."""
    luma = ifd.tags.valueof(COEFFICIENTS)
    reference = ifd.tags.valueof(REFERENCE)
    usual = luma is None or np.allclose(_rationals(luma), LUMA, atol=2e-3)
    full = reference is None or np.allclose(_rationals(reference), (0, 255, 128, 255, 128, 255), atol=0.5)
    return usual and full and not ifd.is_subsampled


def _rationals(values: Any) -> np.ndarray:
    pairs = np.asarray(values, np.float64).reshape(-1, 2)
    return pairs[:, 0] / np.maximum(pairs[:, 1], 1)


def _of_ycbcr(image_hwc: np.ndarray) -> np.ndarray:
    """Full-range BT.601 (JFIF), rounded."""
    y, blue, red = np.moveaxis(image_hwc.astype(np.float32), 2, 0)
    blue, red = blue - 128, red - 128
    rgb = (y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue)
    return np.asarray(np.clip(np.rint(np.stack(rgb, axis=2)), 0, 255), np.uint8)
