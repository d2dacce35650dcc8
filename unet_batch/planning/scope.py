"""The partitions of a window. `last` must be resolved against a listing of the archive first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from unet_batch.archive.window import Window, parse_day, parse_window


def window_of(text: str) -> Window:
    """The window of a text; `today` and `yesterday` are UTC."""
    return parse_window(text, datetime.now(UTC).date())


@dataclass(frozen=True, slots=True)
class Scope:
    """A resolved window."""

    window: Window
    newest: frozenset[str] = frozenset()
    """For the window `last`: the partitions, without buckets, to which it was resolved."""

    def holds(self, partition: str) -> bool:
        """Whether a partition is inside. One that is not a day is inside only for `all`, or as the newest."""
        if self.window.kind == "all":
            return True
        if self.window.kind == "last":
            return without_bucket(partition) in self.newest
        day = parse_day(partition.partition("/")[0].partition("=")[2])
        return day is not None and self.window.holds(day)


EVERYTHING = Scope(Window(None, None, "all"))


def resolved(window: Window, partitions: Iterable[str]) -> Scope:
    """The scope of a window. partitions: from a listing of the window."""
    newest = frozenset(map(without_bucket, partitions)) if window.kind == "last" else frozenset()
    return Scope(window, newest)


def without_bucket(partition: str) -> str:
    """`date=2026-11-21` of `date=2026-11-21/bucket=03`."""
    return "/".join(step for step in partition.split("/") if not step.startswith("bucket="))
