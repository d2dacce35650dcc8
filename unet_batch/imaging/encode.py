"""Arrays become PNG, JPEG and TIFF files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from unet_batch.errors import ShapeMismatch

LARGEST_JPEG_PX = 65500
"""Longest side that libjpeg writes (JPEG_MAX_DIMENSION)."""


def encode_png(labels_hw: np.ndarray) -> bytes:
    """A label map as a gray PNG: 8 bit for uint8, 16 bit for uint16, no palette. Raises ShapeMismatch otherwise."""
    if labels_hw.ndim != 2 or labels_hw.dtype not in (np.uint8, np.uint16):
        raise ShapeMismatch(f"a label map is uint8 or uint16 (H, W), not {labels_hw.dtype} {labels_hw.shape}")
    file = io.BytesIO()
    # Level 1: higher levels save only a few per cent of a label map, and take more time
    Image.fromarray(labels_hw).save(file, "PNG", compress_level=1)
    return file.getvalue()


def encode_indexed_png(labels_hw: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> bytes:
    """A uint8 label map (H, W) as a PNG whose pixels are the labels and whose palette makes them visible.

    palette: the colour of each label from 0 on; labels beyond it are black. Raises ShapeMismatch for other arrays.
    """
    if labels_hw.ndim != 2 or labels_hw.dtype != np.uint8:
        raise ShapeMismatch(f"an indexed PNG holds uint8 labels (H, W), not {labels_hw.dtype} {labels_hw.shape}")
    height, width = labels_hw.shape
    image = Image.frombytes("P", (width, height), np.ascontiguousarray(labels_hw).tobytes())
    image.putpalette([*(level for color in palette for level in color), *([0] * (768 - 3 * len(palette)))])
    file = io.BytesIO()
    image.save(file, "PNG", bits=8)  # some readers do not unpack 1, 2 and 4 bits
    return file.getvalue()


def encode_tiff(labels_hw: np.ndarray, white: int | None = None) -> bytes:
    """A label map (H, W) as a gray TIFF, deflated. Raises ShapeMismatch unless it is uint8 or uint16.

    white: the label that ImageJ shows as white, so that few labels are not black on black; pixels are the same.
    """
    import tifffile

    if labels_hw.ndim != 2 or labels_hw.dtype not in (np.uint8, np.uint16):
        raise ShapeMismatch(f"a label map is uint8 or uint16 (H, W), not {labels_hw.dtype} {labels_hw.shape}")
    file = io.BytesIO()
    shown = None if white is None else {"min": 0.0, "max": float(white)}
    tifffile.imwrite(
        file,
        labels_hw,
        imagej=shown is not None,
        photometric="minisblack",
        compression="adobe_deflate",
        metadata=shown,
    )
    return file.getvalue()


def encode_jpeg(rgb_hwc: np.ndarray, quality: int = 80) -> bytes:
    """A uint8 picture (H, W, 3) as a JPEG for display, without chroma subsampling, which would blur thin lines.

    Raises ShapeMismatch for a side that no JPEG of libjpeg holds.
    """
    if max(rgb_hwc.shape[:2]) > LARGEST_JPEG_PX:
        height, width = rgb_hwc.shape[:2]
        raise ShapeMismatch(
            f"a picture of {height} x {width} is no JPEG: its sides have at most {LARGEST_JPEG_PX} pixels"
        )
    file = io.BytesIO()
    Image.fromarray(rgb_hwc).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
