"""Compares the rows of two runs or models, image by image. Reads no archive and no model; changes nothing.

The mean Dice of a class is the mean over the images in which either side has it; an image in which only one side has
it counts as 0. This is the Dice of the gate.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unet_batch.archive.window import Window
from unet_batch.errors import ExitCode, overall
from unet_batch.imaging.mask_agreement import ImageAgreement
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.scope import EVERYTHING, Scope
from unet_batch.review.agreement import TOP, Agreement, Masks, MasksOrReason, Pair, ReasonPair, agree_on
from unet_batch.review.run_records import EXAMPLES
from unet_batch.review.sides import Rows, Side
from unet_batch.store.storage import canonical
from unet_batch.table.rows import partition_values
from unet_batch.table.rowset import Name

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 1024
"""Rows of each side that are read together; memory holds their masks, and all keys."""
ONLY_A, ONLY_B = ("a row", "no row"), ("no row", "a row")
REASONS_NAMED = 3
"""Reasons in the sentence that says that nothing was compared."""
OTHER_VERSION = ("a row", "a row of another version")
SCHEMA = pa.schema(
    [
        *(("image_key", pa.string()), ("partition", pa.string()), ("note", pa.string()), ("class", pa.string())),
        *(("a_px", pa.int64()), ("b_px", pa.int64()), ("shared_px", pa.int64())),
        *(("dice", pa.float64()), ("iou", pa.float64())),
    ]
)
"""One row for each image and class that A or B has. An image with none of them, and an image that is not compared, has
one row without a class; `note` says why it is not compared."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides, and how far their rows agree."""

    a: Side
    b: Side
    partitions: Mapping[str, Agreement]
    """The partitions in which either side has rows; the buckets of a partition count together."""
    total: Agreement
    notes: tuple[str, ...]
    """Sentences about rows that are missing."""
    pairs: Mapping[str, Pair]
    """Image key → masks of both sides, of the images with the largest differences, the largest first."""
    rows: Sequence[Mapping[str, Any]] = ()
    """Of SCHEMA."""
    same: bool = False
    """Whether A and B are the same rows of the same objects: then their agreement says nothing."""

    def parquet(self) -> bytes:
        """The rows as a Parquet file."""
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(self.rows), SCHEMA), out, compression="zstd")
        return out.getvalue()

    def nothing_compared(self) -> str | None:
        """A sentence where no image was compared, with the reason; None where one was."""
        if self.total.compared:
            return None
        without = [name for name, side in (("A", self.a), ("B", self.b)) if not side.images]
        if without:
            have = "A and B have" if len(without) > 1 else f"{without[0]} has"
            return f"nothing was compared: {have} no rows in the window; `unet-batch status` says what is published"
        why = sorted(self.total.not_compared.items(), key=lambda one: -one[1].images)[:REASONS_NAMED]
        said = "; ".join(f"{found.images} × {a} in A, {b} in B" for (a, b), found in why)
        return f"nothing was compared: no image has a prediction on both sides ({said})"

    def exit_code(self, failures: Sequence[str]) -> ExitCode:
        """3 where a side has no rows; 5 where no image can be compared, or a Dice is too low or not measured."""
        compared, empty = self.total.compared, not (self.a.images and self.b.images)
        codes = [ExitCode.NEEDS_ACTION] * bool(failures or not compared)
        return overall([*codes, *([ExitCode.UNFINISHED] if empty else [])])

    def failures(self, wanted: Mapping[str, float]) -> list[str]:
        """A sentence for each class whose mean Dice is below what is wanted, or was not measured."""
        found = []
        for name, least in wanted.items():
            if self.same:
                found.append(f"mean Dice of {name} is not measured: A and B are the same rows")
                continue
            dice = self.total.classes[name].mean_dice if name in self.total.classes else None
            if dice is None:
                found.append(f"mean Dice of {name} is unknown: no image that was compared has it")
            elif dice < least:
                found.append(f"mean Dice of {name} is {math.floor(dice * 1e4) / 1e4:.4f}, below --min-dice {least:g}")
        return found

    def to_json(self) -> dict[str, Any]:
        """All figures, for `json.dumps`; the images with the largest differences are those of all partitions."""
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "partitions": {name: found.to_json() for name, found in self.partitions.items()},
            "total": {**self.total.to_json(), "most_flipped": [image.to_json() for image in self.total.most_flipped]},
            "notes": list(self.notes),
        }


