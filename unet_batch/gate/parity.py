"""Compares two outputs of one model: values, labels and classes.

The *reference* is the trusted output, the *other* one is tested.

Legend: N images, K channels, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import ModelOutput
from unet_batch.errors import ShapeMismatch
from unet_batch.imaging.postprocess import reduce
from unet_batch.imaging.preprocess import whole

UNDECIDED = -1
"""Label of a pixel with NaN or infinity in any channel: equal to itself, and in no class."""


@dataclass(frozen=True, slots=True)
class Parity:
    """The difference between an output and its reference, as counts and sums that can be added over batches."""

    classes: tuple[str, ...]
    """Names, in the order of the tuples below."""
    images: int
    pixels: int
    decisions: int
    """Labels compared: one per pixel, or one per pixel and class for overlapping classes."""
    flipped: int
    """Decisions that differ."""
    reference_px: tuple[int, ...]
    """Pixels of each class in the reference."""
    other_px: tuple[int, ...]
    """Pixels of each class in the tested output."""
    shared_px: tuple[int, ...]
    """Pixels of each class in both."""
    values: int
    """Pairs of values that are finite in both outputs; the errors are over these. 0 for labels."""
    sum_abs_error: float
    max_abs_error: float
    reference_peak: float
    """Largest magnitude of the reference's finite values, to compare errors with."""
    reference_nan: int
    reference_inf: int
    other_nan: int
    other_inf: int

    @staticmethod
    def of(reference_nkhw: NDArray[Any], other_nkhw: NDArray[Any], output: ModelOutput) -> Parity:
        """The parity of two outputs of the same images.

        Both: float32 (N, K, H, W) as a session returns them; (N, 1, H, W) for `labels`. Labels are those of
        `imaging.postprocess.reduce`: the first of the largest channels, or, for independent classes, values *above* the
        threshold.
        Raises ShapeMismatch if the shapes differ, or if shapes or labels do not match the classes.
        """
        planes = 1 if output.activation == "labels" else len(output.classes)
        if reference_nkhw.shape != other_nkhw.shape or reference_nkhw.ndim != 4 or reference_nkhw.shape[1] != planes:
            raise ShapeMismatch(
                f"outputs of shape {reference_nkhw.shape} and {other_nkhw.shape} cannot be compared: both must be "
                f"(N, {planes}, H, W), because output.activation is {output.activation} with {len(output.classes)} "
                "class(es)"
            )
        none = (0,) * len(output.classes)
        parity = Parity(output.classes, 0, 0, 0, 0, none, none, none, 0, 0.0, 0.0, 0.0, 0, 0, 0, 0)
        for reference_khw, other_khw in zip(reference_nkhw, other_nkhw, strict=True):
            parity += _of_one_image(reference_khw, other_khw, output)
        return parity

    def __add__(self, more: Parity) -> Parity:
        """The parity over the images of both. Raises ShapeMismatch if the classes differ."""
        if self.classes != more.classes:
            raise ShapeMismatch(f"parities over the classes {self.classes} and {more.classes} cannot be added")
        joined: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            mine, others = getattr(self, name), getattr(more, name)
            if name in ("max_abs_error", "reference_peak"):
                joined[name] = max(mine, others)
            elif name.endswith("_px"):
                joined[name] = tuple(a + b for a, b in zip(mine, others, strict=True))
            elif name != "classes":
                joined[name] = mine + others
        return Parity(classes=self.classes, **joined)

    @property
    def mean_abs_error(self) -> float:
        """Over all finite pairs of values, in units of the output."""
        return self.sum_abs_error / self.values if self.values else 0.0

    @property
    def flipped_share(self) -> float:
        """Share of decisions that differ."""
        return self.flipped / self.decisions if self.decisions else 0.0

    @property
    def dice(self) -> tuple[float, ...]:
        """For each class, 2|A∩B| / (|A|+|B|) over all images; 1 for a class that neither output has."""
        counts = zip(self.reference_px, self.other_px, self.shared_px, strict=True)
        return tuple(2 * both / (a + b) if a + b else 1.0 for a, b, both in counts)

    @property
    def constant_mask(self) -> bool:
        """Whether the tested output is the same in every pixel, although the reference is not."""
        other, reference = (all(n in (0, self.pixels) for n in px) for px in (self.other_px, self.reference_px))
        return other and not reference

    def to_json(self) -> dict[str, Any]:
        """Counts, sums and derived figures, for `json.dumps`."""
        tree: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        tree |= {name: list(tree[name]) for name in ("classes", "reference_px", "other_px", "shared_px")}
        return tree | {
            "mean_abs_error": self.mean_abs_error,
            "flipped_share": self.flipped_share,
            "dice": dict(zip(self.classes, self.dice, strict=True)),
            "constant_mask": self.constant_mask,
        }


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an output may be from its reference."""

    max_flipped: float
    """Largest share of decisions that may differ."""
    min_dice: float
    """Smallest Dice of any class."""
    max_abs_error: float | None = None
    """Largest error of a single value, in units of the output; None: only labels are compared."""
    slack_px: int = 2
    """Differing pixels of a class that are always accepted: one flipped pixel halves the Dice of a two-pixel class."""

    def breaches(self, parity: Parity) -> list[str]:
        """A sentence for each exceeded limit; an empty list if there is none.

        NaN or infinity in either output, and a constant mask, always exceed the tolerance.
        """
        found = []
        for side, nan, inf in (
            ("the reference", parity.reference_nan, parity.reference_inf),
            ("the output", parity.other_nan, parity.other_inf),
        ):
            if nan or inf:
                found.append(f"{side} holds {nan:,} NaN and {inf:,} infinite values")
        if parity.constant_mask:
            found.append("the mask is the same in every pixel, although the reference's is not")
        if parity.flipped_share > self.max_flipped:
            found.append(
                f"{parity.flipped_share:.4%} of labels flipped ({parity.flipped:,} of {parity.decisions:,}), "
                f"more than {self.max_flipped:.4%}"
            )
        counts = zip(parity.reference_px, parity.other_px, parity.shared_px, strict=True)
        for name, dice, (a, b, both) in zip(parity.classes, parity.dice, counts, strict=True):
            if dice < self.min_dice and a + b - 2 * both > self.slack_px:
                found.append(
                    f"the Dice of class {name} is {dice:.4f}, less than {self.min_dice} "
                    f"({a:,} pixels in the reference, {b:,} in the output, {both:,} in both)"
                )
        if self.max_abs_error is not None and parity.max_abs_error > self.max_abs_error:
            found.append(
                f"the largest error of a value is {parity.max_abs_error:.3g} (values reach "
                f"{parity.reference_peak:.3g}), more than {self.max_abs_error:.3g}"
            )
        return found


def decide(scores_khw: NDArray[np.float32], output: ModelOutput) -> NDArray[np.uint8]:
    """Labels (1, H, W), or a mask per class (K, H, W), of the scores of one tile.

    By `imaging.postprocess.reduce`, as for a row; raises its errors.
    """
    geometry, output = whole(scores_khw.shape[1:]), output.model_copy(update={"label_from": "largest"})
    if not output.multi_label or len(output.classes) == 1:
        labels_hw = reduce(scores_khw, geometry, output, rle=False, confidence=False).labels_hw
        return np.asarray(labels_hw, np.uint8)[None]
    planes = []
    for scores_hw, name in zip(scores_khw, output.classes, strict=True):
        alone = output.model_copy(update={"classes": (name,), "background": None})
        planes.append(reduce(scores_hw[None], geometry, alone, rle=False, confidence=False).labels_hw)
    return np.asarray(np.stack([plane for plane in planes if plane is not None]), np.uint8)


def label_parity(expected_phw: NDArray[Any], found_phw: NDArray[Any], classes: tuple[str, ...]) -> Parity:
    """The parity of two label maps (1, H, W), or of masks of 0 and 1 per class (K, H, W)."""
    activation = "labels" if len(expected_phw) == 1 else "sigmoid"
    output = ModelOutput(activation=activation, classes=classes, background=None)  # type: ignore[arg-type]
    return Parity.of(expected_phw[None].astype(np.float32), found_phw[None].astype(np.float32), output)


def _of_one_image(reference_khw: NDArray[Any], other_khw: NDArray[Any], output: ModelOutput) -> Parity:
    labels = output.activation == "labels"
    pixels = reference_khw[0].size
    reference, other = _decided(reference_khw, output), _decided(other_khw, output)
    finite = np.isfinite(reference_khw), np.isfinite(other_khw)
    nan = [int(np.isnan(array).sum()) for array in (reference_khw, other_khw)]
    both = finite[0] & finite[1]
    pairs = 0 if labels else int(both.sum())
    # float64: float16 overflows, and a float32 sum over a million pixels loses digits.
    error = np.abs(np.subtract(reference_khw, other_khw, dtype=np.float64)[both]) if pairs else np.zeros(1)
    reference_px, other_px, shared_px = _by_class(reference, other, output)
    return Parity(
        classes=output.classes,
        images=1,
        pixels=pixels,
        decisions=reference.size,
        flipped=int((reference != other).sum()),
        reference_px=reference_px,
        other_px=other_px,
        shared_px=shared_px,
        values=pairs,
        sum_abs_error=float(error.sum()),
        max_abs_error=float(error.max()),
        reference_peak=0.0 if labels else float(np.abs(reference_khw).max(initial=0, where=finite[0])),
        reference_nan=nan[0],
        reference_inf=pixels * len(reference_khw) - int(finite[0].sum()) - nan[0],
        other_nan=nan[1],
        other_inf=pixels * len(other_khw) - int(finite[1].sum()) - nan[1],
    )


def _decided(values_khw: NDArray[Any], output: ModelOutput) -> NDArray[np.int32]:
    """Labels (1, H, W), or a mask of 0 and 1 per class (K, H, W); UNDECIDED where a value is not finite."""
    finite_hw = np.isfinite(values_khw).all(axis=0)
    decided: NDArray[np.int32]
    if output.activation == "labels":
        highest = max(len(output.classes) - 1, 1)
        finite = np.where(finite_hw, values_khw, 0)
        if finite.min(initial=0) < 0 or finite.max(initial=0) > highest or (finite % 1).any():
            raise ShapeMismatch(f"labels of {finite.min()} to {finite.max()} are compared, not 0 to {highest}")
        decided = finite.astype(np.int32)
    elif output.multi_label:
        decided = (values_khw > np.float32(output.value_threshold)).astype(np.int32)
    else:
        decided = np.argmax(values_khw, axis=0)[None].astype(np.int32)
    return np.where(finite_hw, decided, np.int32(UNDECIDED))


def _by_class(
    reference: NDArray[np.int32], other: NDArray[np.int32], output: ModelOutput
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Pixels of each class in the reference, in the other output, and in both."""
    if output.multi_label:
        a, b = reference == 1, other == 1
        counts = [tuple(int(n) for n in masks.sum(axis=(1, 2))) for masks in (a, b, a & b)]
    else:
        # A model with a single class has the labels 0 (background) and 1 (the class).
        first = 1 if len(output.classes) == 1 else 0
        size = first + len(output.classes) + 1  # one more for UNDECIDED
        counts = []
        for labels in (reference, other, np.where(reference == other, reference, UNDECIDED)):
            found = np.bincount(np.where(labels == UNDECIDED, size - 1, labels).ravel(), minlength=size)
            counts.append(tuple(int(n) for n in found[first:-1]))
    return counts[0], counts[1], counts[2]
