"""Ladders: which size pays, where climbing ends, what memory remembers."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.session.ladder import CLEAN_RUNS, Ladder, LadderKey, LadderMemory, Remembered, sizes_up_to

KEY = LadderKey("a" * 64, "Fake 1", "cuda", "fp32", 256, 256)


def climbed(sizes: tuple[int, ...], rate: Callable[[int], float], ladder: Ladder | None = None) -> Ladder:
    """A ladder that ran full batches on a machine of `rate` tiles per second, until it settled."""
    ladder = ladder or Ladder(sizes)
    for _ in range(4 * len(sizes) + 1):
        size = ladder.target()
        ladder.record(size, size / rate(size))
    assert ladder.settled
    return ladder


@pytest.mark.parametrize(
    ("cap", "sizes"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (48, (1, 2, 4, 8, 16, 32, 48)), (3, (1, 2, 3))]
)
def test_sizes_are_powers_of_two_and_the_cap(cap: int, sizes: tuple[int, ...]) -> None:
    """Few sizes, because every shape costs plans and memory."""
    assert sizes_up_to(cap) == sizes


def test_climbing_times_three_runs_of_each_size_after_an_untimed_one() -> None:
    """The first run of a shape is slow and says nothing."""
    ladder = Ladder((1, 2))
    sent = []
    for seconds in (99.0, 1.0, 1.0, 1.0, 99.0, 1.0, 1.0, 1.0):
        sent.append(ladder.target())
        ladder.record(sent[-1], seconds)
    assert sent == [1, 1, 1, 1, 2, 2, 2, 2]
    assert ladder.snapshot().seconds == {1: 1.0, 2: 1.0}


def test_a_flat_curve_settles_on_one() -> None:
    """Where a larger batch gains nothing, the smallest is enough."""
    assert climbed(sizes_up_to(64), lambda size: 30.0).target() == 1


def test_a_flat_curve_is_climbed_three_sizes_far_and_no_further() -> None:
    """One size without gain, and two more."""
    assert set(climbed(sizes_up_to(64), lambda size: 30.0).snapshot().seconds) == {1, 2, 4, 8}


def test_a_proportional_curve_settles_on_the_cap() -> None:
    """Where every doubling doubles, the cap is the answer."""
    assert climbed(sizes_up_to(48), lambda size: 10.0 * size).target() == 48


def test_a_dip_at_2_and_4_does_not_end_the_climb() -> None:
    """NVIDIA's own U-Net is slower at 2 and 4 than at 1, and fastest at 16."""
    rates = {1: 100.0, 2: 80.0, 4: 90.0, 8: 130.0, 16: 180.0, 32: 181.0, 64: 182.0}
    assert climbed(sizes_up_to(64), rates.__getitem__).target() == 16


def test_a_curve_that_falls_again_settles_on_its_top() -> None:
    """The largest size is not always the fastest."""
    rates = {1: 100.0, 2: 180.0, 4: 300.0, 8: 310.0, 16: 200.0, 32: 150.0, 64: 100.0}
    assert climbed(sizes_up_to(64), rates.__getitem__).target() == 8


@given(
    cap=st.integers(1, 128),
    overhead=st.floats(0.0, 200.0),
    dip=st.floats(0.5, 1.0),
)
def test_the_chosen_size_is_within_3_per_cent_of_the_optimum(cap: int, overhead: float, dip: float) -> None:
    """For fixed costs per batch and costs per tile, with a dip at 2 to 4 where the curve would rise."""
    sizes = sizes_up_to(cap)
    rates = {size: size / (overhead + size) * (dip if size in (2, 4) else 1.0) for size in sizes}
    chosen = climbed(sizes, rates.__getitem__).target()
    assert rates[chosen] >= 0.97 * max(rates.values())


@given(cap=st.integers(1, 64), rates=st.lists(st.floats(1.0, 1000.0), min_size=8, max_size=8))
def test_on_any_curve_the_choice_is_the_smallest_near_the_top_of_what_was_measured(
    cap: int, rates: list[float]
) -> None:
    """For any curve, no measured size is more than 2 % faster, and no smaller one is as good."""
    sizes = sizes_up_to(cap)
    curve = dict(zip(sizes, rates, strict=False))
    ladder = climbed(sizes, curve.__getitem__)
    measured = set(ladder.snapshot().seconds) or {sizes[0]}
    near_top = [size for size in sizes if size in measured and curve[size] >= 0.98 * max(curve[s] for s in measured)]
    assert curve[ladder.target()] == pytest.approx(curve[near_top[0]], rel=1e-9)


