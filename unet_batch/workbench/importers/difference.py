"""What cannot be equal to a framework's own result, and the framework's way as a few functions, where it is known.

With these functions somebody who has pictures measures how far masks move. Nothing is measured here.
Legend: H, W pixels; C channels; K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Normalise = Callable[[Array], Array]
"""Source values (H, W, C) → the contract's float32 values of the same size."""


@dataclass(frozen=True, slots=True)
class Way:
    """What the framework does in place of a step of this package; steps that are None stay those of this package.

    The functions are named in the order in which an image meets them.
    """

    values: Callable[[Array, Normalise], Array] | None = None
    """Source pixels after the crop (H, W, C) → the network's input of the whole image, float32 (h, w, C)."""
    tile: Callable[[Array], Array] | None = None
    """Output of one tile (K, h, w) → what is blended."""
    blended: Callable[[Array], Array] | None = None
    """The blended values (K, h, w) → values of the contract's activation."""
    back: Callable[[Array, tuple[int, int]], Array] | None = None
    """Scores (K, h, w) of the network's input → scores of the source size."""
    decided: Callable[[Array, Array, Array], tuple[Array, Array]] | None = None
    """Label maps of this package and of the way so far, and scores (K, H, W) → the two maps that are compared."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs from the framework."""

    text: str
    """A sentence without its full stop."""
    way: Way | None = None
    """How the framework does it; None if that cannot be computed from a picture and the source alone."""

    def __str__(self) -> str:
        return self.text
