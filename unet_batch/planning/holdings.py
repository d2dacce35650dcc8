"""The archive's images in a window, from a listing; most of a large archive's are held in compressed columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unet_batch.archive.discovery import Search
from unet_batch.archive.inventory import StoredIndex, inventory
from unet_batch.archive.packed import PackedSources
from unet_batch.archive.window import Window
from unet_batch.planning.layout import bucket_names
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.scope import Scope, resolved
from unet_batch.records import NOTHING_PASSED, PassedOver, Source, gc_paused

HELD_IMAGES = 1_000_000
"""Images of a listing that are held as records. Those of later partitions are packed."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """The archive's images in a window, from a listing."""

    partitions: Mapping[str, Sequence[Source]]
    """Partition → its inventory, in the order of partitions. Iterate over an inventory as a whole: it may be packed."""
    passed: PassedOver
    """Names that were passed over."""
    scope: Scope
    """The window, resolved against the listing."""

    @property
    def images(self) -> int:
        return sum(len(sources) for sources in self.partitions.values())


class _ReadOnlyIndex(StoredIndex):
    """Reads the stored indexes and writes none, for commands that change nothing."""

    def put(self, uri: str, version: str, index: bytes) -> None:
        """Do nothing."""


@gc_paused()
def archive_partitions(prepared: Prepared, window: Window, *, keep: bool, held: int | None = None) -> Holdings:
    """The archive's images in a window; lists only the window's prefixes.

    keep: whether the indexes of tars are stored in the output, so that a tar is read only once. held: images that are
    not packed; None: HELD_IMAGES.
    """
    held = HELD_IMAGES if held is None else held
    spec = prepared.job.input
    cache = (StoredIndex if keep else _ReadOnlyIndex)(prepared.output.store, prepared.output.index)
    search, passed, images = Search(prepared.archive, spec, window), NOTHING_PASSED, 0
    partitions: dict[str, Sequence[Source]] = {}
    for partition, objects in search.partitions():
        found = inventory(prepared.archive, spec, objects, partition=partition, window=window, cache=cache)
        passed += found.passed
        for name, sources in found.partitions.items():
            images += len(sources)
            for bucket, some in _buckets(name, sources, prepared.job.output.buckets):
                partitions[bucket] = some if images <= held else PackedSources(some)
    return Holdings(dict(sorted(partitions.items())), search.passed + passed, resolved(window, partitions))


def _buckets(partition: str, sources: Sequence[Source], count: int) -> Iterator[tuple[str, Sequence[Source]]]:
    """The partition itself, or its buckets by a hash of the key, which is constant for an image."""
    if count == 1:
        yield partition, sources
        return
    split: list[list[Source]] = [[] for _ in range(count)]
    for source in sources:
        split[int.from_bytes(hashlib.sha256(source.key.encode()).digest()[:8], "big") % count].append(source)
    yield from zip(bucket_names(partition, count), split, strict=True)
