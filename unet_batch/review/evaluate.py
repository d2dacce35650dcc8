"""Published masks held against the truth: Dice, IoU, precision and recall by class, image by image and together.

Rules for empty masks (those of MONAI's DiceMetric):
* `mean_dice` takes the images whose truth has the class (MONAI's `ignore_empty=True`, its default): an image without it
  does not count, and what was found there in vain lowers the precision.
* `mean_dice_with_empty` takes all images (`ignore_empty=False`): 1 where neither has the class, 0 where only the
  prediction has it.
* Dice, IoU, precision and recall of a class are of the pixels of all images together; a figure whose denominator is 0
  is left out.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unet_batch.archive.window import Window
from unet_batch.errors import ExitCode, JobError, overall
from unet_batch.imaging.mask_agreement import ImageAgreement, Overlap
from unet_batch.imaging.masks import runs_by_label
from unet_batch.planning.prepare import Prepared
from unet_batch.review.agreement import OK, OTHER_SIZE, PLACE, Masks, MasksOrReason, Pair, agree_on
from unet_batch.review.masks.rows import (
    REJECTED,
    Labels,
    Without,
    fault_of,
    masked,
    partition_of,
    published_names,
    published_rows,
    refuse_classifier,
)
from unet_batch.review.originals import Row
from unet_batch.review.truth.coco import CocoTruth
from unet_batch.review.truth.images import NO_TRUTH, LabelImages, Truth
from unet_batch.review.truth.table import TABLE, TableTruth
from unet_batch.table.publish import read_commit

RULES = (
    'empty masks by MONAI\'s rules: "mean Dice" takes images whose truth has the class (ignore_empty=True), '
    '"with empty" takes all (ignore_empty=False: 1 where neither has it, 0 where only the prediction has it)'
)
REASONS_NAMED = 3
"""Reasons in the sentence that says that nothing was compared."""
SCHEMA = pa.schema(
    [
        *(("image_key", pa.string()), ("partition", pa.string()), ("note", pa.string()), ("class", pa.string())),
        *(("predicted_px", pa.int64()), ("truth_px", pa.int64()), ("shared_px", pa.int64())),
        *((name, pa.float64()) for name in ("dice", "iou", "precision", "recall")),
    ]
)
"""One row for each image and class that the prediction or the truth has. An image with none of them, and an image that
is not compared, has one row without a class; `note` says why it is not compared."""


def precision(pair: Overlap) -> float | None:
    """Share of the predicted pixels that the truth has; None where nothing is predicted."""
    return pair.shared_px / pair.area_a_px if pair.area_a_px else None


def recall(pair: Overlap) -> float | None:
    """Share of the truth's pixels that were predicted; None where the truth has none."""
    return pair.shared_px / pair.area_b_px if pair.area_b_px else None


@dataclass(slots=True)
class ClassScore:
    """One class over all images that were compared."""

    images_predicted: int = 0
    images_truth: int = 0
    overlap: Overlap = field(default_factory=Overlap)
    """A is the prediction, B the truth; of all images together."""
    sum_dice: float = 0.0
    """Over the images whose truth has the class."""
    found_in_vain: int = 0
    """Images in which only the prediction has the class."""

    def add(self, pair: Overlap) -> None:
        """Count one image."""
        self.overlap += pair
        self.images_predicted += pair.area_a_px > 0
        self.images_truth += pair.area_b_px > 0
        if pair.area_b_px:
            self.sum_dice += pair.dice or 0.0
        else:
            self.found_in_vain += pair.area_a_px > 0

    @property
    def mean_dice(self) -> float | None:
        """MONAI's DiceMetric with `ignore_empty=True`; None where no truth has the class."""
        return self.sum_dice / self.images_truth if self.images_truth else None

    def mean_dice_with_empty(self, compared: int) -> float | None:
        """MONAI's DiceMetric with `ignore_empty=False`. compared: all images."""
        empty = compared - self.images_truth - self.found_in_vain
        return (self.sum_dice + empty) / compared if compared else None

    def to_json(self, compared: int) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "images_predicted": self.images_predicted,
            "images_truth": self.images_truth,
            "predicted_px": self.overlap.area_a_px,
            "truth_px": self.overlap.area_b_px,
            "shared_px": self.overlap.shared_px,
            "dice": self.overlap.dice,
            "iou": self.overlap.iou,
            "precision": precision(self.overlap),
            "recall": recall(self.overlap),
            "mean_dice": self.mean_dice,
            "mean_dice_with_empty": self.mean_dice_with_empty(compared),
        }


