"""Pictures for display: contrast, borders and sizes, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from unet_batch.imaging.overlay import border, displayed, label_color, stretch, thumbnail, thumbnail_size

YELLOW = (255, 196, 0)


def test_a_border_is_one_pixel_on_either_side():
    """No border inside or outside, and none along the picture's edge."""
    mask = np.zeros((6, 6), bool)
    mask[2:, 2:] = True
    expected = np.zeros((6, 6), bool)
    expected[1:, 1:] = True
    expected[3:, 3:] = False
    np.testing.assert_array_equal(border(mask), expected)


@pytest.mark.parametrize("mask", [np.zeros((4, 4), bool), np.ones((4, 4), bool)])
def test_an_empty_and_a_full_mask_have_no_border(mask):
    """The caption names a class that fills the picture."""
    assert not border(mask).any()


def test_channels_become_red_green_and_blue():
    """Gray is repeated, bgr is reversed, and of `bands` the first three are shown."""
    pixel = np.arange(5, dtype=np.uint8).reshape(1, 1, 5)
    assert displayed(pixel[..., :1], "gray").tolist() == [[[0, 0, 0]]]
    assert displayed(pixel[..., :3], "rgb").tolist() == [[[0, 1, 2]]]
    assert displayed(pixel[..., :3], "bgr").tolist() == [[[2, 1, 0]]]
    assert displayed(pixel, "bands").tolist() == [[[0, 1, 2]]]
    assert displayed(pixel[..., :2], "bands").tolist() == [[[0, 0, 0]]]


def test_large_pictures_shrink_and_small_ones_grow_by_whole_factors():
    """A mask of 32 pixels becomes visible, without interpolated pixels."""
    assert thumbnail_size(2000, 1000, 384) == (384, 192)
    assert thumbnail_size(32, 20, 384) == (384, 240)
    assert thumbnail_size(300, 200, 384) == (300, 200)
    assert thumbnail_size(4000, 3, 384) == (384, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_thumbnail_is_a_picture_of_8_bits_with_outlines(dtype):
    """For every dtype of the input, and for masks of another size."""
    picture = np.full((64, 64, 3), 100, dtype)
    picture[:, 32:] = 50
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    drawn = thumbnail(picture, 32, [(mask, YELLOW)])
    assert (drawn.dtype, drawn.shape) == (np.uint8, (32, 32, 3))
    assert drawn[8, 16].tolist() == list(YELLOW)
    assert drawn[16, 16].tolist() != list(YELLOW)


def test_8_bits_are_shown_as_they_are_and_more_are_stretched():
    """A dark 8-bit picture is dark on the page; a 16-bit one would be black."""
    dark = np.linspace(10, 20, 64).astype(np.uint8).reshape(8, 8, 1).repeat(3, axis=2)
    assert thumbnail(dark, 8, []).max() == 20
    assert thumbnail(dark.astype(np.uint16), 8, []).max() == 255
    assert stretch(np.zeros((4, 4), np.uint16)).max() == 0


def test_a_thin_structure_keeps_its_border_where_it_shrinks():
    """A vessel of two pixels is still visible at a quarter of the size."""
    mask = np.zeros((128, 128), bool)
    mask[64:66] = True
    drawn = thumbnail(np.zeros((128, 128, 3), np.uint8), 32, [(mask, YELLOW)])
    assert (drawn == YELLOW).all(axis=2).any()


def test_every_label_has_a_colour_of_its_own():
    """0 too: without a background it is a class, and lies beside class 1."""
    assert len({label_color(label) for label in range(40)}) == 40
