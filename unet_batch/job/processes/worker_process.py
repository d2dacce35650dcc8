"""The driver's side of one worker process: start, send units, receive messages, detect its death.

The executor decides which unit goes to which process. The worker's side is `worker/process.py`; `child.py` says how the
process is started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from unet_batch.job.processes.child import ChildProcess
from unet_batch.records import Receipt, Unit
from unet_batch.worker.environment import KEEP_PAGES, ONE_THREAD
from unet_batch.worker.process import BEGUN, NOTE, READY, RECEIPT, REFUSED, Refusal
from unet_batch.worker.watchdog import Note

log = logging.getLogger(__name__)

FRAME_S = 60
"""Time limit for one frame; a stopped worker never ends its frame."""
TAIL_BYTES = 4096
"""Bytes of a process's last output that are kept for the message about its death."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended, and its units."""

    how: str
    """`signal SIGSEGV` or `exit status 1`, followed by its last line of output, if any."""
    started: bool
    """Whether it had opened its session."""
    begun: tuple[Unit, ...]
    waiting: tuple[Unit, ...]
    """Units that it had not started."""
    note: Note | None
    """Its last note, if the watchdog ended it."""


class WorkerProcess:
    """Runs one process at a time and replaces it. Used by one thread at a time."""

    def __init__(self, setup: bytes) -> None:
        self.refusal: Refusal | None = None
        """Why its last start failed, else None."""
        self.refusals = 0
        """In a row."""
        self.deaths_at_start = 0
        """In a row."""
        self.is_ready = False
        self.units: dict[str, Unit] = {}
        """Unit id → unit, without a receipt yet."""
        self.last_message_s = 0.0
        """Time (monotonic) of its start, its last unit or its last message."""
        self._setup = setup
        self._begun: set[str] = set()
        self._notes: dict[str, Note] = {}
        self._child: ChildProcess | None = None
        self._printed = b""

    @property
    def is_alive(self) -> bool:
        """Whether there is a process; it may still be starting."""
        return self._child is not None

    @property
    def pid(self) -> int:
        """Id of the process; 0 if there is none."""
        return 0 if self._child is None else self._child.process.pid

    @property
    def is_busy(self) -> bool:
        """Whether it is starting or has units."""
        return self.is_alive and (bool(self.units) or not self.is_ready)

    def channels(self) -> list[Connection | int]:
        """Objects for `multiprocessing.connection.wait`: its pipe, and its output."""
        if self._child is None or self._child.process.stdout is None:
            return []
        return [self._child.pipe, self._child.process.stdout.fileno()]

    def start(self) -> None:
        """Start a process; `receive` returns the result later. Raises OSError if no process can be started."""
        self._child = ChildProcess(
            "unet_batch.worker.process",
            {**KEEP_PAGES, **ONE_THREAD},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            frame_s=FRAME_S,
        )
        if self._child.process.stdout is not None:
            os.set_blocking(self._child.process.stdout.fileno(), False)
        self.refusal, self.is_ready, self._printed = None, False, b""
        self._send(self._setup)

    def give(self, unit: Unit) -> None:
        """Send it a unit."""
        self.units[unit.unit_id] = unit
        self._send(unit.to_json())

    def receive(self, channel: object) -> Receipt | Note | Refusal | Death | None:
        """Read a message from one of `channels` that is ready; None if it needs no reaction."""
        if self._child is None or channel is not self._child.pipe:
            self._read_print()
            return None
        try:
            kind, _, body = self._child.pipe.recv_bytes().partition(b" ")
        except (EOFError, OSError):
            return self._end()
        self.last_message_s = time.monotonic()
        if kind == READY:
            self.is_ready, self.refusals, self.deaths_at_start = True, 0, 0
        elif kind == REFUSED:
            return Refusal.from_json(body)
        elif kind == BEGUN:
            self._begun.add(body.decode())
        elif kind == NOTE:
            note = Note(**json.loads(body))
            self._notes[note.unit_id] = note
            return note
        elif kind == RECEIPT:
            receipt = Receipt.from_json(body)
            for known in (self.units, self._notes):
                known.pop(receipt.unit_id, None)
            self._begun.discard(receipt.unit_id)
            return receipt
        return None

    def refuse(self, refusal: Refusal) -> None:
        """Record that a start failed."""
        self.refusal, self.last_message_s = refusal, time.monotonic()
        self.refusals += 1

    def kill(self) -> None:
        """Kill the process and its children; `receive` then returns its Death."""
        self.last_message_s = time.monotonic()
        if self._child is not None:
            self._child.kill()

    def close_pipe(self) -> None:
        """Close the pipe: the process finishes active units within LEAVE_S and ends."""
        if self._child is not None:
            self._child.pipe.close()

    def wait(self, until_s: float) -> None:
        """After `close_pipe`: wait for the process until this time (monotonic), then kill it."""
        if self._child is None:
            return
        while time.monotonic() < until_s and not self._child.has_exited():
            self._read_print()  # its output pipe must not fill up
            time.sleep(0.01)
        self._end()

    def _send(self, frame: bytes) -> None:
        self.last_message_s = time.monotonic()
        try:
            if self._child is not None:
                self._child.pipe.send_bytes(frame)
        except OSError:  # it is dead or stopped; an incomplete frame is useless
            self.kill()

    def _read_print(self) -> None:
        if self._child is None or self._child.process.stdout is None:
            return
        with contextlib.suppress(BlockingIOError):
            while printed := os.read(self._child.process.stdout.fileno(), 1 << 16):
                self._printed = (self._printed + printed)[-TAIL_BYTES:]

    def _end(self) -> Death:
        """Kill the rest of the process group; returns how the process ended."""
        how = ""
        if self._child is not None:
            how = self._child.end()  # a process that is already exiting keeps its status
            self._read_print()
            if self._child.process.stdout is not None:
                self._child.process.stdout.close()
        begun = tuple(unit for unit in self.units.values() if unit.unit_id in self._begun)
        waiting = tuple(unit for unit in self.units.values() if unit.unit_id not in self._begun)
        note = next((note for note in self._notes.values() if note.ended), None)
        death = Death(_how(how, self._printed), self.is_ready, begun, waiting, note)
        self.deaths_at_start += not self.is_ready and self.refusal is None
        self._child, self.is_ready = None, False
        self.units, self._begun, self._notes = {}, set(), {}
        return death


def _how(ended: str, printed: bytes) -> str:
    lines = [line.strip() for line in printed.decode("utf-8", "replace").splitlines() if line.strip()]
    return f"{ended}: {lines[-1][:300]}" if lines else ended
