"""From logits to a prediction: the right place, the right class, the right numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from unet_batch.contract import ModelOutput
from unet_batch.errors import ImageError, Reason, ShapeMismatch
from unet_batch.imaging.postprocess import ClassArea, Prediction, reduce
from unet_batch.imaging.preprocess import Geometry
from unet_batch.imaging.resize import resize_logits


def whole(height: int, width: int) -> Geometry:
    return Geometry((height, width), (height, width), 0, 0, (height, width))


def classes(count: int, **fields: Any) -> ModelOutput:
    return ModelOutput(classes=("background", "nucleus", "stroma", "fat", "bone")[:count], **fields)


def one_class(**fields: Any) -> ModelOutput:
    return ModelOutput(classes=("nucleus",), **fields)


def smooth(classes: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(2).normal(size=(classes, 6, 7)).astype(np.float32) * 4
    return resize_logits(coarse, (height, width))


def predict(logits: Any, output: ModelOutput, geometry: Geometry | None = None) -> Prediction:
    logits_khw = np.asarray(logits, np.float32)
    return reduce(logits_khw, geometry or whole(*logits_khw.shape[1:]), output, rle=True, confidence=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    return weights / weights.sum(axis=0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def test_a_two_class_picture_by_hand():
    """Golden: logits of 0 against 2, 0 or -2: probabilities 0.8808, 0.5 and 0.1192; a tie is background."""
    logits = [[[0, 0, 0], [0, 0, 0]], [[2, 0, -2], [2, 0, 2]]]

    prediction = predict(logits, classes(2))

    assert prediction.labels_hw.tolist() == [[1, 0, 0], [1, 0, 1]]
    assert prediction.labels_hw.dtype == np.uint8
    assert (prediction.height, prediction.width, prediction.label) == (2, 3, "nucleus")
    assert prediction.score == pytest.approx(0.8808, abs=1e-4)
    assert prediction.confidence == pytest.approx((4 * 0.8808 + 2 * 0.5) / 6, abs=1e-4)
    assert prediction.entropy == pytest.approx((4 * 0.5271 + 2) / 6, abs=1e-4)
    assert prediction.classes == (ClassArea(1, "nucleus", 3, 0.5, prediction.score, (0, 0, 3, 2), "023O"),)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_labels_and_certainty_equal_a_float64_softmax(count):
    """Argmax of the logits, and mean probability, confidence and entropy within 1e-6."""
    logits = smooth(count, 40, 31)

    prediction = predict(logits, classes(count))

    p, labels = softmax(logits), logits.argmax(axis=0)
    np.testing.assert_array_equal(prediction.labels_hw, labels)
    assert prediction.confidence == pytest.approx(p.max(axis=0).mean(), abs=1e-6)
    assert prediction.entropy == pytest.approx(-(p * np.log(p)).sum(axis=0).mean() / np.log(count), abs=1e-6)
    assert [c.id for c in prediction.classes] == [k for k in range(1, count) if (labels == k).any()]
    for area in prediction.classes:
        assert area.mean_probability == pytest.approx(p[area.id][labels == area.id].mean(), abs=1e-6)
        assert (area.area_px, area.fraction) == ((labels == area.id).sum(), (labels == area.id).mean())


def test_softmax_outputs_give_what_their_logits_give():
    """There is no second softmax over probabilities."""
    logits = smooth(3, 24, 24)

    of_logits = predict(logits, classes(3))
    of_probabilities = predict(softmax(logits), classes(3, activation="softmax"))

    np.testing.assert_array_equal(of_probabilities.labels_hw, of_logits.labels_hw)
    assert of_probabilities.confidence == pytest.approx(of_logits.confidence, abs=1e-6)
    assert of_probabilities.entropy == pytest.approx(of_logits.entropy, abs=1e-6)
    assert of_probabilities.score == pytest.approx(of_logits.score, abs=1e-6)


@given(st.integers(2, 5), st.data())
@settings(max_examples=40, deadline=None)
def test_the_first_of_equal_channels_wins(count, data):
    """As np.argmax; small integers make many ties."""
    values = data.draw(st.lists(st.integers(0, 2), min_size=count * 12, max_size=count * 12))
    logits = np.array(values, np.float32).reshape(count, 3, 4)

    np.testing.assert_array_equal(predict(logits, classes(count)).labels_hw, logits.argmax(axis=0))


def test_every_class_has_the_box_and_text_of_its_mask():
    """pycocotools decodes the text to the mask of the label map."""
    prediction = predict(smooth(4, 50, 41), classes(4))

    assert [area.id for area in prediction.classes] == [1, 2, 3]
    for area in prediction.classes:
        text = {"size": [prediction.height, prediction.width], "counts": area.rle.encode()}
        np.testing.assert_array_equal(coco.decode(text), prediction.labels_hw == area.id)
        assert area.bbox == tuple(coco.toBbox(text))


def test_the_label_is_the_largest_class_that_is_not_background():
    """Background covers most of this picture."""
    logits = np.zeros((3, 1, 6), np.float32)
    logits[0, 0, :3], logits[1, 0, 3], logits[2, 0, 4:] = 9, 9, 9

    prediction = predict(logits, classes(3))

    assert prediction.label == "stroma"
    assert [(c.id, c.area_px) for c in prediction.classes] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(("background", "ids"), [(0, [1, 2]), (2, [0, 1]), (None, [0, 1, 2])])
def test_only_the_background_class_has_no_entry(background, ids):
    """It may be any channel, or none; label values are channel numbers all the same."""
    prediction = predict(np.eye(3, dtype=np.float32)[:, None], classes(3, background=background))

    assert [c.id for c in prediction.classes] == ids
    assert prediction.labels_hw.tolist() == [[0, 1, 2]]


def test_an_empty_mask_is_a_valid_prediction():
    """No classes, no label, no score; but a confidence."""
    prediction = predict([[[3.0, 3.0]], [[0.0, 0.0]]], classes(2))

    assert (prediction.classes, prediction.label, prediction.score) == ((), None, None)
    assert prediction.confidence == pytest.approx(sigmoid(np.array(3.0)), abs=1e-6)


def test_without_confidence_probabilities_are_none():
    """None, not 0; labels and areas are the same."""
    logits = smooth(3, 20, 20)

    bare = reduce(logits, whole(20, 20), classes(3), rle=False, confidence=False)

    assert (bare.confidence, bare.entropy, bare.score) == (None, None, None)
    assert {(c.mean_probability, c.rle) for c in bare.classes} == {(None, None)}
    np.testing.assert_array_equal(bare.labels_hw, predict(logits, classes(3)).labels_hw)


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.9])
def test_one_channel_of_logits_is_cut_at_the_logit_of_its_threshold(threshold):
    """Id 1, label value 1, and the statistics of a sigmoid."""
    logits = smooth(1, 30, 30)

    prediction = predict(logits, one_class(threshold=threshold))

    p = sigmoid(logits[0])
    mask, other = p > threshold, 1 - p
    np.testing.assert_array_equal(prediction.labels_hw, mask)
    (area,) = prediction.classes
    assert (area.id, area.name, area.area_px) == (1, "nucleus", mask.sum())
    assert area.mean_probability == pytest.approx(p[mask].mean(), abs=1e-6)
    assert prediction.confidence == pytest.approx(np.maximum(p, other).mean(), abs=1e-6)
    entropy = -(p * np.log(p) + other * np.log(other)).mean() / np.log(2)
    assert prediction.entropy == pytest.approx(entropy, abs=1e-6)


def test_one_channel_of_probabilities_is_cut_above_its_threshold():
    """p > t: a pixel at the threshold is background; certain pixels have entropy 0."""
    prediction = predict([[[0.0, 0.5, 0.75, 1.0]]], one_class(activation="sigmoid"))

    assert prediction.labels_hw.tolist() == [[0, 0, 1, 1]]
    assert prediction.score == 0.875
    assert prediction.confidence == pytest.approx((1 + 0.5 + 0.75 + 1) / 4)
    assert prediction.entropy == pytest.approx((1 + 0.8113) / 4, abs=1e-4)


def test_sigmoid_classes_may_overlap_and_the_map_keeps_the_most_probable():
    """Golden: ids are channels, the map holds id + 1, and 0 where no class is above the threshold."""
    probabilities = [[[0.9, 0.6, 0.1, 0.2]], [[0.8, 0.7, 0.4, 0.9]]]

    prediction = predict(probabilities, ModelOutput(classes=("cell", "nucleus"), activation="sigmoid"))

    assert prediction.labels_hw.tolist() == [[1, 2, 0, 2]]
    assert [(c.id, c.name, c.area_px, c.bbox) for c in prediction.classes] == [
        (0, "cell", 2, (0, 0, 2, 1)),
        (1, "nucleus", 3, (0, 0, 4, 1)),
    ]
    assert [c.mean_probability for c in prediction.classes] == [pytest.approx(0.75), pytest.approx(0.8)]
    assert prediction.confidence == pytest.approx((0.9 + 0.6 + 0.9 + 0.8 + 0.8 + 0.7 + 0.6 + 0.9) / 8)


def test_finished_labels_are_cropped_and_taken_as_they_are():
    """No probabilities: None."""
    found = np.zeros((1, 6, 8), np.int64)
    found[0, 1:5, 2:6], found[0, 2, 3] = 2, 1
    found[0, 0] = 1  # lies in the padding

    geometry, output = Geometry((4, 4), (4, 4), 1, 2, (6, 8)), classes(3, activation="labels")
    prediction = reduce(found, geometry, output, rle=True, confidence=True)

    assert prediction.labels_hw.tolist() == [[2, 2, 2, 2], [2, 1, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert [(c.id, c.area_px, c.mean_probability) for c in prediction.classes] == [(1, 1, None), (2, 15, None)]
    assert prediction.label == "stroma"
    assert (prediction.score, prediction.confidence, prediction.entropy) == (None, None, None)


def test_finished_masks_may_overlap_and_have_no_certainty():
    """Golden: by hand. The map has the first class of each pixel, and the probabilities are None."""
    masks = [[[1, 1, 0, 0]], [[0, 1, 1, 0]]]

    prediction = predict(masks, classes(2, activation="masks", background=None))

    assert [(c.id, c.area_px, c.bbox) for c in prediction.classes] == [(0, 2, (0, 0, 2, 1)), (1, 2, (1, 0, 2, 1))]
    assert prediction.labels_hw.tolist() == [[1, 1, 2, 0]]
    assert (prediction.confidence, prediction.entropy, prediction.score) == (None, None, None)
    assert {c.mean_probability for c in prediction.classes} == {None}


def test_finished_masks_are_enlarged_by_the_nearest_pixel():
    """np.repeat says where; two classes that share no pixel share none afterwards."""
    masks = np.random.default_rng(4).integers(0, 2, (1, 5, 6)).repeat(2, axis=0).astype(np.float32)
    masks[1] = 1 - masks[0]

    prediction = predict(masks, classes(2, activation="masks"), Geometry((15, 18), (5, 6), 0, 0, (5, 6)))

    larger = masks.repeat(3, axis=1).repeat(3, axis=2)
    for area in prediction.classes:
        found = coco.decode({"size": [15, 18], "counts": area.rle})
        np.testing.assert_array_equal(found, larger[area.id])


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0])
def test_values_that_are_not_masks_reject_the_image(value):
    """Probabilities that are declared as masks would get no threshold."""
    with pytest.raises(ImageError, match=r"output\.activation is masks, but values are .*, not 0 and 1") as refused:
        predict([[[0, 1]], [[value, 0]]], classes(2, activation="masks"))
    assert refused.value.reason is Reason.MODEL_OUTPUT_OUT_OF_RANGE


def test_finished_labels_are_enlarged_without_new_values():
    """The nearest pixel by half-pixel centres: no label 1 between 0 and 2."""
    geometry = Geometry((2, 6), (1, 2), 0, 0, (1, 2))

    prediction = reduce(np.array([[[0, 2]]]), geometry, classes(3, activation="labels"), rle=False, confidence=False)

    assert prediction.labels_hw.tolist() == [[0, 0, 0, 2, 2, 2]] * 2


@pytest.mark.parametrize("found", [[[[0, 3]]], [[[-1, 0]]], [[[0.5, 1.0]]]])
def test_labels_without_a_class_reject_the_image(found):
    """Too high, negative, or not a whole number."""
    with pytest.raises(ImageError, match=r"labels of 3 classes, but values are .*, not 0 to 2") as refused:
        predict(found, classes(3, activation="labels"))
    assert refused.value.reason is Reason.MODEL_OUTPUT_OUT_OF_RANGE


def test_more_than_256_labels_need_16_bits():
    """Label 299 does not wrap."""
    output = ModelOutput(classes=tuple(f"c{k}" for k in range(300)))
    logits = np.zeros((300, 1, 2), np.float32)
    logits[299, 0, 1] = 1

    prediction = predict(logits, output)

    assert prediction.labels_hw.dtype == np.uint16
    assert prediction.labels_hw.tolist() == [[0, 299]]


@pytest.mark.parametrize("output", [classes(2), classes(2, activation="sigmoid"), classes(2, activation="softmax")])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_rejects_the_image(value, output):
    """Even in the padding: argmax would call it class 0."""
    logits = np.zeros((2, 8, 8), np.float32)
    logits[1, 7, 7] = value

    with pytest.raises(ImageError) as error:
        predict(logits, output, Geometry((4, 4), (4, 4), 0, 0, (8, 8)))

    assert error.value.reason == Reason.MODEL_NON_FINITE_OUTPUT


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (1, 3, 4, 4)])
def test_channels_that_do_not_match_the_classes_are_an_error(shape):
    """A wrong contract is not a fault of the image."""
    with pytest.raises(ShapeMismatch, match=r"not 3 channel\(s\)"):
        reduce(np.zeros(shape, np.float32), whole(4, 4), classes(3), rle=False, confidence=False)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_values_that_are_not_probabilities_reject_the_image(activation):
    """Only that image is rejected; the rounding of float16 is accepted."""
    with pytest.raises(ImageError, match="perhaps they are logits") as refused:
        predict([[[0.0]], [[3.2]]], classes(2, activation=activation))
    assert refused.value.reason is Reason.MODEL_OUTPUT_OUT_OF_RANGE

    assert predict([[[-0.001]], [[1.001]]], classes(2, activation=activation)).confidence <= 1


def test_half_precision_logits_are_reduced_in_float32():
    """A sum over many pixels would overflow float16."""
    prediction = reduce(np.full((2, 300, 300), 2, np.float16), whole(300, 300), classes(2), rle=False, confidence=True)

    assert prediction.confidence == pytest.approx(0.5)
    assert prediction.entropy == pytest.approx(1.0)
