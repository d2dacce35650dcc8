"""Tiles: MONAI's places and weights, every pixel covered, and blending into one map."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.errors import ShapeMismatch
from unet_batch.imaging.tiling import Box, Canvas, grid, starts
from unet_batch.spec import TilingSpec


def logits_at(size_hw: tuple[int, int], classes: int = 2) -> np.ndarray:
    return np.random.default_rng(11).normal(size=(classes, *size_hw)).astype(np.float32)


def put_together(logits: np.ndarray, tile_hw: tuple[int, int], tiling: TilingSpec) -> np.ndarray:
    canvas = Canvas(logits.shape[1:], tile_hw, tiling)
    for box in grid(logits.shape[1:], tile_hw, tiling.overlap, tiling.placement):
        canvas.add(box, logits[:, *box.slices])
    return canvas.finished()


@pytest.mark.parametrize(
    ("length", "side", "overlap", "wanted"),
    [
        (600, 256, 0.5, [0, 128, 256, 344]),
        (1000, 256, 0.5, [0, 128, 256, 384, 512, 640, 744]),
        (256, 256, 0.25, [0]),
        (257, 256, 0.0, [0, 1]),
        (12, 10, 0.8, [0, 1, 2]),
        (11, 10, 0.9, [0, 1]),
        (6, 5, 0.8, [0, 1]),
    ],
)
def test_tiles_start_where_monai_starts_them(length, side, overlap, wanted):
    """The last tile is pulled back, and the stride is computed in floating point (10 · (1 - 0.8) gives 1)."""
    assert starts(length, side, overlap) == wanted


@pytest.mark.parametrize(
    ("length", "side", "overlap", "wanted"),
    [
        (600, 256, 0.5, [0, 115, 229, 344]),
        (1000, 256, 0.5, [0, 124, 248, 372, 496, 620, 744]),
        (130, 64, 0.5, [0, 22, 44, 66]),
        (256, 256, 0.5, [0]),
        (257, 256, 0.5, [0, 1]),
        (70, 33, 0.75, [0, 7, 15, 22, 30, 37]),
        (24, 16, 0.9, [0, 2, 3, 5, 6, 8]),
        (31, 7, 0.0, [0, 6, 12, 18, 24]),
    ],
)
def test_evenly_placed_tiles_start_where_nnunet_starts_them(length, side, overlap, wanted):
    """Recorded from nnunetv2 2.8.1, compute_steps_for_sliding_window with tile_step_size 1 - overlap. Halves are
    rounded to even (7.5 to 8, 22.5 to 22), and 1 - 0.9 counts as 0.1."""
    assert starts(length, side, overlap, "even") == wanted


def test_a_grid_goes_row_by_row():
    """Golden: 5 x 6 pixels in tiles of 4 x 4 without overlap."""
    assert grid((5, 6), (4, 4), 0.0) == [Box(0, 0, 4, 4), Box(0, 2, 4, 4), Box(1, 0, 4, 4), Box(1, 2, 4, 4)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 20),
    st.floats(0, 0.95),
    st.sampled_from(["stride", "even"]),
)
def test_every_pixel_is_in_a_tile_and_every_tile_in_the_picture(height, width, down, across, overlap, placement):
    """Right and bottom edges included; no tile twice."""
    tile_hw = min(down, height), min(across, width)

    boxes = grid((height, width), tile_hw, overlap, placement)

    covered = np.zeros((height, width), int)
    for box in boxes:
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
        covered[box.slices] += 1
    assert covered.min() >= 1
    assert len(set(boxes)) == len(boxes)


def test_a_picture_smaller_than_its_tile_has_no_grid():
    """`fit` and `normalize` pad."""
    with pytest.raises(ShapeMismatch, match="smaller than its tile"):
        grid((5, 3), (4, 4), 0.0)


@pytest.mark.parametrize("placement", ["stride", "even"])
@pytest.mark.parametrize("blend", ["constant", "gaussian", "gaussian_nnunet"])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_tiles_that_agree_come_back_as_the_map_they_were_cut_from(blend, overlap, placement):
    """Blending is a mean: equal tiles give the same values."""
    logits = logits_at((37, 50))

    finished = put_together(logits, (16, 20), TilingSpec(overlap=overlap, blend=blend, placement=placement))

    assert finished.dtype == np.float32
    np.testing.assert_allclose(finished, logits, atol=1e-5)


def test_constant_blending_is_the_plain_mean():
    """Golden: two tiles of three pixels over four; the middle two pixels are covered twice."""
    canvas = Canvas((1, 4), (1, 3), TilingSpec(overlap=0.5, blend="constant"))

    canvas.add(Box(0, 0, 1, 3), np.array([[[1, 1, 1]]], np.float32))
    canvas.add(Box(0, 1, 1, 3), np.array([[[3, 3, 3]]], np.float32))

    assert canvas.finished().tolist() == [[[1, 2, 2, 3]]]


def test_gaussian_blending_weighs_the_middle_of_a_tile_more():
    """Golden: weights exp(-1/2σ²R²) = exp(-1/4.5) beside a middle of 1, for sides of 3 and sigma 0.5."""
    canvas = Canvas((1, 4), (1, 3), TilingSpec(overlap=0.5, blend="gaussian", sigma=0.5))
    edge = np.exp(-1 / (2 * 1.5**2))

    canvas.add(Box(0, 0, 1, 3), np.zeros((1, 1, 3), np.float32))
    canvas.add(Box(0, 1, 1, 3), np.ones((1, 1, 3), np.float32))

    np.testing.assert_allclose(canvas.finished()[0, 0], [0, edge / (1 + edge), 1 / (1 + edge), 1], atol=1e-6)


def test_a_gaussian_weight_is_never_below_a_thousandth():
    """Golden: exp(-1/2σ²R²) = 2e-10 beside a middle of 1 counts as 0.001, for sides of 3 and sigma 0.05."""
    canvas = Canvas((1, 4), (1, 3), TilingSpec(overlap=0.5, blend="gaussian", sigma=0.05))

    canvas.add(Box(0, 0, 1, 3), np.zeros((1, 1, 3), np.float32))
    canvas.add(Box(0, 1, 1, 3), np.ones((1, 1, 3), np.float32))

    np.testing.assert_allclose(canvas.finished()[0, 0], [0, 0.001 / 1.001, 1 / 1.001, 1], atol=1e-7)


NNUNET_WEIGHTS = [
    [2.002716064453125e-05, 0.008087158203125, 0.05975341796875, 0.008087158203125],
    [0.0009326934814453125, 0.376220703125, 2.78125, 0.376220703125],
    [0.0033550262451171875, 1.353515625, 10.0, 1.353515625],
    [0.0009326934814453125, 0.376220703125, 2.78125, 0.376220703125],
    [2.002716064453125e-05, 0.008087158203125, 0.05975341796875, 0.008087158203125],
]
"""Recorded from nnunetv2 2.8.1: compute_gaussian((5, 4), sigma_scale=1/8, value_scaling_factor=10, dtype=float16)."""


def test_the_gaussian_of_nnunet_has_its_weights_to_the_last_bit():
    """Its middle is R // 2, so sides of even length are not symmetric, and it is rounded to float16."""
    weights = np.array(NNUNET_WEIGHTS, np.float32)
    tiling = TilingSpec(overlap=0.5, blend="gaussian_nnunet", placement="even")
    first, second = (np.full((1, 5, 4), value, np.float32) for value in (1, -2))
    canvas = Canvas((5, 6), (5, 4), tiling)

    canvas.add(Box(0, 0, 5, 4), first)
    canvas.add(Box(0, 2, 5, 4), second)

    total, counted = np.zeros((5, 6), np.float32), np.zeros((5, 6), np.float32)
    for left, value in ((0, 1), (2, -2)):
        total[:, left : left + 4] += value * weights
        counted[:, left : left + 4] += weights
    np.testing.assert_array_equal(canvas.finished()[0], total / counted)


