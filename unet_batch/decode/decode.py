"""Decode: the bytes of one source become pages in the contract's channels, and bad bytes become rejections.

Contains the formats that are allowed and the conversion of every Pillow mode. `isolate` handles decoders that crash.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from unet_batch.contract import ModelInput
from unet_batch.decode.exif import orientation_of
from unet_batch.decode.jpeg import plain_samples as plain_jpeg
from unet_batch.decode.pages import NpyReader, Page, Pixels, Reader, oriented, to_channels
from unet_batch.decode.png import deep_samples
from unet_batch.decode.png import plain_samples as plain_png
from unet_batch.decode.signatures import format_of, refused
from unet_batch.decode.sizes import reduced_size, size_of
from unet_batch.decode.tiff import TiffReader
from unet_batch.errors import ImageError, Reason
from unet_batch.spec import LimitsSpec

__all__ = ["Page", "decode"]

_DEEP = 65535.0
"""Largest value of 16 bits."""
_MODES: dict[str, tuple[str, int, bool]] = {
    "1": ("L", 1, False), "L": ("L", 1, False), "LA": ("LA", 1, True), "La": ("LA", 1, True),
    "RGB": ("RGB", 3, False), "RGBX": ("RGB", 3, False), "RGBA": ("RGBA", 3, True), "RGBa": ("RGBA", 3, True),
    "P": ("RGB", 3, False), "PA": ("RGBA", 3, True),
    "CMYK": ("RGB", 3, False), "YCbCr": ("RGB", 3, False), "HSV": ("RGB", 3, False), "LAB": ("RGB", 3, False),
    "I;16": ("I;16", 1, False), "I;16L": ("I;16L", 1, False), "I;16B": ("I;16B", 1, False),
    "I;16N": ("I;16N", 1, False), "I": ("I", 1, False), "F": ("F", 1, False),
}  # fmt: skip
"""Pillow's mode → (mode it is read in, number of colours, whether an alpha follows). Other modes are rejected."""

_SHORT = re.compile(
    r"truncat|not enough|unexpected end|premature|too small|requires a buffer|failed to read|\bEOF\b"
    r"|end of (file|data)",
    re.IGNORECASE,
)
"""Error texts of Pillow, struct, imagecodecs and tifffile for missing bytes."""
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>|0x[0-9a-fA-F]{6,}")
_MESSAGE_CHARACTERS = 200


def decode(data: bytes, spec: ModelInput, limits: LimitsSpec, *, page: int | None = None) -> Iterator[Page]:
    """Every page of one source, in order; one page for all formats but TIFF (GIF, WebP, APNG and MPO: the first frame).

    The first bytes decide the format, not the name. The pixel limit is checked against the header before a pixel is
    decoded. 16-bit and float samples keep their depth; a float image with NaN or infinity is rejected. Bad bytes do
    not raise: the content of their page is an ImageError. page: decode only this page, if the source has it.
    """
    _prepare_pillow(limits)
    try:
        reader = _open(data, spec, limits)
        pages = reader.pages
    except Exception as error:  # noqa: BLE001 - untrusted bytes: Pillow alone raises eight types
        yield Page(0, 1, _rejection(error, limits))
        return
    for number in range(pages) if page is None else range(page, min(page + 1, pages)):
        yield _read(reader, number, spec, limits=limits)


def _prepare_pillow(limits: LimitsSpec) -> None:
    """Raise Pillow's process-wide bomb limit to ours if ours is larger; never lower or remove it.

    Two threads may set it at once: the value only grows, and our own check holds for every image. Pillow's warnings
    and log lines are suppressed, because each bad image gets a row.
    """
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, limits.max_image_pixels)
    if ("ignore", None, Warning, re.compile(r"PIL\."), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)


def _read(reader: Reader, page: int, spec: ModelInput, *, limits: LimitsSpec) -> Page:
    height = width = 0
    largest: float | None = None
    content: np.ndarray | ImageError
    try:
        height, width = reader.size(page)
        if height * width > limits.max_image_pixels:
            raise _too_large((height, width), limits)  # noqa: TRY301 - one exit for every rejection
        pixels = reader.pixels(page)
        content, largest = to_channels(pixels, spec), pixels.largest
        if content.dtype == np.float32 and not np.isfinite(content).all():
            content = ImageError(Reason.IMAGE_NON_FINITE, "the image holds NaN or infinity")
    except Exception as error:  # noqa: BLE001 - as in decode
        content = _rejection(error, limits)
    return Page(page, reader.pages, content, height, width, largest)


