"""The last published nights beside those of a run: counts from the footers of their objects, without their rows."""

from __future__ import annotations

from dataclasses import dataclass

from unet_batch.errors import StorageError
from unet_batch.planning.scope import without_bucket
from unet_batch.planning.survey import published_partitions
from unet_batch.table.output import Output
from unet_batch.table.publish import Published, read_commit
from unet_batch.table.rows import partition_values
from unet_batch.table.tally import median_confidence

NIGHTS = 14
"""Two weeks: each weekday twice."""
FEWEST = 2
"""Nights that make a trend."""


@dataclass(frozen=True, slots=True)
class Night:
    """One published partition."""

    partition: str
    rows: int
    rejected: float
    """Share of the rows."""
    empty: float | None
    """Share of the images with a prediction; None if the object has no tally, or no such image."""
    confidence: float | None
    """Median, to a sixteenth of a decade of doubt; None without confidences."""
    same: bool
    """Whether its rows are of the run's fingerprint."""


def trend(output: Output, last: str, fingerprint: str) -> tuple[Night, ...]:
    """At most NIGHTS published nights up to a partition, the oldest first; empty for fewer than FEWEST.

    last: the newest partition of a run; partitions with the same columns beside the day are its nights. Whatever cannot
    be read is left out. Raises StorageError only if the output cannot be listed.
    """
    if "date" not in partition_values(last) or without_bucket(last) != last:
        return ()
    rest = _rest(last)
    names = sorted(
        n
        for n in published_partitions(output)
        if _rest(n) == rest and n <= last and "date=" in n and without_bucket(n) == n
    )
    found = []
    for name in names[-NIGHTS:]:
        try:
            published = read_commit(output, name)
        except StorageError:
            continue
        if published is not None and published.commit.rows:
            found.append(_night(name, published, fingerprint))
    return tuple(found) if len(found) >= FEWEST else ()


def _night(name: str, published: Published, fingerprint: str) -> Night:
    commit, tally = published.commit, published.tally
    return Night(
        partition=name,
        rows=commit.rows,
        rejected=commit.rejected / commit.rows,
        empty=tally.empty / tally.ok if tally is not None and tally.ok else None,
        confidence=median_confidence(tally.confidence) if tally is not None and tally.confidence else None,
        same=commit.fingerprint == fingerprint,
    )


def _rest(name: str) -> dict[str, str]:
    """The columns of a partition beside its day."""
    return {column: value for column, value in partition_values(name).items() if column != "date"}
