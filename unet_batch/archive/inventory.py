"""Which images an archive's objects hold, for all shards: files, tars, Parquet, manifests; and what was passed over.

No image is read. A fault of one image or shard becomes a `problem` of its source; a fault of the store is raised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from unet_batch.archive.container import IndexCache, Listing
from unet_batch.archive.formats import CONTAINERS
from unet_batch.archive.names import Tally
from unet_batch.archive.tar import INDEX_FORMAT
from unet_batch.archive.window import UNDATED, Window
from unet_batch.errors import AlreadyExists, NotFound
from unet_batch.records import NOTHING_PASSED, PassedOver, Source
from unet_batch.spec import InputSpec
from unet_batch.store.storage import Object, Storage, join


@dataclass(frozen=True, slots=True)
class Inventory:
    """The images of some objects by partition, and what was passed over."""

    partitions: dict[str, list[Source]]
    passed: PassedOver = NOTHING_PASSED


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
    tally = Tally()
    listing = Listing(storage, spec, objects, partition, window, cache, tally)
    found = CONTAINERS[spec.format].sources(listing)
    return Inventory({name: sorted(sources, key=_place) for name, sources in found.items()}, tally.found())


def _place(source: Source) -> tuple[str, bool, int, str, int]:
    member = source.member or ""
    row = int(member) if member.isdecimal() and member.isascii() and len(member) < 19 else -1
    return source.uri, source.member is None, row, member, source.ordinal
