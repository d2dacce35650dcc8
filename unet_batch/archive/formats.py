"""The one table of containers. A new one is a row here, its name in `spec.ShardFormat`, and a module of its own."""

from __future__ import annotations

from collections.abc import Mapping

from unet_batch.archive.container import Container
from unet_batch.archive.loose import loose_sources, object_contents
from unet_batch.archive.manifest import listed_images
from unet_batch.archive.names import TAR_SUFFIXES
from unet_batch.archive.parquet import parquet_contents, parquet_sources
from unet_batch.archive.tar_shards import listed_tars, tar_contents
from unet_batch.records import Source
from unet_batch.spec import ShardFormat

CONTAINERS: Mapping[ShardFormat, Container] = {
    "images": Container(("",), loose_sources, object_contents),
    "webdataset": Container(TAR_SUFFIXES, listed_tars, tar_contents, offsets=True),
    "parquet": Container((".parquet",), parquet_sources, parquet_contents, exact_sizes=False),
    "manifest": Container(
        (".csv", ".jsonl", ".ndjson", ".parquet"), listed_images, object_contents, images_elsewhere=True
    ),
}


def format_of(source: Source, archive: ShardFormat) -> ShardFormat:
    """The container that a source of an archive is read from: a tar among loose images is read as a tar."""
    return "webdataset" if archive == "images" and source.member is not None else archive
