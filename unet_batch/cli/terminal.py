"""A terminal on stderr: text, tables, a calendar of partitions, and questions about a draft.

Names, paths and messages are printed without markup, and control characters are escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unet_batch.job.verify import PartitionStatus
from unet_batch.table.rows import partition_values
from unet_batch.workbench.export.forms import NORMALIZE_FORMS

if TYPE_CHECKING:
    from unet_batch.workbench.draft.explore import Explored

CALENDAR_FROM = 11
"""Number of partitions from which a calendar is shown in place of a list."""
LISTED = 20
TEXTS = (
    *("partition", "state", "holder", "subject", "reason", "class", "of class", "image", "for example", "engine"),
    *("field", "value", "why"),
    *("side", "A", "B", "in A", "in B"),
    *("setting", "value", "from", "how"),
)
"""Columns of text, aligned left; the others are numbers."""
HEADED = (1, 5, 10, 15, 20, 25, 30)
"""Days whose number is shown above the calendar, which is 70 columns wide."""
NO_IMAGES = "·"
"""A day without images in the archive and without published rows."""
MARKS = {
    "published": ("P", "green"),
    "held": ("H", "cyan"),
    "partial": ("~", "yellow"),
    "stale": ("s", "yellow"),
    "missing": ("-", "red"),
    "orphaned": ("o", "magenta"),
    "damaged": ("!", "bold red"),
}


def console() -> Console:
    """The console of stderr, without markup: `[cuda]` and `[/x]` are printed literally."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def plain(value: object) -> str:
    """A value as text; control characters and lone surrogates are written as in Python, `\\x1b`."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in str(value))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table: texts aligned left, numbers right."""
    table = Table(title=Text(plain(title), style="italic"), title_justify="left")
    for name in columns:
        table.add_column(Text(name), justify="left" if name in TEXTS else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else plain(cell)) for cell in row))
    console().print(table)


def print_status(title: str, found: Sequence[PartitionStatus], *, every: bool) -> None:
    """Print partitions as a list if there are few (or `every`), else as a calendar and a list of unpublished ones."""
    days = {day: s for s in found if (day := _day(s.partition)) is not None}
    if every or len(found) < CALENDAR_FROM or len(days) < len(found):
        _print_list(title, found)
        return
    shown = console()
    shown.print(Text(plain(title), style="italic"))
    heading = "".join(f"{day if day in HEADED else '':>2}" for day in range(1, 32))
    shown.print(Text(f"{'':8}{heading}", style="dim"))
    for month in sorted({(day.year, day.month) for day in days}):
        line = Text(f"{month[0]}-{month[1]:02} ")
        for number in range(1, 32):
            mark, style = _mark(days, month, number)
            line.append(f"{mark:>2}", style=style)
        shown.print(line)
    counts = Counter(s.state for s in found)
    legend = [f"{mark} {state} {counts[state]}" for state, (mark, _) in MARKS.items()]
    for entries in (legend[:4], [*legend[4:], f"{NO_IMAGES} no images"]):
        shown.print(Text("   ".join(entries)))
    rest = [s for s in found if s.state != "published"]
    if rest:
        _print_list("not published", rest[:LISTED])
        if len(rest) > LISTED:
            shown.print(f"… and {len(rest) - LISTED} more: --list shows all")


def _print_list(title: str, found: Sequence[PartitionStatus]) -> None:
    columns = ["partition", "state", "images", "rows", "rejected", "staged"]
    rows: list[list[Any]] = [[s.partition, s.state, s.images, s.rows, s.rejected, s.staged] for s in found]
    if any(s.holder for s in found):
        columns.append("holder")
        rows = [[*row, s.holder] for row, s in zip(rows, found, strict=True)]
    print_table(title, columns, rows)


def _mark(days: dict[date, PartitionStatus], month: tuple[int, int], number: int) -> tuple[str, str]:
    """A day's mark and colour: a dot without images, empty if the month has no such day."""
    try:
        day = date(*month, number)
    except ValueError:
        return "", ""
    return MARKS[days[day].state] if day in days else (NO_IMAGES, "dim")


def _day(partition: str) -> date | None:
    """The day of a partition `date=…`, else None."""
    values = partition_values(partition)
    try:
        return date.fromisoformat(values["date"]) if set(values) == {"date"} else None
    except (KeyError, ValueError):
        return None


def answered(explored: Explored, sheet: str) -> Explored:
    """Questions with defaults, for a person who has looked at the sheet."""
    click.echo(f"look at {sheet}: it shows the same pictures under every variant", err=True)
    for answer in explored.answers:
        click.echo(answer.question.text, err=True)
        for number, option in enumerate(answer.question.options, start=1):
            click.echo(f"  {number}  {option.label}", err=True)
        chosen = click.prompt(
            f"{answer.question.field}",
            type=click.IntRange(1, len(answer.question.options)),
            default=answer.taken + 1,
            err=True,
        )
        explored = explored.with_choice(answer.question.field, answer.question.options[chosen - 1].value)
    names = explored.draft.fields.get("output.classes")
    if names is not None and names.origin == "guessed":
        while True:
            text = click.prompt("Names of the classes, by channel", default=",".join(names.value), err=True)
            given = [name.strip() for name in text.split(",")]
            if len(given) == len(names.value) and len(set(given)) == len(given) and all(given):
                break
            click.echo(f"the model has {len(names.value)} channel(s): write as many different names", err=True)
        explored = explored.with_choice("output.classes", given)
    background = explored.draft.fields.get("output.background")
    if background is not None and background.origin == "guessed":
        names = explored.draft.value("output.classes")
        chosen = click.prompt(
            "The class that is no finding (none: all count)",
            type=click.Choice([*names, "none"]),
            default="none" if background.value is None else names[background.value],
            err=True,
        )
        index = names.index(chosen) if chosen in names else None
        explored = explored.with_choice("output.background", index)
    return explored


def training_settings(channels: int, given: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Normalisation, colour, fit and activation of an export, in this order: what is None is asked.

    Colour is asked for three channels only. The activation stays None where the graph shall say it.
    """
    normalize, color, fit, activation = given

    def choice(text: str, values: Sequence[str], default: str | None = None) -> str:
        return str(click.prompt(text, type=click.Choice(values), default=default, err=True))

    if normalize is None:
        normalize = click.prompt(f"Normalisation of the training ({NORMALIZE_FORMS})", err=True)
    if color is None and channels == 3:
        color = choice("Meaning of the channels", ("rgb", "bgr", "bands"))
    if fit is None:
        fit = choice("How an image gets the input's size", ("tile", "stretch", "letterbox", "pad", "none"), "tile")
    if activation is None:
        meanings = ("logits", "softmax", "sigmoid", "labels")
        found = choice("Meaning of the output values; graph: what its operators show", (*meanings, "graph"), "graph")
        activation = None if found == "graph" else found
    return normalize, color, fit, activation
