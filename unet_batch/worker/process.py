"""A worker process: receives units over a pipe, sends receipts, and ends when the pipe closes.

The driver starts it as `python -P -m unet_batch.worker.process DESCRIPTOR`. A closed pipe means that the driver has
ended, or needs the worker no longer.

A frame is a kind, a space and a body. The first frame to the worker is a WorkerSetup, every other one a unit.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import NoReturn

from unet_batch.errors import SessionBroken, StorageError, UnetBatchError
from unet_batch.records import Receipt, Unit
from unet_batch.session.session import Device
from unet_batch.table.without_pandas import forgo_pandas
from unet_batch.worker.faults import UNEXPECTED
from unet_batch.worker.scorer import Scorer
from unet_batch.worker.watchdog import Note
from unet_batch.worker.worker import Settings, build_infer, build_load

log = logging.getLogger(__name__)

READY, REFUSED, BEGUN, RECEIPT, NOTE = b"ready", b"refused", b"begun", b"receipt", b"note"
"""Kinds of frames to the driver: the session is open; it cannot be opened (and why); a unit was started (its id); a
unit's receipt; a note about a slow unit."""
UNITS_AT_ONCE = 2
"""Units in one worker: while one is computed, the next is fetched."""
LEAVE_S = 2.0
"""How long active units may take after the pipe was closed; parts of units that end by then are kept."""
BROKEN = 76
"""Exit status of a process whose session is broken (EX_PROTOCOL of sysexits.h)."""

Tell = Callable[[bytes, bytes], None]


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """The first frame to a worker."""

    settings: Settings
    threads: int
    """Threads of its session."""

    def to_json(self) -> bytes:
        return json.dumps({"settings": self.settings.to_json(), "threads": self.threads}).encode()

    @staticmethod
    def from_json(text: bytes) -> WorkerSetup:
        tree = json.loads(text)
        return WorkerSetup(Settings.from_json(tree["settings"]), int(tree["threads"]))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a worker has no session."""

    code: str
    text: str
    may_pass: bool
    """Whether another start may succeed."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(text: bytes) -> Refusal:
        return Refusal(**json.loads(text))


class PipeNotes:
    """Notes about slow units, for the driver."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def put(self, note: Note) -> None:
        """Send the state of the work."""
        self._tell(NOTE, json.dumps(asdict(note)).encode())

    def remove(self, unit_id: str) -> None:
        """Do nothing: the driver drops a note when the unit's receipt arrives."""


class PipeWorker:
    """The pipe of this process, and the threads that serve it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._inbox: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._working: list[threading.Thread] = []

    def serve(self) -> NoReturn:
        """Receive units until the pipe closes, also while the session is being opened."""
        try:
            setup = WorkerSetup.from_json(self._pipe.recv_bytes())
            threading.Thread(target=self._start, args=(setup,), daemon=True).start()
            while True:
                self._inbox.put(Unit.from_json(self._pipe.recv_bytes()))
        except (EOFError, OSError):
            self._leave()

    def tell(self, kind: bytes, body: bytes = b"") -> None:
        """Send a frame. If the driver has ended, `serve` finds the pipe closed."""
        try:
            with self._sending:
                self._pipe.send_bytes(kind + b" " + body)
        except OSError:
            log.debug("the driver has closed the pipe")

    def _start(self, setup: WorkerSetup) -> None:
        try:
            scorer = self._scorer(setup)
        except UnetBatchError as error:
            self._refuse(Refusal(error.code, str(error), error.retryable or isinstance(error, StorageError)))
        except Exception as error:  # any error of a driver or library concerns this machine
            log.exception("no session could be opened")
            self._refuse(Refusal(UNEXPECTED, f"{type(error).__name__}: {error}", may_pass=False))
        self._working = [threading.Thread(target=self._work, args=(scorer,), daemon=True) for _ in range(UNITS_AT_ONCE)]
        for thread in self._working:
            thread.start()
        self.tell(READY)

    def _scorer(self, setup: WorkerSetup) -> Scorer:
        settings = setup.settings
        infer = build_infer(settings, Device(threads=setup.threads))
        limit_s = settings.job.limits.unit_timeout_s
        return Scorer(build_load(settings), infer, limit_s=limit_s, notes=PipeNotes(self.tell))

    def _refuse(self, refusal: Refusal) -> NoReturn:
        self.tell(REFUSED, refusal.to_json())
        os._exit(0)

    def _work(self, scorer: Scorer) -> None:
        """Score units until None arrives. If the thread fails, the process ends, because it could not answer."""
        try:
            while (unit := self._inbox.get()) is not None:
                self.tell(BEGUN, unit.unit_id.encode())
                receipt: Receipt = replace(scorer(unit), pid=os.getpid())
                self.tell(RECEIPT, receipt.to_json())
        except SessionBroken:
            log.exception("the session is broken: this process ends, and a new one replaces it")
            os._exit(BROKEN)
        except BaseException:
            log.exception("a worker's thread ended")
            os._exit(1)

    def _leave(self) -> NoReturn:
        """Start no more units; end when the active units are done, or after LEAVE_S."""
        until_s = time.monotonic() + LEAVE_S
        while not self._inbox.empty():
            self._inbox.get()
        for _ in self._working:
            self._inbox.put(None)
        for thread in self._working:
            thread.join(max(0.0, until_s - time.monotonic()))
        os._exit(0)


def main() -> NoReturn:
    """Serve the pipe whose file descriptor is the first argument."""
    faulthandler.enable()
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)  # an isolated decoder must not keep the pipe open
    forgo_pandas()
    PipeWorker(Connection(descriptor)).serve()


if __name__ == "__main__":
    main()
