"""A comparison as tables of texts: title, headings and rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from unet_batch.review.agreement import Agreement
from unet_batch.review.compare import ONLY_A, ONLY_B, Comparison

DIGITS_SHOWN = 12
"""Digits of digests in tables; the JSON has all of them."""

TableOfTexts = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def tables(comparison: Comparison) -> Iterator[TableOfTexts]:
    """Sides, partitions, classes, images that are not compared, and images that differ most."""
    a, b, total = comparison.a.to_json(), comparison.b.to_json(), comparison.total
    yield "comparison", ("side", "A", "B"), list(_sides(a, b))
    lines = list(comparison.partitions.items())
    if len(lines) != 1:
        lines.append(("all", total))
    headings = ("partition", "compared", "only A", "only B", "others", "flipped", "lowest Dice")
    yield "images, and their share of flipped pixels", headings, [(name, *_partition(found)) for name, found in lines]
    if total.classes:
        classes = [
            (name, f"{c.images_a:,}", f"{c.images_b:,}", *map(score_text, (c.overlap.dice, c.overlap.iou, c.mean_dice)))
            for name, c in sorted(total.classes.items())
        ]
        title = "classes (Dice, IoU: of all pixels; mean Dice: of images)"
        yield title, ("class", "images A", "images B", "Dice", "IoU", "mean Dice"), classes
    if total.not_compared:
        apart = [(a, b, f"{found.images:,}", found.example) for (a, b), found in sorted(total.not_compared.items())]
        yield "images that are not compared", ("in A", "in B", "images", "for example"), apart
    if total.most_flipped:
        worst = []
        for image in total.most_flipped:
            name, dice = image.found.lowest or ("", None)
            worst.append((_share(image.found.flipped_share), score_text(dice), name, image.key))
        yield "images that differ most", ("flipped", "lowest Dice", "of class", "image"), worst


def _sides(a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "asked for", a["asked"], b["asked"]
    yield "fingerprint", _short(a["fingerprints"]), _short(b["fingerprints"])
    yield "model", _short(a["models"]), _short(b["models"])
    yield "images", f"{a['images']:,}", f"{b['images']:,}"
    if a["output"] != b["output"]:
        yield "output", a["output"], b["output"]


def _partition(found: Agreement) -> list[str]:
    apart = {words: there.images for words, there in found.not_compared.items()}
    only_a, only_b = apart.pop(ONLY_A, 0), apart.pop(ONLY_B, 0)
    lowest = min((dice for c in found.classes.values() if (dice := c.overlap.dice) is not None), default=None)
    counts = [f"{n:,}" for n in (found.compared, only_a, only_b, sum(apart.values()))]
    return [*counts, _share(found.flipped_share), score_text(lowest)]


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"


def score_text(score: float | None) -> str:
    """A Dice or IoU, rounded down, so that 1.0000 means exactly 1."""
    return "" if score is None else f"{math.floor(score * 1e4) / 1e4:.4f}"


def _short(digests: Sequence[str]) -> str:
    if not digests:
        return "none"
    return digests[0][:DIGITS_SHOWN] + (f" and {len(digests) - 1} more" if len(digests) > 1 else "")
