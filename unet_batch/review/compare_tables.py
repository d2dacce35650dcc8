"""A comparison as tables and sentences for a rich console. It formats figures and computes none.

Names come from archives: they are shown as plain text, never as markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unet_batch.review.agreement import Agreement, Ranked
from unet_batch.review.compare import Comparison
from unet_batch.review.sides import Side

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

DIGITS_SHOWN = 12
"""Of digests, in tables; the JSON has all of them."""
CONFUSIONS_SHOWN = 10
"""Pairs of classes in the table; the JSON has all of them."""
NO_CLASS = "(none)"


def tables(comparison: Comparison) -> list[RenderableType]:
    """Sides, partitions, classes, changed verdicts, what cannot be compared, images that differ most, and notes."""
    from rich.text import Text

    total = comparison.total
    shown: list[RenderableType] = [_sides(comparison.a, comparison.b), *_partitions(comparison)]
    if total.classes:
        shown += [_classes(total), *_confusion(total)]
    if total.changes:
        changes = [(a, b, f"{found.images:,}", found.example) for (a, b), found in sorted(total.changes.items())]
        shown.append(_table("verdicts that changed", ("in A", "in B", "#images", "for example"), changes))
    if total.not_comparable:
        obstacles = [(why, f"{found.images:,}", found.example) for why, found in sorted(total.not_comparable.items())]
        shown.append(_table("images that cannot be compared", ("because", "#images", "for example"), obstacles))
    if total.most_flipped:
        shown.append(_most_flipped(total.most_flipped))
    shown += [Text(f"• {note}") for note in comparison.notes]
    return shown


def _sides(a: Side, b: Side) -> Table:
    lines = [
        ("asked for", a.asked, b.asked),
        ("fingerprint", _short(a.fingerprints), _short(b.fingerprints)),
        ("model", _short(a.models), _short(b.models)),
        ("published rows", f"{a.published:,}", f"{b.published:,}"),
        ("staged rows", f"{a.staged:,}", f"{b.staged:,}"),
    ]
    if a.output != b.output:
        lines.append(("output", a.output, b.output))
    return _table("comparison", ("", "A", "B"), lines)


def _partitions(comparison: Comparison) -> Iterator[Table]:
    lines = list(comparison.partitions.items())
    if len(lines) != 1:
        lines.append(("all", comparison.total))
    headings = ("partition", "#compared", "#only A", "#only B", "#changed", "#not comparable")
    yield _table("images (changed: another verdict)", headings, [(name, *_counts(found)) for name, found in lines])
    if comparison.total.compared:
        yield _table(
            "masks",
            ("partition", "#unchanged", "#pixels flipped", "#lowest Dice"),
            [(name, *_masks(found)) for name, found in lines if found.compared],
        )


def _counts(found: Agreement) -> list[str]:
    changed = sum(f.images for f in found.changes.values())
    obstacles = sum(f.images for f in found.not_comparable.values())
    return [f"{n:,}" for n in (found.compared, found.only_a, found.only_b, changed, obstacles)]


def _masks(found: Agreement) -> list[str]:
    lowest = min((dice for c in found.classes.values() if (dice := c.overlap.dice) is not None), default=None)
    return [_share(found.unchanged / found.compared), _share(found.flipped_share), _score(lowest)]


def _classes(total: Agreement) -> Table:
    lines = []
    for name, found in sorted(total.classes.items()):
        both = found.overlap
        change = f"{100 * (both.area_b_px - both.area_a_px) / both.area_a_px:+.3g} %" if both.area_a_px else ""
        scores = (_score(both.dice), _score(both.iou), _score(found.mean_dice))
        lines.append((name, f"{found.images_a:,}", f"{found.images_b:,}", change, *scores))
    headings = ("class", "#images A", "#images B", "#area A → B", "#Dice", "#IoU", "#mean Dice")
    return _table("classes (Dice, IoU: of all pixels; mean Dice: of images)", headings, lines)


def _confusion(total: Agreement) -> Iterator[Table]:
    pairs = [(a or NO_CLASS, b or NO_CLASS, pixels) for (a, b), pixels in total.confused()]
    if pairs:
        lines = [(a, b, f"{pixels:,}", _share(pixels / total.pixels)) for a, b, pixels in pairs[:CONFUSIONS_SHOWN]]
        yield _table("most frequent differences", ("class in A", "class in B", "#pixels", "#of all"), lines)


def _most_flipped(images: Sequence[Ranked]) -> Table:
    rows = []
    for image in images:
        name, dice = image.found.lowest or ("", None)
        row = image.row
        where = row.uri + (f" {row.member}" if row.member else "") + (f" page {row.page}" if row.page else "")
        rows.append((_share(image.found.flipped_share), _score(dice), name, where))
    return _table("images that differ most", ("#pixels flipped", "#lowest Dice", "of class", "image"), rows)


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain texts; headings that begin with # are over numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for heading in headings:
        number = heading.startswith("#")
        table.add_column(heading.removeprefix("#"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _share(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"


def _score(score: float | None) -> str:
    """A Dice or IoU, rounded down: 1.0000 is a perfect one."""
    return "" if score is None else f"{math.floor(score * 1e4) / 1e4:.4f}"


def _short(digests: Sequence[str]) -> str:
    if not digests:
        return "none"
    return digests[0][:DIGITS_SHOWN] + (f" and {len(digests) - 1} more" if len(digests) > 1 else "")
