"""What a person sees while a run goes on: a live bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class ProgressDisplay:
    """Counts images; draws on stderr."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._total = total
        self._quiet = quiet
        self._done = 0
        self._rejected = 0
        self._started = time.perf_counter()
        self._last_line = self._started
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressDisplay:
        if not self._quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("scoring"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]} images/s, {task.fields[rejected]} rejected,"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("scoring", total=self._total, speed="–", rejected=0)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, sources: int, rejected: int, extra: int) -> None:
        """Count finished sources, their rejections, and pages beyond the first that were found in them."""
        self._done += sources + extra
        self._total += extra
        self._rejected += rejected
        now = time.perf_counter()
        speed = self._done / max(now - self._started, 1e-9)
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=self._done, total=self._total, speed=f"{speed:.1f}", rejected=self._rejected
            )
        elif not self._quiet and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            eta_s = (self._total - self._done) / max(speed, 1e-9)
            print(  # noqa: T201 - people read stderr
                f"{self._done} of {self._total} images, {speed:.1f} images/s, {self._rejected} rejected, "
                f"ETA {eta_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )
