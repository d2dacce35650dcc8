"""Signals that stop a command: Ctrl-C, SIGTERM and SIGHUP end it in the same way; finished work is kept.

The first signal raises Stopped in the main thread, so that records are finished and leases released. A second signal
ends the process at once. Signals that were ignored at the start (nohup, background jobs) stay ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from unet_batch.errors import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_S = 1.0
"""Signals within this time after the first one do not count as a second: service managers send SIGTERM and SIGHUP."""


class Stopped(KeyboardInterrupt):
    """Raised by a signal. Its text is the signal's name."""


class _Stopping:
    """The signal handler, with the first signal."""

    def __init__(self) -> None:
        self._first: str | None = None
        self._first_s = 0.0
        self._ending = 0
        self._terminal = [fd for fd in (1, 2) if os.isatty(fd)]

    @property
    def first(self) -> str | None:
        """The name of the first signal, or None."""
        return self._first

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """A block that a first signal does not interrupt, because it only writes records."""
        self._ending += 1
        try:
            yield
        finally:
            self._ending -= 1

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if self._first is None:
            self._first, self._first_s = name, time.monotonic()
            if number == signal.SIGHUP:
                self._leave_terminal()
            if not self._ending:
                raise Stopped(name)
        elif time.monotonic() - self._first_s > SAME_S:
            with contextlib.suppress(OSError):
                os.write(2, f"second signal ({name}): ended at once; leases end by expiry\n".encode())
            os._exit(ExitCode.UNFINISHED)

    def _leave_terminal(self) -> None:
        """Redirect output to /dev/null if the terminal is gone: every write to it would fail."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for fd in self._terminal:
                os.dup2(nowhere, fd)


_installed: list[_Stopping] = []
"""The handler of this process; empty if `install` was not called."""


def install() -> None:
    """Install the handler. Call it in the main thread."""
    handler = _Stopping()
    _installed[:] = [handler]
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def stopped_by() -> str | None:
    """The name of the signal that stops this process, or None."""
    return _installed[0].first if _installed else None


def ending() -> contextlib.AbstractContextManager[None]:
    """A block that a first signal does not interrupt, to finish records and release leases."""
    return _installed[0].ending() if _installed else contextlib.nullcontext()


@contextlib.contextmanager
def children_spared() -> Iterator[None]:
    """Block stop signals in the processes started inside the block; this process gets its signals afterwards.

    `timeout`, service managers and batch systems send SIGTERM to every process of a job. Ray's processes would end
    before this process has written its record, and a process that loses its raylet ends without a message. Ray's
    processes end with this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Keep this process's handlers over a block that replaces them.

    ray.init installs handlers for SIGTERM: one in Python that exits with code 15, and one in native code that prints
    the stack. Raises Stopped if one of them was called inside the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit as error:  # from Ray's handler, after it has ended Ray's processes
        handler = before[signal.SIGTERM]
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise Stopped(signal.SIGTERM.name) from error
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
