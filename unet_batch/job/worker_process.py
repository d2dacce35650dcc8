"""The driver's side of one worker process: start, send units, receive messages, detect its death.

The executor decides which unit goes to which process. The worker's side is `worker/process.py`. The process is started
by exec, not by fork: libraries with threads do not work after a fork.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from unet_batch.job.stopping import SIGNALS
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
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._printed = b""

    @property
    def is_alive(self) -> bool:
        """Whether there is a process; it may still be starting."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Id of the process; 0 if there is none."""
        return 0 if self._process is None else self._process.pid

    @property
    def is_busy(self) -> bool:
        """Whether it is starting or has units."""
        return self.is_alive and (bool(self.units) or not self.is_ready)

    def channels(self) -> list[Connection | int]:
        """Objects for `multiprocessing.connection.wait`: its pipe, and its output."""
        if self._pipe is None or self._process is None or self._process.stdout is None:
            return []
        return [self._pipe, self._process.stdout.fileno()]

    def start(self) -> None:
        """Start a process; `receive` returns the result later. Raises OSError if no process can be started.

        The process has its own process group, so Ctrl-C in a terminal does not reach it. Stop signals are blocked in
        it, because batch systems send them to every process. It ends when its pipe closes.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for way in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", FRAME_S, 0))
            paths = [os.path.abspath(path or os.curdir) for path in sys.path]
            command = [sys.executable, "-P", "-m", "unet_batch.worker.process", str(theirs.fileno())]
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter and this package
                    command,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={**KEEP_PAGES, **ONE_THREAD, **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                    process_group=0,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._pipe = Connection(ours.detach())
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)
        self.refusal, self.is_ready, self._printed = None, False, b""
        self._send(self._setup)

    def give(self, unit: Unit) -> None:
        """Send it a unit."""
        self.units[unit.unit_id] = unit
        self._send(unit.to_json())

    def receive(self, channel: object) -> Receipt | Note | Refusal | Death | None:
        """Read a message from one of `channels` that is ready; None if it needs no reaction."""
        if channel is not self._pipe or self._pipe is None:
            self._read_print()
            return None
        try:
            kind, _, body = self._pipe.recv_bytes().partition(b" ")
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
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close_pipe(self) -> None:
        """Close the pipe: the process finishes active units within LEAVE_S and ends."""
        if self._pipe is not None:
            self._pipe.close()

    def wait(self, until_s: float) -> None:
        """After `close_pipe`: wait for the process until this time (monotonic), then kill it."""
        if self._process is None:
            return
        while time.monotonic() < until_s and not _has_exited(self._process):
            self._read_print()  # its output pipe must not fill up
            time.sleep(0.01)
        self._end()

    def _send(self, frame: bytes) -> None:
        self.last_message_s = time.monotonic()
        try:
            if self._pipe is not None:
                self._pipe.send_bytes(frame)
        except OSError:  # it is dead or stopped; an incomplete frame is useless
            self.kill()

    def _read_print(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with contextlib.suppress(BlockingIOError):
            while printed := os.read(self._process.stdout.fileno(), 1 << 16):
                self._printed = (self._printed + printed)[-TAIL_BYTES:]

    def _end(self) -> Death:
        """Kill the rest of the process group; returns how the process ended."""
        self.kill()  # a process that is already exiting keeps its status
        status = 0
        if self._process is not None:
            status = self._process.wait()
            self._read_print()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self.close_pipe()
        begun = tuple(unit for unit in self.units.values() if unit.unit_id in self._begun)
        waiting = tuple(unit for unit in self.units.values() if unit.unit_id not in self._begun)
        note = next((note for note in self._notes.values() if note.ended), None)
        death = Death(_how(status, self._printed), self.is_ready, begun, waiting, note)
        self.deaths_at_start += not self.is_ready and self.refusal is None
        self._process, self._pipe, self.is_ready = None, None, False
        self.units, self._begun, self._notes = {}, set(), {}
        return death


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended. It stays a zombie, so that its group id is not reused yet."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _how(status: int, printed: bytes) -> str:
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    lines = [line.strip() for line in printed.decode("utf-8", "replace").splitlines() if line.strip()]
    return f"{how}: {lines[-1][:300]}" if lines else how
