"""The partitions that a window means: as concrete as the calendar, and the archive, make it.

`last` alone says nothing of a partition: it is resolved against a listing before anybody asks what is inside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from unet_batch.archive.window import Window, parse_day, parse_window


def window_of(text: str) -> Window:
    """A window as people write it; `today` and `yesterday` are UTC."""
    return parse_window(text, datetime.now(UTC).date())


@dataclass(frozen=True, slots=True)
class Scope:
    """A resolved window."""

    window: Window
    newest: frozenset[str] = frozenset()
    """Where the window is `last`: the partitions, without their buckets, that it was found to mean."""

    def holds(self, partition: str) -> bool:
        """Whether a partition is inside; one that is no day is inside `all` alone, or as the newest one."""
        if self.window.kind == "all":
            return True
        if self.window.kind == "last":
            return without_bucket(partition) in self.newest
        day = parse_day(partition.partition("/")[0].partition("=")[2])
        return day is not None and self.window.holds(day)


EVERYTHING = Scope(Window(None, None, "all"))


def resolved(window: Window, partitions: Iterable[str]) -> Scope:
    """The scope of a window. partitions: those that a listing of it found."""
    newest = frozenset(map(without_bucket, partitions)) if window.kind == "last" else frozenset()
    return Scope(window, newest)


def without_bucket(partition: str) -> str:
    """`date=2026-11-21` of `date=2026-11-21/bucket=03`."""
    return "/".join(step for step in partition.split("/") if not step.startswith("bucket="))