def compare(
    prepared: Prepared, a: str, b: str, window: Window, *, b_output: str | None = None, top: int = TOP
) -> Comparison:
    """Compare the rows of B with those of A, partition by partition.

    a, b: a run of the output (all rows of its fingerprint, also of other runs); the first 8 or more hex digits of a
    fingerprint; `published`, the rows that readers see; or `job`, the fingerprint of this job.
    b_output: URI of another job's output that holds b; read with this job's `output.options`.
    top: number of images with the largest differences to keep.

    The rows of a fingerprint are those that its next publication would choose. Rows with equal image key and version
    belong to the same image. A version that only one side has does not count if both sides have another version.
    Raises JobError for an unknown name, Damaged for a published object that cannot be read, and StorageError if the
    store fails.
    """
    other = prepared
    if b_output is not None:
        other = replace(prepared, output=replace(prepared.output, uri=canonical(b_output).rstrip("/")))
    # `last` is the newest day with rows of either side, so all days are needed to find it.
    scope = EVERYTHING if window.kind == "last" else Scope(window)
    sides = Side(prepared, a, scope), Side(other, b, scope)
    total = Agreement(top)
    partitions: dict[str, Agreement] = {}
    without: dict[str, list[str]] = {}
    pairs: dict[str, Pair] = {}
    each: list[Mapping[str, Any]] = []
    same = True
    for name in sorted({*sides[0].partitions, *sides[1].partitions}, reverse=window.kind == "last"):
        rows_a, rows_b = (side.read(name) for side in sides)
        missing = [letter for letter, rows in (("A", rows_a), ("B", rows_b)) if not rows.names]
        if missing:
            without.setdefault(" and ".join(missing), []).append(name)
        if len(missing) < len(sides):
            here = partitions[name] = Agreement(top=0)
            for words, keys in _unpaired(rows_a, rows_b):
                here.add(min(keys), words, len(keys))
                total.add(min(keys), words, len(keys))
                each += [_not_compared(key, name, words) for key in sorted(keys)]
            worst: dict[str, tuple[Name, MasksOrReason, MasksOrReason]] = {}
            same = same and rows_a.are(rows_b)
            for row, said_a, said_b in _paired(rows_a, rows_b):
                found = agree_on(said_a, said_b)
                here.add(row[0], found)
                total.add(row[0], found)
                each += _figures(row[0], name, found)
                ranked = {image.key for image in total.most_flipped}
                worst = {key: kept for key, kept in {**worst, row[0]: (row, said_a, said_b)}.items() if key in ranked}
            pairs |= _pairs(name, rows_a, worst, total)
            log.info("%s: compared %d images", name, here.compared)
        if window.kind == "last" and partitions and "date" in partition_values(name):
            break
    labels = ("the model is a classifier: labels are compared, and pixels are images",)
    classifies = prepared.model.contract.output.classifies
    named_alike = sides[0].fingerprint == sides[1].fingerprint and b_output is None
    same = named_alike or (same and total.compared > 0)
    notes = (*_absences(without), *_sameness(same=same), *(labels if classifies else ()))
    drawn = () if classifies else total.most_flipped  # a label is no mask that can be drawn
    most = {image.key: pairs[image.key] for image in drawn if image.key in pairs}
    return Comparison(*sides, dict(sorted(partitions.items())), total, notes, most, each, same)


def _pairs(
    partition: str, rows: Rows, worst: Mapping[str, tuple[Name, MasksOrReason, MasksOrReason]], total: Agreement
) -> Iterator[tuple[str, Pair]]:
    """The images of a partition that are among those with the largest differences so far."""
    lowest = {image.key: image.found.lowest for image in total.most_flipped}
    places = rows.places([name for name, _, _ in worst.values()])
    for place, (key, (_, a, b)) in zip(places, worst.items(), strict=True):
        found = lowest[key]
        if found is not None and isinstance(a, Masks) and isinstance(b, Masks):
            yield key, Pair(partition, place, *found, a, b)


def _paired(a: Rows, b: Rows) -> Iterator[tuple[Name, MasksOrReason, MasksOrReason]]:
    """The masks of both sides for the images that both have, in the order in which A is read fastest."""
    both = sorted(a.names & b.names, key=lambda name: (a.bucket(name), name))
    for begin in range(0, len(both), ROWS_AT_ONCE):
        some = both[begin : begin + ROWS_AT_ONCE]
        yield from zip(some, a.take(some), b.take(some), strict=True)


def _unpaired(a: Rows, b: Rows) -> Iterator[tuple[ReasonPair, set[str]]]:
    """Images of only one side, and images with different versions: texts of both sides, and image keys."""
    both = {key for key, _ in a.names & b.names}
    rest_a = {key for key, _ in a.names - b.names} - both
    rest_b = {key for key, _ in b.names - a.names} - both
    for words, keys in ((ONLY_A, rest_a - rest_b), (ONLY_B, rest_b - rest_a), (OTHER_VERSION, rest_a & rest_b)):
        if keys:
            yield words, keys


def _figures(key: str, partition: str, found: ImageAgreement | ReasonPair) -> Iterator[dict[str, Any]]:
    """The rows of SCHEMA of one image."""
    if isinstance(found, tuple):
        yield _not_compared(key, partition, found)
        return
    image = {"image_key": key, "partition": partition}
    for name, pair in found.classes.items():
        areas = {"a_px": pair.area_a_px, "b_px": pair.area_b_px, "shared_px": pair.shared_px}
        yield {**image, "class": name, **areas, "dice": pair.dice, "iou": pair.iou}
    if not found.classes:
        yield image


def _not_compared(key: str, partition: str, words: ReasonPair) -> dict[str, Any]:
    return {"image_key": key, "partition": partition, "note": f"{words[0]} in A, {words[1]} in B"}


def _absences(without: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for letters, names in sorted(without.items()):
        shown = ", ".join(names[:EXAMPLES]) + (" …" if len(names) > EXAMPLES else "")
        verb = "have" if "and" in letters else "has"
        yield f"{letters} {verb} no rows in {len(names)} partition(s) of the window: {shown}"


def _sameness(*, same: bool) -> Iterator[str]:
    if same:
        yield "A and B are the same rows"