def _too_large(size_hw: tuple[int, int] | None, limits: LimitsSpec) -> ImageError:
    size = f"{size_hw[0]} × {size_hw[1]}" if size_hw else "its"
    what = f"{size} pixels are more than limits.max_image_pixels: {limits.max_image_pixels}; raise it in the job file"
    return ImageError(Reason.DECODE_TOO_MANY_PIXELS, f"{what}, or cut the image")


def _rejection(error: Exception, limits: LimitsSpec) -> ImageError:
    """The rejection for an error of a decoder. The message is one line without addresses, the same in every run."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, MemoryError):
        return ImageError(Reason.DECODE_OUT_OF_MEMORY, "decoding needs more memory than there is")
    text = " ".join(_ADDRESS.sub("…", str(error)).split())[:_MESSAGE_CHARACTERS] or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_large(None, limits)
    if isinstance(error, UnidentifiedImageError):
        return ImageError(Reason.DECODE_UNRECOGNIZED, "the header is not that of a readable image")
    if isinstance(error, NotImplementedError):
        return ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, text)
    short = isinstance(error, EOFError) or _SHORT.search(text) is not None
    return ImageError(Reason.DECODE_TRUNCATED if short else Reason.DECODE_CORRUPT, text)


# Formats -----------------------------------------------------------------------------------------------------------


def _open(data: bytes, spec: ModelInput, limits: LimitsSpec) -> Reader:
    name = _format(data)
    if name == "NPY":
        return NpyReader(data, spec)
    if name == "TIFF":
        return TiffReader(data, spec, most_pixels=limits.max_image_pixels, lab_to_rgb=_lab_to_rgb)
    return _PillowReader(data, spec, limits, name=name)


def _format(data: bytes) -> str:
    """The name of the file's format. Raises ImageError, which names a known format that is not read."""
    try:
        return format_of(data)
    except ImageError as error:
        if error.reason is Reason.DECODE_UNRECOGNIZED and (name := _known_to_pillow(data[:16])):
            raise refused(name) from None
        raise


def _known_to_pillow(prefix: bytes) -> str:
    """The format of these first bytes according to Pillow's plugins, without opening the file; empty if unknown."""
    Image.init()
    for name, (_, accept) in Image.OPEN.items():
        try:
            if accept is not None and accept(prefix):
                return str(name)
        except Exception:  # noqa: BLE001, S112 - this plugin cannot read the prefix
            continue
    return ""


class _PillowReader:
    """The first frame of a JPEG, PNG, WebP, BMP or GIF."""

    pages = 1

    def __init__(self, data: bytes, spec: ModelInput, limits: LimitsSpec, *, name: str) -> None:
        self._spec, self._data = spec, data
        try:
            self._image = Image.open(io.BytesIO(data), formats=(name,))
        except Image.DecompressionBombError:  # it holds only the product of the sides
            raise _too_large(size_of(name, data), limits) from None
        self._orientation = orientation_of(self._image, data) if spec.exif == "apply" else 1
        # Pillow keeps only the high byte of PNGs of 16 bits with more than one channel
        self._deep = name == "PNG" and data[24:25] == b"\x10"

    def size(self, page: int) -> tuple[int, int]:  # noqa: ARG002 - one page
        width, height = self._image.size
        return (width, height) if self._orientation >= 5 else (height, width)

    def pixels(self, page: int) -> Pixels:
        if self._deep:
            image_hwc = deep_samples(self._data)
            samples = image_hwc.shape[2]
            turned_hwc, colors = oriented(image_hwc, self._orientation), 1 if samples < 3 else 3
            return Pixels(turned_hwc, colors, alpha=samples in (2, 4), largest=_DEEP)
        if self._image.mode in _MODES and (samples_hwc := self._plain_samples()) is not None:
            return _plain_pixels(samples_hwc, self._spec, self._orientation)
        if self._spec.reduced_jpeg and self._image.format in ("JPEG", "MPO"):
            self._image.draft(None, reduced_size(self.size(page), self._spec, turned=self._orientation >= 5))
        return _pixels(self._image, self._spec, self._orientation)

    def _plain_samples(self) -> np.ndarray | None:
        """The samples of an ordinary file, where another library is faster than Pillow and gives the same ones."""
        if self._image.format == "PNG":
            return plain_png(self._data)
        samples = {"L": 1, "RGB": 3}.get(self._image.mode, 0)
        if self._image.format != "JPEG" or not samples or self._spec.reduced_jpeg or _needs_pillow(samples, self._spec):
            return None
        return plain_jpeg(self._data, (self._image.height, self._image.width), samples)


