"""From logits to the prediction of one image: label map, areas, boxes, run-length text, confidence and entropy.

Uses the contract's output and the geometry of the image; independent of tables, files and sessions.
Legend: H, W pixels of the source; h, w pixels of the logits; K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import ModelOutput
from unet_batch.errors import ImageError, Reason, ShapeMismatch
from unet_batch.imaging.masks import Bbox, Runs, runs_by_label
from unet_batch.imaging.preprocess import Geometry
from unet_batch.imaging.resize import Axis, axis, sample

STRIP_BYTES = 1 << 18
"""Bytes of logits reduced at once, at source size: a strip and its temporaries stay in the second-level cache, and the
allocator reuses them (with 1 MiB a new process spent half of its time on page faults)."""
PROBABILITY_SLACK = 0.01
"""How far outside [0, 1] a probability may lie: enough for the rounding of float16 models."""
SMALLEST = np.float32(1e-30)
"""Replaces a probability of 0 inside a logarithm, so that 0 · log 0 is 0."""


@dataclass(frozen=True, slots=True)
class ClassArea:
    """The pixels of one class in one image."""

    id: int
    """Channel of the class; 1 if the model has a single class."""
    name: str
    area_px: int
    """Pixels of the source picture, at least 1."""
    fraction: float
    """Share of the source picture's pixels."""
    mean_probability: float | None
    """Mean probability of the class over its pixels; None if there are no probabilities."""
    bbox: Bbox
    """x, y, width, height in source pixels."""
    rle: str | None
    """COCO `counts` in source geometry; None if not requested."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """The probability of one class for a whole image."""

    id: int
    """As in `ClassArea`."""
    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of one image."""

    height: int
    """Rows of the oriented source picture."""
    width: int
    """Columns of the oriented source picture."""
    label: str | None
    """Name of the largest class that is not background (of equal areas, the first); None for an empty mask, and for a
    share of at most `output.label_above`."""
    score: float | None
    """Mean probability of that class."""
    classes: tuple[ClassArea, ...]
    """Classes that occur, without the background, by id."""
    labels_hw: NDArray[Any] | None
    """Label map in source geometry, uint8 or (over 255 labels) uint16; see `reduce` for its values."""
    confidence: float | None
    """Mean over pixels of the top probability; one channel or sigmoid: of max(p, 1 − p), averaged over classes."""
    entropy: float | None
    """Mean entropy over pixels (multi-label: and over classes), as a share of its maximum: 0 certain, 1 uniform."""
    scores: tuple[ClassScore, ...] = ()
    """Of a classifier: its most probable classes, the most probable first."""


def reduce(
    logits_khw: NDArray[Any], geometry: Geometry, output: ModelOutput, *, rle: bool, confidence: bool
) -> Prediction:
    """One image's prediction at the size of its source picture.

    logits_khw: any float (K, h, w) of the whole fitted picture, at its size or another resolution (half-size masks);
    for `labels` any dtype (1, h, w). The padding is cropped, the content is resized to source size by two-tap bilinear
    with half-pixel centres (labels and masks: nearest pixel), and then reduced: in strips, with the same result as in
    one piece.

    Exclusive classes: argmax, the first of equal values; ids and label values are channel numbers. A single class: id
    1, label value 1; 0 is background. Sigmoid with several classes: ids are channel numbers; a label value is id + 1
    of the most probable class above the threshold, 0 is background. Masks have no probabilities: the label value is
    that of the first class that holds the pixel, and there is no confidence. A pixel belongs to a class *above* its
    threshold: p > t, or for one channel of logits logit > log(t / (1 − t)).

    Raises ImageError for NaN or infinity anywhere, also in the padding (MODEL_NON_FINITE_OUTPUT), and for values that
    cannot be probabilities, masks or labels (MODEL_OUTPUT_OUT_OF_RANGE). Raises ShapeMismatch if the channels do not
    match the classes.
    """
    channels = 1 if output.activation == "labels" else len(output.classes)
    if logits_khw.ndim != 3 or len(logits_khw) != channels:
        found = " x ".join(map(str, logits_khw.shape))
        raise ShapeMismatch(f"the model returned {found}, not {channels} channel(s): correct output.classes")
    check_values(logits_khw, output)
    rows, columns = (_source_axis(geometry, n, along) for along, n in enumerate(logits_khw.shape[1:]))
    if output.activation == "labels":
        return _described(_nearest_labels(logits_khw[0], rows, columns, output), None, output, rle=rle)
    if output.activation == "masks":
        return _reduce_masks(_nearest(logits_khw, rows, columns) > 0, output, rle=rle)
    if output.multi_label:
        return _reduce_multi_label(logits_khw, rows, columns, output, rle=rle, confidence=confidence)
    labels_hw = np.empty(geometry.source_hw, _label_dtype(channels))
    certainty = _Certainty(np.zeros(channels), channels) if confidence else None
    for first, last, strip_khw in _strips(logits_khw, rows, columns):
        best_hw = _argmax(strip_khw, labels_hw[first:last])
        if certainty is not None:
            top_hw, entropy_hw = _certainty(strip_khw, best_hw, output)
            certainty.add(top_hw, entropy_hw)
            certainty.probability += np.bincount(labels_hw[first:last].ravel(), top_hw.ravel(), channels)
    return _described(labels_hw, certainty, output, rle=rle)


