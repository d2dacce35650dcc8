"""Loose images: one object is one image."""

from __future__ import annotations

from collections.abc import Iterator

from unet_batch.archive.container import Content, Listing, Reading, image_error
from unet_batch.archive.names import TAR_SUFFIXES
from unet_batch.archive.tar_shards import tar_sources
from unet_batch.errors import StorageError
from unet_batch.records import Source
from unet_batch.store.storage import Object


def loose_sources(listing: Listing) -> dict[str, list[Source]]:
    """Every object, and the members of the tars among them."""
    tars = [found for found in listing.objects if _is_tar(found)]
    images = [
        Source(found.uri, found.version, size_bytes=found.size_bytes, problem=found.problem)
        for found in listing.objects
        if not _is_tar(found)
    ]
    return {listing.partition: [*images, *tar_sources(listing, tars)]}


def object_contents(reading: Reading) -> Iterator[tuple[Source, Content]]:
    """Whole objects, several at a time."""
    requests = [(source.uri, source.stored_version) for source in reading.sources]
    answers = reading.storage.read_many(requests, max_bytes=reading.limits.max_image_bytes)
    for source, answer in zip(reading.sources, answers, strict=True):
        yield source, image_error(answer) if isinstance(answer, StorageError) else answer


def _is_tar(found: Object) -> bool:
    return found.uri.lower().endswith(TAR_SUFFIXES)