@given(cap=st.integers(1, 64), tiles=st.integers(1, 200))
def test_a_tail_is_cut_into_allowed_sizes_that_fit(cap: int, tiles: int) -> None:
    """Never an arbitrary number, never more than waits."""
    ladder = climbed(sizes_up_to(cap), lambda size: 10.0 * size)
    size = ladder.fit(tiles)
    assert size in sizes_up_to(cap)
    assert size <= tiles


def test_a_tail_of_17_is_16_and_1() -> None:
    """Greedy: padding to 32 costs half of the speed."""
    ladder = climbed(sizes_up_to(32), lambda size: 10.0 * size)
    assert (ladder.fit(17), ladder.fit(1)) == (16, 1)


def test_a_tail_during_the_climb_uses_the_best_size_known() -> None:
    """Units that never fill the size being measured still run in the one that pays."""
    ladder = Ladder(sizes_up_to(32))
    rates = {1: 10.0, 2: 20.0, 4: 40.0, 8: 42.5, 16: 40.0, 32: 0.0}
    while ladder.target() < 32:
        ladder.record(ladder.target(), ladder.target() / rates[ladder.target()])
    assert ladder.fit(31) == 8
    assert ladder.fit(7) == 4


def test_a_fixed_batch_axis_has_one_size_and_no_climb() -> None:
    """A tail is then larger than what waits, and is padded."""
    ladder = Ladder((4,))
    assert (ladder.target(), ladder.fit(1), ladder.settled) == (4, 4, True)


def test_out_of_memory_halves_the_limit_for_good() -> None:
    """A size that did not fit is never sent again, however fast it might be."""
    ladder = Ladder(sizes_up_to(64))
    assert ladder.out_of_memory(32)
    assert climbed(sizes_up_to(64), lambda size: 10.0 * size, ladder).target() == 16


def test_a_size_that_worked_and_now_fails_is_dropped_too() -> None:
    """Memory can shrink: having worked is no right."""
    ladder = climbed(sizes_up_to(8), lambda size: 10.0 * size)
    ladder.out_of_memory(8)
    assert ladder.target() == 4
    assert set(ladder.snapshot().seconds) == {1, 2, 4}


def test_a_late_failure_of_a_larger_size_does_not_raise_the_limit() -> None:
    """Another thread's batch may still be on its way when the limit falls."""
    ladder = Ladder(sizes_up_to(64))
    ladder.out_of_memory(8)
    ladder.out_of_memory(64)
    assert ladder.allowed == (1, 2, 4)


def test_below_one_there_is_nothing_smaller() -> None:
    """The caller then gives up the tile, and the ladder keeps its smallest size."""
    ladder = Ladder((1, 2))
    assert ladder.out_of_memory(2)
    assert not ladder.out_of_memory(1)
    assert ladder.allowed == (1,)


def test_a_disturbed_probe_is_outlived() -> None:
    """A size whose first probes were slow is judged by its fastest run since."""
    ladder = climbed((1, 2), lambda size: {1: 100.0, 2: 50.0}[size])
    assert ladder.target() == 1
    for _ in range(9):
        ladder.record(2, 2 / 200.0)
    assert ladder.target() == 2


def test_two_slow_probes_of_three_do_not_hide_a_fast_size() -> None:
    """A neighbour on the machine can only slow a run down, so the fastest probe tells the truth."""
    ladder = Ladder((1, 2))
    for size, seconds in ((1, (0.010, 0.010, 0.010, 0.010)), (2, (0.013, 0.039, 0.041, 0.013))):
        for measured in seconds:
            ladder.record(size, measured)
    assert ladder.target() == 2


def test_a_remembered_ladder_does_not_climb() -> None:
    """What an earlier run measured is used from the first batch on."""
    known = climbed(sizes_up_to(64), lambda size: size / (4 + size)).snapshot()
    again = Ladder(sizes_up_to(64), known)
    assert again.settled
    assert again.target() == climbed(sizes_up_to(64), lambda size: size / (4 + size)).target()


def test_a_remembered_ladder_climbs_on_below_a_larger_cap() -> None:
    """A job that allows more than the remembered one measures only what is new."""
    known = climbed(sizes_up_to(8), lambda size: 10.0 * size).snapshot()
    assert Ladder(sizes_up_to(32), known).target() == 16


