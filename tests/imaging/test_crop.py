"""Images that `input.crop` cuts: the box, and the way back to the whole image."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from unet_batch.contract import ModelInput, ModelOutput
from unet_batch.imaging.crop import on_whole_image
from unet_batch.imaging.postprocess import reduce
from unet_batch.imaging.preprocess import Geometry, fit

NONZERO = ModelInput(crop="nonzero", color="bands", channels=2)
FRAMED = np.zeros((5, 6, 2), np.uint8)
FRAMED[1, 2, 0] = 7
FRAMED[3, 4, 1] = 9


def fitted(image: np.ndarray, spec: ModelInput = NONZERO) -> tuple[np.ndarray, Geometry]:
    return fit(image, spec, tile_hw=(4, 4), source_hw=image.shape[:2])


def test_an_image_is_cut_to_the_box_of_its_pixels_in_any_channel() -> None:
    """Rows 1 to 3 and columns 2 to 4: one channel is not 0 at one corner, the other at the opposite one."""
    content, geometry = fitted(FRAMED)
    np.testing.assert_array_equal(content, FRAMED[1:4, 2:5])
    assert geometry.cut == (1, 2, 5, 6)
    assert (geometry.source_hw, geometry.fitted_hw) == ((3, 3), (4, 4))


@pytest.mark.parametrize("image", [np.zeros((5, 6, 2), np.uint8), np.ones((5, 6, 2), np.uint8)], ids=["black", "full"])
def test_an_image_without_a_black_border_or_without_content_is_not_cut(image: np.ndarray) -> None:
    """As nnU-Net leaves an image that is 0 everywhere."""
    content, geometry = fitted(image)
    assert content is image
    assert geometry.cut is None


def test_black_borders_stay_by_default() -> None:
    """Only models that were trained on cut images get them."""
    content, geometry = fitted(FRAMED, ModelInput(color="bands", channels=2))
    assert content is FRAMED
    assert geometry.cut is None


@pytest.mark.parametrize(
    ("output", "values"),
    [
        (ModelOutput(classes=("a", "b")), [[[-1.0]], [[1.0]]]),
        (ModelOutput(classes=("a", "b"), activation="softmax"), [[[0.1]], [[0.9]]]),
        (ModelOutput(classes=("b",)), [[[2.0]]]),
        (ModelOutput(classes=("b",), activation="sigmoid"), [[[0.9]]]),
        (ModelOutput(classes=("b", "c"), activation="masks"), [[[1.0]], [[0.0]]]),
        (ModelOutput(classes=("a", "b"), activation="labels"), [[[1.0]]]),
    ],
    ids=["logits", "softmax", "one-logit", "one-sigmoid", "masks", "labels"],
)
def test_outside_of_the_box_is_background(output: ModelOutput, values: list[list[list[float]]]) -> None:
    """Label 1 in the box, 0 elsewhere, in pixels of the whole image; boxes and areas are there too."""
    _, geometry = fitted(FRAMED)
    scores = np.broadcast_to(np.array(values, np.float32), (len(values), 4, 4))
    prediction = reduce(*on_whole_image(scores, geometry, output), output, rle=True, confidence=True)
    expected = np.zeros((5, 6), np.uint8)
    expected[1:4, 2:5] = 1
    assert prediction.labels_hw is not None
    np.testing.assert_array_equal(prediction.labels_hw, expected)
    assert [(area.area_px, tuple(area.bbox)) for area in prediction.classes if area.name == "b"] == [(9, (2, 1, 3, 3))]


@pytest.mark.parametrize("activation", ["logits", "labels"])
def test_masks_of_half_the_size_are_enlarged_first(activation: str) -> None:
    """One pixel of the output is two of the box in each direction."""
    image = np.zeros((8, 8, 2), np.uint8)
    image[2:6, 3:7] = 1
    _, geometry = fit(image, NONZERO, tile_hw=(4, 4), source_hw=(8, 8))
    output = ModelOutput(classes=("a", "b"), activation=activation)
    scores = np.zeros((2, 2, 2), np.float32)
    scores[1] = [[9, -9], [-9, 9]]
    values = scores if activation == "logits" else scores[1:] > 0
    labels = reduce(*on_whole_image(values, geometry, output), output, rle=False, confidence=False).labels_hw
    assert labels is not None
    np.testing.assert_array_equal(labels[2:6, 3:7], np.kron(np.eye(2), np.ones((2, 2))))
    assert labels.sum() == 8


def test_scores_of_an_image_that_was_not_cut_are_not_touched() -> None:
    """No copy, so results of other models stay as they are."""
    scores = np.zeros((2, 4, 4), np.float32)
    _, geometry = fitted(np.ones((4, 4, 2), np.uint8))
    same, unchanged = on_whole_image(scores, geometry, ModelOutput())
    assert same is scores
    assert unchanged is geometry


def test_a_crop_before_a_resize_is_refused() -> None:
    """The box would have no exact place in the resized image."""
    with pytest.raises(ValidationError, match="crop nonzero needs images at full size: write fit: tile"):
        ModelInput(crop="nonzero", fit="stretch", height=8, width=8)