@dataclass(slots=True)
class Evaluation:
    """All figures of an evaluation."""

    classes: dict[str, ClassScore]
    """Every class of the contract."""
    top: int
    exclusive: bool
    """Whether a pixel has one class at most."""
    notes: tuple[str, ...] = ()
    """About the truth, a sentence each."""
    images: int = 0
    """Published rows of the window."""
    compared: int = 0
    pixels: int = 0
    not_compared: Counter[str] = field(default_factory=Counter)
    """Images by the reason."""
    confusion: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    """Pixels by predicted and true class; None: no class."""
    worst: list[tuple[float, str, str]] = field(default_factory=list)
    """Dice, class and image key of the images with the lowest Dice of any class, the worst first."""
    pairs: dict[str, Pair] = field(default_factory=dict)
    """Image key → masks of the prediction (A) and the truth (B), of the worst images."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of SCHEMA."""

    def add(self, row: Row, partition: str, predicted: MasksOrReason, true: MasksOrReason) -> None:
        """Count one image. row: with the columns PLACE."""
        key = row["image_key"]
        self.images += 1
        found = agree_on(predicted, true)
        if not isinstance(found, ImageAgreement):
            why = found[0] if found[0] != OK else found[1]
            why = "truth has another size" if why == OTHER_SIZE else why
            self.not_compared[why] += 1
            self.rows.append({"image_key": key, "partition": partition, "note": why})
            return
        self.compared += 1
        self.pixels += found.pixels
        self._count(found)
        for name, pair in found.classes.items():
            self.classes[name].add(pair)
            self.rows.append({"image_key": key, "partition": partition, **_figures(name, pair)})
        if not found.classes:
            self.rows.append({"image_key": key, "partition": partition})
        if found.lowest is not None:
            self._rank(row, partition, found.lowest, (predicted, true))

    def failures(self, wanted: Mapping[str, float]) -> list[str]:
        """A sentence for each class whose mean Dice is below what is wanted."""
        found = []
        for name, least in wanted.items():
            dice = self.classes[name].mean_dice
            if dice is None:
                found.append(f"mean Dice of {name} is unknown: no truth that was compared has it")
            elif dice < least:
                found.append(f"mean Dice of {name} is {math.floor(dice * 1e4) / 1e4:.4f}, below --min-dice {least:g}")
        return found

    def exit_code(self, failures: list[str]) -> ExitCode:
        """5 for a Dice that is too low, or masks or a truth that cannot be used; 3 where nothing is published."""
        unusable = any(why != NO_TRUTH and not why.startswith(REJECTED) for why in self.not_compared)
        codes = [ExitCode.NEEDS_ACTION] * (unusable or bool(failures) or not self.compared)
        return overall([*codes, *([] if self.images else [ExitCode.UNFINISHED])])

    def nothing_compared(self) -> str | None:
        """A sentence where no image was compared, with the reasons; None where one was."""
        if self.compared:
            return None
        if not self.images:
            return "no image was compared: nothing is published in the window; `unet-batch status` says what is"
        reasons = ", ".join(f"{count} × {why}" for why, count in self.not_compared.most_common(REASONS_NAMED))
        return f"none of {self.images} published image(s) was compared with a truth: {reasons}"

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "images": self.images,
            "compared": self.compared,
            "pixels": self.pixels,
            "rules": RULES,
            "notes": list(self.notes),
            "classes": {name: score.to_json(self.compared) for name, score in self.classes.items()},
            "confusion": [{"predicted": a, "truth": b, "pixels": n} for (a, b), n in self.confusion.most_common()],
            "not_compared": dict(self.not_compared.most_common()),
            "worst": [{"image_key": key, "class": name, "dice": dice} for dice, name, key in self.worst],
        }

    def parquet(self) -> bytes:
        """The rows as a Parquet file."""
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self.rows, SCHEMA), out, compression="zstd")
        return out.getvalue()

    def _rank(
        self, row: Row, partition: str, lowest: tuple[str, float], sides: tuple[MasksOrReason, MasksOrReason]
    ) -> None:
        """Keep the image if it is one of the worst. lowest: class and Dice."""
        (name, dice), (a, b) = lowest, sides
        self.worst = sorted([*self.worst, (dice, name, row["image_key"])])[: self.top]
        if isinstance(a, Masks) and isinstance(b, Masks):
            place = {column: row[column] for column in PLACE}
            self.pairs[row["image_key"]] = Pair(partition, place, name, dice, a, b)
        self.pairs = {key: self.pairs[key] for _, _, key in self.worst if key in self.pairs}

    def _count(self, found: ImageAgreement) -> None:
        """Confusion: flips by pair, agreement by class, and pixels where neither has a class."""
        self.confusion.update(found.confusion)
        pairs = found.classes.items()
        self.confusion.update({(name, name): pair.shared_px for name, pair in pairs if pair.shared_px})
        if self.exclusive:
            either = sum(n for (a, b), n in found.confusion.items() if a != b)
            neither = found.pixels - either - sum(pair.shared_px for _, pair in pairs)
            self.confusion[(None, None)] += neither


