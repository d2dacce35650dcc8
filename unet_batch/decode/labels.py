"""Label images: pictures whose pixel values are classes. Palette indices are values here, never colours."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unet_batch.decode.exif import orientation_of
from unet_batch.decode.pages import oriented
from unet_batch.decode.tiff import ORIENTATION
from unet_batch.errors import ImageError, Reason
from unet_batch.spec import LimitsSpec

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MODES = ("P", "L", "1", "I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes with one value per pixel."""


def read_labels(data: bytes, limits: LimitsSpec, *, turned: bool = True) -> NDArray[Any]:
    """The values of a label image, integers (H, W): an indexed or gray PNG, BMP or GIF, or a TIFF with one page.

    turned: whether its orientation (EXIF of a PNG, tag 274 of a TIFF) is applied, as to pictures.
    Raises ImageError for other files: colours are no classes, and JPEG changes values.
    """
    try:
        read = _from_tiff if data[:4] in _TIFF else _from_pillow
        labels_hw, orientation = read(data, limits)
    except ImageError:
        raise
    except Exception as error:  # untrusted bytes: Pillow alone raises eight types
        raise ImageError(Reason.DECODE_CORRUPT, " ".join(str(error).split())[:200]) from error
    if labels_hw.ndim != 2 or labels_hw.dtype.kind not in "ui":
        shape = " × ".join(map(str, labels_hw.shape))
        raise ImageError(
            Reason.IMAGE_MODE_NOT_SUPPORTED, f"a label image has one integer per pixel, not {shape} {labels_hw.dtype}"
        )
    return oriented(labels_hw, orientation) if turned else labels_hw


def _from_tiff(data: bytes, limits: LimitsSpec) -> tuple[NDArray[Any], int]:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        _check_size(file.pages.first.imagelength, file.pages.first.imagewidth, limits)
        if len(file.pages) > 1:
            raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"a label image is one page, not {len(file.pages)}")
        found = file.pages.first.asarray()
        value = file.pages.first.tags.valueof(ORIENTATION, 1)
    return found.astype(np.uint8) if found.dtype == bool else np.asarray(found), value if isinstance(value, int) else 1


def _from_pillow(data: bytes, limits: LimitsSpec) -> tuple[NDArray[Any], int]:
    with Image.open(io.BytesIO(data), formats=["PNG", "BMP", "GIF"]) as image:
        _check_size(image.height, image.width, limits)
        if image.mode not in _MODES:
            raise ImageError(
                Reason.IMAGE_MODE_NOT_SUPPORTED,
                f"a label image is indexed or gray, with classes as pixel values; this one has colours ({image.mode})",
            )
        orientation = orientation_of(image, data)
        found = np.asarray(image)
    if found.dtype == bool:
        return found.astype(np.uint8), orientation
    return found // (255 // ((1 << data[24]) - 1)) if _is_shallow(data) else found, orientation


def _is_shallow(data: bytes) -> bool:
    """Whether it is a gray PNG of 2 or 4 bits, whose values Pillow stretches to 0..255 (PNG specification, 11.2.1)."""
    return data[:4] == b"\x89PNG" and data[24] in (2, 4) and data[25] == 0


def _check_size(height: int, width: int, limits: LimitsSpec) -> None:
    if height * width > limits.max_image_pixels:
        raise ImageError(
            Reason.DECODE_TOO_MANY_PIXELS, f"{height} × {width} pixels are more than limits.max_image_pixels"
        )
