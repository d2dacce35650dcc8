"""Arrays become PNG and JPEG files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from unet_batch.errors import ShapeMismatch


def encode_png(labels_hw: np.ndarray) -> bytes:
    """A label map as a gray PNG: 8 bit for uint8, 16 bit for uint16, no palette. Raises ShapeMismatch otherwise."""
    if labels_hw.ndim != 2 or labels_hw.dtype not in (np.uint8, np.uint16):
        raise ShapeMismatch(f"a label map is uint8 or uint16 (H, W), not {labels_hw.dtype} {labels_hw.shape}")
    file = io.BytesIO()
    # Level 1: higher levels save only a few per cent of a label map, and take more time
    Image.fromarray(labels_hw).save(file, "PNG", compress_level=1)
    return file.getvalue()


def encode_jpeg(rgb_hwc: np.ndarray) -> bytes:
    """A uint8 picture (H, W, 3) as a JPEG for display, without chroma subsampling, which would blur thin lines."""
    file = io.BytesIO()
    Image.fromarray(rgb_hwc).save(file, "JPEG", quality=80, subsampling=0)
    return file.getvalue()
