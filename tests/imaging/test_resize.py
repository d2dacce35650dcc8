"""Resize kernels: equal to those of the libraries in their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from unet_batch.contract import Kernel
from unet_batch.imaging.resize import resize, resize_logits, resize_rows

SIZES = [((32, 48), (32, 20)), ((33, 47), (21, 64)), ((20, 20), (53, 7)), ((9, 13), (40, 41)), ((64, 64), (32, 32))]


def noise(size_hw: tuple[int, int], channels: int, dtype: type[Any] = np.uint8) -> NDArray[Any]:
    values = np.random.default_rng(7).random((*size_hw, channels))
    return (values * (255 if dtype is np.uint8 else 65535)).astype(dtype)


def pillow(band: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    return np.asarray(Image.fromarray(band).resize(size_hw[::-1], Image.Resampling.BILINEAR))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("size_hw", "new_hw"), SIZES)
def test_pil_bilinear_u8_is_pillow_to_the_bit_in_every_band(size_hw, new_hw, channels):
    """No channel is ever taken for alpha: bands stay independent."""
    image = noise(size_hw, channels)

    resized = resize(image, new_hw, "pil_bilinear_u8")

    wanted = np.stack([pillow(np.ascontiguousarray(image[:, :, c]), new_hw) for c in range(channels)], axis=2)
    np.testing.assert_array_equal(resized, wanted)
    assert resized.dtype == np.uint8


def test_pil_bilinear_u8_is_pillow_rgb_to_the_bit():
    """A colour picture equals Pillow's own resize of the same picture."""
    image = noise((37, 61), 3)

    resized = resize(image, (24, 80), "pil_bilinear_u8")

    np.testing.assert_array_equal(resized, pillow(image, (24, 80)))


@pytest.mark.parametrize("kernel", ["pil_bilinear_u8", "triangle_f32"])
@pytest.mark.parametrize(("size_hw", "new_hw"), SIZES)
def test_16_bit_pixels_are_resized_in_float_and_rounded(size_hw, new_hw, kernel: Kernel):
    """16 bits stay 16 bits: Pillow's mode F, rounded to the nearest integer."""
    image = noise(size_hw, 2, np.uint16)

    resized = resize(image, new_hw, kernel)

    wanted = np.stack([pillow(image[:, :, c].astype(np.float32), new_hw) for c in range(2)], axis=2)
    assert resized.dtype == np.uint16
    assert np.abs(resized - wanted.astype(np.float64)).max() <= 0.5


@pytest.mark.parametrize("kernel", ["pil_bilinear_u8", "triangle_f32"])
def test_float_pixels_are_pillow_mode_f(kernel: Kernel):
    """Floats are neither rounded nor clipped."""
    image = noise((31, 40), 3, np.float32) - 30000

    resized = resize(image, (17, 55), kernel)

    np.testing.assert_array_equal(resized[:, :, 1], pillow(np.ascontiguousarray(image[:, :, 1]), (17, 55)))
    assert resized.dtype == np.float32


