"""Signals that stop a command: Ctrl-C, SIGTERM and SIGHUP end it alike, with what is finished kept.

The first signal raises Stopped in the main thread, so that records are ended and leases are given back. A second one
ends the process at once. Signals that the process was started to ignore (nohup, background jobs) stay ignored.
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
"""Signals that follow the first one within this time are the same wish: service managers send SIGTERM and SIGHUP."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop. Its text is the signal's name."""


class _Stopping:
    """The handler of the signals, and which one came first."""

    def __init__(self) -> None:
        self._first: str | None = None
        self._first_s = 0.0
        self._ending = 0
        self._terminal = [fd for fd in (1, 2) if os.isatty(fd)]

    @property
    def first(self) -> str | None:
        """The name of the signal that came first; None before any."""
        return self._first

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """A block that a first signal does not interrupt, because it only writes down what was done."""
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
                os.write(2, f"{name} came second: left at once; leases end by their expiry\n".encode())
            os._exit(ExitCode.UNFINISHED)

    def _leave_terminal(self) -> None:
        """Write nowhere instead of to a terminal that is gone: every write there would fail."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for fd in self._terminal:
                os.dup2(nowhere, fd)


_installed: list[_Stopping] = []
"""The handler of this process; empty where a library user has own handlers."""


def install() -> None:
    """Take the signals of this process. Call it in the main thread."""
    handler = _Stopping()
    _installed[:] = [handler]
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def stopped_by() -> str | None:
    """The name of the signal that asked this process to stop; None where none came, or nothing was installed."""
    return _installed[0].first if _installed else None


def ending() -> contextlib.AbstractContextManager[None]:
    """A block that a first signal does not interrupt: it ends records and gives back leases."""
    return _installed[0].ending() if _installed else contextlib.nullcontext()


@contextlib.contextmanager
def children_spared() -> Iterator[None]:
    """Processes that are started inside the block never see a signal that asks to stop; this one sees it afterwards.

    `timeout`, service managers and batch systems send SIGTERM to every process of a job at once. Ray's own processes
    would be gone before this one has written down what was done, and would take it along: a process that loses its
    raylet leaves without a word. They end with this process, and when it tells them to.
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

    ray.init sets handlers of its own for SIGTERM: one in Python that leaves with exit code 15, and one in native code
    that dumps its stack. Raises Stopped where one of them was called inside the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    except SystemExit as error:  # of Ray's handler, which has ended the processes that it had started by then
        handler = before[signal.SIGTERM]
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise Stopped(signal.SIGTERM.name) from error
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
