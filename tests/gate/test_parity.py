"""Two outputs held against each other: errors, flips, Dice, NaN, constant masks, and the sentences they lead to."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.contract import ModelOutput
from unet_batch.errors import ShapeMismatch
from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.imaging.postprocess import reduce
from unet_batch.imaging.preprocess import Geometry

THREE = ModelOutput(classes=("background", "cell", "edge"))
ONE = ModelOutput(classes=("cell",))
SIGMOID = ModelOutput(classes=("cell", "edge"), activation="sigmoid", threshold=0.4)
LABELS = ModelOutput(classes=("background", "cell", "edge"), activation="labels")
STRICT = Tolerance(max_flipped=0.0, min_dice=1.0, max_abs_error=0.0, slack_px=0)


def logits_of(labels: list[list[int]], classes: int = 3) -> np.ndarray:
    """float32 (1, K, H, W) whose argmax is a label map: 5 where it holds, else 0."""
    wanted = np.asarray(labels)
    return np.stack([np.where(wanted == k, 5.0, 0.0) for k in range(classes)])[None].astype(np.float32)


# Values ----------------------------------------------------------------------------------------------------------


def test_an_output_equals_itself() -> None:
    """No error, no flip, every Dice 1, and nothing to complain about at tolerance 0."""
    logits = logits_of([[0, 1], [2, 2]])
    parity = Parity.of(logits, logits, THREE)
    assert (parity.max_abs_error, parity.mean_abs_error, parity.flipped, parity.dice) == (0, 0, 0, (1, 1, 1))
    assert STRICT.breaches(parity) == []


def test_errors_are_over_values_and_the_peak_is_the_reference_s() -> None:
    """One value of 12 is off by 0.5: the largest error is that, the mean a twelfth of it."""
    reference = logits_of([[0, 1], [2, 2]])
    other = reference.copy()
    other[0, 1, 0, 1] += 0.5
    parity = Parity.of(reference, other, THREE)
    assert (parity.max_abs_error, parity.values, parity.reference_peak) == (0.5, 12, 5.0)
    assert parity.mean_abs_error == pytest.approx(0.5 / 12)


def test_float16_outputs_are_compared_without_overflow() -> None:
    """60000 against -60000 is 120000 apart, which float16 cannot hold."""
    high, low = (np.full((1, 1, 1, 1), value, np.float16) for value in (60000, -60000))
    assert Parity.of(high, low, ONE).max_abs_error == pytest.approx(120000, rel=1e-3)


# Labels ----------------------------------------------------------------------------------------------------------


def test_flips_and_dice_follow_the_argmax() -> None:
    """A third of a class lost to another: both lose Dice, and one pixel of six flipped."""
    parity = Parity.of(logits_of([[0, 0, 0], [1, 1, 1]]), logits_of([[0, 0, 0], [1, 1, 2]]), THREE)
    assert (parity.flipped, parity.decisions) == (1, 6)
    assert parity.dice == pytest.approx((1.0, 0.8, 0.0))


def test_a_class_that_nobody_has_has_dice_1() -> None:
    """Explicit empties: both empty is agreement."""
    logits = logits_of([[0, 1]])
    assert Parity.of(logits, logits, THREE).dice[2] == 1.0


def test_a_tie_goes_to_the_first_class() -> None:
    """As in the label map of a row."""
    tie = np.zeros((1, 3, 1, 2), np.float32)
    assert Parity.of(tie, logits_of([[0, 1]]), THREE).reference_px == (2, 0, 0)


def test_one_channel_of_logits_is_decided_at_the_threshold_s_logit() -> None:
    """p > 0.5 is logit > 0: exactly 0 is not above."""
    reference = np.array([[[[-1.0, 0.0, 1.0, 2.0]]]], np.float32)
    parity = Parity.of(reference, -reference, ONE)
    assert (parity.reference_px, parity.other_px, parity.shared_px, parity.flipped) == ((2,), (1,), (0,), 3)


def test_overlapping_classes_are_decided_one_by_one() -> None:
    """Two classes in one pixel are two decisions; the threshold is the contract's."""
    reference = np.array([[[[0.5, 0.3]], [[0.5, 0.1]]]], np.float32)
    other = np.array([[[[0.5, 0.41]], [[0.4, 0.1]]]], np.float32)
    parity = Parity.of(reference, other, SIGMOID)
    assert (parity.pixels, parity.decisions, parity.flipped) == (2, 4, 2)
    assert (parity.reference_px, parity.other_px, parity.shared_px) == ((1, 1), (2, 0), (1, 0))


