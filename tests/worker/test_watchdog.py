"""The watchdog: silence ends a process, progress does not, and the note that is left says whose limit it was."""

from __future__ import annotations

import faulthandler
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unet_batch.records import Source, Unit
from unet_batch.store.storage import Storage
from unet_batch.table.output import Output
from unet_batch.worker.notes import StoredNotes
from unet_batch.worker.watchdog import EXIT_SILENT, GRACE_S, SLOW_S, Note, Watchdog, of_this_process

UNIT = Unit("u", "all", "images", (Source("s3://a/1.png", "v"), Source("s3://a/2.png", "v")))
OTHER = Unit("o", "all", "images", (Source("s3://a/3.png", "v"),))


class Kept:
    """Notes in a list."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.removed: list[str] = []
        self.put_one = threading.Event()

    def put(self, note: Note) -> None:
        self.notes.append(note)
        self.put_one.set()

    def remove(self, unit_id: str) -> None:
        self.removed.append(unit_id)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """What the one timer in C was set to, by seconds from then; None where it was taken off."""
    found: list[float | None] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda s, **_: found.append(s))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: found.append(None))
    return found


@pytest.fixture
def dog(monkeypatch: pytest.MonkeyPatch) -> tuple[Watchdog, Clock, list[int]]:
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda **_: None)
    clock, left = Clock(), []
    return Watchdog(leave=left.append, now=clock, looks=False), clock, left


def test_there_is_one_watchdog_in_a_process():
    """There is one timer: every caller gets the same."""
    assert of_this_process() is of_this_process()


def test_the_end_of_one_threads_unit_keeps_the_deadline_of_anothers(dog, timer):
    """The fetching thread is done; the scoring thread's unit still has its end, in C too."""
    made, clock, left = dog
    scoring = made.watch(UNIT, "score", limit_s=10, notes=Kept())
    with scoring as watch:
        with made.watch(OTHER, "read", limit_s=10, notes=Kept()):
            clock.s += 5
        assert timer[-1] is not None
        clock.s += 5.5
        made.look([watch])
        assert left == [EXIT_SILENT]
    assert timer[-1] is None


def test_the_timer_in_c_ends_what_no_thread_can(dog, timer):
    """It is set to the earliest end and a grace, anew with every step, and taken off with the last unit."""
    made, clock, _ = dog
    with made.watch(UNIT, "score", limit_s=100, notes=Kept()) as watch:
        assert timer == [100 + GRACE_S]
        clock.s += 40
        watch.step()
        assert timer[-1] == 100 + GRACE_S
        clock.s += 10
        with made.watch(OTHER, "read", limit_s=20, notes=Kept()):
            assert timer[-1] == 20 + GRACE_S
        assert timer[-1] == 90 + GRACE_S
    assert timer[-1] is None


def test_short_steps_do_not_set_the_timer_again_and_again(dog, timer):
    """A thousand batches of a millisecond: the timer, which is a thread, is set about once a second."""
    made, clock, _ = dog
    with made.watch(UNIT, "score", limit_s=100, notes=Kept()) as watch:
        for n in range(3000):
            clock.s += 0.001
            watch.step(0, n, 3000)
    assert len(timer) <= 5


def test_a_large_image_that_goes_on_is_never_ended(dog, timer):
    """Four hundred tiles of nine tenths of the limit each: an hour and a half, and the process lives."""
    made, clock, left = dog
    with made.watch(UNIT, "score", limit_s=15, notes=Kept()) as watch:
        for n in range(400):
            clock.s += 13.5
            made.look([watch])
            watch.step(0, n + 1, 400)
    assert left == []


def test_a_step_that_is_large_may_take_longer(dog, timer):
    """The next one has the common limit again."""
    made, clock, left = dog
    with made.watch(UNIT, "decode", limit_s=10, notes=Kept()) as watch:
        watch.step(0, allow_s=50)
        clock.s += 55
        made.look([watch])
        assert left == []
        watch.step(1)
        clock.s += 11
        made.look([watch])
        assert left == [EXIT_SILENT]


def test_the_note_names_image_stage_and_limit_before_the_process_leaves(dog, timer):
    """What a dead process cannot say: it was our limit, here, at this image."""
    made, clock, left = dog
    kept = Kept()
    with made.watch(UNIT, "score", limit_s=10, notes=kept) as watch:
        watch.step(1, 3, 8)
        clock.s += 10.5
        made.look([watch])
        assert left == [EXIT_SILENT]
    (note,) = kept.notes
    assert (note.ended, note.stage, note.source, note.image) == (True, "score", 1, "s3://a/2.png")
    assert (note.done, note.of, note.limit_s, note.silent_s) == (3, 8, 10, 10.5)


def test_a_slow_unit_is_noted_while_it_goes_on_and_forgotten_when_it_is_done(dog, timer):
    """A fast one costs no put at all."""
    made, clock, _ = dog
    kept = Kept()
    with made.watch(UNIT, "score", limit_s=math.inf, notes=kept) as watch:
        clock.s += SLOW_S - 1
        watch.step(0, 10, 90)
        made.look([watch])
        assert kept.notes == []
        clock.s += 2
        made.look([watch])
        assert kept.put_one.wait(10)
        made.look([watch])
    assert [str(note).partition(", for")[0] for note in kept.notes] == ["score of s3://a/1.png, 10 of 90 tiles"]
    assert kept.removed == ["u"]
    assert timer == []


def test_notes_lie_beside_the_markers_and_belong_to_a_run(tmp_path: Path):
    """The driver of another run does not take them for its own; one that is damaged is none."""
    output = Output(Storage(), f"file://{tmp_path}")
    mine, others = StoredNotes(output, "run-1"), StoredNotes(output, "run-2")
    note = Note("u", "score", 1, "s3://a/2.png", 3, 8, 100.0, 10.0, 10.0, ended=True)
    mine.put(note)
    output.store.put(output.note("damaged"), b"{")
    output.store.put(output.attempt("marker"), b"")
    assert (mine.get("u"), others.get("u"), mine.get("damaged"), mine.get("missing")) == (note, None, None, None)
    assert (list(mine.all()), list(others.all())) == ([note], [])
    mine.remove("u")
    assert mine.get("u") is None


PROGRAM = """
import ctypes, sys, threading, time
from unet_batch.worker import watchdog
from unet_batch.worker.watchdog import of_this_process
from unet_batch.records import Source, Unit
watchdog.GRACE_S, watchdog.LOOK_EVERY_S = 1.0, 0.1
unit = Unit("u", "all", "images", (Source("s3://a/1.png", "v"),))

class Printed:
    def put(self, note): print(note.ended, note.image, flush=True)
    def remove(self, unit_id): pass

def fetch():
    with of_this_process().watch(unit, "read", limit_s=1.0, notes=Printed()):
        pass

library = ctypes.PyDLL(None) if sys.argv[1] == "with the lock" else ctypes.CDLL(None)
with of_this_process().watch(unit, "score", limit_s=1.0, notes=Printed()) as watch:
    watch.step(0)
    fetching = threading.Thread(target=fetch)
    fetching.start()
    fetching.join()
    library.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "said"), [("without the lock", EXIT_SILENT, "True s3://a/1.png\n"), ("with the lock", 1, "")]
)
def test_a_process_that_stands_still_ends_whatever_other_threads_finished_meanwhile(how, code, said):
    """In C without the interpreter's lock the note comes first; with it no thread runs, and faulthandler ends it."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=False, timeout=40)
    assert (done.returncode, done.stdout) == (code, said), done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 20
