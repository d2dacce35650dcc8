"""Pictures as the bytes of a file, and what a decode says about such a file: what the tests of decoders share."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_batch.contract import ModelInput
from unet_batch.decode import decode as decode_module
from unet_batch.decode.decode import Page, decode
from unet_batch.errors import ImageError
from unet_batch.spec import LimitsSpec

GRAY = ModelInput(color="gray", channels=1)
RGB = ModelInput()
LIMITS = LimitsSpec()


def saved(image: Image.Image, format_: str, **options: object) -> bytes:
    """As Pillow writes it."""
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    """As tifffile writes it."""
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    """As NumPy writes it."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def only(data: bytes, spec: ModelInput = RGB, limits: LimitsSpec = LIMITS) -> Page:
    """The page of a file that has one."""
    (page,) = decode(data, spec, limits)
    return page


def outcome(data: bytes, spec: ModelInput) -> tuple[object, ...]:
    """Everything that a decode says about the page of a file that has one, comparable."""
    page = only(data, spec)
    content = page.content
    if isinstance(content, ImageError):
        return (page.height, page.width, content.reason, content.message)
    return (page.height, page.width, page.largest, content.shape, content.dtype.str, content.tobytes())


def by_pillow(data: bytes, spec: ModelInput) -> tuple[object, ...]:
    """The same where Pillow decodes JPEG and PNG."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decode_module, "plain_jpeg", lambda *_: None)
        patched.setattr(decode_module, "plain_png", lambda *_: None)
        return outcome(data, spec)
