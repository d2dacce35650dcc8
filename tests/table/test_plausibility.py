"""Warnings about rows that are complete and look wrong: when they are given, and above all when they are not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from unet_batch.errors import NeedsAction
from unet_batch.spec import LimitsSpec
from unet_batch.table.plausibility import checked, implausible
from unet_batch.table.rows import CLASS_TYPE
from unet_batch.table.tally import Tally, distance, levels_of, median_confidence

DAY = "date=2026-11-21"
NUCLEUS = {1: "nucleus"}
LAND = {0: "water", 1: "field", 2: "forest"}


def night(ok: int, *, empty: int = 0, dim: int = 0, full=(), seen=(), confidences=()) -> Tally:
    levels = Counter(levels_of(np.asarray(confidences, float)).tolist())
    return Tally(ok, empty, dim, Counter(dict(full)), Counter(dict(seen)), levels)


def kinds(tally: Tally, classes=NUCLEUS, nights=()) -> list[str]:
    return [found.kind for found in implausible(DAY, tally, classes, nights)]


def spread(middle: float, count: int = 60) -> list[float]:
    """Confidences whose doubt spreads over a decade around that of `middle`."""
    return [1 - (1 - middle) * 10 ** (step / count - 0.5) for step in range(count)]


@pytest.mark.parametrize(
    ("tally", "nights", "expected"),
    [
        (night(0), (), []),  # every image was rejected
        (night(1, empty=1), (), []),  # one image may be empty
        (night(4, empty=4), (), []),
        (night(5, empty=5), (), ["empty"]),
        (night(40, empty=39, seen={1: 1}), (), []),
        (night(200, empty=196, seen={1: 4}), (), ["empty"]),
        (night(200, empty=195, seen={1: 5}), (), []),
        (night(200, empty=200), (night(200, empty=150, seen={1: 50}),), ["empty"]),
        # An archive of rare defects: a night that was published like this is how the archive is.
        (night(200, empty=200), (night(200, empty=185, seen={1: 15}),), []),
        (night(200, empty=200), (night(3, empty=3),), ["empty"]),  # three images prove no habit
        (night(200, full={1: 199}, seen={1: 200}), (), ["full"]),
        (night(200, full={1: 150}, seen={1: 200}), (), []),
        (night(200, full={1: 200}, seen={1: 200}), (night(50, full={1: 49}, seen={1: 50}),), []),
        (night(3, dim=2, seen={1: 3}), (), ["dim"]),
        (night(4, dim=2, seen={1: 4}), (), []),
        (night(200, dim=180, seen={1: 200}), (night(200, dim=190, seen={1: 200}),), []),
    ],
)
def test_when_masks_and_ranges_look_wrong(tally, nights, expected):
    """A table: the counts of a night, those of the nights beside it, and the warnings."""
    assert kinds(tally, nights=nights) == expected


USUAL = tuple(night(50, seen={0: 50, 1: 40, 2: 20}) for _ in range(3))


@pytest.mark.parametrize(
    ("tally", "classes", "nights", "expected"),
    [
        (night(100, seen={0: 100, 1: 9}), LAND, (), ["unseen"]),
        (night(99, seen={0: 99, 1: 9}), LAND, (), []),
        (night(100, seen={0: 100}), {i: str(i) for i in range(21)}, (), []),  # of many classes some are rare
        (night(50, seen={0: 50, 1: 40}), LAND, USUAL, ["unseen"]),
        (night(20, seen={0: 20, 1: 9}), LAND, USUAL, []),  # 8 are expected: too few
        (night(50, seen={0: 50, 1: 40}), LAND, USUAL[:2], []),  # two nights are no rule
        (night(50, seen={0: 50, 1: 40}), LAND, (*USUAL, night(50, seen={0: 50, 1: 40})), []),  # was missing before
        (night(50, seen={0: 50, 1: 40, 2: 1}), LAND, USUAL, []),
    ],
)
def test_when_a_class_is_missed(tally, classes, nights, expected):
    """A class is missed where other nights make it nearly certain, or on a large first night of few classes."""
    assert kinds(tally, classes, nights) == expected


def confident(middle: float, count: int = 60) -> Tally:
    return night(count, seen={1: count}, confidences=spread(middle, count))


@pytest.mark.parametrize(
    ("tally", "nights", "expected"),
    [
        (confident(0.9), [confident(0.98), confident(0.981), confident(0.979)], ["confidence"]),
        (confident(0.999), [confident(0.98), confident(0.981), confident(0.979)], ["confidence"]),
        (confident(0.975), [confident(0.98), confident(0.981), confident(0.979)], []),
        (confident(0.9), [confident(0.98), confident(0.981)], []),
        (confident(0.9, 29), [confident(0.98), confident(0.981), confident(0.979)], []),
        # Nights that differ among themselves say nothing about this one.
        (confident(0.9), [confident(0.98), confident(0.85), confident(0.99)], []),
        (night(60, seen={1: 60}), [confident(0.98)] * 3, []),  # output.confidence: false
    ],
)
def test_when_confidence_is_far_from_other_nights(tally, nights, expected):
    """Distance of the distributions, against the distances of those nights among themselves."""
    assert kinds(tally, nights=nights) == expected


def test_nights_of_one_archive_hardly_ever_look_wrong():
    """2,000 nights drawn from one archive whose days differ a little: none is called far (seed 7)."""
    rng = np.random.default_rng(7)

    def drawn() -> Tally:
        doubt = 10 ** rng.normal(-1.7 + rng.normal(0, 0.1), 0.4, 30)
        return night(30, seen={1: 30}, confidences=1 - np.clip(doubt, 0, 0.5))

    nights = [drawn() for _ in range(2007)]
    called = [i for i in range(7, 2007) if "confidence" in kinds(nights[i], nights=nights[i - 7 : i])]
    assert called == []


def test_a_share_above_the_limit_is_refused_and_said():
    """The sentence names the limit and what to do; at the limit it is a warning."""
    tally = night(100, empty=99, seen={1: 1})
    assert [w.kind for w in checked(DAY, tally, NUCLEUS, (), limits=LimitsSpec())] == ["empty"]
    assert [w.share for w in checked(DAY, tally, NUCLEUS, (), limits=LimitsSpec(implausible=0.99))] == [0.99]
    with pytest.raises(NeedsAction, match=r"date=2026-11-21: the mask is empty in 99 of 100 images.*implausible: 1.0"):
        checked(DAY, tally, NUCLEUS, (), limits=LimitsSpec(implausible=0.98))


def test_a_tally_counts_rows_and_survives_its_footer():
    """An empty mask, a full one, two classes in one image, and a rejection."""
    cell = {"area_px": 1, "mean_probability": 0.5, "bbox": [0, 0, 1, 1], "rle": None}
    water, field = ({"id": i, "name": n, **cell} for i, n in ((0, "water"), (1, "field")))
    table = pa.table(
        {
            "status": pa.array(["ok", "ok", "ok", "rejected"]).dictionary_encode(),
            "label": pa.array([None, "water", "field", None]).dictionary_encode(),
            "classes": pa.array(
                [[], [water | {"fraction": 0.995}], [water | {"fraction": 0.1}, field | {"fraction": 0.9}], None],
                pa.list_(CLASS_TYPE),
            ),
            "confidence": pa.array([0.9, 1.0, None, None], pa.float32()),
        }
    )
    tally = Tally()
    tally.add(table)
    tally.add(table.slice(1, 1))
    assert (tally.ok, tally.empty) == (4, 1)
    assert (dict(tally.full), dict(tally.seen)) == ({0: 2}, {0: 3, 1: 1})
    assert tally.confidence.total() == 3
    assert Tally.from_json(tally.to_json()) == tally


def test_distances_are_between_nothing_and_all():
    """Equal sets are 0 apart, sets without a common level 1; the median is that of the level."""
    low, high = Counter(levels_of(np.array([0.5] * 3)).tolist()), Counter(levels_of(np.array([0.999] * 5)).tolist())
    assert (distance(low, low), distance(low, high)) == (0.0, pytest.approx(1))
    assert 0.45 < median_confidence(low) < 0.52
    assert 0.9985 < median_confidence(high) < 0.9992
