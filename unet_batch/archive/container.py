"""What a container of images is: how its images are listed, and how their bytes are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from unet_batch.archive.names import Tally
from unet_batch.archive.window import Window
from unet_batch.errors import Changed, Denied, ImageError, NotFound, Reason, StorageError, TooLarge
from unet_batch.records import Source
from unet_batch.spec import InputSpec, LimitsSpec
from unet_batch.store.storage import Object, Storage

Content = bytes | ImageError

_REASONS = {
    NotFound: Reason.READ_NOT_FOUND,
    Changed: Reason.READ_CHANGED,
    TooLarge: Reason.READ_TOO_LARGE,
    Denied: Reason.READ_DENIED,
}


class IndexCache(Protocol):
    """Keeps the indexes of shards by URI and version, so that a tar is read only once."""

    def get(self, uri: str, version: str) -> bytes | None: ...
    def put(self, uri: str, version: str, index: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of one partition, whose images are to be listed."""

    storage: Storage
    spec: InputSpec
    objects: Sequence[Object]
    partition: str
    window: Window | None
    """For containers that say themselves which partition an image belongs to; None: every partition."""
    cache: IndexCache | None
    tally: Tally
    """Counts what is passed over."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The sources of one unit, whose bytes are to be read."""

    storage: Storage
    spec: InputSpec
    limits: LimitsSpec
    sources: Sequence[Source]


@dataclass(frozen=True, slots=True)
class Container:
    """One kind of container: a row of `formats.CONTAINERS`."""

    suffixes: tuple[str, ...]
    """Suffixes of the objects that count if `input.pattern` is `**`; upper and lower case match."""
    sources: Callable[[Listing], dict[str, list[Source]]]
    """The images by partition, in any order. Raises JobError and every StorageError about a shard itself."""
    contents: Callable[[Reading], Iterator[tuple[Source, Content]]]
    """The bytes of sources, or their ImageError, in any order. Raises StorageError about the store."""
    exact_sizes: bool = True
    """Whether `Source.size_bytes` is the size of the image and not an average."""
    offsets: bool = False
    """Whether its index holds offsets of images; an image without one is read from the start of its shard."""
    images_elsewhere: bool = False
    """Whether it refers to images, so that images beside it are not its own."""


def by_shard(sources: Iterable[Source]) -> Iterator[tuple[str, list[Source]]]:
    """The sources of each shard, with its URI."""
    for uri, found in groupby(sources, key=lambda source: source.uri):
        yield uri, list(found)


def image_error(error: StorageError) -> ImageError:
    """The rejection for one of storage's OBJECT_ERRORS."""
    return ImageError(_REASONS[type(error)], str(error))


def check_readable(shards: Iterable[Object]) -> None:
    """Raises Denied if a listing found that a shard must not or cannot be read."""
    for found in shards:
        if found.problem is not None:
            raise Denied(f"{found.uri}: {found.problem[1]}")
