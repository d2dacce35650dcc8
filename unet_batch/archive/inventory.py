"""Which images an archive's objects hold, for all shards: files, tars, Parquet, manifests; and what was passed over.

No image is read. A fault of one image or shard becomes a `problem` of its source; a fault of the store is raised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import chain, repeat
from typing import Protocol

from unet_batch.archive.discovery import UNDATED
from unet_batch.archive.manifest import BrokenManifestError, ManifestRow, read_entries, sources_of
from unet_batch.archive.names import TAR_SUFFIXES, Globs, Tally, is_hidden, suffix_of
from unet_batch.archive.parquet import IMAGE_COLUMN, row_groups
from unet_batch.archive.tar import INDEX_FORMAT, Member, TarIndex, index_tar
from unet_batch.archive.window import Window, parse_day
from unet_batch.errors import AlreadyExists, Denied, JobError, NotFound, Reason
from unet_batch.records import NOTHING_PASSED, PassedOver, Source
from unet_batch.spec import InputSpec
from unet_batch.store.storage import Object, Storage, join


@dataclass(frozen=True, slots=True)
class Inventory:
    """The images of some objects by partition, and what was passed over."""

    partitions: dict[str, list[Source]]
    passed: PassedOver = NOTHING_PASSED


class IndexCache(Protocol):
    """Keeps the indexes of shards by URI and version, so that a tar is read only once."""

    def get(self, uri: str, version: str) -> bytes | None: ...
    def put(self, uri: str, version: str, index: bytes) -> None: ...


class StoredIndex:
    """An IndexCache in a folder of a store, one small object per shard and version."""

    def __init__(self, storage: Storage, folder_uri: str) -> None:
        self._storage = storage
        self._folder = folder_uri

    def get(self, uri: str, version: str) -> bytes | None:
        try:
            return self._storage.read(self.place(uri, version))
        except NotFound:
            return None

    def put(self, uri: str, version: str, index: bytes) -> None:
        try:
            self._storage.create(self.place(uri, version), index)
        except AlreadyExists:
            return  # another run indexed the same shard

    def place(self, uri: str, version: str) -> str:
        """The URI of the index of one version of a shard."""
        return join(
            self._folder, hashlib.sha256(f"{INDEX_FORMAT}\0{uri}\0{version}".encode()).hexdigest()[:32] + ".json"
        )


def inventory(
    storage: Storage,
    spec: InputSpec,
    objects: Sequence[Object],
    *,
    partition: str = UNDATED,
    window: Window | None = None,
    cache: IndexCache | None = None,
) -> Inventory:
    """The sources of a partition's objects, sorted by URI, place in the shard (rows by number), name and ordinal.

    A tar among loose images is a shard too. The result has one partition, except for manifests with
    `spec.partition_column`: then one partition `column=value` for each value in the window (days as ISO text; other
    values only in the window `all`). A truncated or corrupt shard gives its intact images and one more source with a
    problem and no member. Raises JobError if a column is missing or has the wrong type, and every StorageError about a
    shard itself, which was just listed.
    """
    shards = [found for found in objects if spec.format != "images" or _is_tar(found.uri)]
    for found in shards:
        if found.problem is not None:
            raise Denied(f"{found.uri}: {found.problem[1]}")
    if spec.format == "manifest":
        return Inventory(_listed(storage, spec, shards, partition=partition, window=window))
    if spec.format == "parquet":
        calls = [partial(_parquet_sources, storage, spec, found) for found in shards]
        return Inventory({partition: sorted(chain.from_iterable(storage.ahead(calls)), key=_place)})
    tally, members = Tally(), _Members(spec)
    images = [_loose(found) for found in objects if spec.format == "images" and not _is_tar(found.uri)]
    for shard, index in storage.ahead(partial(_indexed, storage, shard, cache) for shard in shards):
        images += members.sources(shard, index, tally)
    return Inventory({partition: sorted(images, key=_place)}, tally.found())


def _place(source: Source) -> tuple[str, bool, int, str, int]:
    member = source.member or ""
    row = int(member) if member.isdecimal() and member.isascii() and len(member) < 19 else -1
    return source.uri, source.member is None, row, member, source.ordinal


def _is_tar(uri: str) -> bool:
    return uri.lower().endswith(TAR_SUFFIXES)


def _loose(found: Object) -> Source:
    return Source(found.uri, found.version, size_bytes=found.size_bytes, problem=found.problem)


def _indexed(storage: Storage, shard: Object, cache: IndexCache | None) -> tuple[Object, TarIndex]:
    stored = None if cache is None else cache.get(shard.uri, shard.version)
    index = None if stored is None else TarIndex.from_json(stored)
    if index is None:
        with storage.open(shard.uri, version=shard.version) as stream:
            index = index_tar(stream)
        if cache is not None:
            cache.put(shard.uri, shard.version, index.to_json())
    return shard, index


class _Members:
    """Which members of tars are images."""

    def __init__(self, spec: InputSpec) -> None:
        self._by_content = spec.members == InputSpec.model_fields["members"].default
        self._images = Globs(spec.members, members=True)
        self._exclude = Globs(spec.exclude, members=False)

    def sources(self, shard: Object, index: TarIndex, tally: Tally) -> Iterator[Source]:
        """The images of one tar, and its problem, if any; members that are passed over are counted in tally."""
        for member in index.members:
            what = self._refusal(member)
            if what is not None:
                tally.note(what, member.name)
                continue
            problem = (
                (Reason.DECODE_CORRUPT, "a hard link to a member that is not in the tar") if member.is_lost else None
            )
            yield Source(
                shard.uri,
                shard.version,
                member.name,
                member.ordinal,
                member.size_bytes,
                member.offset,
                problem=problem,
            )
        tally.add(index.others)
        if index.problem is not None:
            yield Source(shard.uri, shard.version, problem=index.problem)

    def _refusal(self, member: Member) -> str | None:
        """The kind of a member that does not count, e.g. `.txt member`; None if it counts."""
        name = member.name
        if is_hidden(name):
            return "hidden member"
        if self._exclude.match(name.removeprefix("./")):
            return "excluded member"
        if self._images.match(name) or (member.is_picture and self._by_content):
            return None
        suffix = suffix_of(name)
        return f"{suffix} member" if suffix else "unsuffixed member"


def _parquet_sources(storage: Storage, spec: InputSpec, shard: Object) -> list[Source]:
    with storage.open(shard.uri, version=shard.version) as stream:
        groups, problem = row_groups(stream, spec.column or IMAGE_COLUMN, uri=shard.uri)
    if problem is not None:
        return [Source(shard.uri, shard.version, problem=problem)]
    sizes = chain.from_iterable(repeat(group.bytes_per_row, group.rows) for group in groups)
    return [Source(shard.uri, shard.version, str(row), size_bytes=size) for row, size in enumerate(sizes)]


def _listed(
    storage: Storage, spec: InputSpec, manifests: Sequence[Object], *, partition: str, window: Window | None
) -> dict[str, list[Source]]:
    wanted: dict[str, dict[Object, list[ManifestRow]]] = {} if spec.partition_column else {partition: {}}
    broken: list[Source] = []
    for manifest in manifests:
        try:
            for entry in read_entries(storage, spec, manifest):
                name = partition if spec.partition_column is None else _partition_of(spec, manifest, entry)
                wanted.setdefault(name, {}).setdefault(manifest, []).append(entry)
        except BrokenManifestError as error:
            if spec.partition_column is not None:
                text = f"{manifest.uri} is broken ({error}), so partitions may miss rows: repair it"
                raise JobError(text) from error
            broken.append(Source(manifest.uri, manifest.version, problem=(Reason.SHARD_CORRUPT, str(error))))
    if spec.partition_column is not None and window is not None:
        kept = _in_window(list(wanted), window)
        wanted = {name: entries for name, entries in wanted.items() if name in kept}
    found: dict[str, list[Source]] = {}
    for name, of_manifest in sorted(wanted.items()):
        listed = (sources_of(storage, spec, manifest, entries) for manifest, entries in of_manifest.items())
        unique = {source.key: source for source in chain.from_iterable(listed)}
        found[name] = sorted([*unique.values(), *broken], key=_place)
    return found


def _partition_of(spec: InputSpec, manifest: Object, entry: ManifestRow) -> str:
    value = entry.partition.isoformat() if isinstance(entry.partition, date) else entry.partition
    text = str(value) if isinstance(value, str | int) else ""
    # The value becomes the name of a folder.
    if not text or not set(text) <= _FOLDER_LETTERS or text.startswith("."):
        raise JobError(
            f"{manifest.uri}, row {entry.row}: {value!r} cannot be the partition {spec.partition_column}; "
            "use letters, digits, '-', '_' and '.'"
        )
    return f"{spec.partition_column}={text}"


_FOLDER_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


def _in_window(names: Sequence[str], window: Window) -> set[str]:
    if window.kind == "all":
        return set(names)
    days = {name: day for name in names if (day := parse_day(name.partition("=")[2])) is not None}
    if window.kind == "last":
        return {max(days, key=lambda name: days[name])} if days else set()
    return {name for name, day in days.items() if window.holds(day)}
