"""How far the rows of two sides agree, as counts and sums: those of partitions add up to that of all images.

Knows pairs of rows; knows no store, no file and no job. `imaging.mask_agreement` compares the masks of one image and
has the rules for empty masks. Over many images, Dice and IoU of a class are those of all pixels together.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

from unet_batch.errors import ShapeMismatch
from unet_batch.imaging.mask_agreement import Confusion, ImageAgreement, Overlap, agree
from unet_batch.imaging.masks import Edges, edges

K = TypeVar("K")

OK = "ok"
"""The verdict of an image that has a prediction; any other is the reason of its rejection."""
TOP = 10
"""Images that are kept as the ones that differ most."""


@dataclass(frozen=True, slots=True)
class ClassMask:
    """What one row holds of one class."""

    area_px: int
    size_hw: tuple[int, int] | None
    counts: str | None
    """COCO `counts`; None where the row holds the area only."""

    def edges(self) -> Edges:
        """Raises ShapeMismatch where the counts are no mask of this size and area."""
        found = edges(self.counts or "", self.size_hw or (0, 0))
        if (inside := int((found[1::2] - found[::2]).sum())) != self.area_px:
            raise ShapeMismatch(f"COCO RLE has {inside} pixels inside, and area_px is {self.area_px}")
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """One row, as far as it is compared."""

    uri: str
    member: str | None
    page: int
    verdict: str
    """OK, or the reason of a rejection."""
    source_px: int
    """Pixels of the source image; 0 where it was never decoded."""
    classes: Mapping[str, ClassMask]
    """By name; none for an empty mask."""


class Obstacle(StrEnum):
    """Why an image that both sides have is not compared."""

    OTHER_VERSION = "each side scored another version of the image"
    OTHER_SIZE = "the masks have different sizes"
    NO_RUNS = "a side keeps areas only (output.masks without rle)"
    NO_MASK = "a mask is not COCO RLE of its size"
    DAMAGED = "a row cannot be read"


@dataclass(frozen=True, slots=True)
class Ranked:
    """An image and how far its masks agree."""

    key: str
    row: Row
    found: ImageAgreement

    def to_json(self) -> dict[str, Any]:
        """Identity and figures, for `json.dumps`."""
        return {
            "image_key": self.key,
            "uri": self.row.uri,
            "member": self.row.member,
            "page": self.row.page,
            "flipped_px": self.found.flipped_px,
            "flipped_share": self.found.flipped_share,
            "dice": {name: pair.dice for name, pair in self.found.classes.items()},
        }


def agree_rows(a: Row, b: Row) -> ImageAgreement | Obstacle:
    """How far two predictions of one image agree, or why that is not known."""
    masks = [*a.classes.values(), *b.classes.values()]
    if any(mask.counts is None for mask in masks):
        return Obstacle.NO_RUNS
    sizes = {mask.size_hw for mask in masks}
    if len(sizes) > 1:  # an empty mask, of which no row knows the size, fits any
        return Obstacle.OTHER_SIZE
    pixels = next((size[0] * size[1] for size in sizes if size), a.source_px)
    try:
        masks_a = {name: mask.edges() for name, mask in a.classes.items()}
        masks_b = {
            name: masks_a[name] if a.classes.get(name) == mask else mask.edges() for name, mask in b.classes.items()
        }
    except ShapeMismatch:
        return Obstacle.NO_MASK
    return agree(masks_a, masks_b, pixels)


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
    """One class over many images."""

    images_a: int = 0
    """Images in which A has the class."""
    images_b: int = 0
    images: int = 0
    """Images in which either side has it."""
    overlap: Overlap = field(default_factory=Overlap)
    """Of all images together."""
    sum_dice: float = 0.0
    """Of the Dice of each image in which either side has the class."""

    @staticmethod
    def of(pair: Overlap) -> ClassAgreement:
        """The figures of one image."""
        return ClassAgreement(int(pair.area_a_px > 0), int(pair.area_b_px > 0), 1, pair, pair.dice or 0.0)

    def __add__(self, more: ClassAgreement) -> ClassAgreement:
        return ClassAgreement(*(getattr(self, f.name) + getattr(more, f.name) for f in fields(self)))

    @property
    def mean_dice(self) -> float | None:
        """Mean of the Dice of each image: small objects count as much as large ones."""
        return self.sum_dice / self.images if self.images else None

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "images_a": self.images_a,
            "images_b": self.images_b,
            "area_a_px": self.overlap.area_a_px,
            "area_b_px": self.overlap.area_b_px,
            "dice": self.overlap.dice,
            "iou": self.overlap.iou,
            "mean_dice": self.mean_dice,
        }


@dataclass(frozen=True, slots=True)
class Agreement:
    """Many images: counts and sums, so that those of partitions add up to that of all.

    Every image lies in exactly one of compared, changes, rejected_alike, not_comparable, only_a and only_b.
    """

    top: int = TOP
    """Images that `most_flipped` keeps."""
    compared: int = 0
    """Images with a mask on both sides."""
    rejected_alike: int = 0
    """Images rejected for the same reason on both sides."""
    only_a: int = 0
    only_b: int = 0
    changes: Mapping[tuple[str, str], Found] = field(default_factory=dict)
    """By verdict in A and in B, where they differ."""
    not_comparable: Mapping[Obstacle, Found] = field(default_factory=dict)
    unchanged: int = 0
    """Compared images whose masks are the same in every pixel."""
    pixels: int = 0
    flipped_px: int = 0
    """Pixels whose set of classes differs."""
    classes: Mapping[str, ClassAgreement] = field(default_factory=dict)
    """By name."""
    confusion: Confusion = field(default_factory=dict)
    most_flipped: tuple[Ranked, ...] = ()
    """The images with the largest share of flipped pixels, the worst first."""

    @staticmethod
    def of(images: Iterable[tuple[str, Row | None, Row | None]], *, top: int = TOP) -> Agreement:
        """The agreement over images that both sides have: key, row of A, row of B; None for a row that is damaged."""
        compared: list[Ranked] = []
        changes: dict[tuple[str, str], Found] = {}
        obstacles: dict[Obstacle, Found] = {}
        classes: dict[str, ClassAgreement] = {}
        confusion: dict[tuple[str | None, str | None], int] = {}
        alike = 0
        for key, a, b in images:
            if a is None or b is None:
                _add(obstacles, {Obstacle.DAMAGED: Found(1, key)})
            elif a.verdict != b.verdict:
                _add(changes, {(a.verdict, b.verdict): Found(1, key)})
            elif a.verdict != OK:
                alike += 1
            elif isinstance(found := agree_rows(a, b), Obstacle):
                _add(obstacles, {found: Found(1, key)})
            else:
                compared.append(Ranked(key, a, found))
                _add(classes, {name: ClassAgreement.of(pair) for name, pair in found.classes.items()})
                _add(confusion, found.confusion)
        return Agreement(
            top=top,
            compared=len(compared),
            rejected_alike=alike,
            changes=changes,
            not_comparable=obstacles,
            unchanged=sum(image.found.flipped_px == 0 for image in compared),
            pixels=sum(image.found.pixels for image in compared),
            flipped_px=sum(image.found.flipped_px for image in compared),
            classes=classes,
            confusion=confusion,
            most_flipped=_worst((image for image in compared if image.found.flipped_px), top),
        )

    def __add__(self, more: Agreement) -> Agreement:
        """The agreement over the images of both."""
        joined: dict[str, Any] = {"top": max(self.top, more.top)}
        for name in (f.name for f in fields(self) if f.name != "top"):
            mine, others = getattr(self, name), getattr(more, name)
            joined[name] = _add(dict(mine), others) if isinstance(mine, Mapping) else mine + others
        joined["most_flipped"] = _worst(joined["most_flipped"], joined["top"])
        return Agreement(**joined)

    @property
    def flipped_share(self) -> float | None:
        """Share of all pixels whose set of classes differs; None where nothing was compared."""
        return self.flipped_px / self.pixels if self.pixels else None

    def to_json(self) -> dict[str, Any]:
        """Counts, and all that follows from them, for `json.dumps`; without the images."""
        return {
            "compared": self.compared,
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
            "classes": {name: found.to_json() for name, found in sorted(self.classes.items())},
            "confusion": [{"a": a, "b": b, "pixels": pixels} for (a, b), pixels in self.confused()],
        }

    def confused(self) -> list[tuple[tuple[str | None, str | None], int]]:
        """The confusion, most pixels first."""
        return sorted(self.confusion.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))


def _add(mine: dict[K, Any], others: Mapping[K, Any]) -> dict[K, Any]:
    for name, value in others.items():
        mine[name] = mine[name] + value if name in mine else value
    return mine


def _worst(images: Iterable[Ranked], top: int) -> tuple[Ranked, ...]:
    """The images that differ most first; equals by their keys, so that the order of partitions changes nothing."""
    order = lambda image: (-image.found.flipped_share, -image.found.flipped_px, image.key)  # noqa: E731
    return tuple(heapq.nsmallest(top, images, key=order))
