"""A comparison for people: tables and sentences for a rich console. Knows how figures are written, and computes none.

Names come from archives, so they are shown as plain text, never as markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unet_batch.job.compare import Comparison
from unet_batch.job.sides import Side
from unet_batch.table.agreement import Agreement
from unet_batch.table.pairs import ImageAgreement

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

DIGITS_SHOWN = 12
"""Of digests, in tables; the JSON has all of them."""


def tables(comparison: Comparison) -> list[RenderableType]:
    """The sides, what agrees by partition and by class, what changed its verdict, the worst images, and the notes."""
    from rich.text import Text

    total = comparison.total
    shown: list[RenderableType] = [_sides(comparison.a, comparison.b), *_partitions(comparison)]
    if total.classes:
        shown += _classes(total)
    if total.changes:
        changes = [(a, b, f"{found.images:,}", found.example) for (a, b), found in sorted(total.changes.items())]
        shown.append(_table("verdicts that changed", ("in A", "in B", "#images", "for example"), changes))
    if total.not_comparable:
        obstacles = [(why, f"{found.images:,}", found.example) for why, found in sorted(total.not_comparable.items())]
        shown.append(_table("images that cannot be compared", ("because", "#images", "for example"), obstacles))
    for title, images in (("most pixels flipped", total.most_flipped), ("lowest Dice", total.lowest_dice)):
        if images:
            shown.append(_worst(title, images))
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
            "predictions (confidence: B less A)",
            ("partition", "#unchanged", "#pixels flipped", "#lowest Dice", "#confidence"),
            [(name, *_masks(found)) for name, found in lines if found.compared],
        )


def _counts(found: Agreement) -> list[str]:
    changed = sum(f.images for f in found.changes.values())
    obstacles = sum(f.images for f in found.not_comparable.values())
    return [f"{n:,}" for n in (found.compared, found.only_a, found.only_b, changed, obstacles)]


def _masks(found: Agreement) -> list[str]:
    masks, change = found.compared - found.by_area, found.confidence_change
    lowest = min((known for c in found.classes.values() if (known := c.dice) is not None), default=None)
    return [
        _share(found.unchanged / masks if masks else None),
        _share(found.flipped_share),
        _dice(lowest),
        "" if change is None else f"{change:+.4f}",
    ]


def _classes(total: Agreement) -> Iterator[Table]:
    masks, areas = [], []
    for name, found in sorted(total.classes.items()):
        images = (f"{found.images_a:,}", f"{found.images_b:,}")
        alone = (_share(found.appears / total.compared), _share(found.disappears / total.compared))
        masks.append((name, *images, *alone, _dice(found.dice), _dice(found.mean_dice)))
        change = "" if found.area_change is None else f"{100 * found.area_change:+.3g} %"
        areas.append((name, f"{found.area_a_px:,}", f"{found.area_b_px:,}", change))
    headings = ("class", "#images A", "#images B", "#only in B", "#only in A", "#Dice", "#mean Dice")
    yield _table("classes (Dice of all pixels; mean of images' Dice)", headings, masks)
    yield _table("areas in pixels", ("class", "#in A", "#in B", "#change"), areas)


def _worst(title: str, images: Sequence[ImageAgreement]) -> Table:
    rows = []
    for image in images:
        lowest = image.lowest
        at_most = "≤ " if image.flipped_px is None else ""
        rows.append(
            (
                _share(image.flipped_share),
                at_most + _dice(lowest.dice) if lowest else "",
                lowest.name if lowest else "",
                image.uri
                + (f" {image.member}" if image.member else "")
                + (f" page {image.page}" if image.page else ""),
            )
        )
    return _table(title, ("#pixels flipped", "#lowest Dice", "of class", "image"), rows)


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


def _dice(dice: float | None) -> str:
    """Rounded down: 1.0000 is a perfect one."""
    return "" if dice is None else f"{math.floor(dice * 1e4) / 1e4:.4f}"


def _short(digests: Sequence[str]) -> str:
    if not digests:
        return "none"
    return digests[0][:DIGITS_SHOWN] + (f" and {len(digests) - 1} more" if len(digests) > 1 else "")
