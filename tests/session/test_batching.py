"""Batches: every tile comes back once, in allowed sizes, also when memory runs out."""

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts.session_suite import THRESHOLD, FakeClock, FakeSession
from hypothesis import given
from hypothesis import strategies as st
from models import threshold_model

from unet_batch.contract import Contract, ModelInput
from unet_batch.errors import OutOfMemory, SessionBroken
from unet_batch.model.contract import resolve
from unet_batch.session.batching import GPU_BATCHES, Batcher, BatchStats, Tile
from unet_batch.session.ladder import LadderMemory, sizes_up_to
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, in_model_layout
from unet_batch.spec import SessionSpec, TilingSpec

BOX = None  # a batch never looks at a tile's place


def tiles(count: int, shape: tuple[int, int] = (2, 2), start: int = 0) -> Iterator[Tile]:
    """Tiles whose every pixel holds the tile's number, modulo 251, over 251."""
    for image in range(start, start + count):
        yield Tile(image, BOX, np.full((*shape, 3), image % 251 / 251, np.float32))


def batcher(session: FakeSession, batch_max: int = 64, memory: LadderMemory | None = None) -> Batcher:
    return Batcher(session, batch_max=batch_max, memory=memory, clock=session.clock)


def images(results: list[tuple[Tile, np.ndarray | OutOfMemory]]) -> list[int]:
    return sorted(tile.image for tile, _ in results)


def test_each_tile_gets_its_own_logits() -> None:
    """Logits are (K, h, w), and belong to the tile beside them."""
    results = list(batcher(FakeSession()).run(tiles(100)))
    assert images(results) == list(range(100))
    margins = [float(logits[1, 0, 0]) for _, logits in results]
    expected = [tile.image / 251 - 0.5 for tile, _ in results]
    np.testing.assert_allclose(margins, expected, atol=1e-6)
    assert results[0][1].shape == (2, 2, 2)


@given(
    counts=st.lists(st.tuples(st.sampled_from([(2, 2), (2, 4), (4, 2)]), st.integers(0, 70)), max_size=4),
    batch_max=st.integers(1, 48),
    fits=st.integers(0, 60),
)
def test_every_tile_comes_back_once_in_allowed_sizes(
    counts: list[tuple[tuple[int, int], int]], batch_max: int, fits: int
) -> None:
    """For any shapes, memory and cap; a tile is given up only if it does not fit alone."""
    session = FakeSession(memory_tiles=fits)
    queue = [t for start, (shape, count) in enumerate(counts) for t in tiles(count, shape, start=1000 * start)]
    results = list(batcher(session, batch_max).run(iter(queue)))
    assert images(results) == sorted(t.image for t in queue)
    assert set(session.sizes) <= set(sizes_up_to(batch_max))
    assert all(isinstance(logits, OutOfMemory) == (fits == 0) for _, logits in results)


def test_nothing_runs_twice_without_out_of_memory() -> None:
    """The climb is made of real work: no tile is spent on measuring."""
    session = FakeSession(seconds=lambda size: 4.0 + size)
    list(batcher(session).run(tiles(700)))
    assert sum(session.sizes) == 700


def test_a_batch_of_none_is_never_sent() -> None:
    """A unit whose images were all rejected has no tiles."""
    session = FakeSession()
    assert list(batcher(session).run([])) == []
    assert session.sizes == []


def test_the_fastest_size_is_found_while_working() -> None:
    """With a fixed cost of 4 s per batch and 1 s per tile, the cap pays; the tail of 23 is 16 + 4 + 2 + 1."""
    session = FakeSession(seconds=lambda size: 4.0 + size)
    work = batcher(session, batch_max=32)
    list(work.run(tiles(4 * 63 + 32 + 23)))
    assert session.sizes[-5:] == [32, 16, 4, 2, 1]


