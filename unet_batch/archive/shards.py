"""The bytes of a unit's sources, for all shards: files, tars, Parquet, manifests.

Nothing is decoded. A fault of one image or shard becomes an ImageError in place of its bytes; a fault of the store is
raised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from unet_batch.archive.container import Container, Content, Reading
from unet_batch.archive.formats import CONTAINERS
from unet_batch.errors import ImageError, Reason
from unet_batch.records import Source, Unit
from unet_batch.spec import InputSpec, LimitsSpec
from unet_batch.store.storage import Storage


def read_unit(storage: Storage, spec: InputSpec, unit: Unit, limits: LimitsSpec) -> Iterator[tuple[Source, Content]]:
    """Every source of a unit with its bytes or its ImageError, in the unit's order.

    Versions are pinned; sizes and digests from manifests are checked. Memory holds the active requests, and images that
    come earlier in their shard than in the unit. Unavailable is raised: the unit stays open.
    """
    container = CONTAINERS[unit.format]
    refused = {source: error for source in unit.sources if (error := _refusal(source, container, limits)) is not None}
    open_sources = [source for source in unit.sources if source not in refused]
    arriving = container.contents(Reading(storage, spec, limits, open_sources))
    early: dict[Source, Content] = dict(refused)
    for source in unit.sources:
        while source not in early:
            arrived, content = next(arriving, (source, _gone()))
            early[arrived] = _checked(arrived, content, limits)
        yield source, early.pop(source)


def _refusal(source: Source, container: Container, limits: LimitsSpec) -> ImageError | None:
    if source.problem is not None:
        return ImageError(Reason(source.problem[0]), source.problem[1])
    return _too_large(source.size_bytes, limits) if container.exact_sizes else None


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
