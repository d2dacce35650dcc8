"""Tars as shards: which members are images, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from unet_batch.archive.container import Content, IndexCache, Listing, Reading, by_shard, check_readable, image_error
from unet_batch.archive.names import Globs, Tally, is_hidden, suffix_of
from unet_batch.archive.tar import Member, TarIndex, index_tar, read_members
from unet_batch.errors import Reason
from unet_batch.records import Source
from unet_batch.spec import InputSpec
from unet_batch.store.storage import OBJECT_ERRORS, Object, Storage

GAP_BYTES = 64 << 10
"""Members of a tar with a smaller gap between them are read in one request: the gap costs less than a request."""
SPAN_BYTES = 32 << 20
"""Most bytes of one such request, unless a single member is larger."""
AHEAD_BYTES = 64 << 20
"""Approximate bytes of all requests that are active or unread; at least two requests are allowed."""


def listed_tars(listing: Listing) -> dict[str, list[Source]]:
    """The images in all tars of a listing."""
    return {listing.partition: list(tar_sources(listing, listing.objects))}


def tar_sources(listing: Listing, tars: Sequence[Object]) -> Iterator[Source]:
    """The images in tars. A truncated or corrupt tar gives its intact images and one source with its problem."""
    check_readable(tars)
    members = _Members(listing.spec)
    for shard, index in listing.storage.map_bounded(
        partial(_indexed, listing.storage, tar, listing.cache) for tar in tars
    ):
        yield from members.sources(shard, index, listing.tally)


def tar_contents(reading: Reading) -> Iterator[tuple[Source, Content]]:
    """The bytes of members, tar by tar."""
    for uri, sources in by_shard(reading.sources):
        yield from _from_tar(reading.storage, uri, sources)


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


def _from_tar(storage: Storage, uri: str, sources: Sequence[Source]) -> Iterator[tuple[Source, Content]]:
    """Members with an offset, read by ranges with neighbours together; the others by reading the tar from its start."""
    spans = _spans(sources)
    largest = max((stop - start for start, stop, _ in spans), default=1)
    calls = (partial(_read_span, storage, uri, span) for span in spans)
    for span_contents in storage.map_bounded(calls, depth=min(16, max(2, AHEAD_BYTES // max(largest, 1)))):
        yield from span_contents
    streamed = {(s.member or "", s.ordinal): s for s in sources if s.offset is None}
    if not streamed:
        return
    version = next(iter(streamed.values())).version
    try:
        with storage.open(uri, version=version) as stream:
            for name, body in read_members(stream, set(streamed)):
                yield streamed.pop(name), body
    except OBJECT_ERRORS as error:
        fact = image_error(error)
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
    except OBJECT_ERRORS as error:
        fact = image_error(error)
        return [(source, fact) for source in sources]
    places = [(source, (source.offset or 0) - start) for source in sources]
    return [(source, body[at : at + source.size_bytes]) for source, at in places]