def test_weights_of_nnunet_that_float16_cannot_hold_are_its_smallest_weight():
    """A weight of 0 would leave pixels at a corner without a value."""
    finished = put_together(logits_at((40, 40)), (32, 32), TilingSpec(overlap=0.5, blend="gaussian_nnunet", sigma=0.05))

    np.testing.assert_allclose(finished, logits_at((40, 40)), atol=1e-5)


def test_more_than_255_tiles_over_one_pixel_are_all_counted():
    """No 8-bit counter overflows: the mean of 300 tiles is right."""
    tiling = TilingSpec(overlap=0.999, blend="constant")

    finished = put_together(np.full((1, 1, 599), 2.5, np.float32), (1, 300), tiling)

    np.testing.assert_allclose(finished, 2.5, rtol=1e-5)


def test_a_picture_of_one_tile_keeps_its_logits_as_they_are():
    """No weights, no copy, and a half-size mask stays half-size."""
    canvas = Canvas((32, 32), (32, 32), TilingSpec())
    logits = logits_at((16, 16))

    canvas.add(Box(0, 0, 32, 32), logits)

    assert canvas.finished() is logits


def test_half_size_tiles_are_resized_to_their_boxes():
    """A network that halves the resolution still fills the picture."""
    canvas = Canvas((32, 48), (32, 32), TilingSpec(overlap=0.5))

    canvas.add(Box(0, 0, 32, 32), np.full((3, 16, 16), 4, np.float16))
    canvas.add(Box(0, 16, 32, 32), np.full((3, 16, 16), 4, np.float16))

    finished = canvas.finished()
    assert finished.shape == (3, 32, 48)
    np.testing.assert_allclose(finished, 4, rtol=1e-6)


