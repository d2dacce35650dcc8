"""How far two masks of one image agree: label flips, Dice and IoU by class, confusion.

Masks are runs and classes are names: two models may give one class different channels. All figures come from the
edges of the runs; no mask is drawn.

Rules for empty masks:
* A class that neither mask has does not count.
* If only one mask has a class, its Dice and IoU are 0.
* Two masks without any class agree in every pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from unet_batch.imaging.masks import Edges

Confusion = Mapping[tuple[str | None, str | None], int]
"""(class of A, class of B) → pixels with the first class only in A and the second only in B; None: no such class.
With overlapping classes a pixel counts for each pair."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pixels of one class in two masks, of one image or summed over many."""

    area_a_px: int = 0
    area_b_px: int = 0
    shared_px: int = 0
    """Pixels that have the class in both masks."""

    def __add__(self, more: Overlap) -> Overlap:
        return Overlap(*(getattr(self, f.name) + getattr(more, f.name) for f in fields(self)))

    @property
    def dice(self) -> float | None:
        """2|A∩B| / (|A|+|B|); None if neither mask has the class."""
        both = self.area_a_px + self.area_b_px
        return 2 * self.shared_px / both if both else None

    @property
    def iou(self) -> float | None:
        """|A∩B| / |A∪B|; None if neither mask has the class."""
        union = self.area_a_px + self.area_b_px - self.shared_px
        return self.shared_px / union if union else None


@dataclass(frozen=True, slots=True)
class ImageAgreement:
    """How far two masks of one image agree."""

    pixels: int
    flipped_px: int
    """Pixels whose set of classes differs."""
    classes: Mapping[str, Overlap]
    """By class name: the classes of either mask."""
    confusion: Confusion

    @property
    def flipped_share(self) -> float:
        """Share of the pixels whose set of classes differs."""
        return self.flipped_px / self.pixels if self.pixels else 0.0

    @property
    def lowest(self) -> tuple[str, float] | None:
        """The class with the lowest Dice, and the Dice; None without any class."""
        dice = ((name, found.dice) for name, found in self.classes.items())
        return min(((n, d) for n, d in dice if d is not None), key=lambda pair: pair[1], default=None)


def agree(a: Mapping[str, Edges], b: Mapping[str, Edges], pixels: int) -> ImageAgreement:
    """How far two masks of one image agree. a, b: class name → edges of its mask. pixels: pixels of the image."""
    empty = np.empty(0, np.int64)
    classes, changed = {}, {}
    for name in sorted(a.keys() | b.keys()):
        one, other = a.get(name, empty), b.get(name, empty)
        lost, gained = (empty, empty) if np.array_equal(one, other) else _differences(one, other)
        classes[name] = Overlap(_px(one), _px(other), _px(one) - _px(lost))
        if lost.size or gained.size:
            changed[name] = lost, gained
    cuts = np.unique(np.concatenate([empty, *(side for pair in changed.values() for side in pair)]))
    lengths = np.diff(cuts)  # between two cuts the set of differing classes is constant
    losing = _inside([lost for lost, _ in changed.values()], cuts)
    gaining = _inside([gained for _, gained in changed.values()], cuts)
    flips = (losing | gaining).any(axis=0)
    lengths, losing, gaining = lengths[flips], _or_none(losing[:, flips]), _or_none(gaining[:, flips])
    pairs = (losing * lengths).astype(np.float64) @ gaining.T.astype(np.float64)  # exact up to 2^53 pixels
    names = [*changed, None]
    return ImageAgreement(
        pixels=pixels,
        flipped_px=int(lengths.sum()),
        classes=classes,
        confusion={(names[i], names[j]): int(pairs[i, j]) for i, j in zip(*np.nonzero(pairs), strict=True)},
    )


def _px(mask: Edges) -> int:
    return int((mask[1::2] - mask[::2]).sum())


def _differences(one: Edges, other: Edges) -> tuple[Edges, Edges]:
    """The edges of the pixels that only the first mask has, and of those that only the second one has."""
    both = np.concatenate([one, other])
    order = np.argsort(both, kind="stable")  # merges two sorted arrays
    steps, first = 1 - 2 * (order & 1), order < one.size  # every second edge ends a run
    in_one, in_other = np.cumsum(steps * first)[:-1] > 0, np.cumsum(steps * ~first)[:-1] > 0
    cuts = both[order]
    longer = cuts[1:] > cuts[:-1]

    def edges_of(segments: NDArray[np.bool_]) -> Edges:
        return np.stack([cuts[:-1][segments], cuts[1:][segments]], axis=1).ravel()

    return edges_of(in_one & ~in_other & longer), edges_of(in_other & ~in_one & longer)


def _inside(masks: Sequence[Edges], cuts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool (K, S): whether the segment after each cut but the last lies in each mask. cuts: contain all edges."""
    steps = np.zeros((len(masks), cuts.size), np.int8)
    for row, mask in zip(steps, masks, strict=True):
        row[np.searchsorted(cuts, mask[::2])] += 1
        row[np.searchsorted(cuts, mask[1::2])] -= 1
    return np.cumsum(steps, axis=1, dtype=np.int8)[:, :-1] > 0


def _or_none(classes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rows, and one more row that is true where all others are false."""
    return np.vstack([classes, ~classes.any(axis=0)])
