"""Removes leftovers of runs: staged parts with published rows, dead leases, old markers, indexes of deleted tars, mask
files of partitions that are gone, and temporary files of killed puts on local disks.

Never removes published rows, or a part with rows that are not published yet; `vanished.py` does, on request.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unet_batch.archive.inventory import StoredIndex
from unet_batch.archive.window import Window
from unet_batch.errors import Conflict, StorageError
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.survey import archive_partitions, published_partitions
from unet_batch.records import Source
from unet_batch.table.lease import read_lease
from unet_batch.table.mask_files import SUFFIXES, marker_uri, published_versions
from unet_batch.table.output import Output
from unet_batch.table.parts import read_parts
from unet_batch.table.publish import Published, published_keys, read_commit
from unet_batch.table.rowset import choose


@dataclass(frozen=True, slots=True)
class Leftover:
    """One object to remove."""

    uri: str
    kind: str
    """`part`, `lease`, `attempt`, `probe`, `index`, `marker`, `mask` or `put`."""
    size_bytes: int
    version: str | None = None
    """The version to remove, if another version may belong to another run."""


def sweep(prepared: Prepared, window: Window, *, keep_other_models: bool, dry_run: bool) -> list[Leftover]:
    """Remove leftovers; returns the removed objects, or with dry_run those to remove.

    Parts stay if their partition is outside the window, or has no image in the archive now: they may be needed.
    keep_other_models: keep the parts of other fingerprints than the published one, for a rollback without a GPU.
    """
    inventory = archive_partitions(prepared, window, keep=False).partitions
    found = [
        *_parts(prepared.output, prepared.fingerprint, inventory, keep_other_models=keep_other_models),
        *_leases(prepared.output),
        *_markers(prepared.output),
    ]
    if window.kind == "all" and any(inventory.values()):
        found += _indexes(prepared.output, inventory)
        found += _mask_files(prepared.output)
    if not dry_run:
        found = [leftover for leftover in found if _is_removed(prepared.output, leftover)]
    return [*found, *_puts(prepared.output, dry_run=dry_run)]


def _is_removed(output: Output, leftover: Leftover) -> bool:
    try:
        output.store.delete(leftover.uri, version=leftover.version)
    except Conflict:
        return False  # a run has taken the lease meanwhile
    return True


def _parts(
    output: Output, fingerprint: str, inventory: Mapping[str, Sequence[Source]], *, keep_other_models: bool
) -> Iterator[Leftover]:
    """Parts of partitions without a lease whose rows are all published or belong to another model."""
    root = output.staged + "/"
    by_partition: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for part in output.store.list(output.staged):
        digits, _, rest = part.uri.removeprefix(root).partition("/")
        partition, _, name = rest.rpartition("/")
        if part.uri.startswith(root) and name.endswith(".part"):
            by_partition.setdefault((partition, digits), []).append((part.uri, part.size_bytes))
    seen = set(published_partitions(output))
    for (partition, digits), parts in sorted(by_partition.items()):
        if partition not in seen or not inventory.get(partition) or _is_held(output, partition):
            continue
        try:
            published = read_commit(output, partition)
        except StorageError:
            continue
        if published is None:
            continue
        if published.commit.fingerprint[:32] == digits:
            yield from _covered(output, published, parts, inventory[partition])
        elif not keep_other_models and digits != fingerprint[:32]:
            yield from (Leftover(uri, "part", size) for uri, size in parts)


def _covered(
    output: Output, published: Published, parts: list[tuple[str, int]], sources: Sequence[Source]
) -> Iterator[Leftover]:
    """Parts without any row that the next publication could need."""
    commit, sizes = published.commit, dict(parts)
    versions = {source.key: source.version for source in sources}
    visible = published_keys(output, commit.partition)
    for uri, keys in read_parts(output.store, sorted(sizes), commit.fingerprint, repair=False):
        if not any(winner.container for winner in choose((visible, keys), versions).values()):
            yield Leftover(uri, "part", sizes[uri])


def _leases(output: Output) -> Iterator[Leftover]:
    root = output.leases + "/"
    for found in output.store.list(output.leases):
        partition = found.uri.removeprefix(root).removesuffix(".json")
        if found.uri.startswith(root) and not _is_held(output, partition):
            yield Leftover(found.uri, "lease", found.size_bytes, found.version)


def _markers(output: Output) -> Iterator[Leftover]:
    """Start markers of unfinished units in partitions without a lease, and objects of killed probes."""
    if not any(_is_held(output, partition) for partition in _leased(output)):
        for found in output.store.list(output.attempts):
            yield Leftover(found.uri, "attempt", found.size_bytes)
        for found in output.store.list(output.scratch):
            yield Leftover(found.uri, "probe", found.size_bytes)


def _indexes(output: Output, inventory: Mapping[str, Sequence[Source]]) -> Iterator[Leftover]:
    """Indexes of tars that were replaced or deleted. inventory: of the whole archive."""
    kept = StoredIndex(output.store, output.index)
    shards = {
        (source.uri, source.version)
        for sources in inventory.values()
        for source in sources
        if source.member or source.problem
    }
    needed = {kept.place(uri, version) for uri, version in shards}
    for found in output.store.list(output.index):
        if found.uri not in needed:
            yield Leftover(found.uri, "index", found.size_bytes)


def _mask_files(output: Output) -> Iterator[Leftover]:
    """Mask files of partitions that are no longer published, and markers of rows that were replaced."""
    versions = published_versions(output)
    if not versions:
        return
    for format_ in SUFFIXES:
        markers = {marker_uri(output, format_, name, version) for name, version in versions.items()}
        for found in output.store.list(output.mask_markers(format_)):
            if found.uri not in markers:
                yield Leftover(found.uri, "marker", found.size_bytes)
        root = f"{output.masks}/{format_}"
        for found in output.store.list(root):
            steps = found.uri.removeprefix(root + "/").split("/")
            if not any("/".join(steps[:count]) in versions for count in range(1, len(steps))):
                yield Leftover(found.uri, "mask", found.size_bytes)


def _puts(output: Output, *, dry_run: bool) -> Iterator[Leftover]:
    """Temporary files of killed puts in all folders of the output; those of active puts stay."""
    for folder in (output.predictions, output.work, output.masks):
        for found in output.store.leftovers(folder, remove=not dry_run):
            yield Leftover(found.uri, "put", found.size_bytes)


def _leased(output: Output) -> list[str]:
    root = output.leases + "/"
    return [o.uri.removeprefix(root).removesuffix(".json") for o in output.store.list(output.leases)]


def _is_held(output: Output, partition: str) -> bool:
    lease = read_lease(output, partition)
    return lease is not None and lease.alive(time.time())
