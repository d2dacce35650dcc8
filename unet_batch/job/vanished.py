"""Removes published partitions whose images were deleted from the archive on purpose: the only way to remove rows.

A lost mount looks like deleted days. So the user names the days, sees what would go, and confirms it; and nothing goes
while the archive shows no image at all, or shows files of these days that it passes over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from unet_batch.archive.window import Window
from unet_batch.errors import Conflict, Incomplete, JobError
from unet_batch.planning.owners import job_of
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.scope import window_of, without_bucket
from unet_batch.planning.survey import archive_partitions, published_inside
from unet_batch.table.lease import read_lease
from unet_batch.table.mask_files import SUFFIXES, marker_uri
from unet_batch.table.output import Output
from unet_batch.table.publish import read_commit


@dataclass(frozen=True, slots=True)
class Vanished:
    """A published partition of which the archive holds no image."""

    partition: str
    images: int
    """Sources that its rows were made from; each may have several pages."""
    rows: int
    version: str
    """Of the published object: another one is not removed."""
    owner: str = ""
    """The other job whose rows they are: they stay."""
    holder: str = ""
    """The run that holds its lease: they stay for now."""

    @property
    def kept(self) -> str:
        """Why it stays, although it was asked for; empty if it can be removed."""
        if self.owner:
            return f"its rows are those of the job {self.owner}: give that job's file"
        return f"it is held by {self.holder}: wait for that run" if self.holder else ""

    def __str__(self) -> str:
        return f"{self.partition}: {self.rows} rows of {self.images} images"


def vanished(prepared: Prepared, window: Window) -> list[Vanished]:
    """The published partitions of some days of which the archive holds no image; those that must stay say why.

    Raises JobError if the window names no days, or if the archive passes files of these days over; Incomplete if the
    archive holds no image at all; Damaged for a published object that cannot be read.
    """
    if window.kind != "range":
        raise JobError("--vanished needs the days themselves, such as 2025-01-01..2025-03-31, or a month, 2025-01")
    holdings = archive_partitions(prepared, window, keep=False)
    there = {without_bucket(name) for name, sources in holdings.partitions.items() if len(sources)}
    lost = [name for name in published_inside(prepared.output, holdings.scope) if without_bucket(name) not in there]
    if not lost:
        return []
    if holdings.passed.total:
        raise JobError(
            f"the archive still holds files of these days ({holdings.passed}): correct the pattern, or name fewer days"
        )
    if not holdings.images and not archive_partitions(prepared, window_of("all"), keep=False).images:
        raise Incomplete("the archive holds no image at all: look for a lost mount; no rows are removed")
    return [found for name in sorted(lost) if (found := _judged(prepared, name)) is not None]


def remove(output: Output, found: Vanished) -> int:
    """Remove a partition's staged parts, mask files and rows for good; returns the number of objects.

    The rows go last and only in the version that was shown, so a call that was killed can be repeated, and rows that a
    run publishes meanwhile stay. Raises Conflict for another version, StorageError.
    """
    published = read_commit(output, found.partition)
    if published is None:
        return 0
    if published.version != found.version:
        raise Conflict(f"{found.partition} was published again meanwhile: its rows stay")
    removed = 0
    for uri in _beside(output, found):
        output.store.delete(uri)
        removed += 1
    output.store.delete(output.published(found.partition), version=found.version)
    return removed + 1


def _judged(prepared: Prepared, partition: str) -> Vanished | None:
    published = read_commit(prepared.output, partition)
    if published is None:
        return None
    commit = published.commit
    owner, lease = job_of(commit.run_id), read_lease(prepared.output, partition)
    return Vanished(
        partition,
        commit.sources,
        commit.rows,
        published.version,
        owner=owner if owner is not None and owner != prepared.job.name else "",
        holder=str(lease) if lease is not None and lease.alive(time.time()) else "",
    )


def _beside(output: Output, found: Vanished) -> Iterator[str]:
    """URIs of what belongs to the rows: parts of every model, mask files and their markers."""
    for part in output.store.list(output.staged):
        _, _, rest = part.uri.removeprefix(output.staged + "/").partition("/")
        if rest.rpartition("/")[0] == found.partition:
            yield part.uri
    for format_ in SUFFIXES:
        for mask in output.store.list(output.mask_folder(format_, found.partition)):
            yield mask.uri
        if output.store.head(marker := marker_uri(output, format_, found.partition, found.version)) is not None:
            yield marker
