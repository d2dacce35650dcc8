"""From the scores of a classifier to the prediction of one image: label, score and the most probable classes.

Legend: K classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import ModelOutput
from unet_batch.errors import ShapeMismatch
from unet_batch.imaging.postprocess import SMALLEST, ClassScore, Prediction, check_values


def classify(scores_k11: NDArray[np.float32], source_hw: tuple[int, int], output: ModelOutput) -> Prediction:
    """One image's prediction from its scores, float32 (K, 1, 1). There is no mask.

    Exclusive classes: the label is the class with the largest score, the first of equal ones; every class counts, also
    `output.background`. One class, or sigmoid: the label is the most probable class above the threshold, None if there
    is none. Probabilities are computed in float64.

    Raises ImageError for NaN, infinity, and values that cannot be probabilities; ShapeMismatch if the scores do not
    match the classes.
    """
    if scores_k11.shape != (len(output.classes), 1, 1):
        found = " x ".join(map(str, scores_k11.shape))
        raise ShapeMismatch(f"the model returned {found}, not a score for each of {len(output.classes)} classes")
    check_values(scores_k11, output)
    scores = scores_k11[:, 0, 0].astype(np.float64)
    probabilities = _probabilities(scores, output)
    order = np.argsort(-scores, kind="stable")  # of scores: probabilities near 1 are equal in floating point
    best = int(order[0])
    chosen = best if not output.multi_label or scores[best] > output.value_threshold else None
    first = 1 if len(output.classes) == 1 else 0
    return Prediction(
        height=source_hw[0],
        width=source_hw[1],
        label=None if chosen is None else output.classes[chosen],
        score=None if chosen is None else float(probabilities[chosen]),
        classes=(),
        labels_hw=None,
        confidence=_confidence(probabilities, output),
        entropy=_entropy(probabilities, output),
        scores=tuple(
            ClassScore(int(number) + first, output.classes[number], float(probabilities[number]))
            for number in order[: output.top]
        ),
    )


def _probabilities(scores: NDArray[np.float64], output: ModelOutput) -> NDArray[np.float64]:
    if output.activation != "logits":
        return np.clip(scores, 0, 1)
    if output.multi_label:
        weights = np.exp(-np.abs(scores))
        independent: NDArray[np.float64] = np.where(scores >= 0, 1, weights) / (1 + weights)
        return independent
    weights = np.exp(scores - scores.max())
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def _confidence(probabilities: NDArray[np.float64], output: ModelOutput) -> float:
    """The largest probability; independent classes: max(p, 1 − p), averaged over classes."""
    if output.multi_label:
        return float(np.maximum(probabilities, 1 - probabilities).mean())
    return float(probabilities.max())


def _entropy(probabilities: NDArray[np.float64], output: ModelOutput) -> float:
    """As a share of its maximum: 0 certain, 1 uniform. Independent classes: averaged over classes."""
    if output.multi_label:
        probabilities = np.stack([probabilities, 1 - probabilities])
    outcomes = len(probabilities)
    surprise = -probabilities * np.log(np.maximum(probabilities, SMALLEST))
    return float(np.clip(surprise.sum(axis=0).mean() / np.log(outcomes), 0, 1))
