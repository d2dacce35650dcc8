"""The simulation of large archives: its arithmetic exactly, its tables, and its constants against the real planning."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from models import threshold_model

PARTS = Path(__file__).resolve().parents[2] / "scripts" / "bench_parts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PARTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load("simulate")


@pytest.fixture(scope="module")
def constants() -> Iterator[ModuleType]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("there is no /proc here")
    sys.path.insert(0, str(PARTS))
    try:
        yield load("constants")
    finally:
        sys.path.remove(str(PARTS))


@pytest.fixture
def made_up(bench: ModuleType):
    """Round constants: seconds per key 1, 2, 4; per unit 64 and 128; per row 8; bytes per key 1000, 100, 10."""
    return bench.Constants(
        list_s=1.0,
        plan_s=2.0,
        pack_s=4.0,
        unit_s=64.0,
        receipt_s=128.0,
        publish_s=8.0,
        work_bytes=1000.0,
        held_bytes=100.0,
        packed_bytes=10.0,
        publish_bytes=500.0,
        row_bytes=2000.0,
    )


def grouped(bench: ModuleType, *, publishers: int):
    return bench.Design("now", 6400, lambda place: 12_800, lambda *_: publishers)


def test_one_driver_does_everything_in_turn(bench, made_up):
    """64,000 keys in 10 days on 100 actors: 1,000 units; the last day is published when the last actor has ended."""
    place = bench.Place(days=10, image_s=10.0, page_s=0.0)
    found = bench.forecast(made_up, place, bench.before(), 64_000, 100)
    assert (found.list_s, found.plan_s, found.publish_s) == (64_000, 128_000, 512_000)
    assert found.score_s == 6400 + bench.GROUP_START_S
    assert found.driver_s == 1000 * (64 + 128) + 512_000
    assert found.total_s == 64_000 + 128_000 + found.driver_s + 6400 * 8
    assert found.memory_bytes == 64_000 * 1000 + 6400 * 500
    assert found.object_bytes == 6400 * 2000
    assert found.task_s == 64 * 10  # 1,000 units are too few for tasks of several on 100 actors


def test_groups_packed_keys_and_processes_beside_the_driver(bench, made_up):
    """The same with 6,400 keys held, groups of two days, and four processes that publish."""
    place = bench.Place(days=10, image_s=10.0, page_s=0.0)
    found = bench.forecast(made_up, place, grouped(bench, publishers=4), 64_000, 100)
    assert found.plan_s == 128_000 + 57_600 * 4
    assert found.score_s == 6400 + 5 * bench.GROUP_START_S
    assert (found.driver_s, found.publish_s) == (192_000, 128_000)
    assert found.total_s == 64_000 + found.plan_s + 192_000 + 6400 * 8
    working = 12_800 * 900 + 4 * 6400 * 500 + 12_800 * 100
    assert found.memory_bytes == 6400 * 100 + 57_600 * 10 + working


def test_a_slow_store_lists_as_fast_as_it_answers(bench, made_up):
    """64 pages of a second, sixteen days at a time, take longer than the driver needs for them."""
    quick = replace(made_up, list_s=1e-9)
    assert bench.forecast(quick, bench.Place(days=16, page_s=1.0), bench.before(), 64_000, 1).list_s == 4
    assert bench.forecast(quick, bench.Place(days=1, page_s=1.0), bench.before(), 64_000, 1).list_s == 64


def test_a_long_pass_has_long_tasks_and_a_group_bounds_them(bench, made_up):
    """At most 4,000 tasks: with 10⁹ keys on 16 actors one task has a quarter of a million images."""
    place = bench.Place(image_s=0.07)
    long = bench.forecast(made_up, place, bench.before(), 10**9, 16)
    short = bench.forecast(made_up, place, grouped(bench, publishers=1), 10**9, 16)
    assert long.task_s == pytest.approx(10**9 / 4000 * 0.07)
    assert short.task_s == pytest.approx(2_500_000 / 4000 * 0.07)  # a day is larger than a group here
    assert "task" in dict(long.breaks)


@pytest.mark.parametrize("wall", ["memory", "list", "plan", "driver", "publish", "object", "put", "task"])
def test_a_wall_stands_where_its_limit_is_met(bench, made_up, wall):
    """One per cent fewer keys meet it not, and at the number itself they do."""
    place, design = bench.Place(memory_bytes=10**10), bench.before()
    first = bench.first_keys(made_up, place, design, 16, wall)
    assert wall in dict(bench.forecast(made_up, place, design, first, 16).breaks)
    assert wall not in dict(bench.forecast(made_up, place, design, int(first / 1.02), 16).breaks)


def test_the_exact_place_of_a_wall_follows_from_its_constant(bench, made_up):
    """A night of 28,800 s is full of listing at as many keys of one second."""
    assert bench.first_keys(made_up, bench.Place(), bench.before(), 16, "list") == pytest.approx(28_800, rel=0.02)


def test_the_tables_fit_a_terminal(bench, made_up):
    """Eighty columns, with constants as they are on a slow machine."""
    rates = {"list_s": 5e-5, "plan_s": 5e-5, "pack_s": 1e-5, "unit_s": 1e-2, "receipt_s": 1e-3, "publish_s": 4e-4}
    made_up = replace(made_up, **rates)
    place, designs = bench.Place(), (bench.before(), bench.now())
    runs = [
        bench.forecast(made_up, place, design, keys, actors)
        for keys in bench.KEYS
        for actors in bench.ACTORS
        for design in designs
    ]
    lines = [*bench.table(runs), *bench.walls(made_up, place, designs, 1000)]
    assert max(map(len, lines)) <= 80
    assert len(lines) == 1 + len(runs) + 1 + len(bench.WALLS)


@pytest.mark.parametrize(
    ("seconds", "text"), [(12, "12 s"), (59.6, "60 s"), (270, "4.5 m"), (3600, "1.0 h"), (90_000, "1.0 d")]
)
def test_durations_are_short(bench, seconds, text):
    assert bench.duration(seconds) == text


@pytest.mark.parametrize(("keys", "text"), [(10**7, "10⁷"), (2.4e8, "2.4·10⁸"), (99_900_000, "10⁸")])
def test_numbers_of_keys_are_powers(bench, keys, text):
    assert bench.power(keys) == text


def test_the_copied_constants_are_those_of_the_package(bench):
    from unet_batch.on_ray import executor
    from unet_batch.planning import plan
    from unet_batch.table import publish

    assert (executor.TASKS, executor.UNITS_PER_TASK) == (bench.TASKS, bench.UNITS_PER_TASK)
    assert plan.UNIT_IMAGES == bench.UNIT_IMAGES
    assert bench.Place().object_bytes == publish.MAX_OBJECT_BYTES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = threshold_model("nchw", 1, 2, size=32)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(made.data)
    path.with_suffix(".yaml").write_text(made.contract_yaml)
    return path


@pytest.mark.slow
def test_the_model_says_what_planning_really_takes(bench, constants, made_up, model, tmp_path):
    """From 2,000 and 10,000 keys to 10⁵, in processor seconds and in memory, within a factor of two."""
    slopes = constants.slopes("plan", tmp_path, model, (2_000, 10_000))
    real = constants.child("plan", tmp_path, model, 100_000)
    measured = replace(made_up, plan_s=slopes["cpu_s"], work_bytes=slopes["bytes"], publish_bytes=0.0)
    found = bench.forecast(measured, bench.Place(days=1), bench.before(), 100_000, 16)
    assert found.plan_s / 2 < real["cpu_s"] < found.plan_s * 2
    assert found.memory_bytes / 2 < real["bytes"] < found.memory_bytes * 2


@pytest.mark.slow
def test_the_model_says_what_publication_really_takes(bench, constants, made_up, model, tmp_path):
    """From 500 and 2,000 staged rows to 4,000: processor seconds and the bytes of the object."""
    for size in (500, 2000, 4000):
        constants.child("stage", tmp_path, model, size)
    slopes = constants.slopes("publish", tmp_path, model, (500, 2000))
    real = constants.child("publish", tmp_path, model, 4000)
    measured = replace(made_up, publish_s=slopes["cpu_s"], row_bytes=slopes["row_bytes"])
    found = bench.forecast(measured, bench.Place(days=1), bench.before(), 4000, 16)
    assert found.publish_s / 3 < real["cpu_s"] < found.publish_s * 3
    assert found.object_bytes == pytest.approx(real["row_bytes"], rel=0.1)


def test_a_profile_is_shared_out_by_place():
    """The innermost place that is named counts; what is in none is elsewhere."""
    driver = load("driver")
    stacks = "main;step (_scheduling_loop_step);update_usages (x.py) 30\nmain;_scheduling_loop_step 50\nmain;other 20\n"
    assert driver.shares_of(stacks) == {
        "the rest of the scheduling loop": 0.5,
        "resource manager": 0.3,
        "elsewhere": 0.2,
    }