@settings(deadline=None)
@given(
    height=st.integers(7, 60),
    width=st.integers(7, 60),
    side=st.integers(2, 7),
    overlap=st.floats(0, 0.9),
    placement=st.sampled_from(["stride", "even"]),
)
def test_labels_of_overlapping_tiles_are_never_mixed(height, width, side, overlap, placement):
    """Labels are not averaged: 0 and 2 must not become 1. Equal tiles give the map that they were cut from."""
    labels = np.random.default_rng(1).integers(0, 200, (1, height, width)).astype(np.float32)
    tiling = TilingSpec(overlap=overlap, placement=placement)
    canvas = Canvas((height, width), (side, side), tiling, decided=True)

    for box in reversed(grid((height, width), (side, side), overlap, placement)):
        canvas.add(box, labels[:, *box.slices])

    np.testing.assert_array_equal(canvas.finished(), labels)


def test_two_tiles_of_labels_share_their_overlap_in_halves():
    """Golden: tiles of four pixels over six; of the two pixels that both see, each keeps the nearer one."""
    canvas = Canvas((1, 6), (1, 4), TilingSpec(overlap=0.5), decided=True)

    canvas.add(Box(0, 0, 1, 4), np.full((1, 1, 4), 5, np.float32))
    canvas.add(Box(0, 2, 1, 4), np.full((1, 1, 4), 9, np.float32))

    assert canvas.finished().tolist() == [[[5, 5, 5, 9, 9, 9]]]


def test_half_size_labels_are_enlarged_by_the_nearest_pixel():
    """Golden: every label twice, as np.repeat says."""
    left, right = np.array([[[1, 2]]], np.float32), np.array([[[3, 4]]], np.float32)
    canvas = Canvas((2, 8), (2, 4), TilingSpec(overlap=0), decided=True)

    canvas.add(Box(0, 0, 2, 4), left)
    canvas.add(Box(0, 4, 2, 4), right)

    expected = np.repeat(np.concatenate([left, right], 2), 2, axis=2).repeat(2, axis=1)
    np.testing.assert_array_equal(canvas.finished(), expected)


