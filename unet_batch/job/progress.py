"""Progress of a run: a bar on a terminal, otherwise a log line every ten seconds."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


class ProgressDisplay:
    """Counts images and writes to stderr. Speed and ETA count from the first unit's start, without the time in which
    actors open sessions or wait for nodes."""

    def __init__(self, total: int, *, quiet: bool = False, clock: Callable[[], float] = time.perf_counter) -> None:
        """total: images known so far. clock: seconds."""
        self._total = total
        self._quiet = quiet
        self._clock = clock
        self._done = 0
        self._rejected = 0
        self._began: float | None = None
        """Start of the first unit, from its receipt."""
        self._shown_from = self._last_line = clock()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressDisplay:
        if not self._quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("scoring", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                console=Console(stderr=True, markup=False, emoji=False, highlight=False),
            )
            self._task = self._bar.add_task("scoring", total=self._total, figures="starting")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end at the current speed; None before the first unit has ended."""
        return (self._total - self._done) / self._speed if self._speed else None

    def advance(self, sources: int, rejected: int, extra: int, unit_s: float) -> None:
        """Count finished sources, their rejections, and their pages beyond the first.

        unit_s: seconds of work on their unit.
        """
        self._done += sources + extra
        self._total += extra
        self._rejected += rejected
        now = self._clock()
        if self._began is None:
            self._began = max(now - unit_s, self._shown_from)
        figures = f"{self._speed:.1f} images/s, {self._rejected} rejected, ETA {_duration(self.eta_s)}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, total=self._total, figures=figures)
        elif not self._quiet and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            log.info("%d of %d images, %s", self._done, self._total, figures)

    @property
    def _speed(self) -> float:
        """Images per second since the start of the first unit."""
        return 0.0 if self._began is None else self._done / max(self._clock() - self._began, 1e-9)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