@dataclass(slots=True)
class _Certainty:
    """Sums over the pixels of all strips, float64."""

    probability: NDArray[np.float64]
    """By channel: sum of its probability over the pixels of its class."""
    outcomes: int
    """Number of outcomes; the largest entropy is its logarithm."""
    top: float = field(default=0.0)
    entropy: float = field(default=0.0)
    count: int = field(default=0)

    def add(self, top_hw: NDArray[np.float32], entropy_hw: NDArray[np.float32]) -> None:
        self.top += float(top_hw.sum())
        self.entropy += float(entropy_hw.sum())
        self.count += top_hw.size

    def confidence(self) -> float:
        return self.top / self.count

    def normalised_entropy(self) -> float:
        return min(max(self.entropy / self.count / math.log(self.outcomes), 0.0), 1.0)


def check_values(logits_khw: NDArray[Any], output: ModelOutput) -> None:
    """Raise ImageError for NaN, infinity and values that the contract's activation cannot have."""
    lowest, highest = float(logits_khw.min()), float(logits_khw.max())  # NaN propagates through both
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ImageError(Reason.MODEL_NON_FINITE_OUTPUT, "the model returned NaN or infinity: check its precision")
    strange = outside_of_contract(logits_khw, output)
    if strange is not None:
        raise ImageError(Reason.MODEL_OUTPUT_OUT_OF_RANGE, strange)


def outside_of_contract(values_khw: NDArray[Any], output: ModelOutput) -> str | None:
    """Why finite values cannot be of the contract's activation; None if they can be. Logits may have any value."""
    lowest, highest = float(values_khw.min()), float(values_khw.max())
    found = f"values are {lowest:.4g} to {highest:.4g}"
    match output.activation:
        case "masks":
            if not ((values_khw == 0) | (values_khw == 1)).all():
                return f"output.activation is masks, but {found}, not 0 and 1"
        case "labels":
            top = _highest_label(output)
            if lowest < 0 or highest > top or (values_khw.dtype.kind == "f" and (values_khw % 1).any()):
                return f"output.activation is labels of {len(output.classes)} classes, but {found}, not 0 to {top}"
        case "softmax" | "sigmoid":
            if not -PROBABILITY_SLACK <= lowest <= highest <= 1 + PROBABILITY_SLACK:
                return f"output.activation is {output.activation}, but {found}: perhaps they are logits"
    return None


def _source_axis(geometry: Geometry, length: int, along: int) -> Axis:
    """What each source pixel of an axis reads from logits of this length: only the content, not the padding."""
    source, resized, fitted = (hw[along] for hw in (geometry.source_hw, geometry.resized_hw, geometry.fitted_hw))
    start = (geometry.top, geometry.left)[along]
    first, last = start * length // fitted, -(-(start + resized) * length // fitted) - 1
    step, origin = (resized * length) / (source * fitted), start * length / fitted
    return axis(source, step, origin=origin, first=first, last=last)


