"""Ends this process if the work on a unit makes no progress, after writing a note.

The limit is on the time *without progress*, not on a unit as a whole: each image read, each page decoded and each batch
scored resets it, so a valid image of hundreds of tiles may take any time.

There is one watchdog per process, because faulthandler has one timer. A thread checks once a second: it writes notes
about slow units, and at the limit it writes a note and ends the process. The thread cannot run while native code holds
the interpreter's lock. In that case faulthandler's timer in C ends the process GRACE_S later, without a note.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from unet_batch.records import Unit

log = logging.getLogger(__name__)

Stage = Literal["read", "decode", "score"]

LOOK_EVERY_S = 1.0
SLOW_S = 30.0
"""A unit that takes longer gets a note, which is updated at this interval. Other units need no put."""
GRACE_S = 30.0
NOTE_S = 15.0
"""How long the last note may take before the process ends without it."""
STDERR = 2
EXIT_SILENT = 75
"""Exit status of a process that its watchdog ended (EX_TEMPFAIL of sysexits.h)."""
_SLACK_S = 1.0  # smaller changes do not reset the timer in C, because each reset starts a thread


@dataclass(frozen=True, slots=True)
class Note:
    """The state of the work on one unit."""

    unit_id: str
    stage: Stage
    source: int | None
    """Position in the unit of the current image; None if there are several, or none yet."""
    image: str
    """Key of that image; empty if `source` is None."""
    done: int
    """Number of tiles of that image already scored, or of images of the unit already read or decoded."""
    of: int
    """Total number of these tiles or images."""
    working_s: float
    """Seconds since the stage started with the unit."""
    silent_s: float
    """Seconds since the last step."""
    limit_s: float
    """Allowed seconds without progress; 0 if there is no limit."""
    ended: bool
    """Whether the watchdog ends the process now."""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def __str__(self) -> str:
        what = self.image or f"unit {self.unit_id}"
        counted = f", {self.done} of {self.of} {'tiles' if self.stage == 'score' else 'images'}" if self.of else ""
        return f"{self.stage} of {what}{counted}, for {self.working_s:.0f} s on {self.host}"


class Notes(Protocol):
    """Stores notes. Both methods may raise; then the note is missing, without other consequences."""

    def put(self, note: Note) -> None: ...
    def remove(self, unit_id: str) -> None: ...


class Step(Protocol):
    """Called by a stage to report progress; see `Watch.step`."""

    def __call__(self, source: int | None = None, done: int = 0, of: int = 0, *, allow_s: float = 0.0) -> None: ...


def unwatched(source: int | None = None, done: int = 0, of: int = 0, *, allow_s: float = 0.0) -> None:
    """A Step that does nothing."""


class Watch:
    """Watches one unit in one stage. The thread that works on the unit calls its methods."""

    def __init__(self, dog: Watchdog, unit: Unit, stage: Stage, *, limit_s: float, notes: Notes, clock: float) -> None:
        self._dog, self.unit, self.stage, self.notes = dog, unit, stage, notes
        self.base_s, self.allow_s = limit_s, 0.0
        self.since_s = self.heard_s = self.told_s = clock
        self.source: int | None = None
        self.done = self.of = 0
        self.noted = self.closed = False
        self.writing = threading.Lock()

    def step(self, source: int | None = None, done: int = 0, of: int = 0, *, allow_s: float = 0.0) -> None:
        """Report progress: the limit starts again.

        source: position in the unit of the next image. done, of: see Note. allow_s: additional seconds for the next
        step, because it is large.
        """
        self.source, self.done, self.of, self.allow_s = source, done, of, allow_s
        self.heard_s = self._dog.now()
        self._dog.moved()

    def end_s(self) -> float:
        """The time at which the limit is reached."""
        return self.heard_s + self.base_s + self.allow_s

    def note(self, now_s: float, *, ended: bool = False) -> Note:
        """The current state of the work."""
        image = "" if self.source is None else self.unit.sources[self.source].key
        limit_s = self.base_s + self.allow_s
        return Note(
            self.unit.unit_id, self.stage, self.source, image, self.done, self.of, now_s - self.since_s,
            now_s - self.heard_s, limit_s if math.isfinite(limit_s) else 0.0, ended,
        )  # fmt: skip

    def write(self, note: Note) -> None:
        """Write a note, unless the unit is already done."""
        with self.writing:
            if self.closed:
                return
            self.noted = True
            try:
                self.notes.put(note)
            except Exception:  # the unit does not depend on notes
                log.debug("no note about unit %s", self.unit.unit_id, exc_info=True)

    def close(self) -> None:
        """End the watch of this stage and remove its note."""
        with self.writing:
            self.closed = True
            if self.noted:
                with contextlib.suppress(Exception):
                    self.notes.remove(self.unit.unit_id)


class Watchdog:
    """Watches all units of this process. Use `of_this_process`; tests create their own."""

    def __init__(
        self,
        *,
        leave: Callable[[int], object] = os._exit,
        now: Callable[[], float] = time.monotonic,
        looks: bool = True,
    ) -> None:
        """leave: ends the process with an exit status. looks: whether a thread checks every second."""
        self.now = now
        self._leave, self._looks = leave, looks
        self._watches: list[Watch] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._armed_s = math.inf
        """The time at which the timer in C ends the process; inf if it is not set."""

    @contextlib.contextmanager
    def watch(self, unit: Unit, stage: Stage, *, limit_s: float, notes: Notes) -> Iterator[Watch]:
        """Watch a stage of a unit. limit_s: seconds without progress; math.inf: only notes, no limit."""
        watch = Watch(self, unit, stage, limit_s=limit_s, notes=notes, clock=self.now())
        with self._changed:
            self._watches.append(watch)
            self._arm()
            if self._looks and self._thread is None:
                self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield watch
        finally:
            with self._changed:
                self._watches.remove(watch)
                self._arm()
            watch.close()

    def moved(self) -> None:
        """Set the timer in C to the earliest limit of all watches."""
        with self._changed:
            self._arm()

    def _arm(self) -> None:
        ends = [watch.end_s() for watch in self._watches]
        wanted_s = min(ends, default=math.inf) + GRACE_S
        if math.isinf(wanted_s):
            if math.isfinite(self._armed_s):
                faulthandler.cancel_dump_traceback_later()
            self._armed_s = math.inf
        elif not 0 <= wanted_s - self._armed_s <= _SLACK_S:
            faulthandler.dump_traceback_later(max(wanted_s - self.now(), 0.001), exit=True, file=STDERR)
            self._armed_s = wanted_s

    def _look(self) -> None:
        while True:
            with self._changed:
                while not self._watches:
                    self._changed.wait()
                watches = list(self._watches)
            self.look(watches)
            time.sleep(LOOK_EVERY_S)

    def look(self, watches: list[Watch]) -> None:
        """Write notes about slow units; end the process if a unit has reached its limit."""
        now_s = self.now()
        for watch in watches:
            if watch.end_s() < now_s and not watch.closed:
                note = watch.note(now_s, ended=True)
                log.error("this process ends, because there was no progress for %.0f s: %s", note.silent_s, note)
                last = threading.Thread(target=watch.write, args=(note,), daemon=True)
                last.start()
                last.join(NOTE_S)
                with contextlib.suppress(Exception):
                    faulthandler.dump_traceback(file=STDERR)
                self._leave(EXIT_SILENT)
                return
            if now_s - watch.told_s > SLOW_S:
                watch.told_s = now_s
                threading.Thread(target=watch.write, args=(watch.note(now_s),), daemon=True).start()


@functools.cache
def of_this_process() -> Watchdog:
    """The one watchdog of this process."""
    return Watchdog()
