"""Thumbnails of scored images with the borders of their masks: pinned versions from the archive, masks from their rows.

Knows where a row's image lies and how it is decoded for a look; a picture that cannot be had becomes a sentence in its
place, because a page about a run must not fail on one image that was deleted since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unet_batch.archive.formats import CONTAINERS, format_of
from unet_batch.archive.inventory import StoredIndex, inventory
from unet_batch.archive.shards import read_unit
from unet_batch.contract import ModelInput
from unet_batch.decode.decode import decode
from unet_batch.errors import ImageError, ShapeMismatch, StorageError
from unet_batch.imaging.encode import encode_jpeg
from unet_batch.imaging.masks import unrle
from unet_batch.imaging.overlay import Color, displayed, thumbnail
from unet_batch.planning.prepare import Prepared
from unet_batch.records import Source, Unit
from unet_batch.review.census import Candidate, rows_at
from unet_batch.store.storage import Object
from unet_batch.table.parts import open_stream, source_key_of

THUMBNAIL_PX = 384
"""Longer side: half as much again as a page shows, for dense screens; a grainy picture has 60 kB then."""
MOST_PICTURES = 60
"""Of each kind: 120 grainy ones are a page of 10 MB, which still opens at once."""
MOST_PIXELS = 400_000_000
"""Decoded for one page: about half a minute, and a few hundred megabytes at a time at most."""
COLORS: tuple[Color, ...] = (
    (255, 196, 0), (86, 180, 233), (0, 190, 140), (240, 110, 60), (214, 140, 190), (130, 120, 240), (180, 210, 60),
)  # fmt: skip
"""Of classes by their id, after Okabe and Ito's set for people who do not see all colours; from the eighth on again."""
ROW_COLUMNS = [
    "image_key", "uri", "member", "page", "source_version", "height", "width", "classes", "mask", "confidence"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as a page shows it, or why it does not."""

    candidate: Candidate
    jpeg: bytes | None
    height: int
    """Of the source picture."""
    width: int
    classes: tuple[tuple[int, str, float], ...]
    """Id, name and area fraction of what was found in it."""
    stretched: bool = False
    """Whether contrast was stretched for display."""
    note: str = ""
    """Why there is no picture, or why it has no outlines."""


def color_of(id_: int) -> Color:
    """The colour of a class, the same on every page."""
    return COLORS[(max(id_, 1) - 1) % len(COLORS)]


def draw(prepared: Prepared, candidates: Sequence[Candidate]) -> tuple[Picture, ...]:
    """A picture of every image, in their order. Only what says that a store or a job is wrong as a whole is raised."""
    rows = dict(_rows(prepared, candidates))
    found: dict[Candidate, Picture] = {}
    for candidate, note in _without_row(candidates, rows):
        found[candidate] = Picture(candidate, None, 0, 0, (), note=note)
    left = MOST_PIXELS
    wanted: list[Candidate] = []
    for candidate, row in rows.items():
        left -= row["height"] * row["width"]
        if left < 0:
            found[candidate] = _picture(candidate, row, note="not drawn: the pictures of this page are large enough")
        else:
            wanted.append(candidate)
    for candidate, content in _contents(prepared, [(candidate, rows[candidate]) for candidate in wanted]):
        found[candidate] = _drawn(prepared, candidate, rows[candidate], content)
    return tuple(found[candidate] for candidate in candidates)


def _rows(prepared: Prepared, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """The rows of all images that still lie where they were counted a moment ago."""
    for partition in dict.fromkeys(candidate.partition for candidate in candidates):
        here = [candidate for candidate in candidates if candidate.partition == partition]
        try:
            file = open_stream(prepared.output.store.open(prepared.output.published(partition)))
            rows = rows_at(file, [candidate.row for candidate in here], ROW_COLUMNS)
        except (pa.ArrowException, OSError, KeyError, StorageError):
            continue
        for candidate, row in zip(here, rows, strict=True):
            if row["image_key"] == candidate.image_key:
                yield candidate, row


def _without_row(
    candidates: Sequence[Candidate], rows: Mapping[Candidate, dict[str, Any]]
) -> Iterator[tuple[Candidate, str]]:
    return ((candidate, "its row was replaced meanwhile") for candidate in candidates if candidate not in rows)


def _contents(
    prepared: Prepared, rows: Sequence[tuple[Candidate, dict[str, Any]]]
) -> Iterator[tuple[Candidate, bytes | str]]:
    """Encoded bytes, or why there are none. Pages of one source are read once."""
    indexed: dict[tuple[str, str], dict[str, Source] | str] = {}
    by_unit: dict[tuple[str, str], dict[Source, list[Candidate]]] = {}
    for candidate, row in rows:
        source = _source(prepared, row, indexed)
        if isinstance(source, str):
            yield candidate, source
            continue
        shard = row["uri"] if source.member is not None else ""
        by_unit.setdefault((candidate.partition, shard), {}).setdefault(source, []).append(candidate)
    for (partition, _), sources in by_unit.items():
        container = format_of(next(iter(sources)), prepared.job.input.format)
        unit = Unit("", partition, container, tuple(sources))
        waiting = dict(sources)
        try:
            for source, content in read_unit(prepared.archive, prepared.job.input, unit, prepared.job.limits):
                for candidate in waiting.pop(source):
                    yield candidate, _sentence(content) if isinstance(content, ImageError) else content
        except StorageError as error:
            for rest in waiting.values():
                yield from ((candidate, f"cannot be read now: {error}") for candidate in rest)


def _sentence(error: ImageError) -> str:
    return f"cannot be shown any more: {error.message} ({error.reason})"


def _source(
    prepared: Prepared, row: Mapping[str, Any], indexed: dict[tuple[str, str], dict[str, Source] | str]
) -> Source | str:
    """Where a row's image lies; members of tars by the index that the run left, so that no tar is read from its start.

    indexed: what was looked up before.
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
            indexed[shard] = f"cannot be shown any more: {error}"
    members = indexed[shard]
    if isinstance(members, str):
        return members
    return members.get(source_key_of(row["image_key"], row["page"])) or "its tar does not hold it any more"


def _drawn(prepared: Prepared, candidate: Candidate, row: Mapping[str, Any], content: bytes | str) -> Picture:
    if isinstance(content, str):
        return _picture(candidate, row, note=content)
    spec = _whole(prepared.model.contract.input)
    page = next(decode(content, spec, prepared.job.limits, page=row["page"]), None)
    if page is None:
        return _picture(candidate, row, note="its file has fewer pages now")
    if isinstance(page.content, ImageError):
        return _picture(candidate, row, note=_sentence(page.content))
    note = ""
    masks: list[tuple[NDArray[np.bool_], Color]] = []
    try:
        masks = [(mask_hw, color_of(id_)) for id_, mask_hw in _masks(prepared, row)]
    except ShapeMismatch as error:
        note = f"without outlines: {error}"
    if not masks and row["classes"] and not note:
        note = "without outlines: its row holds areas, and no mask"
    image_hwc = displayed(page.content, spec.color)
    jpeg = encode_jpeg(thumbnail(image_hwc, THUMBNAIL_PX, masks))
    return _picture(candidate, row, jpeg=jpeg, stretched=image_hwc.dtype != np.uint8, note=note)


def _whole(spec: ModelInput) -> ModelInput:
    """The contract's channels and orientation, of the whole picture rather than of what `fit` leaves of it."""
    return spec.model_copy(update={"fit": "none", "reduced_jpeg": False})


def _masks(prepared: Prepared, row: Mapping[str, Any]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Every class with its mask: from its runs, else from the label map. Raises ShapeMismatch."""
    classes = row["classes"] or []
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
    output = prepared.model.contract.output
    shift = 1 if output.multi_label and len(output.classes) > 1 else 0  # as `reduce` writes label values
    for area in classes:
        yield area["id"], page.content[..., 0] == area["id"] + shift


def _picture(
    candidate: Candidate, row: Mapping[str, Any], *, jpeg: bytes | None = None, stretched: bool = False, note: str = ""
) -> Picture:
    classes = tuple((area["id"], area["name"], area["fraction"]) for area in row["classes"] or ())
    return Picture(candidate, jpeg, row["height"], row["width"], classes, stretched, note)