def test_finished_labels_have_no_errors_of_values() -> None:
    """The difference of two class numbers means nothing."""
    parity = Parity.of(np.array([[[[0, 1, 2]]]]), np.array([[[[0, 2, 2]]]]), LABELS)
    assert (parity.values, parity.max_abs_error, parity.flipped) == (0, 0.0, 1)
    assert parity.dice == pytest.approx((1.0, 0.0, 2 / 3))


def test_finished_labels_of_one_class_are_0_and_1() -> None:
    """Label 1 is the class, 0 is nothing."""
    labels = np.array([[[[0, 1, 1]]]], np.uint8)
    assert Parity.of(labels, labels, replace_activation(ONE, "labels")).reference_px == (2,)


@pytest.mark.parametrize("output", [THREE, ONE, SIGMOID], ids=["logits", "one class", "sigmoid"])
def test_the_labels_are_those_of_a_row(output: ModelOutput) -> None:
    """The same areas as `reduce` finds at the same size."""
    values = np.random.default_rng(0).random((1, len(output.classes), 16, 16), np.float32) - (output == ONE) * 0.5
    whole = Geometry(source_hw=(16, 16), resized_hw=(16, 16), top=0, left=0, fitted_hw=(16, 16))
    row = reduce(values[0], whole, output, rle=False, confidence=False)
    parity = Parity.of(values, values, output)
    areas = dict(zip(parity.classes, parity.reference_px, strict=True))
    assert {name: px for name, px in areas.items() if name != "background"} == {c.name: c.area_px for c in row.classes}


@pytest.mark.oracle
def test_dice_is_monai_s() -> None:
    """Against MONAI's Dice with empty classes counted, on random label maps."""
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(1, 3, 64, 64)).astype(np.float32) for _ in range(2))
    one_hot = [torch.nn.functional.one_hot(torch.from_numpy(x.argmax(1)), 3).movedim(-1, 1) for x in (a, b)]
    wanted = metrics.compute_dice(one_hot[1], one_hot[0], include_background=True, ignore_empty=False)
    assert Parity.of(a, b, THREE).dice == pytest.approx(wanted[0].tolist(), abs=1e-6)


# Values that are none --------------------------------------------------------------------------------------------


def test_nan_and_infinity_are_counted_by_side_and_left_out_of_errors() -> None:
    """A NaN would make every sum NaN, and hide the rest."""
    reference = logits_of([[0, 1], [2, 2]])
    other = reference.copy()
    other[0, 0, 0, 0], other[0, 1, 0, 0], other[0, 2, 1, 1] = np.nan, np.inf, -np.inf
    parity = Parity.of(reference, other, THREE)
    assert (parity.reference_nan, parity.reference_inf, parity.other_nan, parity.other_inf) == (0, 0, 1, 2)
    assert (parity.values, parity.max_abs_error) == (9, 0.0)


def test_a_pixel_that_became_nan_is_a_flip() -> None:
    """argmax would silently call it class 0."""
    reference = logits_of([[0, 0, 0, 1]])
    other = reference.copy()
    other[0, :, 0, 0] = np.nan
    parity = Parity.of(reference, other, THREE)
    assert (parity.flipped, parity.other_px) == (1, (2, 1, 0))


def test_nan_is_always_out_of_tolerance() -> None:
    """However wide the tolerance, and on either side."""
    wide = Tolerance(max_flipped=1.0, min_dice=0.0)
    good = logits_of([[0, 1]])
    ill = good.copy()
    ill[0, 0, 0, 0] = np.nan
    assert wide.breaches(Parity.of(good, ill, THREE)) == ["the output holds 1 NaN and 0 infinite values"]
    assert wide.breaches(Parity.of(ill, good, THREE)) == ["the reference holds 1 NaN and 0 infinite values"]


def test_a_mask_that_became_constant_is_out_of_tolerance() -> None:
    """The sign of a float16 network that overflowed: one label everywhere."""
    parity = Parity.of(logits_of([[0, 1]]), logits_of([[0, 0]]), THREE)
    assert parity.constant_mask
    assert "the same in every pixel" in Tolerance(max_flipped=1.0, min_dice=0.0).breaches(parity)[0]


def test_a_mask_that_is_constant_in_both_is_fine() -> None:
    """An empty picture is empty."""
    assert not Parity.of(logits_of([[1, 1]]), logits_of([[1, 1]]), THREE).constant_mask


def test_masks_that_differ_from_image_to_image_are_not_constant() -> None:
    """Two batches, one all background and one all cell, are not one label everywhere."""
    reference = logits_of([[0, 1]])
    both = Parity.of(reference, logits_of([[0, 0]]), THREE) + Parity.of(reference, logits_of([[1, 1]]), THREE)
    assert not both.constant_mask


