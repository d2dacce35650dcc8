"""The layout of a table: the names of buckets, and published objects of another layout than the job's.

A job whose layout changed (another `output.buckets`, a date in `input.uri`) publishes beside its old objects, and every
reader that globs `predictions/**/data.parquet` would count the images twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from unet_batch.archive.window import UNDATED, parse_day
from unet_batch.errors import StorageError
from unet_batch.planning.scope import without_bucket
from unet_batch.records import Source
from unet_batch.spec import JobSpec
from unet_batch.table.output import Output
from unet_batch.table.publish import published_keys


def bucket_names(partition: str, count: int) -> list[str]:
    """The names under which a partition is published: its own, or those of its buckets."""
    width = len(str(count - 1))
    return [partition] if count == 1 else [f"{partition}/bucket={number:0{width}}" for number in range(count)]


def doubled(
    output: Output, job: JobSpec, partitions: Mapping[str, Sequence[Source]], published: Iterable[str]
) -> str | None:
    """A sentence about published objects of another layout that hold images of these partitions; None without any.

    partitions: inventory of a window. published: names of all published objects. The keys of an object of another
    layout are read, unless its partition is one of these.
    """
    strange = [name for name in published if not _is_of(job, name)]
    if not strange:
        return None
    groups = {without_bucket(name) for name in partitions}
    found = [name for name in strange if without_bucket(name) in groups]
    for name in strange if not found else ():
        keys = set(_keys(output, name))
        if any(source.key in keys for sources in partitions.values() for source in sources):
            found.append(name)
    if not found:
        return None
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{output.published(found[0])}{more} is of another layout than this job's (a date in input.uri, "
        "input.partition_column, output.buckets) and holds images of this window, so readers would count them twice: "
        "move it away, or write another output.uri"
    )


def _is_of(job: JobSpec, name: str) -> bool:
    """Whether the job publishes under such a name."""
    group = without_bucket(name)
    if job.input.partition_column is not None:
        fits = group.startswith(f"{job.input.partition_column}=")
    elif "{" in job.input.uri:
        fits = group.startswith("date=") and parse_day(group.removeprefix("date=")) is not None
    else:
        fits = group == UNDATED
    return fits and name in bucket_names(group, job.output.buckets)


def _keys(output: Output, name: str) -> Iterator[str]:
    """Source keys of a published object; none if it cannot be read, which a run of its own job reports."""
    try:
        yield from (key.source_key for key in published_keys(output, name))
    except (pa.ArrowException, OSError, ValueError, StorageError):
        return
