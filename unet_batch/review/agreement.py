"""How far two sets of masks agree over many images: two runs, or any other masks of the same images.

Each side gives the masks of an image, or the reason why it has none. `imaging.mask_agreement` compares the masks of one
image and defines the rules for empty masks. Over many images, Dice and IoU of a class are computed from the pixels of
all images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unet_batch.imaging.mask_agreement import ImageAgreement, Overlap, agree
from unet_batch.imaging.masks import Edges

OK = "ok"
"""The text of a side with masks if the other side has none."""
OTHER_SIZE = "ok, at another size"
PLACE = ("image_key", "uri", "member", "page", "source_version", "height", "width")
"""Columns that say where an image lies, and how large it is."""
TOP = 10
"""Default number of images with the largest differences to keep."""


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of one side for one image."""

    edges: Mapping[str, Edges]
    """Class name → edges of its mask; without classes that have no pixel."""
    size_hw: tuple[int, int]
    """Rows and columns of the masks; of the image if it has no mask."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One image with the masks of both sides: what a picture of their difference needs."""

    partition: str
    row: Mapping[str, Any]
    """The columns PLACE of the image."""
    class_name: str
    """The class with the lowest Dice."""
    dice: float
    """Of this class."""
    a: Masks
    b: Masks


MasksOrReason = Masks | str
"""The masks of a side for an image, or a text why there are none, e.g. the reason of a rejection."""
ReasonPair = tuple[str, str]
"""The texts of A and B for an image that is not compared."""


@dataclass(frozen=True, slots=True)
class CountedImages:
    """A number of images, and one example."""

    images: int
    example: str
    """Image key."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """An image and the agreement of its masks."""

    key: str
    found: ImageAgreement

    @property
    def order(self) -> tuple[float, int, str]:
        """Sort key: the largest differences first, then by image key."""
        return -self.found.flipped_share, -self.found.flipped_px, self.key

    def to_json(self) -> dict[str, Any]:
        """Image key and figures, for `json.dumps`."""
        return {
            "image_key": self.key,
            "flipped_px": self.found.flipped_px,
            "flipped_share": self.found.flipped_share,
            "dice": {name: pair.dice for name, pair in self.found.classes.items()},
        }


@dataclass(slots=True)
class ClassAgreement:
    """One class over many images."""

    images_a: int = 0
    """Images in which A has the class."""
    images_b: int = 0
    images: int = 0
    """Images in which either side has it."""
    overlap: Overlap = field(default_factory=Overlap)
    """Over all images."""
    sum_dice: float = 0.0
    """Sum of the Dice of each image in which either side has the class."""

    def add(self, pair: Overlap) -> None:
        """Count one image in which either side has the class."""
        self.images_a += pair.area_a_px > 0
        self.images_b += pair.area_b_px > 0
        self.images += 1
        self.overlap += pair
        self.sum_dice += pair.dice or 0.0

    @property
    def mean_dice(self) -> float | None:
        """Mean of the Dice of the images: small objects count as much as large ones."""
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


@dataclass(slots=True)
class Agreement:
    """Counts and sums over many images. Every image is either compared or in `not_compared`."""

    top: int = TOP
    """Length of `most_flipped`."""
    compared: int = 0
    """Images with masks on both sides."""
    unchanged: int = 0
    """Number of these whose masks are the same in every pixel."""
    pixels: int = 0
    flipped_px: int = 0
    """Pixels whose set of classes differs."""
    classes: dict[str, ClassAgreement] = field(default_factory=dict)
    """By name."""
    confusion: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    """(class of A, class of B) → pixels with the first class only in A and the second only in B; None: no class."""
    not_compared: dict[ReasonPair, CountedImages] = field(default_factory=dict)
    """Texts of A and B → images."""
    most_flipped: list[Ranked] = field(default_factory=list)
    """The images with the largest shares of flipped pixels, largest first."""

    def add(self, key: str, found: ImageAgreement | ReasonPair, images: int = 1) -> None:
        """Count the result of `agree_on`. images: number of images with this result; key is the first of them."""
        if isinstance(found, tuple):
            before = self.not_compared.get(found, CountedImages(0, key))
            self.not_compared[found] = CountedImages(before.images + images, before.example)
            return
        self.compared += 1
        self.unchanged += found.flipped_px == 0
        self.pixels += found.pixels
        self.flipped_px += found.flipped_px
        for name, pair in found.classes.items():
            self.classes.setdefault(name, ClassAgreement()).add(pair)
        self.confusion.update(found.confusion)
        if found.flipped_px and self.top:
            self.most_flipped = sorted([*self.most_flipped, Ranked(key, found)], key=lambda r: r.order)[: self.top]

    @property
    def flipped_share(self) -> float | None:
        """Share of all pixels whose set of classes differs; None if nothing was compared."""
        return self.flipped_px / self.pixels if self.pixels else None

    def to_json(self) -> dict[str, Any]:
        """Counts and derived figures, for `json.dumps`; without the images that differ most."""
        return {
            "compared": self.compared,
            "unchanged": self.unchanged,
            "pixels": self.pixels,
            "flipped_px": self.flipped_px,
            "flipped_share": self.flipped_share,
            "classes": {name: found.to_json() for name, found in sorted(self.classes.items())},
            "confusion": [{"a": a, "b": b, "pixels": pixels} for (a, b), pixels in self.confusion.most_common()],
            "not_compared": [
                {"a": a, "b": b, "images": found.images, "example": found.example}
                for (a, b), found in sorted(self.not_compared.items())
            ],
        }


def agree_on(a: MasksOrReason, b: MasksOrReason) -> ImageAgreement | ReasonPair:
    """How far the masks of one image agree, or the texts of A and B if they cannot be compared."""
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else OK, b if isinstance(b, str) else OK
    sizes = {side.size_hw for side in (a, b) if side.edges} or {a.size_hw}  # the size of an empty mask does not matter
    if len(sizes) > 1:
        return OK, OTHER_SIZE
    height, width = sizes.pop()
    return agree(a.edges, b.edges, height * width)
