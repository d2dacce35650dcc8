"""The estimate of how often the gate of a job would refuse an engine."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from unet_batch.contract import ModelOutput
from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.gate.resample import RARE, breaches_of, refusal_share

LIMIT = Tolerance(max_flipped=0.05, min_dice=0.0)
OUTPUT = ModelOutput(activation="sigmoid", classes=("cell",), background=None)


def tile(flipped: int) -> Parity:
    """A tile of 10 × 10 pixels, half of them cell, in which some labels flipped."""
    reference = np.full((1, 1, 10, 10), 0.1, np.float32)
    reference[..., :5] = 0.9
    other = reference.copy()
    other.reshape(-1)[:flipped] = 1 - other.reshape(-1)[:flipped]
    return Parity.of(reference, other, OUTPUT)


def test_the_share_is_that_of_all_days_that_could_be_drawn():
    """Two images of four tiles: 16 days, counted one by one; a draw of 500 days is near it."""
    tiles = [tile(flipped) for flipped in (0, 0, 4, 12)]
    exact = np.mean([bool(LIMIT.breaches(a + b)) for a, b in product(tiles, tiles)])
    assert exact == 7 / 16
    assert refusal_share(tiles, LIMIT, 2) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 500))


def test_more_images_on_a_day_make_a_refusal_rarer_where_the_figures_hold():
    """One object decides over a few images, and hardly over many."""
    tiles = [*7 * [tile(0)], tile(20)]
    few, many = (refusal_share(tiles, LIMIT, images) for images in (2, 64))
    assert few > 0.1 > RARE > many


def test_what_all_tiles_together_exceed_is_said_first():
    """The share of days would say no more."""
    [said] = breaches_of([tile(20), tile(20)], LIMIT, 4)
    assert said.startswith("20.0000% of labels flipped")


def test_a_rare_refusal_is_accepted_and_a_frequent_one_is_not():
    """Without a gate, the figures over all tiles decide alone."""
    assert breaches_of(8 * [tile(4)], LIMIT, 4) == []
    tiles = [*7 * [tile(0)], tile(20)]
    [said] = breaches_of(tiles, LIMIT, 4)
    assert "would refuse it on" in said
    assert breaches_of(tiles, LIMIT, 0) == []
