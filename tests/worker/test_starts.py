"""Actors that cannot start: their units go elsewhere and lose no try, their nodes are named once and left out."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pyarrow as pa
import pytest

from unet_batch.errors import ModelRefused, ProviderMissing, Unavailable, UnetBatchError, class_of
from unet_batch.on_ray import actors
from unet_batch.on_ray.actors import InferActor
from unet_batch.records import Receipt, Source, Unit
from unet_batch.worker.faults import NOT_STARTED
from unet_batch.worker.starts import BACK_OFF_MOST_S, Starts, back_off_s
from unet_batch.worker.worker import Settings

UNIT = Unit("u", "all", "images", (Source("s3://a/1.png", "v"),))
DONE = Receipt("u", "all", 1, 1, 0, pid=7, node="good")
GIVEN_BACK = replace(
    DONE, rows=0, ok=0, node="bad", failure=(NOT_STARTED, "session.provider_missing: no CUDA driver here")
)


@pytest.fixture
def starts() -> Starts:
    made = Starts(lambda node: f"{node}.example (10.0.0.1)")
    made.begin(3)
    return made


def test_a_node_that_cannot_start_is_named_once_and_left_out(starts, caplog):
    """The others score; a hundred units that came to it make one line."""
    starts.take(DONE)
    for _ in range(100):
        starts.take(GIVEN_BACK)
    assert starts.left_out() == {"bad"}
    assert [r.getMessage() for r in caplog.records] == [
        "node bad.example (10.0.0.1) cannot score: session.provider_missing: no CUDA driver here"
    ]


def test_a_node_of_which_one_actor_started_is_not_left_out(starts):
    """A GPU without room for a second session still has the first."""
    starts.take(replace(DONE, node="bad"))
    starts.take(GIVEN_BACK)
    assert starts.left_out() == frozenset()


def test_where_no_actor_can_start_the_run_ends_with_what_the_first_one_said(starts):
    """With that error's own exit code, as soon as the last actor has answered once."""
    for pid in (1, 2):
        starts.take(replace(GIVEN_BACK, pid=pid))
        starts.take(replace(GIVEN_BACK, pid=pid))
    with pytest.raises(ProviderMissing, match=r"on any node; on bad.example \(10.0.0.1\): no CUDA driver here"):
        starts.take(replace(GIVEN_BACK, pid=3))


def test_where_one_actor_can_start_the_run_goes_on(starts):
    """In any order."""
    starts.take(replace(GIVEN_BACK, pid=1))
    starts.take(replace(GIVEN_BACK, pid=2))
    starts.take(DONE)
    starts.take(replace(GIVEN_BACK, pid=3))


def test_an_actor_that_cannot_start_waits_longer_each_time():
    """Its first answer comes at once, so that a run without hope ends soon; then it attracts no units."""
    assert [back_off_s(n) for n in range(7)] == [0, 1, 2, 4, 8, 16, 20]
    assert back_off_s(10_000) == BACK_OFF_MOST_S


def test_every_code_finds_its_error():
    assert [class_of(c) for c in ("model.refused", "storage.unavailable", "unexpected")] == [
        ModelRefused, Unavailable, UnetBatchError
    ]  # fmt: skip


class _Settings:
    """As much as an actor reads of its settings."""

    def __new__(cls) -> Settings:
        return object.__new__(Settings)


def receipt_of(table: pa.Table) -> Receipt:
    return Receipt.from_json(table.column("receipt")[0].as_py())


def actor(monkeypatch: pytest.MonkeyPatch, *outcomes: Exception | None) -> tuple[InferActor, list[float]]:
    """An actor whose starts end so, one after the other; and what it waited."""
    waits: list[float] = []
    left = list(outcomes)

    def build(*_: object) -> object:
        outcome = left.pop(0)
        if outcome is not None:
            raise outcome
        return lambda loaded, step: DONE

    monkeypatch.setattr(actors, "build_infer", build)
    monkeypatch.setattr(actors, "_watch", lambda settings: None)
    monkeypatch.setattr(time, "sleep", waits.append)
    return InferActor(_Settings(), 1, 0.0, lambda: "node-1"), waits


def test_an_actor_without_a_session_gives_units_back_and_says_where_and_why(monkeypatch):
    """Any exception: a driver's, a library's. The unit was not tried."""
    made, waits = actor(monkeypatch, RuntimeError("libcudart.so is not here"))
    first, second = (receipt_of(made.not_started(UNIT)) for _ in range(2))
    assert first.failure == (NOT_STARTED, "unexpected: RuntimeError: libcudart.so is not here")
    assert (first.node, second.failure, waits) == ("node-1", first.failure, [0, 1])


def test_an_actor_whose_start_may_succeed_later_tries_it_again(monkeypatch):
    """The store of the model was away for a moment: from the third unit on it scores."""
    made, _ = actor(monkeypatch, Unavailable("503"), Unavailable("503"), None)
    answers = [made.not_started(UNIT) for _ in range(4)]
    assert [answer is None for answer in answers] == [False, False, True, True]


def test_threads_of_one_actor_start_it_once(monkeypatch):
    """Two units at a time, one start."""
    made, _ = actor(monkeypatch, Unavailable("503"), None)
    made.not_started(UNIT)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(made.not_started(UNIT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None] * 4