def test_tiles_are_pulled_only_as_far_as_the_next_batch_needs() -> None:
    """Memory holds the tiles of one batch per shape, however long the iterator is."""
    session = FakeSession(seconds=lambda size: 4.0 + size)
    pulled: list[int] = []

    def endless() -> Iterator[Tile]:
        for tile in tiles(10**9):
            pulled.append(tile.image)
            yield tile

    stream = itertools.islice(batcher(session, batch_max=16).run(endless()), 500)
    ahead = [len(pulled) - returned for returned, _ in enumerate(stream, start=1)]
    assert max(ahead) == 15


def test_shapes_never_share_a_batch() -> None:
    """Tiles of two sizes, mixed in one stream, are grouped."""
    mixed = [t for pair in zip(tiles(9, (2, 2)), tiles(9, (4, 4), start=100), strict=True) for t in pair]
    results = list(batcher(FakeSession()).run(mixed))
    assert images(results) == [*range(9), *range(100, 109)]
    assert all(logits.shape[1:] == tile.pixels_hwc.shape[:2] for tile, logits in results)


def test_types_never_share_a_batch() -> None:
    """Source pixels and normalised ones of one size reach the sessions that take them, whole."""
    sent: list[str] = []

    class Watched(FakeSession):
        def run(self, tiles: np.ndarray) -> np.ndarray:
            sent.append(tiles.dtype.name)
            return super().run(tiles.astype(np.float32) / (255 if tiles.dtype == np.uint8 else 1))

    bright = [Tile(100 + n, BOX, np.full((2, 2, 3), 255, np.uint8)) for n in range(9)]
    mixed = [tile for pair in zip(tiles(9), bright, strict=True) for tile in pair]
    results = list(batcher(Watched()).run(mixed))
    assert images(results) == [*range(9), *range(100, 109)]
    assert {*sent} == {"float32", "uint8"}
    assert all(logits[1, 0, 0] == 0.5 for tile, logits in results if tile.image >= 100)


@pytest.mark.parametrize(("provider", "sizes"), [("cpu", [1]), ("cuda", [8])])
def test_a_ladder_of_one_thread_is_not_one_of_sixteen(tmp_path: Path, provider: str, sizes: list[int]) -> None:
    """But on a GPU, where a session's threads change nothing."""
    one = LadderMemory("fp32", threads=1, folder=tmp_path)
    list(batcher(FakeSession(provider=provider, seconds=lambda size: 4.0 + size), 8, one).run(tiles(300)))
    other = FakeSession(provider=provider, seconds=lambda size: 4.0 + size)
    list(batcher(other, 8, LadderMemory("fp32", threads=16, folder=tmp_path)).run(tiles(16)))
    assert other.sizes[:1] == sizes


