"""What a person sees while a run goes on."""

from __future__ import annotations

import logging

import pytest

from unet_batch.job.progress import ProgressDisplay


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_eta_does_not_count_the_start_of_the_actors(clock, caplog):
    """Sessions open for 90 s, then a unit of 10 images takes 2 s: 990 images are 198 s away, not 10,000."""
    caplog.set_level(logging.INFO)
    progress = ProgressDisplay(1000, clock=clock)
    assert progress.eta_s is None
    clock.now_s += 92
    progress.advance(10, 1, 0, unit_s=2.0)
    assert progress.eta_s == pytest.approx(198)
    assert caplog.messages == ["10 of 1000 images, 5.0 images/s, 1 rejected, ETA 4 min"]


def test_the_first_units_of_several_workers_say_no_more_than_one(clock):
    """Two units of 2 s that end together are 10 images a second, not thousands."""
    progress = ProgressDisplay(1000, clock=clock, quiet=True)
    clock.now_s += 30
    progress.advance(10, 0, 0, unit_s=2.0)
    clock.now_s += 0.001
    progress.advance(10, 0, 0, unit_s=2.0)
    assert progress.eta_s == pytest.approx(98, rel=0.01)


def test_pages_that_are_found_on_the_way_count_on_both_sides(clock):
    """A file of three pages is three images."""
    progress = ProgressDisplay(10, clock=clock, quiet=True)
    clock.now_s += 1
    progress.advance(1, 0, 2, unit_s=1.0)
    assert progress.eta_s == pytest.approx(9 / 3)
