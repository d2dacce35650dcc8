"""One worker process as its driver sees it: started, fed, heard, and told of when it died.

Knows processes and pipes; which unit goes where is the executor's business. The worker's own side is
`worker/process.py`. The process is started by exec, never forked: libraries with threads do not survive a fork.
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
"""How long a frame may take, once it has begun; with a worker that is stopped it never ends."""
TAIL_BYTES = 4096
"""Of what a process printed last that is kept, for the day it dies."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended, and what it was working on."""

    how: str
    """`signal SIGSEGV`, `exit status 1`; behind it the last line that it printed, if any."""
    started: bool
    """Whether it had opened its session."""
    begun: tuple[Unit, ...]
    waiting: tuple[Unit, ...]
    """Units that it had not begun."""
    note: Note | None
    """What it said last, where a limit on silence ended it."""


class WorkerProcess:
    """A place for one process after the other. Used by one thread at a time."""

    def __init__(self, greeting: bytes) -> None:
        self.refusal: Refusal | None = None
        """Why its last start failed; None before the first start, and after one that did not fail."""
        self.refusals = 0
        """In a row."""
        self.deaths_at_start = 0
        """In a row."""
        self.is_ready = False
        self.units: dict[str, Unit] = {}
        """What it was given and has not answered, by id."""
        self.heard_s = 0.0
        """When it was started, given something or heard last, by time.monotonic."""
        self._greeting = greeting
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
        """Of the process; 0 where there is none."""
        return 0 if self._process is None else self._process.pid

    @property
    def is_busy(self) -> bool:
        """Whether something is expected of it."""
        return self.is_alive and (bool(self.units) or not self.is_ready)

    def ears(self) -> list[Connection | int]:
        """What `multiprocessing.connection.wait` waits for: its pipe, and what it prints."""
        if self._pipe is None or self._process is None or self._process.stdout is None:
            return []
        return [self._pipe, self._process.stdout.fileno()]

    def start(self) -> None:
        """Start a process; `hear` tells later how that went. Raises OSError where the machine has no room for one.

        It has a process group of its own, so a terminal's Ctrl-C does not reach it, and signals that ask to stop are
        blocked in it: batch systems send them to every process at once. It ends when its pipe closes.
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
        self._send(self._greeting)

    def give(self, unit: Unit) -> None:
        """Hand it a unit."""
        self.units[unit.unit_id] = unit
        self._send(unit.to_json())

    def hear(self, ear: object) -> Receipt | Note | Refusal | Death | None:
        """What came through an ear that `wait` found ready; None for what needs no answer."""
        if ear is not self._pipe or self._pipe is None:
            self._read_print()
            return None
        try:
            kind, _, body = self._pipe.recv_bytes().partition(b" ")
        except (EOFError, OSError):
            return self._buried()
        self.heard_s = time.monotonic()
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
        """Note that a start failed."""
        self.refusal, self.heard_s = refusal, time.monotonic()
        self.refusals += 1

    def kill(self) -> None:
        """End the process and all that it started, at once; `hear` tells of it."""
        self.heard_s = time.monotonic()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def dismiss(self) -> None:
        """Close the pipe: the process ends what it works on, for a moment, and leaves."""
        if self._pipe is not None:
            self._pipe.close()

    def wait(self, until_s: float) -> None:
        """Wait for a dismissed process until a moment of time.monotonic, and kill it then."""
        if self._process is None:
            return
        while time.monotonic() < until_s and not _has_exited(self._process):
            self._read_print()  # it must not wait for room to print
            time.sleep(0.01)
        self._buried()

    def _send(self, frame: bytes) -> None:
        self.heard_s = time.monotonic()
        try:
            if self._pipe is not None:
                self._pipe.send_bytes(frame)
        except OSError:  # it is dead, or stopped: half a frame is useless
            self.kill()

    def _read_print(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with contextlib.suppress(BlockingIOError):
            while printed := os.read(self._process.stdout.fileno(), 1 << 16):
                self._printed = (self._printed + printed)[-TAIL_BYTES:]

    def _buried(self) -> Death:
        """Kill what is left of the process group, and say how the process ended."""
        self.kill()  # a process that has begun to exit keeps its status
        status = 0
        if self._process is not None:
            status = self._process.wait()
            self._read_print()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self.dismiss()
        begun = tuple(unit for unit in self.units.values() if unit.unit_id in self._begun)
        waiting = tuple(unit for unit in self.units.values() if unit.unit_id not in self._begun)
        note = next((note for note in self._notes.values() if note.ended), None)
        death = Death(_how(status, self._printed), self.is_ready, begun, waiting, note)
        self.deaths_at_start += not self.is_ready and self.refusal is None
        self._process, self._pipe, self.is_ready = None, None, False
        self.units, self._begun, self._notes = {}, set(), {}
        return death


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended; it stays a zombie, so that its group's number is nobody else's yet."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _how(status: int, printed: bytes) -> str:
    how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    lines = [line.strip() for line in printed.decode("utf-8", "replace").splitlines() if line.strip()]
    return f"{how}: {lines[-1][:300]}" if lines else how