def test_more_than_four_shapes_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Every shape costs plans and memory; the line says what to do."""
    many = [t for side in range(1, 8) for t in tiles(1, (side, side))]
    list(batcher(FakeSession()).run(many))
    assert caplog.text.count("more than 4 tile shapes") == 1


def test_the_same_tiles_run_again_in_smaller_batches_after_out_of_memory() -> None:
    """At most 10 fit: 16 fails once, its tiles follow in eights, and 16 is never sent again."""
    session = FakeSession(memory_tiles=10, seconds=lambda size: 4.0 + size)
    work = batcher(session)
    results = list(work.run(tiles(300)))
    assert images(results) == list(range(300))
    assert session.sizes.count(16) == 1
    assert session.sizes[session.sizes.index(16) + 1 :][:2] == [8, 8]
    assert max(session.sizes) == 16
    assert work.stats.out_of_memory == 1


def test_out_of_memory_at_one_size_only_still_counts_as_a_limit() -> None:
    """A size above one that failed is not tried, though it might fit."""
    session = FakeSession(refused=(8,), seconds=lambda size: 4.0 + size)
    list(batcher(session).run(tiles(300)))
    assert Counter(session.sizes)[8] == 1
    assert max(session.sizes) == 8


def test_a_size_that_worked_before_and_now_fails_is_dropped() -> None:
    """Another process took the memory: the work goes on in smaller batches."""
    session = FakeSession(seconds=lambda size: 4.0 + size)
    work = batcher(session, batch_max=8)
    list(work.run(tiles(100)))
    session.memory_tiles, session.sizes = 4, []
    results = list(work.run(tiles(32)))
    assert images(results) == list(range(32))
    assert session.sizes == [8] + [4] * 8


def test_a_tile_that_does_not_fit_alone_comes_back_with_the_error(caplog: pytest.LogCaptureFixture) -> None:
    """The caller makes a rejection of it; the others are tried all the same."""
    results = list(batcher(FakeSession(memory_tiles=0)).run(tiles(3)))
    assert images(results) == [0, 1, 2]
    assert [type(logits) for _, logits in results] == [OutOfMemory] * 3


def test_nan_logits_pass_through() -> None:
    """What they mean is decided behind the batch."""
    results = list(batcher(FakeSession(nan=True)).run(tiles(3)))
    assert all(np.isnan(logits).all() for _, logits in results)


def test_a_broken_session_ends_the_run() -> None:
    """Tiles that were scored before are not lost, and no further batch is sent."""
    session = FakeSession(broken_after=2)
    stream = batcher(session).run(tiles(9))
    assert [next(stream)[0].image, next(stream)[0].image] == [0, 1]
    with pytest.raises(SessionBroken):
        next(stream)
    assert session.sizes == [1, 1, 1]


def test_a_fixed_batch_axis_is_filled_up_and_the_filling_cut_off() -> None:
    """Nine tiles in fours: the last batch holds one tile and three unused rows."""
    session = FakeSession(model=replace(THRESHOLD, batch=4))
    work = batcher(session)
    results = list(work.run(tiles(9)))
    assert images(results) == list(range(9))
    assert session.sizes == [4, 4, 4]
    assert work.stats.padded == 3


def test_a_fixed_batch_that_does_not_fit_gives_up_its_tiles() -> None:
    """There is no smaller one."""
    session = FakeSession(model=replace(THRESHOLD, batch=4), memory_tiles=3)
    results = list(batcher(session).run(tiles(5)))
    assert images(results) == list(range(5))
    assert all(isinstance(logits, OutOfMemory) for _, logits in results)


def test_a_batch_axis_of_one_sends_ones() -> None:
    """Published models have it; the ladder is {1}."""
    session = FakeSession(model=replace(THRESHOLD, batch=1))
    list(batcher(session).run(tiles(5)))
    assert session.sizes == [1] * 5


def test_a_cpu_never_gets_more_than_eight() -> None:
    """There a batch buys nothing but memory, even where a clock says otherwise."""
    session = FakeSession(provider="cpu", seconds=lambda size: 4.0 + size)
    list(batcher(session).run(tiles(200)))
    assert max(session.sizes) == 8


def test_the_cap_of_the_job_holds_on_a_cpu_too() -> None:
    """`batch_max` is an upper bound everywhere."""
    session = FakeSession(provider="cpu", seconds=lambda size: 4.0 + size)
    list(batcher(session, batch_max=2).run(tiles(50)))
    assert max(session.sizes) == 2


def test_figures_add_up() -> None:
    """A call's own figures, and the sums over all calls."""
    session = FakeSession(seconds=lambda size: 2.0, memory_tiles=1)
    work = batcher(session, batch_max=2)
    first, second = BatchStats(), BatchStats()
    list(work.run(tiles(5), stats=first))
    list(work.run(tiles(3), stats=second))
    assert (first.batches, first.out_of_memory, first.session_s) == (Counter({1: 5}), 0, 10.0)
    assert (second.batches, second.out_of_memory, second.session_s) == (Counter({1: 3}), 1, 8.0)
    assert (work.stats.batches, work.stats.out_of_memory, work.stats.session_s) == (Counter({1: 8}), 1, 18.0)


