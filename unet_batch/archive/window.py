"""Windows: ranges of partitions, the days in them, and the date field of a URI.

`last` stays unresolved here: the listing of an archive resolves it.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from unet_batch.errors import JobError

UNDATED = "all"
"""The one partition of an archive without dates."""
DIGITS = {"%Y": r"\d{4}", "%m": r"\d{2}", "%d": r"\d{2}"}
DIRECTIVE = re.compile(r"%.")

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_MONTH = re.compile(r"(\d{4})-(\d{2})")


@dataclass(frozen=True, slots=True)
class Window:
    """A range of partitions."""

    first: date | None
    """First day of a `range`."""
    last: date | None
    """Last day, included."""
    kind: Literal["range", "all", "last"]
    """`last`: only the newest partition that holds objects."""

    def holds(self, day: date) -> bool:
        """Whether a day is inside; every day is in `all` and `last`."""
        return self.first is None or self.last is None or self.first <= day <= self.last

    def days(self) -> Iterator[date]:
        """Every day of a range, in order; empty for `all` and `last`."""
        if self.first is None or self.last is None:
            return
        for number in range((self.last - self.first).days + 1):
            yield self.first + timedelta(days=number)


def parse_window(text: str, today: date) -> Window:
    """The window of a text: `2026-11-01..2026-11-21`, `2026-11-21`, `2026-11`, `all`, `last`, `today`, `yesterday`.

    A month means all its days, also at either end of a range. Raises JobError for other texts, and for a range that
    ends before it begins.
    """
    text = text.strip()
    if text in ("all", "last"):
        return Window(None, None, "all" if text == "all" else "last")
    begin, dots, end = text.partition("..")
    spans = [_span(part.strip(), today) for part in ((begin, end) if dots else (begin,))]
    if spans[0] is None or spans[-1] is None:
        raise JobError(
            f"the window {text!r} is not A..B, A (days as 2026-11-21, months as 2026-11), all, last, today or yesterday"
        )
    first, last = spans[0][0], spans[-1][1]
    if first > last:
        raise JobError(f"the window {text!r} ends before it begins; write {end.strip()}..{begin.strip()}")
    return Window(first, last, "range")


def parse_day(text: str) -> date | None:
    """The day of an ISO text such as `2026-11-21`; None for other texts."""
    try:
        return date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        return None


def _span(text: str, today: date) -> tuple[date, date] | None:
    """First and last day of one end of a range; None if the text is not valid."""
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    day = named.get(text) or parse_day(text)
    if day is not None:
        return day, day
    month = _MONTH.fullmatch(text)
    if month is None or not 1 <= int(month[2]) <= 12 or int(month[1]) < 1:
        return None
    year, number = int(month[1]), int(month[2])
    return date(year, number, 1), date(year, number, calendar.monthrange(year, number)[1])


def date_field(template: str) -> tuple[str, str, str]:
    """The text before the date field, its format, and the text after it."""
    field = re.fullmatch(r"([^{}]*)\{date:([^{}]+)\}([^{}]*)", template)
    if field is None:
        raise JobError(f"input.uri {template} may contain one {{date:%Y-%m-%d}} and no other braces")
    before, form, after = field.groups()
    directives = DIRECTIVE.findall(form)
    if sorted(directives) != ["%Y", "%d", "%m"] or form.endswith("%"):
        raise JobError(f"the date in input.uri {template} must contain %Y, %m and %d once each, and nothing else")
    return before, form, after


def level_pattern(level: str) -> str:
    """A regular expression for one level of a URI with a date in it; its groups are Y, m and d."""
    pieces = re.split(r"(%[Ymd])", level)
    return "".join(f"(?P<{p[1]}>{DIGITS[p]})" if p in DIGITS else re.escape(p) for p in pieces)
