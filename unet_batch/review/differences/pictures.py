"""Pictures of images on which two sides differ: the mask of each side, and where they agree.

Shows one class of an image, the one with the lowest Dice. Images come from the archive at their scored versions; a
picture that cannot be made is replaced by a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.imaging.encode import encode_jpeg
from unet_batch.imaging.masks import filled
from unet_batch.imaging.overlay import Color, displayed, thumbnail
from unet_batch.planning.prepare import Prepared
from unet_batch.review.agreement import Masks, Pair
from unet_batch.review.originals import NoPicture, originals
from unet_batch.review.pictures import MOST_PICTURES, MOST_PIXELS, THUMBNAIL_PX

A_COLOR: Color = (240, 110, 60)
"""Of the prediction, or of side A; after Okabe and Ito, as the other two."""
B_COLOR: Color = (86, 180, 233)
"""Of the truth, or of side B."""
BOTH_COLOR: Color = (0, 190, 140)
"""Of the pixels that both sides have."""
DIFFERENCE_FILL = 0.8
"""Stronger than in the pictures of one side, because no border separates the three colours: blue and green are near."""


@dataclass(frozen=True, slots=True)
class Views:
    """One image in three pictures, JPEG: the mask of A, the mask of B, and where they agree."""

    a: bytes
    b: bytes
    difference: bytes
    stretched: bool
    """Whether contrast was stretched for display."""


@dataclass(frozen=True, slots=True)
class PairPicture:
    """An image on which two sides differ."""

    pair: Pair
    shares: tuple[float, float]
    """Share of the image that the class covers in A and in B."""
    views: Views | None
    note: str = ""
    """Why there are no pictures."""


def draw(prepared: Prepared, pairs: Sequence[Pair]) -> tuple[PairPicture, ...]:
    """Pictures of the first MOST_PICTURES pairs, in order. Raises only errors of the job or the store as a whole."""
    pairs = pairs[:MOST_PICTURES]
    found: dict[int, PairPicture] = {}
    left = MOST_PIXELS
    wanted: list[int] = []
    for number, pair in enumerate(pairs):
        left -= pair.row["height"] * pair.row["width"]
        if left < 0:
            note = "not drawn: the pictures of this page are large enough"
            found[number] = PairPicture(pair, _shares(pair), None, note)
        else:
            wanted.append(number)
    for place, content in originals(prepared, [(pairs[n].partition, pairs[n].row) for n in wanted]):
        number = wanted[place]
        found[number] = _drawn(pairs[number], content, prepared.model.contract.input.color)
    return tuple(found[number] for number in range(len(pairs)))


def _drawn(pair: Pair, content: NDArray[Any] | NoPicture, color: str) -> PairPicture:
    if isinstance(content, NoPicture):
        return PairPicture(pair, _shares(pair), None, content.why)
    image_hwc = displayed(content, color)
    small_hwc = thumbnail(image_hwc, THUMBNAIL_PX, [])
    a_hw, b_hw = _mask(pair, pair.a), _mask(pair, pair.b)
    regions = [(a_hw & b_hw, BOTH_COLOR), (a_hw & ~b_hw, A_COLOR), (b_hw & ~a_hw, B_COLOR)]
    views = Views(
        a=encode_jpeg(thumbnail(small_hwc, THUMBNAIL_PX, [(a_hw, A_COLOR)])),
        b=encode_jpeg(thumbnail(small_hwc, THUMBNAIL_PX, [(b_hw, B_COLOR)])),
        difference=encode_jpeg(thumbnail(small_hwc, THUMBNAIL_PX, regions, fill=DIFFERENCE_FILL, lines=False)),
        stretched=image_hwc.dtype != np.uint8,
    )
    return PairPicture(pair, _shares(pair), views)


def _size(pair: Pair) -> tuple[int, int]:
    """Rows and columns of both masks: an empty mask may have another size."""
    return pair.a.size_hw if pair.a.edges else pair.b.size_hw


def _mask(pair: Pair, side: Masks) -> NDArray[np.bool_]:
    return filled(side.edges.get(pair.class_name, np.empty(0, np.int64)), _size(pair))


def _shares(pair: Pair) -> tuple[float, float]:
    a, b = (float(_mask(pair, side).mean()) for side in (pair.a, pair.b))
    return a, b
