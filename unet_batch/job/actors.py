"""The stages as actors: one row in, one row out, and a process that leaves rather than goes on broken.

Plain classes, which `ray_executor` hands to Ray; none of them imports it. A row is one unit: as planned, with its
pixels, or its receipt.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pyarrow as pa

from unet_batch.archive.storage import Storage
from unet_batch.errors import SessionBroken, UnetBatchError
from unet_batch.job.load import Fetched
from unet_batch.job.loaded import Loaded, from_arrow, to_arrow
from unet_batch.job.notes import StoredNotes
from unet_batch.job.watchdog import Stage, Watch, of_this_process
from unet_batch.job.worker import Settings, build_infer, build_load
from unet_batch.model.session import Device
from unet_batch.records import Receipt, Unit
from unet_batch.table.layout import Layout

log = logging.getLogger(__name__)


class LoadActor:
    """Load in a Ray actor: a unit in, its pixels out, as one row. While one unit is decoded, the next is fetched."""

    def __init__(self, settings: Settings) -> None:
        self._load = build_load(settings)
        self._watch = _watch(settings)
        self._core = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        fetched = self.fetch(table)
        with self._core:
            return to_arrow(self.decode(fetched))

    def fetch(self, table: pa.Table) -> Fetched:
        """The encoded images of a row's unit."""
        unit = Unit.from_json(table.column("unit")[0].as_py())
        with self._watch(unit, "read") as watch:
            return self._load.fetch(unit, watch.step)

    def decode(self, fetched: Fetched) -> Loaded:
        """The pixels of a unit."""
        with self._watch(fetched.unit, "decode") as watch:
            return self._load.decode(fetched, watch.step)


class InferActor:
    """Infer in a Ray actor: a loaded unit in, its receipt out, as one row."""

    def __init__(self, settings: Settings, threads: int, gpu_share: float) -> None:
        self._watch = _watch(settings)
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
            with self._watch(loaded.unit, "score") as watch:
                return _receipt_row(self._infer(loaded, watch.step))
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


def _watch(settings: Settings) -> Callable[[Unit, Stage], AbstractContextManager[Watch]]:
    """Watches a stage of a unit with the one watchdog of this process."""
    job = settings.job
    notes = StoredNotes(Storage(job.output.options), Layout(job.output.uri), settings.run_id)
    dog, limit_s = of_this_process(), job.limits.unit_timeout_s
    return lambda unit, stage: dog.watch(unit, stage, limit_s=limit_s, notes=notes)


def _receipt_row(receipt: Receipt) -> pa.Table:
    return pa.table({"receipt": pa.array([receipt.to_json()], pa.large_binary())})
