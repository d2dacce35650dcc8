"""Status and verification: compares published rows with a new listing of the archive.

`verify` reads every key, version, page and fingerprint of the rows, with page checksums, and does not rely on what runs
recorded about themselves.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from unet_batch.archive.window import Window
from unet_batch.errors import NotFound, StorageError
from unet_batch.planning.plan import PartitionPlan
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.survey import (
    Buckets,
    archive_partitions,
    nothing_found,
    published_inside,
    survey_partition,
    twice,
    vanished,
)
from unet_batch.records import PassedOver, Source, inventory_digest
from unet_batch.table.guard import ALONE, Others
from unet_batch.table.lease import read_lease
from unet_batch.table.mask_files import problem_of, published_versions
from unet_batch.table.output import Output
from unet_batch.table.parts import RowKey, open_stream, read_parts, sound_keys
from unet_batch.table.publish import generation, read_commit

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """A partition's line in `status`."""

    partition: str
    state: str
    """published, stale, partial, missing, held (a run is working on it), damaged, or orphaned (published, but no longer
    in the archive)."""
    images: int
    """Images in the archive now."""
    rows: int
    """Published rows."""
    rejected: int
    staged: int
    """Images with a staged or reusable row that is not yet published."""
    run: str | None
    """The run that published it."""
    holder: str | None = None
    """The run that is working on it."""
    refused: str | None = None
    """Why the guard does not allow the archive's images to replace those rows."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One disagreement between published rows and archive."""

    partition: str
    kind: str
    count: int
    example: str

    def __str__(self) -> str:
        return (
            f"{self.partition}: {self.count} {self.kind}, e.g. {self.example}"
            if self.example
            else f"{self.partition}: {self.kind}"
        )


@dataclass(frozen=True, slots=True)
class Overview:
    """The result of `status` for a window."""

    partitions: list[PartitionStatus]
    passed: PassedOver
    problems: list[str]
    """What keeps a run from publishing the archive's images."""


class Proof(NamedTuple):
    """The result of `verify` for a window."""

    partitions: int
    """Number of compared partitions."""
    findings: list[Disagreement]
    """All disagreements; an empty window is one, unless the job allows it."""
    passed: PassedOver
    """Names in the archive that were passed over."""


def overview(prepared: Prepared, window: Window) -> Overview:
    """Every partition of the window, including published partitions that are no longer in the archive."""
    holdings = archive_partitions(prepared, window, keep=False)
    archive, buckets = holdings.partitions, Buckets(prepared.output, holdings.partitions)
    found = [_status(prepared, name, sources, buckets.others(name)) for name, sources in archive.items()]
    found += [
        _status(prepared, name, None, ALONE)
        for name in published_inside(prepared.output, holdings.scope)
        if name not in archive
    ]
    sentences = [
        nothing_found(prepared.job, prepared.archive, holdings),
        vanished(prepared.output, prepared.job.limits, holdings),
        twice(prepared, holdings),
    ]
    sentences += [line.refused for line in found if line.run is not None]
    problems = [sentence for sentence in sentences if sentence is not None]
    return Overview(sorted(found, key=lambda s: s.partition), holdings.passed, problems)


def status(prepared: Prepared, window: Window) -> list[PartitionStatus]:
    """The partitions of `overview`."""
    return overview(prepared, window).partitions


def verify(prepared: Prepared, window: Window) -> Proof:
    """Compare the published rows of a window with the current archive."""
    holdings = archive_partitions(prepared, window, keep=False)
    archive = holdings.partitions
    names = set(archive) | set(published_inside(prepared.output, holdings.scope))
    compared = set(archive) if prepared.job.limits.allow_removed else names
    findings = [
        f for name in sorted(compared) for f in _compare(prepared.output, prepared.fingerprint, name, archive.get(name))
    ]
    findings += _mask_files(prepared, compared)
    empty = nothing_found(prepared.job, prepared.archive, holdings)
    for sentence in (twice(prepared, holdings), empty):
        if sentence is not None:
            findings.insert(0, Disagreement("the window", sentence, 0, ""))
    return Proof(len(compared), findings + list(_foreign_files(prepared.output, names)), holdings.passed)


def _status(prepared: Prepared, partition: str, sources: Sequence[Source] | None, others: Others) -> PartitionStatus:
    try:
        if sources is None:
            published = read_commit(prepared.output, partition)
            commit = published.commit if published else None
            return PartitionStatus(
                partition=partition,
                state="orphaned",
                images=0,
                rows=commit.rows if commit else 0,
                rejected=commit.rejected if commit else 0,
                staged=0,
                run=commit.run_id if commit else None,
            )
        plan: PartitionPlan = survey_partition(prepared, partition, sources, others=others, repair=False)
    except StorageError:
        return PartitionStatus(partition, "damaged", len(sources or ()), 0, 0, 0, None)
    commit = plan.published.commit if plan.published else None
    lease = read_lease(prepared.output, partition)
    holder = str(lease) if lease is not None and lease.alive(time.time()) else None
    return PartitionStatus(
        partition=partition,
        state="held" if holder else plan.state,
        images=len(plan.sources),
        rows=commit.rows if commit else 0,
        rejected=commit.rejected if commit else 0,
        staged=0 if plan.up_to_date else plan.scored,
        run=commit.run_id if commit else None,
        holder=holder,
        refused=plan.refused,
    )


