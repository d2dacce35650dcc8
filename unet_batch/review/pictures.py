"""Thumbnails of scored images with the borders of their masks: images from the archive, masks from the rows.

Images are read at their scored versions. A picture that cannot be made is replaced by a sentence, because a report must
not fail if an image was deleted later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unet_batch.errors import ShapeMismatch, StorageError
from unet_batch.imaging.encode import encode_jpeg
from unet_batch.imaging.overlay import Color, displayed, label_color, thumbnail
from unet_batch.planning.prepare import Prepared
from unet_batch.review.census import Candidate, rows_at
from unet_batch.review.originals import NoPicture, masks_of, originals
from unet_batch.table.parts import open_stream

THUMBNAIL_PX = 384
"""Longer side: 1.5 times the size on the page, for dense screens; a noisy picture then has 60 kB."""
MOST_PICTURES = 60
"""Most pictures of each kind: 120 noisy ones make a page of 10 MB."""
MOST_PIXELS = 400_000_000
"""Most pixels to decode for one page: about half a minute, and a few hundred megabytes at a time."""
ROW_COLUMNS = [
    "image_key", "uri", "member", "page", "source_version", "height", "width", "classes", "mask", "confidence"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReportPicture:
    """A picture on the page, or the reason why there is none."""

    candidate: Candidate
    jpeg: bytes | None
    height: int
    """Rows of the source image."""
    width: int
    classes: tuple[tuple[int, str, float], ...]
    """Id, name and area fraction of its classes; of a classifier: probability."""
    stretched: bool = False
    """Whether contrast was stretched for display."""
    note: str = ""
    """Why there is no picture, or why there are no outlines."""
    labelled: bool = False
    """Whether its classes are a classifier's, without masks."""


def color_of(id_: int) -> Color:
    """The colour of a class, the same on every page."""
    return label_color(id_)


def draw(prepared: Prepared, candidates: Sequence[Candidate]) -> tuple[ReportPicture, ...]:
    """A picture of every image, in order. Raises only errors that concern the store or the job as a whole."""
    rows = dict(_rows(prepared, candidates))
    found: dict[Candidate, ReportPicture] = {}
    for candidate, note in _without_row(candidates, rows):
        found[candidate] = ReportPicture(candidate, None, 0, 0, (), note=note)
    left = MOST_PIXELS
    wanted: list[Candidate] = []
    for candidate, row in rows.items():
        left -= row["height"] * row["width"]
        if left < 0:
            found[candidate] = _picture(candidate, row, note="not drawn: the pictures of this page are large enough")
        else:
            wanted.append(candidate)
    places = [(candidate.partition, rows[candidate]) for candidate in wanted]
    for number, content in originals(prepared, places):
        found[wanted[number]] = _drawn(prepared, wanted[number], rows[wanted[number]], content)
    return tuple(found[candidate] for candidate in candidates)


def _rows(prepared: Prepared, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """The rows of the images whose rows have not been replaced since they were counted."""
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


def _drawn(
    prepared: Prepared, candidate: Candidate, row: Mapping[str, Any], content: NDArray[Any] | NoPicture
) -> ReportPicture:
    if isinstance(content, NoPicture):
        return _picture(candidate, row, note=content.why)
    note = ""
    masks: list[tuple[NDArray[np.bool_], Color]] = []
    try:
        masks = [(mask_hw, color_of(id_)) for id_, mask_hw in masks_of(prepared, row)]
    except ShapeMismatch as error:
        note = f"without outlines: {error}"
    if not masks and any(area["area_px"] is not None for area in row["classes"] or ()) and not note:
        note = "without outlines: its row holds only areas"
    image_hwc = displayed(content, prepared.model.contract.input.color)
    jpeg = encode_jpeg(thumbnail(image_hwc, THUMBNAIL_PX, masks))
    return _picture(candidate, row, jpeg=jpeg, stretched=image_hwc.dtype != np.uint8, note=note)


def _picture(
    candidate: Candidate, row: Mapping[str, Any], *, jpeg: bytes | None = None, stretched: bool = False, note: str = ""
) -> ReportPicture:
    cells = row["classes"] or ()
    labelled = any(area["area_px"] is None for area in cells)
    share = "mean_probability" if labelled else "fraction"
    classes = tuple((area["id"], area["name"], area[share]) for area in cells)
    return ReportPicture(candidate, jpeg, row["height"], row["width"], classes, stretched, note, labelled)