@pytest.mark.parametrize(("provider", "at_once"), [("cpu", 1), ("cuda", GPU_BATCHES)])
def test_threads_share_a_batcher(provider: str, at_once: int) -> None:
    """Every tile comes back to the thread that sent it. A CPU session sees one batch at a time, a GPU's sees two."""

    def dawdle(size: int) -> float:
        time.sleep(0.0005)  # long enough for another thread to come in, if nothing kept it out
        return 4.0 + size

    session = FakeSession(provider=provider, memory_tiles=6, seconds=dawdle)
    work = batcher(session)
    with ThreadPoolExecutor(3) as pool:
        thirds = list(pool.map(lambda start: list(work.run(tiles(300, start=start))), (0, 1000, 2000)))
    assert [images(third) for third in thirds] == [[*range(n, n + 300)] for n in (0, 1000, 2000)]
    assert session.most_at_once == at_once


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_batch_that_a_session_gets_is_laid_out_as_its_model_wants_it(layout: str) -> None:
    """Otherwise it would be copied once more, while other threads wait for the session."""
    model = replace(THRESHOLD, contract=Contract(input=ModelInput(layout=layout)))
    copied: list[bool] = []

    class Watched(FakeSession):
        def run(self, tiles: np.ndarray) -> np.ndarray:
            copied.append(not np.shares_memory(in_model_layout(model, tiles), tiles))
            return super().run(tiles)

    results = list(batcher(Watched(model=model), 8).run(tiles(60, (4, 6))))
    assert images(results) == list(range(60))
    assert not any(copied)


class Pipeline:
    """A session on a GPU: copies on the host, the engine, copies on the host; no phase ends before the other thread's
    batch has reached the phase that may run beside it. The engine runs one batch at a time, as a GPU's session does."""

    model, provider, device_name = THRESHOLD, "cuda", "Fake 1"

    def __init__(self) -> None:
        self._turn, self._count = threading.Lock(), itertools.count()
        self._copied_in, self._computing = threading.Event(), threading.Event()

    def run(self, tiles: np.ndarray) -> np.ndarray:
        number = next(self._count)
        if number == 1:
            self._copied_in.set()
        with self._turn:
            if number == 0:
                assert self._copied_in.wait(5), "the second batch was not copied in while the first one computed"
            else:
                self._computing.set()
        if number == 0:
            assert self._computing.wait(5), "the second batch did not compute while the first one was copied out"
        return np.zeros((len(tiles), 2, *tiles.shape[1:3]), np.float32)


def test_the_engine_of_a_gpu_computes_while_other_batches_are_copied_in_and_out() -> None:
    """Else it would be idle for as long as the copies take. Seconds in the session are not counted twice."""
    work = Batcher(Pipeline(), batch_max=1)
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda start: list(work.run(tiles(1, start=start))), (0, 1000)))
    assert [images(half) for half in halves] == [[0], [1000]]
    assert work.stats.session_s <= time.perf_counter() - start
    assert work.stats.waited_s > 0


def test_an_error_of_memory_or_device_is_taken_for_memory_if_a_smaller_batch_runs() -> None:
    """cuDNN says EXECUTION_FAILED for both: the same tiles run again in smaller batches, and nothing is lost."""
    session = FakeSession(doubtful=(16,), seconds=lambda size: 4.0 + size)
    work = batcher(session)
    assert images(list(work.run(tiles(300)))) == list(range(300))
    assert session.sizes[session.sizes.index(16) + 1 :][:2] == [8, 8]
    assert (session.sizes.count(16), work.stats.out_of_memory) == (1, 1)


def test_the_session_is_broken_if_a_smaller_batch_fails_alike(tmp_path: Path) -> None:
    """A lost device fails at every size. Only one smaller batch is tried: its tiles wait for the next process."""
    memory = LadderMemory("fp32", folder=tmp_path)
    list(batcher(FakeSession(seconds=lambda size: 4.0 + size), 16, memory).run(tiles(300)))
    lost = FakeSession(doubtful=range(1, 17))
    with pytest.raises(SessionBroken, match="smaller batches fail too"):
        list(batcher(lost, 16, memory).run(tiles(64)))
    assert lost.sizes == [16, 1]


