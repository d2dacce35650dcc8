"""The stages as Ray actors: one row in, one row out. A process with a broken session ends.

Plain classes without an import of Ray; `executor` passes them to Ray. A row is one unit: as planned, with its pixels,
or its receipt.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pyarrow as pa

from unet_batch.errors import SessionBroken, StorageError, UnetBatchError
from unet_batch.records import Receipt, Unit
from unet_batch.session.session import Device
from unet_batch.table.output import Output
from unet_batch.worker.faults import NOT_STARTED, UNEXPECTED
from unet_batch.worker.infer import Infer
from unet_batch.worker.load import Fetched
from unet_batch.worker.loaded import Loaded, from_arrow, to_arrow
from unet_batch.worker.notes import StoredNotes
from unet_batch.worker.starts import back_off_s
from unet_batch.worker.watchdog import Stage, Watch, of_this_process
from unet_batch.worker.worker import Settings, build_infer, build_load

log = logging.getLogger(__name__)


class LoadActor:
    """Load in a Ray actor: a unit in, its pixels out, as one row. It fetches the next unit while it decodes one."""

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
    """Infer in a Ray actor: a loaded unit in, its receipt out, as one row.

    Ray would restart an actor with a failed start forever. So it starts without a session and reports it in receipts.
    """

    def __init__(self, settings: Settings, threads: int, gpu_share: float, where: Callable[[], str] = str) -> None:
        """where: returns the id of this node."""
        self._watch = _watch(settings)
        self._node = where()
        device = Device(threads=threads, gpu_share=gpu_share or None)
        self._build: Callable[[], Infer] = functools.partial(build_infer, settings, device)
        self._infer: Infer | None = None
        self._answers = 0
        self._starting = threading.Lock()
        self._start()

    def __call__(self, table: pa.Table) -> pa.Table:
        loaded = from_arrow(table)
        return self.not_started(loaded.unit) or self.score(loaded)

    def not_started(self, unit: Unit) -> pa.Table | None:
        """A receipt that returns the unit if there is no session, else None; retries a start that may succeed."""
        with self._starting:
            if self._infer is not None:
                return None
            time.sleep(back_off_s(self._answers))
            if self._answers and self._may_pass:
                self._start()
            self._answers += 1
            failure = None if self._infer is not None else (NOT_STARTED, self._why)
        return failure and self._row(Receipt(unit.unit_id, unit.partition, 0, 0, 0, failure=failure))

    def score(self, loaded: Loaded) -> pa.Table:
        """The receipt of a loaded unit, as one row."""
        if self._infer is None:
            raise RuntimeError("score is called before not_started")
        try:
            with self._watch(loaded.unit, "score") as watch:
                return self._row(self._infer(loaded, watch.step))
        except SessionBroken:
            log.exception("the session is broken: this process ends, and a new one replaces it")
            os._exit(1)  # Ray keeps the process after an exception, and does not restart after exit_actor()

    def _start(self) -> None:
        try:
            self._infer = self._build()
        except UnetBatchError as error:
            self._why = f"{error.code}: {error}"
            self._may_pass = error.retryable or isinstance(error, StorageError)
        except Exception as error:  # any error of a driver or library concerns this machine
            log.exception("no session could be opened")
            self._why = f"{UNEXPECTED}: {type(error).__name__}: {error}"
            self._may_pass = False

    def _row(self, receipt: Receipt) -> pa.Table:
        told = replace(receipt, node=self._node, pid=os.getpid())
        return pa.table({"receipt": pa.array([told.to_json()], pa.large_binary())})


class ScoreActor:
    """Load and Infer in one Ray actor that uses one core: a unit in, its receipt out.

    One thread computes at a time (two threads that share the interpreter's lock are a fifth slower); the other fetches.
    """

    def __init__(self, settings: Settings, threads: int, gpu_share: float, where: Callable[[], str] = str) -> None:
        """where: returns the id of this node."""
        self._loader = LoadActor(settings)
        self._scorer = InferActor(settings, threads, gpu_share, where)
        self._core = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        given_back = self._scorer.not_started(Unit.from_json(table.column("unit")[0].as_py()))
        if given_back is not None:
            return given_back
        fetched = self._loader.fetch(table)
        with self._core:
            return self._scorer.score(self._loader.decode(fetched))


def _watch(settings: Settings) -> Callable[[Unit, Stage], AbstractContextManager[Watch]]:
    """Watches a stage of a unit with the watchdog of this process."""
    job = settings.job
    notes = StoredNotes(Output.of(job.output), settings.run_id)
    dog, limit_s = of_this_process(), job.limits.unit_timeout_s
    return lambda unit, stage: dog.watch(unit, stage, limit_s=limit_s, notes=notes)
