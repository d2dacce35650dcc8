"""The image of a row, read from the archive at its scored version, and the row's masks as arrays.

An image that cannot be read is replaced by a sentence, so that one deleted image does not stop the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.archive.formats import CONTAINERS, format_of
from unet_batch.archive.inventory import StoredIndex, inventory
from unet_batch.archive.shards import read_unit
from unet_batch.contract import ModelInput, ModelOutput
from unet_batch.decode.decode import decode
from unet_batch.errors import ImageError, ShapeMismatch, StorageError
from unet_batch.imaging.masks import unrle
from unet_batch.planning.prepare import Prepared
from unet_batch.records import Source, Unit
from unet_batch.store.storage import Object
from unet_batch.table.parts import source_key_of

Row = Mapping[str, Any]
"""Columns of one image by name."""


@dataclass(frozen=True, slots=True)
class NoPicture:
    """Why the image of a row cannot be read."""

    why: str
    may_pass: bool = False
    """Whether another try may succeed later."""


def originals(prepared: Prepared, rows: Sequence[tuple[str, Row]]) -> Iterator[tuple[int, NDArray[Any] | NoPicture]]:
    """The decoded image of each row with the row's index in `rows`, in the fastest order of reading.

    rows: (partition, row with image_key, uri, member, page and source_version). The pages of one source are read once.
    Images are (H, W, C) in the contract's channels and orientation, whole and in their own dtype.
    """
    indexed: dict[tuple[str, str], dict[str, Source] | str] = {}
    by_unit: dict[tuple[str, str], dict[Source, list[int]]] = {}
    for number, (partition, row) in enumerate(rows):
        source = _source(prepared, row, indexed)
        if isinstance(source, str):
            yield number, NoPicture(source)
            continue
        shard = row["uri"] if source.member is not None else ""
        by_unit.setdefault((partition, shard), {}).setdefault(source, []).append(number)
    for (partition, _), sources in by_unit.items():
        container = format_of(next(iter(sources)), prepared.job.input.format)
        unit = Unit("", partition, container, tuple(sources))
        waiting = dict(sources)
        try:
            for source, content in read_unit(prepared.archive, prepared.job.input, unit, prepared.job.limits):
                for number in waiting.pop(source):
                    yield number, _page(prepared, rows[number][1], content)
        except StorageError as error:
            for rest in waiting.values():
                missing = NoPicture(f"cannot be read now: {error}", may_pass=True)
                yield from ((number, missing) for number in rest)


def masks_of(prepared: Prepared, row: Row) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Id and mask (H, W) of every class: from its runs, else from the PNG; none if the row holds only areas.

    row: with classes and mask. Raises ShapeMismatch if the row's value is not a mask.
    """
    classes = [area for area in row["classes"] or [] if area["area_px"] is not None]  # a classifier's have no area
    if all(area["rle"] is not None for area in classes):
        for area in classes:
            height, width = area["rle"]["size"]
            yield area["id"], unrle(area["rle"]["counts"], (height, width))
        return
    png = (row["mask"] or {}).get("bytes")
    if png is None:
        return
    gray = ModelInput(color="gray", channels=1, fit="none")
    page = next(decode(png, gray, prepared.job.limits))
    if isinstance(page.content, ImageError):
        raise ShapeMismatch(f"its PNG of labels is damaged ({page.content.message})")
    for area in classes:
        yield area["id"], page.content[..., 0] == area["id"] + label_shift(prepared.model.contract.output)


def label_shift(output: ModelOutput) -> int:
    """What is added to a class id in label maps, as `reduce` writes them: 1 for classes that may overlap, else 0."""
    return 1 if output.multi_label and len(output.classes) > 1 else 0


def _page(prepared: Prepared, row: Row, content: bytes | ImageError) -> NDArray[Any] | NoPicture:
    if isinstance(content, ImageError):
        return NoPicture(_sentence(content))
    # The contract's channels and orientation, but the whole image, without `fit`.
    whole = prepared.model.contract.input.model_copy(update={"fit": "none", "reduced_jpeg": False})
    page = next(decode(content, whole, prepared.job.limits, page=row["page"]), None)
    if page is None:
        return NoPicture("its file has fewer pages now")
    return NoPicture(_sentence(page.content)) if isinstance(page.content, ImageError) else page.content


def _sentence(error: ImageError) -> str:
    return f"can no longer be shown: {error.message} ({error.reason})"


def _source(prepared: Prepared, row: Row, indexed: dict[tuple[str, str], dict[str, Source] | str]) -> Source | str:
    """The source of a row. Members of tars are found in the run's stored index, so no tar is read from its start.

    indexed: cache of earlier look-ups.
    """
    plain = Source(row["uri"], row["source_version"], row["member"])
    if row["member"] is None or not CONTAINERS[format_of(plain, prepared.job.input.format)].offsets:
        return plain
    shard = (row["uri"], row["source_version"])
    if shard not in indexed:
        cache = StoredIndex(prepared.output.store, prepared.output.index)
        try:
            found = inventory(prepared.archive, prepared.job.input, [Object(shard[0], 0, shard[1])], cache=cache)
            indexed[shard] = {source.key: source for sources in found.partitions.values() for source in sources}
        except StorageError as error:
            indexed[shard] = f"can no longer be shown: {error}"
    members = indexed[shard]
    if isinstance(members, str):
        return members
    return members.get(source_key_of(row["image_key"], row["page"])) or "its tar no longer holds it"
