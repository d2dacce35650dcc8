"""How far two sides agree over many images: counts and sums, so that those of partitions add up to that of all.

Knows pairs of rows and nothing of masks, stores or jobs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from unet_batch.errors import ShapeMismatch
from unet_batch.table.pairs import OK, ClassPair, ImageAgreement, Obstacle, Row, measure, same_size

K = TypeVar("K")

TOP = 10
"""Images that each ranking keeps."""


@dataclass(frozen=True, slots=True)
class Found:
    """How many images something is true of, and the first of them."""

    images: int
    example: str
    """Image key."""

    def __add__(self, more: Found) -> Found:
        return Found(self.images + more.images, self.example)


@dataclass(frozen=True, slots=True)
class ClassAgreement:
    """One class over many images; counts and sums, so that those of partitions add up to that of all."""

    images_a: int
    """Compared images in which A has the class."""
    images_b: int
    appears: int
    """Images in which only B has it."""
    disappears: int
    """Images in which only A has it."""
    area_a_px: int
    area_b_px: int
    masks: int
    """Images that have the class on either side and whose masks were held against each other; the rest is over them."""
    masked_a_px: int
    masked_b_px: int
    shared_px: int
    sum_dice: float

    @staticmethod
    def of(pair: ClassPair) -> ClassAgreement:
        """Those figures of one image."""
        a, b, shared = pair.area_a_px, pair.area_b_px, pair.shared_px
        masked = (0, 0, 0, 0, 0.0) if shared is None else (1, a, b, shared, pair.dice)
        return ClassAgreement(int(a > 0), int(b > 0), int(a == 0), int(b == 0), a, b, *masked)

    def __add__(self, more: ClassAgreement) -> ClassAgreement:
        return ClassAgreement(*(getattr(self, f.name) + getattr(more, f.name) for f in fields(self)))

    @property
    def area_change(self) -> float | None:
        """(B − A) / A; None where A has none."""
        return (self.area_b_px - self.area_a_px) / self.area_a_px if self.area_a_px else None

    @property
    def dice(self) -> float | None:
        """Dice of all masks taken as one picture; None without masks."""
        either = self.masked_a_px + self.masked_b_px
        return 2 * self.shared_px / either if either else None

    @property
    def mean_dice(self) -> float | None:
        """Mean of the images' own Dice: small objects count as much as large ones; None without masks."""
        return self.sum_dice / self.masks if self.masks else None

    def by_area_alone(self) -> ClassAgreement:
        """The same without what was learnt from masks."""
        return replace(self, masks=0, masked_a_px=0, masked_b_px=0, shared_px=0, sum_dice=0.0)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Many images: counts and sums, so that those of partitions add up to that of all.

    Every image lies in exactly one of compared, changes, rejected_alike, not_comparable, only_a and only_b.
    """

    top: int = TOP
    """Images that each ranking keeps."""
    compared: int = 0
    """Images with a prediction on both sides."""
    by_area: int = 0
    """Those of them whose masks are not kept on one side or both."""
    rejected_alike: int = 0
    """Images rejected for the same reason on both sides."""
    only_a: int = 0
    only_b: int = 0
    changes: Mapping[tuple[str, str], Found] = field(default_factory=dict)
    """By verdict in A and in B, where they differ."""
    not_comparable: Mapping[Obstacle, Found] = field(default_factory=dict)
    unchanged: int = 0
    """Images whose masks are the same in every pixel."""
    pixels: int = 0
    """Of all masks that were held against each other."""
    flipped_px: int = 0
    """Pixels of them whose set of classes differs."""
    with_confidence: int = 0
    """Compared images that have a confidence on both sides; the sums are over them."""
    sum_confidence_a: float = 0.0
    sum_confidence_b: float = 0.0
    classes: Mapping[str, ClassAgreement] = field(default_factory=dict)
    """By name."""
    most_flipped: tuple[ImageAgreement, ...] = ()
    """The images with the largest share of flipped pixels, the worst first."""
    lowest_dice: tuple[ImageAgreement, ...] = ()
    """The images with the lowest Dice of any class, the worst first; of equals, that with the larger area."""

    @staticmethod
    def of(images: Iterable[tuple[str, Row | None, Row | None]], *, top: int = TOP) -> Agreement:
        """The agreement over images that both sides have: key, row of A, row of B; None for a row that is damaged."""
        compared: list[ImageAgreement] = []
        changes: dict[tuple[str, str], Found] = {}
        obstacles: dict[Obstacle, Found] = {}
        alike = 0
        for key, a, b in images:
            if a is None or b is None:
                _count(obstacles, Obstacle.DAMAGED, key)
            elif a.verdict != b.verdict:
                _count(changes, (a.verdict, b.verdict), key)
            elif a.verdict != OK:
                alike += 1
            elif not same_size(a, b):
                _count(obstacles, Obstacle.OTHER_SIZE, key)
            else:
                try:
                    compared.append(measure(key, a, b))
                except ShapeMismatch:
                    _count(obstacles, Obstacle.NO_MASK, key)
        masked = [(i, i.flipped_px) for i in compared if i.flipped_px is not None]
        sure = [(i.confidence_a, i.confidence_b) for i in compared]
        confidences = [(a, b) for a, b in sure if a is not None and b is not None]
        classes: dict[str, ClassAgreement] = {}
        for pair in (pair for image in compared for pair in image.classes):
            one = ClassAgreement.of(pair)
            classes[pair.name] = classes[pair.name] + one if pair.name in classes else one
        return Agreement(
            top=top,
            compared=len(compared),
            by_area=len(compared) - len(masked),
            rejected_alike=alike,
            changes=changes,
            not_comparable=obstacles,
            unchanged=sum(flipped == 0 for _, flipped in masked),
            pixels=sum(image.pixels for image, _ in masked),
            flipped_px=sum(flipped for _, flipped in masked),
            with_confidence=len(confidences),
            sum_confidence_a=sum(a for a, _ in confidences),
            sum_confidence_b=sum(b for _, b in confidences),
            classes=classes,
            most_flipped=_ranked((i for i, flipped in masked if flipped), _by_flips, top),
            lowest_dice=_ranked((i for i in compared if i.lowest and i.lowest.dice < 1), _by_dice, top),
        )

    def __add__(self, more: Agreement) -> Agreement:
        """The agreement over the images of both."""
        joined: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            mine, others = getattr(self, name), getattr(more, name)
            joined[name] = _joined(mine, others) if isinstance(mine, Mapping) else mine + others
        top = joined["top"] = max(self.top, more.top)
        joined["most_flipped"] = _ranked(joined["most_flipped"], _by_flips, top)
        joined["lowest_dice"] = _ranked(joined["lowest_dice"], _by_dice, top)
        return Agreement(**joined)

    @property
    def flipped_share(self) -> float | None:
        """Share of all pixels whose set of classes differs; None where no masks were held against each other."""
        return self.flipped_px / self.pixels if self.pixels else None

    @property
    def confidence_change(self) -> float | None:
        """Mean confidence in B less that in A; None without any."""
        return (self.sum_confidence_b - self.sum_confidence_a) / self.with_confidence if self.with_confidence else None

    def by_area_alone(self) -> Agreement:
        """The same without what was learnt from masks.

        For a partition one side of which keeps no runs: its empty masks are known nevertheless, and figures over them
        alone would say nothing of the others.
        """
        return replace(
            self,
            by_area=self.compared,
            unchanged=0,
            pixels=0,
            flipped_px=0,
            classes={name: found.by_area_alone() for name, found in self.classes.items()},
            most_flipped=(),
        )

    def to_json(self, *, rankings: bool) -> dict[str, Any]:
        """Counts, and all that follows from them, for `json.dumps`."""
        tree: dict[str, Any] = {
            "compared": self.compared,
            "by_area": self.by_area,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "rejected_alike": self.rejected_alike,
            "changes": [
                {"a": a, "b": b, "images": found.images, "example": found.example}
                for (a, b), found in sorted(self.changes.items())
            ],
            "not_comparable": [
                {"why": str(why), "images": found.images, "example": found.example}
                for why, found in sorted(self.not_comparable.items())
            ],
            "unchanged": self.unchanged,
            "pixels": self.pixels,
            "flipped_px": self.flipped_px,
            "flipped_share": self.flipped_share,
            "mean_confidence_a": self.sum_confidence_a / self.with_confidence if self.with_confidence else None,
            "mean_confidence_b": self.sum_confidence_b / self.with_confidence if self.with_confidence else None,
            "confidence_change": self.confidence_change,
            "classes": {name: self._class_json(found) for name, found in sorted(self.classes.items())},
        }
        if rankings:
            tree["most_flipped"] = [image.to_json() for image in self.most_flipped]
            tree["lowest_dice"] = [image.to_json() for image in self.lowest_dice]
        return tree

    def _class_json(self, found: ClassAgreement) -> dict[str, Any]:
        return {
            "images_a": found.images_a,
            "images_b": found.images_b,
            "appears_share": found.appears / self.compared,
            "disappears_share": found.disappears / self.compared,
            "area_a_px": found.area_a_px,
            "area_b_px": found.area_b_px,
            "area_change": found.area_change,
            "dice": found.dice,
            "mean_dice": found.mean_dice,
        }


def _count(found: dict[K, Found], what: K, image: str) -> None:
    found[what] = found[what] + Found(1, image) if what in found else Found(1, image)


def _joined(mine: Mapping[K, Any], others: Mapping[K, Any]) -> dict[K, Any]:
    shared = {name: mine[name] + others[name] for name in mine.keys() & others.keys()}
    return {**mine, **others, **shared}


def _ranked(
    images: Iterable[ImageAgreement], badness: Callable[[ImageAgreement], tuple[float, float]], top: int
) -> tuple[ImageAgreement, ...]:
    """The worst images first; equals by their keys, so that the order of partitions changes nothing."""
    return tuple(heapq.nsmallest(top, images, key=lambda image: (*badness(image), image.key)))


def _by_flips(image: ImageAgreement) -> tuple[float, float]:
    return -(image.flipped_share or 0.0), -(image.flipped_px or 0)


def _by_dice(image: ImageAgreement) -> tuple[float, float]:
    lowest = image.lowest
    return (lowest.dice, -max(lowest.area_a_px, lowest.area_b_px)) if lowest else (1.0, 0.0)
