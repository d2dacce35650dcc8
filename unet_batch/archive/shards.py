"""Which images an archive's objects hold, and their bytes, whatever the shards are: files, tars, Parquet, manifests.

Knows the way from objects to sources (the inventory) and from a unit's sources to bytes. Decodes nothing; what is wrong
with one image or shard becomes a problem or an ImageError in its place, what is wrong with the store is raised.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import chain, groupby
from typing import Protocol

from unet_batch.archive.discovery import SUFFIXES, UNDATED, Window, parse_day
from unet_batch.archive.manifest import BrokenManifestError, Entry, read_entries, sources_of
from unet_batch.archive.parquet import count_rows, read_cells
from unet_batch.archive.storage import FACTS, Object, Storage, join
from unet_batch.archive.tar import TarIndex, index_tar, read_members
from unet_batch.errors import (
    AlreadyExists,
    Changed,
    Denied,
    ImageError,
    JobError,
    NotFound,
    Reason,
    StorageError,
    TooLarge,
)
from unet_batch.records import Source, Unit
from unet_batch.spec import InputSpec, LimitsSpec

log = logging.getLogger(__name__)

GAP_BYTES = 64 << 10
"""Members of a tar closer than this are one request: reading the gap is cheaper than asking twice."""
SPAN_BYTES = 32 << 20
"""Most bytes of one such request, unless a single member is larger."""
AHEAD_BYTES = 64 << 20
"""Requests under way or unread hold about this much together, and two at least."""

_REASONS = {
    NotFound: Reason.READ_NOT_FOUND,
    Changed: Reason.READ_CHANGED,
    TooLarge: Reason.READ_TOO_LARGE,
    Denied: Reason.READ_DENIED,
}
_IMAGE_COLUMN = "image"

Content = bytes | ImageError


class IndexCache(Protocol):
    """Keeps the indexes of shards, by URI and version, so that a tar is walked once."""

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
        """Where the index of a version of a shard lies."""
        return join(self._folder, hashlib.sha256(f"{uri}\0{version}".encode()).hexdigest()[:32] + ".json")


# Inventory --------------------------------------------------------------------------------------------------------


def inventory(
    storage: Storage,
    spec: InputSpec,
    objects: Sequence[Object],
    *,
    partition: str = UNDATED,
    window: Window | None = None,
    cache: IndexCache | None = None,
) -> dict[str, list[Source]]:
    """The sources of a partition's objects, sorted by URI, place in the shard (rows by number), name and ordinal.

    A tar among loose images is a shard too. One partition, except for manifests with `spec.partition_column`: then
    `column=value` for each of its values that lies in the window (days as ISO text; other values only in the window
    `all`). A cut or corrupt shard gives one more source, with a problem and no member, beside the images that are
    intact. Raises JobError where a column is missing or of the wrong type, and every StorageError about a shard itself:
    it was listed a moment ago.
    """
    shards = [found for found in objects if spec.format != "images" or _is_tar(found.uri)]
    for found in shards:
        if found.problem is not None:
            raise Denied(f"{found.uri}: {found.problem[1]}")
    if spec.format == "manifest":
        return _listed(storage, spec, shards, partition=partition, window=window)
    if spec.format == "parquet":
        calls = [partial(_parquet_sources, storage, spec, found) for found in shards]
    else:
        calls = [partial(_tar_sources, storage, spec, found, cache) for found in shards]
    loose = (_loose(found) for found in objects if spec.format == "images" and not _is_tar(found.uri))
    return {partition: sorted(chain(loose, chain.from_iterable(storage.ahead(calls))), key=_place)}


def _place(source: Source) -> tuple[str, bool, int, str, int]:
    member = source.member or ""
    row = int(member) if member.isdecimal() and member.isascii() and len(member) < 19 else -1
    return source.uri, source.member is None, row, member, source.ordinal


def _is_tar(uri: str) -> bool:
    return uri.lower().endswith(SUFFIXES["webdataset"])


def _loose(found: Object) -> Source:
    return Source(found.uri, found.version, size_bytes=found.size_bytes, problem=found.problem)


def _tar_sources(storage: Storage, spec: InputSpec, shard: Object, cache: IndexCache | None) -> list[Source]:
    stored = None if cache is None else cache.get(shard.uri, shard.version)
    index = None if stored is None else TarIndex.from_json(stored)
    if index is None:
        with storage.open(shard.uri, version=shard.version) as stream:
            index = index_tar(stream)
        if cache is not None:
            cache.put(shard.uri, shard.version, index.to_json())
    globs = [pattern.lower() for pattern in spec.members]
    images = [m for m in index.members if any(fnmatch.fnmatchcase(m.name.lower(), glob) for glob in globs)]
    others = len(index.members) - len(images) + index.others
    if others:
        log.debug("%s: %d members are no images", shard.uri, others)
    sources = [Source(shard.uri, shard.version, m.name, m.ordinal, m.size_bytes, m.offset) for m in images]
    if index.problem is not None:
        sources.append(Source(shard.uri, shard.version, problem=index.problem))
    return sources


def _parquet_sources(storage: Storage, spec: InputSpec, shard: Object) -> list[Source]:
    with storage.open(shard.uri, version=shard.version) as stream:
        rows, problem = count_rows(stream, spec.column or _IMAGE_COLUMN, uri=shard.uri)
    if problem is not None:
        return [Source(shard.uri, shard.version, problem=problem)]
    return [Source(shard.uri, shard.version, str(row)) for row in range(rows)]


def _listed(
    storage: Storage, spec: InputSpec, manifests: Sequence[Object], *, partition: str, window: Window | None
) -> dict[str, list[Source]]:
    wanted: dict[str, dict[Object, list[Entry]]] = {} if spec.partition_column else {partition: {}}
    broken: list[Source] = []
    for manifest in manifests:
        try:
            for entry in read_entries(storage, spec, manifest):
                name = partition if spec.partition_column is None else _partition_of(spec, manifest, entry)
                wanted.setdefault(name, {}).setdefault(manifest, []).append(entry)
        except BrokenManifestError as error:
            if spec.partition_column is not None:
                text = f"{manifest.uri} is broken ({error}); nobody can say which partitions miss rows: repair it"
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


def _partition_of(spec: InputSpec, manifest: Object, entry: Entry) -> str:
    value = entry.partition.isoformat() if isinstance(entry.partition, date) else entry.partition
    text = str(value) if isinstance(value, str | int) else ""
    # The value becomes a folder's name, so it must be one.
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


# Reading ----------------------------------------------------------------------------------------------------------


def read_unit(storage: Storage, spec: InputSpec, unit: Unit, limits: LimitsSpec) -> Iterator[tuple[Source, Content]]:
    """Every source of a unit with its bytes, or with the reason why it has none, in the unit's order.

    Versions are pinned, sizes and promised digests checked. In memory are the requests under way, and images whose
    place in their shard comes before their place in the unit. Unavailable is raised: the unit is simply not done yet.
    """
    readers: dict[str, Callable[[str, list[Source]], Iterator[tuple[Source, Content]]]] = {
        "webdataset": partial(_from_tar, storage),
        "parquet": partial(_from_parquet, storage, spec),
    }
    refused = {source: error for source in unit.sources if (error := _refusal(source, limits)) is not None}
    open_sources = [source for source in unit.sources if source not in refused]
    arriving: Iterator[tuple[Source, Content]]
    if unit.format in readers:
        shards = groupby(open_sources, key=lambda source: source.uri)
        arriving = chain.from_iterable(readers[unit.format](uri, list(sources)) for uri, sources in shards)
    else:
        arriving = _from_objects(storage, open_sources, limits)
    early: dict[Source, Content] = dict(refused)
    for source in unit.sources:
        while source not in early:
            arrived, content = next(arriving, (source, _gone()))
            early[arrived] = _checked(arrived, content, limits)
        yield source, early.pop(source)


def _refusal(source: Source, limits: LimitsSpec) -> ImageError | None:
    if source.problem is not None:
        return ImageError(Reason(source.problem[0]), source.problem[1])
    return _too_large(source.size_bytes, limits)


def _too_large(size_bytes: int, limits: LimitsSpec) -> ImageError | None:
    if size_bytes <= limits.max_image_bytes:
        return None
    return ImageError(Reason.READ_TOO_LARGE, f"{size_bytes} bytes; limits.max_image_bytes is {limits.max_image_bytes}")


def _checked(source: Source, content: Content, limits: LimitsSpec) -> Content:
    if isinstance(content, ImageError):
        return content
    if source.sha256 is not None and hashlib.sha256(content).hexdigest() != source.sha256:
        return ImageError(Reason.READ_CHECKSUM_MISMATCH, "the bytes are not those whose SHA-256 the manifest gives")
    return _too_large(len(content), limits) or content


def _gone() -> ImageError:
    return ImageError(Reason.READ_CHANGED, "the shard does not hold this image any more; plan the run again")


def _fact(error: StorageError) -> ImageError:
    return ImageError(_REASONS[type(error)], str(error))


def _from_objects(storage: Storage, sources: Sequence[Source], limits: LimitsSpec) -> Iterator[tuple[Source, Content]]:
    requests = [(source.uri, source.version) for source in sources]
    answers = storage.read_many(requests, max_bytes=limits.max_image_bytes)
    for source, answer in zip(sources, answers, strict=True):
        yield source, _fact(answer) if isinstance(answer, StorageError) else answer


def _from_tar(storage: Storage, uri: str, sources: Sequence[Source]) -> Iterator[tuple[Source, Content]]:
    """Members with an offset by ranges, neighbours together; the others by reading the tar from its beginning."""
    spans = _spans(sources)
    largest = max((stop - start for start, stop, _ in spans), default=1)
    calls = (partial(_read_span, storage, uri, span) for span in spans)
    for span_contents in storage.ahead(calls, depth=min(16, max(2, AHEAD_BYTES // max(largest, 1)))):
        yield from span_contents
    streamed = {(s.member or "", s.ordinal): s for s in sources if s.offset is None}
    if not streamed:
        return
    version = next(iter(streamed.values())).version
    try:
        with storage.open(uri, version=version) as stream:
            for member, body in read_members(stream, set(streamed)):
                yield streamed.pop((member.name, member.ordinal)), body
    except FACTS as error:
        fact = _fact(error)
        yield from ((source, fact) for source in streamed.values())


def _spans(sources: Sequence[Source]) -> list[tuple[int, int, list[Source]]]:
    """Byte ranges [start, stop) with the members inside, in the tar's order."""
    spans: list[tuple[int, int, list[Source]]] = []
    for source in sorted((s for s in sources if s.offset is not None), key=lambda s: s.offset or 0):
        start = source.offset or 0
        stop = start + source.size_bytes
        if spans and start - spans[-1][1] < GAP_BYTES and stop - spans[-1][0] <= SPAN_BYTES:
            spans[-1] = (spans[-1][0], stop, [*spans[-1][2], source])
        else:
            spans.append((start, stop, [source]))
    return spans


def _read_span(storage: Storage, uri: str, span: tuple[int, int, list[Source]]) -> list[tuple[Source, Content]]:
    start, stop, sources = span
    try:
        body = storage.read_range(uri, start, stop, version=sources[0].version)
    except FACTS as error:
        fact = _fact(error)
        return [(source, fact) for source in sources]
    places = [(source, (source.offset or 0) - start) for source in sources]
    return [(source, body[at : at + source.size_bytes]) for source, at in places]


def _from_parquet(
    storage: Storage, spec: InputSpec, uri: str, sources: Sequence[Source]
) -> Iterator[tuple[Source, Content]]:
    by_row = {int(source.member or 0): source for source in sources}
    try:
        with storage.open(uri, version=sources[0].version) as stream:
            for row, cell in read_cells(stream, spec.column or _IMAGE_COLUMN, list(by_row), uri=uri):
                yield by_row.pop(row), cell
    except FACTS as error:
        fact = _fact(error)
        yield from ((source, fact) for source in by_row.values())