def _compare(
    output: Output, fingerprint: str, partition: str, sources: Sequence[Source] | None
) -> Iterator[Disagreement]:
    """Every disagreement of one partition."""
    if not sources and _is_published_empty(output, partition):
        return  # no image and no row
    if sources is None:
        yield Disagreement(partition, "published, but no longer in the archive", 1, "")
        return
    uri = output.published(partition)
    try:
        stream = output.store.open(uri)
    except NotFound:
        yield Disagreement(partition, f"not published; {len(sources)} images have no row", len(sources), "")
        return
    try:
        file = open_stream(stream)
        keys = sound_keys(file)
        fingerprints = set(file.read(columns=["fingerprint"]).column("fingerprint").to_pylist())
        published = read_commit(output, partition)
    except (pa.ArrowException, OSError, ValueError, KeyError, StorageError) as error:
        yield Disagreement(
            partition, f"the published object is truncated or damaged ({' '.join(str(error).split())[:200]})", 1, ""
        )
        return
    yield from _against_inventory(partition, keys, sources)
    if fingerprints - {fingerprint}:
        yield Disagreement(partition, "stale: scored by another model or other settings than this job's", len(keys), "")
    if published is not None:
        commit = published.commit
        if commit.rows != len(keys) or commit.rejected != sum(k.reason is not None for k in keys):
            yield Disagreement(
                partition,
                f"the commit record counts {commit.rows} rows ({commit.rejected} rejected), which is not what is there",
                1,
                "",
            )
        wanted = generation(commit.fingerprint, inventory_digest(sources))
        if commit.generation != wanted and not fingerprints - {fingerprint}:
            yield Disagreement(partition, "stale: the commit record has another inventory than the archive", 1, "")
    yield from _damaged_parts(output, fingerprint, partition)


def _is_published_empty(output: Output, partition: str) -> bool:
    try:
        published = read_commit(output, partition)
    except StorageError:
        return False
    return published is not None and published.commit.rows == 0


def _against_inventory(partition: str, keys: Sequence[RowKey], sources: Sequence[Source]) -> Iterator[Disagreement]:
    versions = {s.key: s.version for s in sources}
    rows = Counter((k.source_key, k.page) for k in keys)
    pages: dict[str, set[int]] = {}
    declared: dict[str, int] = {}
    for key in keys:
        pages.setdefault(key.source_key, set()).add(key.page)
        declared[key.source_key] = key.pages
    yield from _finding(partition, "images without a row", sorted(versions.keys() - pages.keys()))
    yield from _finding(partition, "rows of images that are not in the archive", sorted(pages.keys() - versions.keys()))
    yield from _finding(partition, "images with more than one row", sorted(k for (k, _), n in rows.items() if n > 1))
    yield from _finding(
        partition,
        "files with missing pages",
        sorted(k for k, found in pages.items() if found != set(range(declared[k]))),
    )
    stale = {k.source_key for k in keys if versions.get(k.source_key, k.version) != k.version}
    yield from _finding(partition, "stale rows: the image changed after it was scored", sorted(stale))


def _finding(partition: str, kind: str, keys: Sequence[str]) -> Iterator[Disagreement]:
    if keys:
        yield Disagreement(partition, kind, len(keys), ", ".join(keys[:EXAMPLES]))


def _damaged_parts(output: Output, fingerprint: str, partition: str) -> Iterator[Disagreement]:
    folder = output.parts(fingerprint, partition)
    uris = sorted(o.uri for o in output.store.list(folder) if o.uri.endswith(".part"))
    sound = {uri for uri, _ in read_parts(output.store, uris, fingerprint, repair=False)}
    yield from _finding(partition, "staged parts that are truncated or damaged", [u for u in uris if u not in sound])


def _mask_files(prepared: Prepared, names: Collection[str]) -> Iterator[Disagreement]:
    """Published objects whose mask files are not those of their rows, if the job leaves any beside the table."""
    formats = prepared.job.output.mask_files
    versions = published_versions(prepared.output) if formats else {}
    for name in sorted(versions.keys() & set(names)):
        for format_ in formats:
            problem = problem_of(prepared.output, format_, name, versions[name])
            if problem is not None:
                yield Disagreement(name, f"{problem}; run the same job again", 1, "")


def _foreign_files(output: Output, names: set[str]) -> Iterator[Disagreement]:
    """Foreign Parquet files below `predictions/`, which a reader's glob would read as rows."""
    ours = {output.published(name) for name in names}
    for found in output.store.list(output.predictions):
        folder = found.uri.rpartition("/")[0].removeprefix(output.predictions + "/")
        if found.uri.endswith(".parquet") and found.uri not in ours and folder in names:
            yield Disagreement(
                folder, "a Parquet file that no run published; readers' globs would count its rows", 1, found.uri
            )
