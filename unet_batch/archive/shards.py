"""The bytes of a unit's sources, for all shards: files, tars, Parquet, manifests.

Nothing is decoded. A fault of one image or shard becomes an ImageError in place of its bytes; a fault of the store is
raised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby

from unet_batch.archive.parquet import IMAGE_COLUMN, read_cells
from unet_batch.archive.tar import read_members
from unet_batch.errors import Changed, Denied, ImageError, NotFound, Reason, StorageError, TooLarge
from unet_batch.records import Source, Unit
from unet_batch.spec import InputSpec, LimitsSpec
from unet_batch.store.storage import FACTS, Storage

GAP_BYTES = 64 << 10
"""Members of a tar with a smaller gap between them are read in one request: the gap costs less than a request."""
SPAN_BYTES = 32 << 20
"""Most bytes of one such request, unless a single member is larger."""
AHEAD_BYTES = 64 << 20
"""Approximate bytes of all requests that are active or unread; at least two requests are allowed."""

_REASONS = {
    NotFound: Reason.READ_NOT_FOUND,
    Changed: Reason.READ_CHANGED,
    TooLarge: Reason.READ_TOO_LARGE,
    Denied: Reason.READ_DENIED,
}

Content = bytes | ImageError


def read_unit(storage: Storage, spec: InputSpec, unit: Unit, limits: LimitsSpec) -> Iterator[tuple[Source, Content]]:
    """Every source of a unit with its bytes or its ImageError, in the unit's order.

    Versions are pinned; sizes and digests from manifests are checked. Memory holds the active requests, and images that
    come earlier in their shard than in the unit. Unavailable is raised: the unit stays open.
    """
    readers: dict[str, Callable[[str, list[Source]], Iterator[tuple[Source, Content]]]] = {
        "webdataset": partial(_from_tar, storage),
        "parquet": partial(_from_parquet, storage, spec),
    }
    known = unit.format != "parquet"  # sizes of Parquet rows are averages
    refused = {source: error for source in unit.sources if (error := _refusal(source, limits, known=known)) is not None}
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


def _refusal(source: Source, limits: LimitsSpec, *, known: bool) -> ImageError | None:
    if source.problem is not None:
        return ImageError(Reason(source.problem[0]), source.problem[1])
    return _too_large(source.size_bytes, limits) if known else None


def _too_large(size_bytes: int, limits: LimitsSpec) -> ImageError | None:
    if size_bytes <= limits.max_image_bytes:
        return None
    return ImageError(Reason.READ_TOO_LARGE, f"{size_bytes} bytes; limits.max_image_bytes is {limits.max_image_bytes}")


def _checked(source: Source, content: Content, limits: LimitsSpec) -> Content:
    if isinstance(content, ImageError):
        return content
    if source.sha256 is not None and hashlib.sha256(content).hexdigest() != source.sha256:
        return ImageError(Reason.READ_CHECKSUM_MISMATCH, "the bytes do not have the SHA-256 of the manifest")
    return _too_large(len(content), limits) or content


def _gone() -> ImageError:
    return ImageError(Reason.READ_CHANGED, "the shard no longer holds this image: run the job again")


def _image_error(error: StorageError) -> ImageError:
    return ImageError(_REASONS[type(error)], str(error))


def _from_objects(storage: Storage, sources: Sequence[Source], limits: LimitsSpec) -> Iterator[tuple[Source, Content]]:
    requests = [(source.uri, source.stored_version) for source in sources]
    answers = storage.read_many(requests, max_bytes=limits.max_image_bytes)
    for source, answer in zip(sources, answers, strict=True):
        yield source, _image_error(answer) if isinstance(answer, StorageError) else answer


def _from_tar(storage: Storage, uri: str, sources: Sequence[Source]) -> Iterator[tuple[Source, Content]]:
    """Members with an offset, read by ranges with neighbours together; the others by reading the tar from its start."""
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
            for name, body in read_members(stream, set(streamed)):
                yield streamed.pop(name), body
    except FACTS as error:
        fact = _image_error(error)
        yield from ((source, fact) for source in streamed.values())


def _spans(sources: Sequence[Source]) -> list[tuple[int, int, list[Source]]]:
    """Byte ranges [start, stop) with their members, in the tar's order."""
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
        fact = _image_error(error)
        return [(source, fact) for source in sources]
    places = [(source, (source.offset or 0) - start) for source in sources]
    return [(source, body[at : at + source.size_bytes]) for source, at in places]


def _from_parquet(
    storage: Storage, spec: InputSpec, uri: str, sources: Sequence[Source]
) -> Iterator[tuple[Source, Content]]:
    by_row = {int(source.member or 0): source for source in sources}
    try:
        with storage.open(uri, version=sources[0].version) as stream:
            for row, cell in read_cells(stream, spec.column or IMAGE_COLUMN, list(by_row), uri=uri):
                yield by_row.pop(row), cell
    except FACTS as error:
        fact = _image_error(error)
        yield from ((source, fact) for source in by_row.values())
