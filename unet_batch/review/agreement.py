"""How far two sets of masks agree over many images: two runs, or any other masks of the same images.

Takes what each side says of an image: its masks, or a word why it has none. Knows no store, no file and no job.
`imaging.mask_agreement` compares the masks of one image and has the rules for empty masks. Over many images, Dice and
IoU of a class are those of all pixels together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unet_batch.imaging.mask_agreement import ImageAgreement, Overlap, agree
from unet_batch.imaging.masks import Edges

OK = "ok"
"""What is said of a side that has masks where the other one has none."""
OTHER_SIZE = "ok, at another size"
TOP = 10
"""Images that are kept as the ones that differ most."""


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks that one side has of one image."""

    edges: Mapping[str, Edges]
    """By class name, without the classes that have no pixel."""
    size_hw: tuple[int, int]
    """Of the masks; of the image, where it has no mask at all."""


Said = Masks | str
"""What a side says of an image: masks, or a word for what it has instead, such as the reason of a rejection."""
Words = tuple[str, str]
"""What A and B say of an image that is not compared."""


@dataclass(frozen=True, slots=True)
class Found:
    """How many images something is true of, and the first of them."""

    images: int
    example: str
    """Image key."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """An image and how far its masks agree."""

    key: str
    found: ImageAgreement

    @property
    def order(self) -> tuple[float, int, str]:
        """Sorts the images that differ most first; of equals, the first key."""
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
    """Of all images together."""
    sum_dice: float = 0.0
    """Of the Dice of each image in which either side has the class."""

    def add(self, pair: Overlap) -> None:
        """Count one image in which either side has the class."""
        self.images_a += pair.area_a_px > 0
        self.images_b += pair.area_b_px > 0
        self.images += 1
        self.overlap += pair
        self.sum_dice += pair.dice or 0.0

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


@dataclass(slots=True)
class Agreement:
    """Counts and sums over many images. Every image is either compared or in `not_compared`."""

    top: int = TOP
    """Images that `most_flipped` keeps."""
    compared: int = 0
    """Images with masks on both sides."""
    unchanged: int = 0
    """Of which the masks are the same in every pixel."""
    pixels: int = 0
    flipped_px: int = 0
    """Pixels whose set of classes differs."""
    classes: dict[str, ClassAgreement] = field(default_factory=dict)
    """By name."""
    confusion: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    """Flipped pixels by the class that only A has there and the class that only B has; None for no class."""
    not_compared: dict[Words, Found] = field(default_factory=dict)
    """By what A and B say."""
    most_flipped: list[Ranked] = field(default_factory=list)
    """The images with the largest share of flipped pixels, the worst first."""

    def add(self, key: str, found: ImageAgreement | Words, images: int = 1) -> None:
        """Count an image, as `agree_on` compared it. images: how many say these words, of which key is the first."""
        if isinstance(found, tuple):
            before = self.not_compared.get(found, Found(0, key))
            self.not_compared[found] = Found(before.images + images, before.example)
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
        """Share of all pixels whose set of classes differs; None where nothing was compared."""
        return self.flipped_px / self.pixels if self.pixels else None

    def to_json(self) -> dict[str, Any]:
        """Counts, and all that follows from them, for `json.dumps`; without the images that differ most."""
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


def agree_on(a: Said, b: Said) -> ImageAgreement | Words:
    """How far the masks of one image agree; where they cannot be compared, what A and B say."""
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else OK, b if isinstance(b, str) else OK
    sizes = {side.size_hw for side in (a, b) if side.edges} or {a.size_hw}  # an empty mask fits any size
    if len(sizes) > 1:
        return OK, OTHER_SIZE
    height, width = sizes.pop()
    return agree(a.edges, b.edges, height * width)
