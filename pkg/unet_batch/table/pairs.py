"""One image on two sides: pixels that change their classes, Dice by class, or areas where no masks were kept.

Knows one row of each side and COCO's runs, which are compared without drawing a mask; knows no store, no file and no
job. Classes are the same where their names are: their numbers are channels, which two models may order differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import ShapeMismatch
from unet_batch.imaging.masks import _unpack

OK = "ok"
"""The verdict of an image that has a prediction; any other is the reason of its rejection."""

Edges = NDArray[np.int64]
"""Where a mask begins and ends, in turn and ascending, counted down the columns: an even number of pixels."""


@dataclass(frozen=True, slots=True)
class ClassMask:
    """What one row says of one class."""

    area_px: int
    fraction: float
    """Share of the mask's pixels, above 0."""
    size_hw: tuple[int, int] | None
    counts: str | None
    """COCO `counts`; None where the row keeps an area only."""

    @property
    def mask_px(self) -> int:
        """Pixels of the whole mask, inside the class and outside."""
        return self.size_hw[0] * self.size_hw[1] if self.size_hw else round(self.area_px / self.fraction)


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
    confidence: float | None
    classes: Mapping[str, ClassMask]
    """By name; none for an empty mask."""


class Obstacle(StrEnum):
    """Why an image that both sides have is not compared."""

    OTHER_VERSION = "each side scored another version of the image"
    OTHER_SIZE = "the masks have different sizes"
    NO_MASK = "a mask is not COCO RLE of its size"
    DAMAGED = "a row cannot be read"


@dataclass(frozen=True, slots=True)
class ClassPair:
    """One class of one image on both sides; an area is 0 where the class does not occur."""

    name: str
    area_a_px: int
    area_b_px: int
    shared_px: int | None
    """Pixels that have the class on both sides; None where only areas are known."""

    @property
    def dice(self) -> float:
        """2|A∩B| / (|A|+|B|); where only areas are known, the most that they allow."""
        shared = min(self.area_a_px, self.area_b_px) if self.shared_px is None else self.shared_px
        return 2 * shared / (self.area_a_px + self.area_b_px)


@dataclass(frozen=True, slots=True)
class ImageAgreement:
    """One image that both sides predicted."""

    key: str
    uri: str
    member: str | None
    page: int
    pixels: int
    """Of the mask; of the source image where both masks are empty."""
    flipped_px: int | None
    """Pixels whose set of classes differs; None where only areas are known."""
    classes: tuple[ClassPair, ...]
    """Classes that either side has, by name."""
    confidence_a: float | None
    confidence_b: float | None

    @property
    def flipped_share(self) -> float | None:
        """Share of the mask's pixels whose set of classes differs."""
        return None if self.flipped_px is None else self.flipped_px / self.pixels if self.pixels else 0.0

    @property
    def lowest(self) -> ClassPair | None:
        """The class with the lowest Dice; None where both masks are empty."""
        return min(self.classes, key=lambda pair: pair.dice, default=None)

    def to_json(self) -> dict[str, Any]:
        """Identity and figures, for `json.dumps`."""
        return {
            "image_key": self.key,
            "uri": self.uri,
            "member": self.member,
            "page": self.page,
            "flipped_px": self.flipped_px,
            "flipped_share": self.flipped_share,
            "by_area": self.flipped_px is None,
            "dice": {pair.name: pair.dice for pair in self.classes},
        }


def same_size(a: Row, b: Row) -> bool:
    """Whether all masks of both rows have one size; an empty mask, of which no row says a size, fits any."""
    masks = [*a.classes.values(), *b.classes.values()]
    return len({m.size_hw for m in masks if m.size_hw}) < 2 and len({m.mask_px for m in masks}) < 2


def measure(key: str, a: Row, b: Row) -> ImageAgreement:
    """The agreement of two predictions of one image, whose masks have one size.

    By pixels where every class of both rows has its runs, else by area alone. Raises ShapeMismatch where counts are no
    mask of their size.
    """
    names = sorted(a.classes.keys() | b.classes.keys())
    masks = [(a.classes.get(name), b.classes.get(name)) for name in names]
    by_area = any(mask is not None and mask.counts is None for pair in masks for mask in pair)
    differences = None if by_area else [_difference(*pair) for pair in masks]
    pairs = []
    for number, (name, (mask_a, mask_b)) in enumerate(zip(names, masks, strict=True)):
        area_a, area_b = (mask.area_px if mask else 0 for mask in (mask_a, mask_b))
        shared = None if differences is None else (area_a + area_b - inside_px(differences[number])) // 2
        pairs.append(ClassPair(name, area_a, area_b, shared))
    pixels = next((mask.mask_px for pair in masks for mask in pair if mask), a.source_px)
    return ImageAgreement(
        key=key,
        uri=a.uri,
        member=a.member,
        page=a.page,
        pixels=pixels,
        flipped_px=None if differences is None else covered_px(differences),
        classes=tuple(pairs),
        confidence_a=a.confidence,
        confidence_b=b.confidence,
    )


def edges(counts: str, size_hw: tuple[int, int]) -> Edges:
    """The edges of the mask that COCO's `counts` describe. Raises ShapeMismatch where they are no mask of this size."""
    lengths = _unpack(counts)
    height, width = size_hw
    if (lengths < 0).any() or int(lengths.sum()) != height * width:
        raise ShapeMismatch(
            f"COCO RLE has {int(lengths.sum())} pixels, not {height} x {width}: take the size it was made with"
        )
    return np.cumsum(lengths)[: lengths.size // 2 * 2]


def differing(a: Edges, b: Edges) -> Edges:
    """The edges of the pixels that only one of two masks has: every edge of either turns the difference over."""
    return np.sort(np.concatenate((a, b)), kind="stable")  # two sorted pieces: one merge


def inside_px(mask: Edges) -> int:
    """Pixels of a mask."""
    return int((mask[1::2] - mask[::2]).sum())


def covered_px(masks: Sequence[Edges]) -> int:
    """Pixels that at least one of the masks has."""
    if len(masks) < 2:
        return inside_px(masks[0]) if masks else 0
    codes = 2 * np.concatenate(masks)  # of even length each, so that every second edge is a stop
    codes[1::2] += 1
    codes.sort(kind="stable")
    depth = np.cumsum(1 - 2 * (codes & 1))
    return int(np.diff(codes >> 1)[depth[:-1] > 0].sum())


def _difference(a: ClassMask | None, b: ClassMask | None) -> Edges:
    """The edges of the pixels that have a class on one side only. Both masks have their runs."""
    if a is not None and b is not None and a.counts == b.counts:
        return np.empty(0, np.int64)
    return differing(*(np.empty(0, np.int64) if mask is None else _edges_of(mask) for mask in (a, b)))


def _edges_of(mask: ClassMask) -> Edges:
    found = edges(mask.counts or "", mask.size_hw or (0, 0))
    if inside_px(found) != mask.area_px:
        raise ShapeMismatch(f"COCO RLE has {inside_px(found)} pixels inside, and area_px is {mask.area_px}")
    return found
