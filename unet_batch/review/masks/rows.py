"""Published rows with their masks: what an export reads.

Knows the table and the contract's classes; knows no file format and no archive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unet_batch.archive.window import Window
from unet_batch.contract import ModelOutput
from unet_batch.errors import Damaged, JobError, ShapeMismatch
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.scope import EVERYTHING, Scope, without_bucket
from unet_batch.planning.survey import published_inside
from unet_batch.review.originals import Row, label_shift, masks_of
from unet_batch.table.output import Output
from unet_batch.table.parts import open_stream
from unet_batch.table.rows import partition_values

REJECTED = "rejected: "
"""How the text of a rejection begins."""
ROWS_AT_ONCE = 64
"""Rows whose masks are in memory together, as runs."""
COLUMNS = [
    *("image_key", "uri", "member", "page", "pages", "source_version", "height", "width", "status", "reason"),
    *("classes", "mask"),
]


@dataclass(frozen=True, slots=True)
class Labels:
    """The contract's classes as pixel values, as label maps of this package have them."""

    names: Mapping[int, str]
    """Value → class, without the background."""
    background: int
    """Value of pixels that have no class."""
    shift: int
    """Value minus class id: 1 for classes that may overlap, because their ids begin at 0."""

    @staticmethod
    def of(output: ModelOutput) -> Labels:
        """The labels of a contract."""
        if len(output.classes) == 1:
            return Labels({1: output.classes[0]}, 0, 0)
        shift = label_shift(output)
        if shift or output.background is None:
            return Labels(dict(enumerate(output.classes, start=shift)), 0, shift)
        names = {number: name for number, name in enumerate(output.classes) if number != output.background}
        return Labels(names, output.background, 0)


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask of one class in one image."""

    value: int
    """The class as a pixel value."""
    name: str
    pixels_hw: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Masked:
    """A row with its masks."""

    row: Row
    masks: tuple[Mask, ...]
    """Of the classes that were found, by value."""
    size_hw: tuple[int, int]
    """Of the masks; of the source image where none was found."""
    labels: Labels

    def label_map(self) -> tuple[NDArray[Any], bool]:
        """uint8 or uint16 (H, W), and whether masks overlap: a pixel then has the first of its classes."""
        highest = max((*self.labels.names, self.labels.background))
        labels_hw = np.full(self.size_hw, self.labels.background, np.uint8 if highest < 256 else np.uint16)
        covered_hw = np.zeros(self.size_hw, bool)
        overlap = False
        for mask in reversed(self.masks):
            overlap = overlap or bool((covered_hw & mask.pixels_hw).any())
            covered_hw |= mask.pixels_hw
            labels_hw[mask.pixels_hw] = mask.value
        return labels_hw, overlap


@dataclass(frozen=True, slots=True)
class Without:
    """Why a row has no file."""

    why: str
    expected: bool = False
    """Whether it is what the table says: a rejection."""
    may_pass: bool = False
    """Whether the same command may have another answer later."""


def refuse_classifier(prepared: Prepared) -> None:
    """Raise JobError if the job's model returns scores of whole images: its rows have no masks."""
    if prepared.model.contract.output.classifies:
        raise JobError(
            "the job's model is a classifier (output.label_from: class_scores), so its rows have no masks: read the "
            "columns label, score and classes; `unet-batch compare` compares labels"
        )


def published_names(output: Output, window: Window) -> list[str]:
    """The published partitions (or buckets) of a window; `last` is the newest day that is published."""
    if window.kind != "last":
        return sorted(published_inside(output, Scope(window)))
    names = published_inside(output, EVERYTHING)
    days = [partition_values(name)["date"] for name in names if "date" in partition_values(name)]
    return sorted(name for name in names if not days or partition_values(name).get("date") == max(days))


def published_rows(output: Output, name: str) -> Iterator[Sequence[dict[str, Any]]]:
    """The rows of a published object in pieces of ROWS_AT_ONCE, in its order. Raises Damaged or StorageError."""
    try:
        file = open_stream(output.store.open(output.published(name)))
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=COLUMNS):
            yield batch.to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise Damaged(f"{output.published(name)} is damaged ({error}); move it away and run again") from error


def fault_of(row: Row, labels: Labels) -> Without | None:
    """Why a row's masks cannot be exported; None where they can."""
    if row["status"] != "ok":
        return Without(f"{REJECTED}{row['reason']}", expected=True)
    for area in row["classes"] or ():
        known = labels.names.get(area["id"] + labels.shift)
        if known != area["name"]:
            return Without(
                f"class {area['id']} is {area['name']!r} in its row and {known!r} in the job's contract: it was scored "
                "by another model; run the job again, or use the contract of that model"
            )
    if any(area["rle"] is None for area in row["classes"] or ()) and (row["mask"] or {}).get("bytes") is None:
        return Without("its row holds areas and no mask: add rle or png to output.masks, and run with --rescore")
    return None


def masked(prepared: Prepared, row: Row, labels: Labels) -> Masked | Without:
    """A row with its masks as arrays; or what is wrong with them."""
    try:
        found = {id_ + labels.shift: mask_hw for id_, mask_hw in masks_of(prepared, row)}
    except ShapeMismatch as error:
        return Without(f"its mask cannot be read: {error}")
    sizes = {mask_hw.shape for mask_hw in found.values()} or {(row["height"], row["width"])}
    if len(sizes) > 1:
        return Without("the masks of its classes have several sizes")
    height, width = sizes.pop()
    masks = tuple(Mask(value, labels.names[value], found[value]) for value in sorted(found))
    return Masked(row, masks, (height, width), labels)


def partition_of(name: str) -> str:
    """The partition that a published object belongs to, without its bucket."""
    return without_bucket(name)