def _strips(logits_khw: NDArray[Any], rows: Axis, columns: Axis) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """First row, end row and (K, rows, W) logits of each strip of the source picture."""
    height, width = len(rows.low), len(columns.low)
    step = max(1, STRIP_BYTES // (len(logits_khw) * width * 4))
    for first in range(0, height, step):
        last = min(first + step, height)
        yield first, last, sample(logits_khw, rows.part(first, last), columns)


def _argmax(strip_khw: NDArray[np.float32], labels_hw: NDArray[Any]) -> NDArray[np.float32]:
    """Write the first channel with the largest value; return that value. 20 times as fast as np.argmax(axis=0)."""
    best_hw: NDArray[np.float32] = strip_khw[0].copy()
    labels_hw[:] = 0
    for channel in range(1, len(strip_khw)):
        wins_hw = (strip_khw[channel] > best_hw).view(np.uint8)
        # Channels come in ascending order, so the largest number is the last channel that had a larger value.
        np.maximum(labels_hw, np.multiply(wins_hw, channel, dtype=labels_hw.dtype), out=labels_hw)
        np.maximum(best_hw, strip_khw[channel], out=best_hw)
    return best_hw


def _certainty(
    strip_khw: NDArray[np.float32], best_hw: NDArray[np.float32], output: ModelOutput
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Top probability and entropy in nats of exclusive classes, float32 (H, W) each."""
    if output.activation == "softmax":
        probability_khw = np.clip(strip_khw, SMALLEST, 1)
        return np.minimum(best_hw, 1), -(probability_khw * np.log(probability_khw)).sum(axis=0)
    if len(strip_khw) == 2:
        return _binary_certainty(strip_khw[1] - strip_khw[0])
    below_khw = strip_khw - best_hw
    weights_khw = np.exp(below_khw)
    total_hw: NDArray[np.float32] = weights_khw.sum(axis=0)
    below_khw *= weights_khw
    entropy_hw: NDArray[np.float32] = np.log(total_hw) - below_khw.sum(axis=0) / total_hw  # log p = below − log total
    return np.reciprocal(total_hw), entropy_hw


def _binary_certainty(logit_hw: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """max(p, 1 − p) and the entropy in nats of p = sigmoid(logit), with one exponential."""
    below_hw = -np.abs(logit_hw)
    weight_hw: NDArray[np.float32] = np.exp(below_hw)
    top_hw = np.reciprocal(1 + weight_hw)
    below_hw *= weight_hw
    return top_hw, -np.log(top_hw) - below_hw * top_hw


def _reduce_multi_label(
    logits_khw: NDArray[Any], rows: Axis, columns: Axis, output: ModelOutput, *, rle: bool, confidence: bool
) -> Prediction:
    """Each class with its own threshold; classes may overlap."""
    channels, size_hw = len(logits_khw), (len(rows.low), len(columns.low))
    are_logits = output.activation == "logits"
    above = np.float32(output.value_threshold)
    masks_khw = np.empty((channels, *size_hw), bool)
    labels_hw = np.empty(size_hw, _label_dtype(channels + 1))
    certainty = _Certainty(np.zeros(channels), 2) if confidence else None
    for first, last, strip_khw in _strips(logits_khw, rows, columns):
        masks_khw[:, first:last] = strip_khw > above
        strip_labels_hw = labels_hw[first:last]
        _argmax(strip_khw, strip_labels_hw)
        strip_labels_hw += 1
        strip_labels_hw *= masks_khw[:, first:last].any(axis=0)
        if certainty is not None:
            for channel, (values_hw, mask_hw) in enumerate(zip(strip_khw, masks_khw[:, first:last], strict=True)):
                probability_hw, top_hw, entropy_hw = _one_class(values_hw, are_logits=are_logits)
                certainty.add(top_hw, entropy_hw)
                certainty.probability[channel] += float((probability_hw * mask_hw).sum())
    masks = {id_: runs_by_label(mask, without=0).get(1) for id_, mask in enumerate(masks_khw, start=_first_id(output))}
    return _prediction({id_: runs for id_, runs in masks.items() if runs}, labels_hw, certainty, output, rle=rle)


def _one_class(
    values_hw: NDArray[np.float32], *, are_logits: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Probability, max(p, 1 − p) and entropy in nats of one independent class."""
    if are_logits:
        top_hw, entropy_hw = _binary_certainty(values_hw)
        return np.where(values_hw >= 0, top_hw, 1 - top_hw), top_hw, entropy_hw
    probability_hw = np.clip(values_hw, 0, 1)
    other_hw = 1 - probability_hw
    surprise_hw = probability_hw * np.log(np.maximum(probability_hw, SMALLEST))
    surprise_hw += other_hw * np.log(np.maximum(other_hw, SMALLEST))
    return probability_hw, np.maximum(probability_hw, other_hw), -surprise_hw


def _nearest_labels(found_hw: NDArray[Any], rows: Axis, columns: Axis, output: ModelOutput) -> NDArray[Any]:
    """The label map at source size."""
    highest = _highest_label(output)
    return _nearest(found_hw.astype(_label_dtype(highest + 1)), rows, columns)


def _highest_label(output: ModelOutput) -> int:
    return 1 if len(output.classes) == 1 else len(output.classes) - 1


def _nearest(decided: NDArray[Any], rows: Axis, columns: Axis) -> NDArray[Any]:
    """The last two axes at source size; a weight of ½ or more takes the higher neighbour."""
    down, across = (np.where(along.weight >= 0.5, along.high, along.low) for along in (rows, columns))
    return decided[..., down[:, None], across]


def _reduce_masks(masks_khw: NDArray[np.bool_], output: ModelOutput, *, rle: bool) -> Prediction:
    """The prediction of masks at source size, one per class; the label map has the first class of each pixel."""
    labels_hw = np.zeros(masks_khw.shape[1:], _label_dtype(len(masks_khw) + 1))
    for channel in reversed(range(len(masks_khw))):
        labels_hw[masks_khw[channel]] = channel + 1
    masks = {id_: runs_by_label(mask, without=0).get(1) for id_, mask in enumerate(masks_khw, start=_first_id(output))}
    return _prediction({id_: runs for id_, runs in masks.items() if runs}, labels_hw, None, output, rle=rle)


def _described(labels_hw: NDArray[Any], certainty: _Certainty | None, output: ModelOutput, *, rle: bool) -> Prediction:
    """The prediction of a label map whose values are class ids."""
    nothing = 0 if len(output.classes) == 1 else output.background
    return _prediction(runs_by_label(labels_hw, without=nothing), labels_hw, certainty, output, rle=rle)


def _prediction(
    found: dict[int, Runs], labels_hw: NDArray[Any], certainty: _Certainty | None, output: ModelOutput, *, rle: bool
) -> Prediction:
    height, width = labels_hw.shape
    classes = []
    for id_, runs in sorted(found.items()):
        channel, area_px = id_ - _first_id(output), runs.area_px()
        probability = None if certainty is None else float(certainty.probability[channel]) / area_px
        classes.append(
            ClassArea(
                id=id_,
                name=output.classes[channel],
                area_px=area_px,
                fraction=area_px / (height * width),
                mean_probability=probability,
                bbox=runs.bbox(),
                rle=runs.rle() if rle else None,
            )
        )
    largest = max(classes, key=lambda c: c.area_px, default=None)
    if largest is not None and largest.fraction <= output.label_above:  # 0 unless label_from is any_above
        largest = None
    return Prediction(
        height=height,
        width=width,
        label=largest.name if largest else None,
        score=largest.mean_probability if largest else None,
        classes=tuple(classes),
        labels_hw=labels_hw,
        confidence=None if certainty is None else certainty.confidence(),
        entropy=None if certainty is None else certainty.normalised_entropy(),
    )


def _first_id(output: ModelOutput) -> int:
    return 1 if len(output.classes) == 1 else 0


def _label_dtype(labels: int) -> type[np.uint8 | np.uint16]:
    return np.uint8 if labels <= 256 else np.uint16