def test_tiles_may_come_in_any_order():
    """Batches of several pictures interleave their tiles."""
    logits, tiling = logits_at((20, 20)), TilingSpec(overlap=0.3)
    canvas = Canvas((20, 20), (9, 9), tiling)

    for box in reversed(grid((20, 20), (9, 9), 0.3)):
        canvas.add(box, logits[:, *box.slices])

    np.testing.assert_allclose(canvas.finished(), logits, atol=1e-5)


def test_a_missing_tile_is_an_error():
    """Pixels without logits get no value."""
    canvas = Canvas((4, 6), (4, 4), TilingSpec(overlap=0.5))
    canvas.add(Box(0, 0, 4, 4), logits_at((4, 4)))

    with pytest.raises(ShapeMismatch, match=r"1 tile\(s\) were never added"):
        canvas.finished()


def test_a_canvas_is_finished_once():
    """`finished` returns its sums without a copy."""
    canvas = Canvas((4, 4), (4, 4), TilingSpec())
    canvas.add(Box(0, 0, 4, 4), logits_at((4, 4)))
    canvas.finished()

    with pytest.raises(ShapeMismatch, match="finished before"):
        canvas.finished()


@pytest.mark.parametrize("box", [Box(0, 0, 4, 4), Box(0, 1, 4, 4)])
def test_a_tile_added_twice_or_of_another_grid_is_an_error(box):
    """It would count double, or in the wrong place."""
    canvas = Canvas((4, 6), (4, 4), TilingSpec(overlap=0.5))
    canvas.add(Box(0, 0, 4, 4), logits_at((4, 4)))

    with pytest.raises(ShapeMismatch, match="not a tile of this picture"):
        canvas.add(box, logits_at((4, 4)))


def test_tiles_with_different_classes_are_an_error():
    """One picture has one number of channels."""
    canvas = Canvas((4, 6), (4, 4), TilingSpec(overlap=0.5))
    canvas.add(Box(0, 0, 4, 4), logits_at((4, 4), 2))

    with pytest.raises(ShapeMismatch, match="3 classes"):
        canvas.add(Box(0, 2, 4, 4), logits_at((4, 4), 3))


SIZES = [(64, 64), (65, 90), (100, 70), (128, 33)]
TILES = [(32, 32), (33, 24)]


@pytest.mark.oracle
@pytest.mark.parametrize("sigma", [0.125, 0.3])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize(("size_hw", "tile_hw", "overlap"), list(product(SIZES, TILES, [0.0, 0.25, 0.5, 0.8])))
def test_a_stitched_map_equals_monai(size_hw, tile_hw, overlap, blend, sigma):
    """Within 1e-5 of sliding_window_inference, for a network whose output depends on the place in the tile."""
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    picture, ramp = logits_at(size_hw, 1), np.linspace(-1, 1, tile_hw[0] * tile_hw[1], dtype=np.float32)
    ramp = ramp.reshape(tile_hw)
    canvas = Canvas(size_hw, tile_hw, TilingSpec(overlap=overlap, blend=blend, sigma=sigma))

    for box in grid(size_hw, tile_hw, overlap):
        tile = picture[:, *box.slices]
        canvas.add(box, np.concatenate([tile * ramp, tile + ramp]))

    monai = inferers.sliding_window_inference(
        torch.from_numpy(picture)[None],
        tile_hw,
        4,
        lambda tiles: torch.cat([tiles * torch.from_numpy(ramp), tiles + torch.from_numpy(ramp)], dim=1),
        overlap=overlap,
        mode=blend,
        sigma_scale=sigma,
    )
    np.testing.assert_allclose(canvas.finished(), monai[0].numpy(), atol=1e-5)
