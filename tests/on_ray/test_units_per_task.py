"""How many units one task of an actor scores: tasks are what Ray Data's driver pays for."""

from dataclasses import replace

import pytest

from unet_batch.on_ray.executor import TASKS, TASKS_PER_ACTOR, units_per_task
from unet_batch.planning.plan import Placement
from unet_batch.records import Source, Unit


def units(count: int) -> list[Unit]:
    source = Source("/archive/0.png", "1")
    return [Unit(str(n), "all", "files", (source,)) for n in range(count)]


def cores(actors: int, loaders: int = 0) -> Placement:
    return Placement(loaders, 1.0, actors, 1.0, 0.0, 1, 2)


@pytest.mark.parametrize(
    ("count", "actors", "expected"),
    [(1, 2, 1), (63, 2, 1), (64, 2, 2), (1_000, 2, 8), (1_000, 16, 3), (10_000, 16, 8), (100_000, 16, 25)],
)
def test_long_passes_have_larger_tasks_and_short_ones_do_not(count, actors, expected):
    """Each actor gets sixteen tasks or more, and a pass has few thousands of them."""
    per_task = units_per_task(units(count), cores(actors))
    assert per_task == expected
    assert per_task == 1 or TASKS_PER_ACTOR * actors <= count // per_task <= TASKS


def test_pixels_that_cross_the_object_store_cross_unit_by_unit():
    """Else the pixels of eight units would be one block."""
    assert units_per_task(units(10_000), cores(2, loaders=4)) == 1


def test_units_that_run_again_in_isolation_have_a_task_each():
    """A process that dies then costs one unit."""
    again = [*units(1_000)[:-1], replace(units(1)[0], isolate=True)]
    assert units_per_task(again, cores(2)) == 1