@pytest.mark.parametrize("kernel", ["triangle_f32", "torch_bilinear", "nearest", "pil_bilinear_u8"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_kernel_keeps_a_constant_picture_and_its_dtype(kernel: Kernel, dtype):
    """The largest value of a type survives: nothing wraps."""
    value = 1.5 if dtype is np.float32 else np.iinfo(dtype).max
    image = np.full((11, 17, 2), value, dtype)

    resized = resize(image, (23, 8), kernel)

    assert resized.dtype == dtype
    assert resized.flags.c_contiguous
    np.testing.assert_array_equal(resized, np.full((23, 8, 2), value, dtype))


def test_a_picture_of_the_right_size_is_not_copied():
    """Resizing to the same size is the identity."""
    image = noise((8, 9), 3)

    assert resize(image, (8, 9), "triangle_f32") is image


def test_nearest_takes_the_floor():
    """Five pixels from three: floor(i · 3/5) = 0 0 1 1 2."""
    image = np.array([[[10], [20], [30]]], np.uint8)

    assert resize(image, (1, 5), "nearest")[0, :, 0].tolist() == [10, 10, 20, 20, 30]


def test_bilinear_uses_half_pixel_centres_and_no_antialias():
    """Golden: two pixels read at -0.25, 0.25, 0.75 and 1.25; four pixels read at 0.5 and 2.5, nothing in between."""
    image = np.array([[[0.0], [10.0]]], np.float32)
    four = np.array([[[0.0], [10.0], [20.0], [100.0]]], np.float32)

    assert resize(image, (1, 4), "torch_bilinear")[0, :, 0].tolist() == [0.0, 2.5, 7.5, 10.0]
    assert resize(four, (1, 2), "torch_bilinear")[0, :, 0].tolist() == [5.0, 60.0]


def test_logits_of_half_precision_come_back_as_float32():
    """Interpolation is in float32 for every dtype of the output."""
    logits = np.array([[[1, 3]]], np.float16)

    resized = resize_logits(logits, (1, 2))

    assert resized.dtype == np.float32
    np.testing.assert_array_equal(resized, [[[1, 3]]])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.data(),
)
def test_a_strip_of_rows_is_bit_equal_to_the_full_frame(size_hw, new_hw, data):
    """Any rows of a resize can be made alone."""
    first = data.draw(st.integers(0, new_hw[0] - 1))
    last = data.draw(st.integers(first + 1, new_hw[0]))
    logits = np.random.default_rng(3).normal(size=(2, *size_hw)).astype(np.float32)

    strip = resize_rows(logits, new_hw, first, last)

    np.testing.assert_array_equal(strip, resize_logits(logits, new_hw)[:, first:last])


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(1, 4),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
)
def test_torch_bilinear_on_pictures_is_that_on_logits_bit_for_bit(size_hw, new_hw, channels, dtype):
    """Pictures are resized with their channels side by side, in strips; the arithmetic is that of channel maps."""
    image = noise(size_hw, channels, dtype)

    resized = resize(image, new_hw, "torch_bilinear")

    wanted = np.moveaxis(resize_logits(np.moveaxis(image, 2, 0), new_hw), 0, 2)
    if dtype is not np.float32:
        wanted = np.clip(np.rint(wanted), 0, np.iinfo(dtype).max)
    np.testing.assert_array_equal(resized, wanted.astype(dtype) if size_hw != new_hw else image)


def test_a_large_picture_is_resized_in_strips_without_seams():
    """Several strips, down and up, also of a picture that is a view."""
    image = noise((700, 900), 3)[::-1, 100:]
    for new_hw in ((256, 256), (1000, 300), (90, 1200)):
        wanted = np.rint(np.moveaxis(resize_logits(np.moveaxis(image, 2, 0), new_hw), 0, 2))
        np.testing.assert_array_equal(resize(image, new_hw, "torch_bilinear"), wanted)


@pytest.mark.parametrize("kernel", ["pil_bilinear_u8", "triangle_f32"])
def test_bands_that_are_equal_stay_equal(kernel: Kernel):
    """16-bit gray in three channels is computed once; a band that differs in one pixel is computed."""
    image = noise((40, 30), 1, np.uint16).repeat(3, axis=2)
    image[39, 29, 2] ^= 1 << 15

    resized = resize(image, (17, 21), kernel)

    for band in range(3):
        one = np.ascontiguousarray(image[:, :, band], np.float32)
        np.testing.assert_array_equal(resized[:, :, band], np.rint(pillow(one, (17, 21))))
    assert (resized[:, :, 1] != resized[:, :, 2]).any()


@pytest.mark.oracle
@pytest.mark.parametrize(("size_hw", "new_hw"), SIZES)
def test_float_kernels_equal_torch(size_hw, new_hw):
    """Within 1e-3 of 255 levels of torch's bilinear, with and without antialias."""
    torch = pytest.importorskip("torch")
    image = noise(size_hw, 3).astype(np.float32)
    nchw = torch.from_numpy(image).permute(2, 0, 1)[None]

    def wanted(antialias: bool) -> NDArray[np.float32]:
        grown = torch.nn.functional.interpolate(nchw, new_hw, mode="bilinear", antialias=antialias)
        return grown[0].permute(1, 2, 0).numpy()

    np.testing.assert_allclose(resize(image, new_hw, "triangle_f32"), wanted(antialias=True), atol=1e-3, rtol=0)
    np.testing.assert_allclose(resize(image, new_hw, "torch_bilinear"), wanted(antialias=False), atol=1e-3, rtol=0)


@pytest.mark.oracle
@pytest.mark.parametrize("n_in", [1, 2, 3, 7, 10, 49, 100])
def test_nearest_equals_torch_for_every_length(n_in):
    """Also where integer arithmetic would round another way."""
    torch = pytest.importorskip("torch")
    row = np.arange(n_in, dtype=np.float32)[None, :, None]
    lengths = range(1, 220)

    ours = [resize(row, (1, n), "nearest")[0, :, 0].tolist() for n in lengths]

    nchw = torch.from_numpy(row).permute(2, 0, 1)[None]
    assert ours == [torch.nn.functional.interpolate(nchw, (1, n), mode="nearest")[0, 0, 0].tolist() for n in lengths]
