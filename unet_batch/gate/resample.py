"""How often the gate of a job would refuse an engine: estimated from held-out tiles by the bootstrap.

The gate compares few images, so an engine whose figures are within the tolerance over all tiles may still be refused
on some days. An engine is only recommended if that is rare.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np

from unet_batch.gate.parity import Parity, Tolerance

DRAWS = 500
"""Days that are drawn."""
RARE = 0.01
"""Largest share of days on which the gate may refuse an engine that is recommended."""
SEED = 0
"""The same tiles always give the same estimate."""


def total(tiles: Sequence[Parity]) -> Parity:
    """The parity over all tiles, at least one."""
    return reduce(add, tiles)


def refusal_share(tiles: Sequence[Parity], tolerance: Tolerance, images: int) -> float:
    """Share of days on which the gate would exceed the tolerance.

    tiles: the parity of each held-out tile, at least one. images: `check.images` of the job; the images of each of
    `DRAWS` days are drawn from the tiles with replacement (the bootstrap: Efron, 1979, doi:10.1214/aos/1176344552).
    """
    random = np.random.default_rng(SEED)
    drawn = random.integers(0, len(tiles), (DRAWS, images))
    return sum(bool(tolerance.breaches(total([tiles[n] for n in day]))) for day in drawn) / DRAWS


def breaches_of(tiles: Sequence[Parity], tolerance: Tolerance, images: int) -> list[str]:
    """A sentence for each limit that all tiles together exceed; else one if the gate would refuse too often.

    images: `check.images` of the job; 0 for none, or for a comparison without a gate.
    """
    found = tolerance.breaches(total(tiles))
    if found or not images:
        return found
    share = refusal_share(tiles, tolerance, images)
    refused = (
        f"the gate of the job, which compares {images} images, would refuse it on {share:.0%} of days; at most "
        f"{RARE:.0%} is accepted"
    )
    return [refused] if share > RARE else []