def evaluate(
    prepared: Prepared, window: Window, pattern: str, *, top: int, key_column: str | None = None
) -> Evaluation:
    """The published masks of a window held against label images that a pattern names, a COCO file, or a table's column.

    top: worst images that are kept. key_column: of a table, the column that names the image.
    Raises JobError for a wrong pattern, Damaged for a published object that cannot be read, and StorageError where a
    store fails.
    """
    refuse_classifier(prepared)
    truth = _truth(prepared, pattern, key_column)
    labels = Labels.of(prepared.model.contract.output)
    found = Evaluation(
        {name: ClassScore() for name in labels.names.values()},
        top,
        exclusive=not prepared.model.contract.output.multi_label or len(labels.names) == 1,
    )
    strange = 0
    for name in published_names(prepared.output, window):
        partition, before = partition_of(name), found.compared
        for row, predicted in _predicted(prepared, name, labels):
            true = truth.of(row, partition) if isinstance(predicted, Masks) else NO_TRUTH
            if isinstance(predicted, Masks) and isinstance(true, Masks) and true.size_hw != predicted.size_hw:
                # The model's size of an image without a mask is in no row.
                true = OTHER_SIZE if predicted.edges or prepared.job.output.geometry == "source" else true
            found.add(row, partition, predicted, true)
        published = read_commit(prepared.output, name)
        if published is not None and published.commit.fingerprint != prepared.fingerprint:
            strange += found.compared - before
    found.notes = (*truth.notes, *_of_others(strange, found.compared))
    return found


def _of_others(strange: int, compared: int) -> Iterator[str]:
    """A note about rows that the job as it is now did not make."""
    if strange:
        yield (
            f"{strange} of {compared} compared image(s) have rows of another model or other settings than the job's "
            "now: the figures are those of the published rows; run the job first to measure its model alone"
        )


def _truth(prepared: Prepared, pattern: str, key_column: str | None) -> Truth:
    """The truth that a pattern means. Raises JobError."""
    if TABLE in pattern:
        return TableTruth(prepared, pattern, key_column)
    if key_column is not None:
        raise JobError(f"--truth-key {key_column} belongs to a table: write --truth 'truth.parquet#COLUMN'")
    return CocoTruth(prepared, pattern) if pattern.endswith(".json") else LabelImages(prepared, pattern)


def _predicted(prepared: Prepared, name: str, labels: Labels) -> Iterator[tuple[Row, MasksOrReason]]:
    """Each row of a published object, and its masks or a word why it has none."""
    for rows in published_rows(prepared.output, name):
        for row in rows:
            fault = fault_of(row, labels)
            yield row, fault.why if fault is not None else _said(prepared, row, labels)


def _said(prepared: Prepared, row: Row, labels: Labels) -> MasksOrReason:
    image = masked(prepared, row, labels)
    if isinstance(image, Without):
        return image.why
    found = {mask.name: runs_by_label(mask.pixels_hw).get(1) for mask in image.masks}
    return Masks({name: runs.edges() for name, runs in found.items() if runs}, image.size_hw)


def _figures(name: str, pair: Overlap) -> dict[str, Any]:
    return {
        "class": name,
        "predicted_px": pair.area_a_px,
        "truth_px": pair.area_b_px,
        "shared_px": pair.shared_px,
        "dice": pair.dice,
        "iou": pair.iou,
        "precision": precision(pair),
        "recall": recall(pair),
    }