# Pillow ------------------------------------------------------------------------------------------------------------


def _pixels(image: Image.Image, spec: ModelInput, orientation: int) -> Pixels:
    """All samples of Pillow's current frame, oriented.

    Conversions of 8-bit modes are Pillow's own; 16-bit, 32-bit and float modes are never converted.
    """
    if image.mode not in _MODES:
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"an image of mode {image.mode}")
    image.load()
    mode, colors, alpha = _MODES[image.mode]
    if mode == "RGB" and image.mode == "P" and image.has_transparency_data:
        mode, alpha = "RGBA", True
    elif spec.alpha != "drop" and "transparency" in image.info and image.mode in ("1", "L", "RGB"):
        # One colour is declared transparent
        mode, alpha = ("RGBA" if colors == 3 else "LA"), True
    if spec.color == "bands":
        if image.mode == "CMYK":
            mode, colors = "CMYK", 0
    else:
        if mode == "RGBA" and spec.alpha == "drop":
            mode, alpha = "RGB", False
        if mode == "RGB" and spec.color == "gray" and image.mode in ("RGB", "RGBA", "P"):
            mode, colors = "L", 1
    converted = _converted(image, mode)
    if orientation == 1 and (mode == "L" or (mode == "RGB" and spec.color != "gray")):
        converted = _stretched(converted, spec)
    array = np.asarray(converted)
    if array.dtype.itemsize > 1:
        array = array.astype(np.uint16 if array.dtype.kind == "u" else np.float32, copy=False)  # native byte order
    turned_hwc = oriented(array if array.ndim == 3 else array[..., None], orientation)
    largest = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): _DEEP}.get(array.dtype)
    return Pixels(turned_hwc, colors, alpha, largest=largest)


def _plain_pixels(samples_hwc: np.ndarray, spec: ModelInput, orientation: int) -> Pixels:
    """`_pixels` of Pillow's picture with these samples: gray, RGB or RGBA in 8 bits."""
    samples = samples_hwc.shape[2]
    if _needs_pillow(samples, spec):
        image = Image.fromarray(samples_hwc[:, :, 0] if samples == 1 else samples_hwc)
        return _pixels(image, spec, orientation)
    return Pixels(oriented(samples_hwc, orientation), 1 if samples == 1 else 3, samples == 4, largest=255.0)


def _needs_pillow(samples: int, spec: ModelInput) -> bool:
    """Whether `_pixels` converts or resizes a picture of so many samples."""
    converts = samples == 3 and spec.color == "gray"
    converts |= samples == 4 and spec.color != "bands" and spec.alpha == "drop"
    return converts or _stretches(spec) is not None


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode == "1" and mode == "LA":
        image = image.convert("L")
    return image.convert(mode)


def _stretched(image: Image.Image, spec: ModelInput) -> Image.Image:
    """The 8-bit samples resized as in `fit`, bit for bit; saves two copies at full size."""
    size = _stretches(spec)
    return image.resize(size, Image.Resampling.BILINEAR) if size else image


def _stretches(spec: ModelInput) -> tuple[int, int] | None:
    """Columns and rows that `_stretched` makes; None if it leaves pictures as they are."""
    if spec.fit != "stretch" or spec.kernel != "pil_bilinear_u8" or spec.height is None or spec.width is None:
        return None
    return spec.width, spec.height


def _lab_to_rgb(lab_hwc: np.ndarray) -> np.ndarray:
    """CIELAB as TIFF stores it (a and b signed) → sRGB, uint8 (H, W, 3), by colour management."""
    height, width = lab_hwc.shape[:2]
    image = Image.frombytes("LAB", (width, height), np.ascontiguousarray(lab_hwc).tobytes())
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    managed = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if managed is None:
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, "an image of mode LAB")
    return np.asarray(managed)
