"""An evaluation as tables of texts: title, headings and rows. It formats figures and computes none."""

from __future__ import annotations

from collections.abc import Iterator

from unet_batch.review.differences.compare_tables import TableOfTexts, score_text
from unet_batch.review.evaluate import Evaluation, precision, recall

NOTHING = "(none)"
"""What stands for pixels without a class."""


def tables(found: Evaluation) -> Iterator[TableOfTexts]:
    """Classes, confusion and the worst images."""
    headings = ("class", "images", "Dice", "IoU", "precision", "recall", "mean\nDice", "with\nempty")
    rows = []
    for name, score in found.classes.items():
        pair = score.overlap
        figures = (pair.dice, pair.iou, precision(pair), recall(pair), score.mean_dice)
        with_empty = score_text(score.mean_dice_with_empty(found.compared))
        rows.append((name, f"{score.images_truth:,}", *map(score_text, figures), with_empty))
    yield f"{found.compared:,} of {found.images:,} images compared (images: whose truth has the class)", headings, rows
    if found.confusion:
        classes = [*found.classes, None]
        cells = [(named(a), *(f"{found.confusion[a, b]:,}" for b in classes)) for a in classes]
        yield "pixels: predicted class down, true class across", ("class", *map(named, classes)), cells
    if found.worst:
        worst = [(score_text(dice), name, key) for dice, name, key in found.worst]
        yield "worst images", ("lowest Dice", "of class", "image"), worst


def named(name: str | None) -> str:
    """A class as a heading."""
    return NOTHING if name is None else name