def test_a_single_tile_that_fails_so_breaks_the_session() -> None:
    """Nothing smaller can tell lack of memory from a lost device."""
    session = FakeSession(doubtful=(1,))
    with pytest.raises(SessionBroken):
        list(batcher(session).run(tiles(3)))
    assert session.sizes == [1]


def test_two_threads_whose_batches_fail_at_once_still_get_a_smaller_one() -> None:
    """Both were sent before either failed: two failures of one size are one doubt."""
    both = threading.Barrier(2, timeout=5)

    def together(size: int) -> float:
        if size == 4:
            both.wait()
        return 4.0 + size

    session = FakeSession(doubtful=(4,), seconds=together)
    work = batcher(session, 4)
    list(work.run(tiles(4 + 8)))  # ones and twos are measured
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda start: list(work.run(tiles(4, start=start))), (0, 1000)))
    assert [images(half) for half in halves] == [[0, 1, 2, 3], [1000, 1001, 1002, 1003]]
    assert session.sizes.count(4) == 2


def test_a_thread_prepares_its_tiles_while_another_ones_batch_runs() -> None:
    """Pulling tiles does not wait for the session."""
    in_session, pulled = threading.Event(), threading.Event()

    def slow(size: int) -> float:
        in_session.set()
        assert pulled.wait(5), "the other thread could not pull its tile while this batch ran"
        return float(size)

    def second() -> Iterator[Tile]:
        assert in_session.wait(5)
        pulled.set()
        yield from tiles(1)

    work = batcher(FakeSession(seconds=slow))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: list(work.run(tiles(1, start=5))))
        other = pool.submit(lambda: list(work.run(second())))
    assert images(first.result()) == [5]
    assert images(other.result()) == [0]


def test_a_second_run_on_the_same_machine_starts_at_the_size_that_pays(tmp_path: Path) -> None:
    """Nightly jobs measure once."""
    memory = LadderMemory("fp32", folder=tmp_path)
    first = FakeSession(seconds=lambda size: 4.0 + size)
    list(batcher(first, 16, memory).run(tiles(300)))
    second = FakeSession(seconds=lambda size: 4.0 + size)
    list(batcher(second, 16, memory).run(tiles(48)))
    assert second.sizes == [16, 16, 16]


def test_another_machine_measures_for_itself(tmp_path: Path) -> None:
    """A remembered ladder belongs to its device."""
    memory = LadderMemory("fp32", folder=tmp_path)
    list(batcher(FakeSession(seconds=lambda size: 4.0 + size), 16, memory).run(tiles(300)))
    other = FakeSession(device_name="Fake 2")
    list(batcher(other, 16, memory).run(tiles(48)))
    assert other.sizes[0] == 1


def test_a_ladder_still_climbing_is_not_remembered(tmp_path: Path) -> None:
    """Half a measurement would freeze the wrong size."""
    list(batcher(FakeSession(), 16, LadderMemory("fp32", folder=tmp_path)).run(tiles(3)))
    assert list(tmp_path.iterdir()) == []


def test_logs_say_which_batch_did_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    """Size and shape, one line each."""
    with caplog.at_level(logging.WARNING):
        list(batcher(FakeSession(memory_tiles=1)).run(tiles(8)))
    assert [r.message for r in caplog.records if "2 tiles of 2x2 did not fit" in r.message]


def test_the_real_session_is_batched_like_the_fake() -> None:
    """Labels through batches of many sizes are those of the model."""
    tiny = threshold_model()
    model = resolve(tiny.contract, read_model(tiny.data, "tiny.onnx", None), TilingSpec())
    session = open_session(tiny.data, model, SessionSpec(), Device(threads=1))
    results = list(Batcher(session, batch_max=8, clock=FakeClock()).run(tiles(251)))
    assert images(results) == list(range(251))
    bright = sorted(tile.image for tile, logits in results if logits.argmax(axis=0).all())
    assert bright == list(range(126, 251))
