"""The stages as actors: one row in, one row out, and a process that leaves rather than goes on broken.

Plain classes, which `ray_executor` hands to Ray; none of them imports it. A row is one unit: as planned, with its
pixels, or its receipt.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Iterator

import pyarrow as pa

from unet_batch.errors import SessionBroken, UnetBatchError
from unet_batch.job.loaded import Loaded, from_arrow, to_arrow
from unet_batch.job.stages import Fetched
from unet_batch.job.worker import Settings, build_infer, build_load
from unet_batch.model.session import Device
from unet_batch.records import Receipt, Unit

log = logging.getLogger(__name__)


class _Deadlines:
    """Ends this process when a stage works on one unit for too long.

    faulthandler's timer lives in C, so it fires even when a decoder hangs with the GIL held. There is one timer per
    process: it is always set to the earliest deadline of the units that are being worked on.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ends: list[float] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        end = time.monotonic() + self._timeout_s
        self._change(add=end)
        try:
            yield
        finally:
            self._change(remove=end)

    def _change(self, *, add: float | None = None, remove: float | None = None) -> None:
        with self._lock:
            if add is not None:
                self._ends.append(add)
            if remove is not None:
                self._ends.remove(remove)
            if self._ends:
                left_s = max(min(self._ends) - time.monotonic(), 0.001)
                faulthandler.dump_traceback_later(left_s, exit=True)
            else:
                faulthandler.cancel_dump_traceback_later()


class LoadActor:
    """Load in a Ray actor: a unit in, its pixels out, as one row. While one unit is decoded, the next is fetched."""

    def __init__(self, settings: Settings) -> None:
        self._load = build_load(settings)
        self._deadline = _Deadlines(settings.job.limits.unit_timeout_s)
        self._core = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        fetched = self.fetch(table)
        with self._core:
            return to_arrow(self.decode(fetched))

    def fetch(self, table: pa.Table) -> Fetched:
        """The encoded images of a row's unit."""
        with self._deadline():
            return self._load.fetch(Unit.from_json(table.column("unit")[0].as_py()))

    def decode(self, fetched: Fetched) -> Loaded:
        """The pixels of a unit."""
        with self._deadline():
            return self._load.decode(fetched)


class InferActor:
    """Infer in a Ray actor: a loaded unit in, its receipt out, as one row."""

    def __init__(self, settings: Settings, threads: int, gpu_share: float) -> None:
        self._deadline = _Deadlines(settings.job.limits.unit_timeout_s)
        self._failure: tuple[str, str] | None = None
        try:
            self._infer = build_infer(settings, Device(threads=threads, gpu_share=gpu_share or None))
        except (
            UnetBatchError
        ) as error:  # told by every receipt: an actor whose start fails is retried by Ray without an end
            self._failure = (error.code, str(error))

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.score(from_arrow(table))

    def score(self, loaded: Loaded) -> pa.Table:
        """The receipt of a loaded unit, as one row."""
        if self._failure is not None:
            return _receipt_row(Receipt(loaded.unit.unit_id, loaded.unit.partition, 0, 0, 0, failure=self._failure))
        try:
            with self._deadline():
                return _receipt_row(self._infer(loaded))
        except SessionBroken:
            log.exception("the session is broken: this process leaves, and a fresh one takes its place")
            os._exit(1)  # an exception would keep the broken process; ray.actor.exit_actor() is not restarted


class ScoreActor:
    """Load and Infer in one Ray actor, where both want the same core: a unit in, its receipt out.

    One thread computes at a time (two that take turns at the interpreter's lock cost a fifth); the other fetches.
    """

    def __init__(self, settings: Settings, threads: int, gpu_share: float) -> None:
        self._loader = LoadActor(settings)
        self._scorer = InferActor(settings, threads, gpu_share)
        self._core = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        fetched = self._loader.fetch(table)
        with self._core:
            return self._scorer.score(self._loader.decode(fetched))


def _receipt_row(receipt: Receipt) -> pa.Table:
    return pa.table({"receipt": pa.array([receipt.to_json()], pa.large_binary())})