def test_out_of_memory_makes_a_remembered_ladder_measure_again() -> None:
    """A machine that changed is not believed any longer."""
    known = climbed(sizes_up_to(16), lambda size: 10.0 * size).snapshot()
    ladder = Ladder(sizes_up_to(16), known)
    ladder.out_of_memory(16)
    assert (ladder.target(), ladder.allowed) == (1, (1, 2, 4, 8))


def test_a_remembered_limit_is_tried_again_once_after_many_clean_batches() -> None:
    """Another process may have held the memory that night; a limit of this process stays."""
    known = Remembered(dict.fromkeys((1, 2, 4), 1.0), limit=4)
    ladder = Ladder(sizes_up_to(16), known)
    for _ in range(CLEAN_RUNS):
        ladder.record(4, 1.0)
    assert ladder.target() == 8
    ladder.out_of_memory(8)
    for _ in range(CLEAN_RUNS):
        ladder.record(4, 1.0)
    assert ladder.target() == 4


def test_what_was_kept_is_recalled(tmp_path: Path) -> None:
    """Seconds and limit, for the very key."""
    learned = Remembered({1: 0.5, 2: 0.75}, limit=2)
    LadderMemory("fp32", folder=tmp_path).keep(KEY, learned)
    assert LadderMemory("fp32", folder=tmp_path).recall(KEY) == learned


@pytest.mark.parametrize(
    "other",
    [
        LadderKey("b" * 64, "Fake 1", "cuda", "fp32", 256, 256),
        LadderKey("a" * 64, "Fake 2", "cuda", "fp32", 256, 256),
        LadderKey("a" * 64, "Fake 1", "cpu", "fp32", 256, 256),
        LadderKey("a" * 64, "Fake 1", "cuda", "tf32", 256, 256),
        LadderKey("a" * 64, "Fake 1", "cuda", "fp32", 256, 512),
        LadderKey("a" * 64, "Fake 1", "cuda", "fp32", 256, 256, dtype="uint8"),
        LadderKey("a" * 64, "Fake 1", "cuda", "fp32", 256, 256, threads=16),
    ],
)
def test_nothing_is_recalled_for_another_key(tmp_path: Path, other: LadderKey) -> None:
    """Model, device, provider, precision, shape, type of tiles and threads all count."""
    memory = LadderMemory("fp32", folder=tmp_path)
    memory.keep(KEY, Remembered({1: 1.0}))
    assert memory.recall(other) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        "\x00\xff",
        '{"key": {}, "limit": null, "seconds": {}}',
        '{"key": KEY, "limit": 0, "seconds": {}}',
        '{"key": KEY, "limit": true, "seconds": {}}',
        '{"key": KEY, "limit": "2", "seconds": {}}',
        '{"key": KEY, "limit": null, "seconds": {"1": NaN}}',
        '{"key": KEY, "limit": null, "seconds": {"1": -1.0}}',
        '{"key": KEY, "limit": null, "seconds": {"one": 1.0}}',
    ],
)
def test_a_corrupt_file_is_ignored_with_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """A cache never stops a run, and is replaced by the next keep."""
    memory = LadderMemory("fp32", folder=tmp_path)
    memory.keep(KEY, Remembered({1: 1.0}))
    (file,) = tmp_path.iterdir()
    key = json.dumps(json.loads(file.read_text())["key"])
    file.write_text(text.replace("KEY", key))
    with caplog.at_level(logging.WARNING):
        assert memory.recall(KEY) is None
    assert "measured again" in caplog.text
    memory.keep(KEY, Remembered({1: 2.0}))
    assert memory.recall(KEY) == Remembered({1: 2.0})


def test_an_unwritable_folder_costs_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A read-only home is no reason to fail."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    LadderMemory("fp32", folder=blocked).keep(KEY, Remembered({1: 1.0}))
    assert "cannot be written" in caplog.text


def test_keeping_leaves_no_scratch_files(tmp_path: Path) -> None:
    """One file per key, replaced whole."""
    memory = LadderMemory("fp32", folder=tmp_path)
    memory.keep(KEY, Remembered({1: 1.0}))
    memory.keep(KEY, Remembered({1: 2.0}))
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_the_folder_follows_xdg_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches lie where the machine's owner wants them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    LadderMemory("fp32").keep(KEY, Remembered({1: 1.0}))
    assert len(list((tmp_path / "unet-batch" / "ladders").glob("*.json"))) == 1
