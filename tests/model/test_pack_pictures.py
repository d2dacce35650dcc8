"""Reference pictures: the same pixels everywhere, for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from unet_batch.model.pack_pictures import synthetic


@pytest.mark.parametrize(
    ("number", "dtype", "digest"),
    [
        (0, "uint8", "7c257a12c217ab21"),
        (1, "uint8", "78e18e20d27b23d0"),
        (2, "uint8", "7ad95a9e3c841a22"),
        (3, "uint16", "12bfc34fa0ac06c3"),
        (4, "uint16", "4cc2a8665caee6a8"),
        (5, "uint16", "740f1e10bb41a967"),
    ],
)
def test_a_picture_never_changes(number, dtype, digest):
    """Packed files carry what their network said about these very pixels."""
    pixels = synthetic(number, (96, 130, 3), dtype)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("number", range(6))
def test_a_picture_has_structure_and_its_channels_differ(number):
    """Dark and bright places, and no two channels alike: a wrong order must show."""
    pixels = synthetic(number, (256, 256, 4), "uint8").astype(int)
    assert pixels.shape == (256, 256, 4)
    assert all(pixels[:, :, channel].std() > 5 for channel in range(4))
    assert all(abs(pixels[:, :, a] - pixels[:, :, b]).mean() > 4 for a in range(4) for b in range(a))


def test_sixteen_bit_pictures_use_their_range():
    """A network that is trained on x / 65535 sees the same as one on x / 255."""
    assert np.array_equal(synthetic(1, (32, 32, 1), "uint16"), synthetic(1, (32, 32, 1), "uint8") * np.uint16(257))


def test_a_tiny_picture_is_possible():
    """Some networks take 1 x 1."""
    assert synthetic(2, (1, 1, 1), "uint8").shape == (1, 1, 1)
