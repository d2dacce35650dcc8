"""Pillow's test pictures, with those found by fuzzing: every file gets pages, every page pixels or a reason."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpora import pillow_test_images
from PIL import Image

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import Page, decode
from unet_batch.errors import ImageError, Reason
from unet_batch.spec import LimitsSpec

pytestmark = pytest.mark.real

SPEC, LIMITS = ModelInput(), LimitsSpec()
ALLOWED = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
IDENTITIES = {"RGB": ModelInput(), "L": ModelInput(color="gray", channels=1)}


DIFFERENT = {
    "8bit.s.tif": "signed bytes, which Pillow takes for unsigned ones",
    "old-style-jpeg-compression.tif": "subsampled colours are interpolated, where libtiff repeats them",
    "old-style-jpeg-compression-no-samplesperpixel.tif": "the same picture",
    "separate_planar_extra_samples.tiff": "its second band has no bytes, and Pillow reads the first alone",
}
"""Files that are rightly not decoded to Pillow's pixels."""


@pytest.fixture(scope="module")
def files() -> list[Path]:
    return sorted(path for path in pillow_test_images().rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def pages(files: list[Path]) -> dict[Path, list[Page]]:
    return {path: list(decode(path.read_bytes(), SPEC, LIMITS)) for path in files}


def test_every_file_has_pages_with_pixels_or_a_reason(pages: dict[Path, list[Page]]) -> None:
    """No exception, no file without a page, no page without content; the counts are printed."""
    counts: Counter[str] = Counter()
    wrong = []
    for path, found in pages.items():
        if [(p.page, p.pages) for p in found] != [(n, len(found)) for n in range(len(found))] or not found:
            wrong.append(path.name)
        for page in found:
            if isinstance(page.content, ImageError):
                counts[page.content.reason] += 1
            else:
                counts["ok"] += 1
                fits = page.content.shape == (page.height, page.width, 3) and page.content.flags.c_contiguous
                if not fits or page.content.dtype not in (np.uint8, np.uint16, np.float32):
                    wrong.append(path.name)
    print("\n".join(f"{count:5d} {reason}" for reason, count in counts.most_common()))
    assert wrong == []
    assert set(counts) <= {"ok", *Reason}
    assert counts["ok"] > 600


def test_what_pillow_loads_is_decoded_to_pillows_pixels(files: list[Path]) -> None:
    """Files of allowed formats whose mode is RGB or L: same pixels as Pillow's first frame, unless they are deep."""
    compared, different = 0, []
    for path in files:
        data = path.read_bytes()
        expected = _pillows(data)
        if expected is None:
            continue
        mode, array = expected
        first = next(decode(data, IDENTITIES[mode], LIMITS)).content
        compared += 1
        if isinstance(first, ImageError) or not np.array_equal(first.reshape(array.shape), array):
            different.append((path.name, str(first)[:80] if isinstance(first, ImageError) else first.dtype.name))
    print(f"{compared} files compared")
    assert {name for name, _ in different} == set(DIFFERENT), different
    assert compared > 300


def _pillows(data: bytes) -> tuple[str, np.ndarray] | None:
    """Mode and samples of the oriented first frame by Pillow alone; None if it fails or reduces 16 bits."""
    from PIL import ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=ALLOWED)
            bits = (
                image.tag_v2.get(258, (8,)) if image.format == "TIFF" else (data[24] if image.format == "PNG" else 8,)
            )
            if image.width * image.height > LIMITS.max_image_pixels or max(bits) > 8 or image.mode not in IDENTITIES:
                return None
            image = ImageOps.exif_transpose(image)
            return image.mode, np.asarray(image)
        except Exception:
            return None