def test_overlapping_classes_that_became_all_or_nothing_are_constant() -> None:
    """Every class by itself is everywhere or nowhere."""
    reference = np.array([[[[0.9, 0.1]], [[0.1, 0.1]]]], np.float32)
    other = np.array([[[[0.9, 0.9]], [[0.1, 0.1]]]], np.float32)
    assert Parity.of(reference, other, SIGMOID).constant_mask


# Adding ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_parities_of_batches_add_up_to_that_of_all(seed: int, cut: int) -> None:
    """Wherever the batch is cut, in every field."""
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(5, 3, 4, 6)).astype(np.float32) for _ in range(2))
    joined = Parity.of(a[:cut], b[:cut], THREE) + Parity.of(a[cut:], b[cut:], THREE)
    whole = Parity.of(a, b, THREE)
    assert joined.sum_abs_error == pytest.approx(whole.sum_abs_error)
    assert replace(joined, sum_abs_error=0.0) == replace(whole, sum_abs_error=0.0)


def test_parities_of_other_classes_cannot_be_added() -> None:
    """Their counts would mean nothing."""
    logits = logits_of([[0, 1]])
    with pytest.raises(ShapeMismatch, match="cannot be added"):
        Parity.of(logits, logits, THREE) + Parity.of(logits[:, :1], logits[:, :1], ONE)


@pytest.mark.parametrize(
    ("shape", "other_shape"), [((1, 3, 2, 2), (1, 3, 2, 3)), ((1, 2, 2, 2), (1, 2, 2, 2)), ((3, 2, 2), (3, 2, 2))]
)
def test_shapes_that_do_not_fit_are_an_error(shape: tuple[int, ...], other_shape: tuple[int, ...]) -> None:
    """Another size, another number of classes, no batch axis."""
    with pytest.raises(ShapeMismatch, match=r"both must be \(N, 3, H, W\)"):
        Parity.of(np.zeros(shape, np.float32), np.zeros(other_shape, np.float32), THREE)


def test_labels_beyond_the_classes_are_an_error() -> None:
    """Three classes have the labels 0 to 2."""
    with pytest.raises(ShapeMismatch, match="labels of 0 to 3"):
        Parity.of(np.array([[[[0, 3]]]]), np.array([[[[0, 1]]]]), LABELS)


# Sentences -------------------------------------------------------------------------------------------------------


def test_every_breach_is_a_sentence_with_its_numbers() -> None:
    """What, how much, and how much was allowed."""
    parity = Parity.of(logits_of([[0, 0, 0], [1, 1, 1]]), logits_of([[0, 0, 0], [1, 2, 2]]), THREE)
    assert Tolerance(max_flipped=0.1, min_dice=0.9, max_abs_error=1.0, slack_px=0).breaches(parity) == [
        "33.3333% of labels flipped (2 of 6), more than 10.0000%",
        "the Dice of class cell is 0.5000, less than 0.9 (3 pixels in the reference, 1 in the output, 1 in both)",
        "the Dice of class edge is 0.0000, less than 0.9 (0 pixels in the reference, 2 in the output, 0 in both)",
        "the largest error of a value is 5 (values reach 5), more than 1",
    ]


def test_a_flip_at_a_tie_does_not_breach_the_dice_of_a_tiny_class() -> None:
    """Two differing pixels of a class are within the slack; three are not."""
    tolerance = Tolerance(max_flipped=1.0, min_dice=0.99, slack_px=2)
    row = [[1, 1, 1, 0, 0, 0]]
    assert tolerance.breaches(Parity.of(logits_of(row), logits_of([[1, 0, 0, 0, 0, 0]]), THREE)) == []
    assert len(tolerance.breaches(Parity.of(logits_of(row), logits_of([[2, 2, 2, 0, 0, 0]]), THREE))) == 2


def test_json_holds_the_counts_and_what_follows_from_them() -> None:
    """Dice by class name; plain types that `json` takes."""
    parity = Parity.of(logits_of([[0, 1]]), logits_of([[0, 2]]), THREE)
    tree = json.loads(json.dumps(parity.to_json()))
    assert tree["dice"] == {"background": 1.0, "cell": 0.0, "edge": 0.0}
    assert (tree["flipped"], tree["flipped_share"], tree["reference_px"]) == (1, 0.5, [1, 1, 0])


def replace_activation(output: ModelOutput, activation: str) -> ModelOutput:
    return ModelOutput.model_validate({**output.model_dump(), "activation": activation})
