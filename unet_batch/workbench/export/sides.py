"""The sides of images that a network takes, found by running it.

Legend: N images, C channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Size = tuple[int, int]

MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Multiples of the sides to try: powers of two, with at most one factor of three."""
TRIED_PX = 96
"""Approximate length of the sides to try: the smallest that allows six halvings."""


def smallest_multiple(
    scores: Callable[[Array], Array],
    images_nchw: Array,
    *,
    ratio: float | None,
    margin: int = 0,
    least: int = 1,
) -> int | None:
    """The smallest number whose multiples can be sides of an image; None if none is found.

    scores: returns an image's output or raises any error. ratio: required side of the output as a share of the
    image's without the margin; None: any. margin: if not 0, sides are a multiple plus the remainder of the given
    images' sides. least: the number must be a multiple of this.
    """
    height, width = images_nchw.shape[2:]
    for multiple in (number for number in MULTIPLES if number % least == 0):
        remainder = height % multiple if margin else 0
        if margin and width % multiple != remainder:
            continue
        # The factor has no 2 or 3, so the side is a multiple of this number but of no larger one in the list.
        enough = TRIED_PX + 2 * margin
        factor = next(n for n in range(1, enough * 2) if n % 2 and n % 3 and n * multiple >= enough)
        side = factor * multiple + remainder
        sizes = ((side, side), (side + multiple, side), (side, side + multiple))
        if all(_fits(scores, images_nchw, size, ratio, margin) for size in sizes):
            return multiple
    return None


def _fits(scores: Callable[[Array], Array], images_nchw: Array, size: Size, ratio: float | None, margin: int) -> bool:
    image = np.resize(images_nchw[:1], (1, images_nchw.shape[1], *size))
    try:
        shape = scores(image).shape[-2:]
    except Exception:  # noqa: BLE001 - any error means that it does not run at this size
        return False
    return ratio is None or shape == ((size[0] - 2 * margin) * ratio, (size[1] - 2 * margin) * ratio)
