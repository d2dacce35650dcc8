"""Which objects belong to which partition: dates in paths, windows of them, and patterns.

Knows names only: nothing is opened here. What is inside an object is `shards`' matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, partial
from itertools import islice
from typing import Literal

from unet_batch.archive.storage import Object, Storage, canonical, join
from unet_batch.errors import JobError
from unet_batch.records import ShardFormat
from unet_batch.spec import InputSpec

UNDATED = "all"
"""The one partition of an archive without dates."""

SUFFIXES: dict[ShardFormat, tuple[str, ...]] = {
    "images": ("",),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "manifest": (".csv", ".jsonl", ".parquet"),
}
"""Which names count where `pattern` is left at `**`; letters in either case."""

_DIGITS = {"%Y": r"\d{4}", "%m": r"\d{2}", "%d": r"\d{2}"}
_DIRECTIVE = re.compile(r"%.")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True)
class Window:
    """A range of partitions."""

    first: date | None
    """First day, where kind is `range`."""
    last: date | None
    """Last day, included."""
    kind: Literal["range", "all", "last"]
    """`last`: only the newest partition that holds anything."""

    def holds(self, day: date) -> bool:
        """Whether a day is inside; every day is in `all` and `last`."""
        return self.first is None or self.last is None or self.first <= day <= self.last


def parse_window(text: str, today: date) -> Window:
    """The window that people write: `2026-11-01..2026-11-21`, `2026-11-21`, `all`, `last`, `today`, `yesterday`.

    Raises JobError for anything else, and for a range that ends before it begins.
    """
    text = text.strip()
    if text in ("all", "last"):
        return Window(None, None, "all" if text == "all" else "last")
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    begin, dots, end = text.partition("..")
    days = [named.get(part.strip()) or parse_day(part.strip()) for part in ((begin, end) if dots else (begin,))]
    if None in days:
        raise JobError(f"the window {text!r} is not A..B, A (days as 2026-11-21), all, last, today or yesterday")
    first, last = days[0], days[-1]
    if first is not None and last is not None and first > last:
        raise JobError(f"the window {text!r} ends before it begins; write {last}..{first}")
    return Window(first, last, "range")


def parse_day(text: str) -> date | None:
    """The day that an ISO text such as `2026-11-21` names; None where it names none."""
    try:
        return date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        return None


def discover(storage: Storage, spec: InputSpec, window: Window) -> dict[str, list[Object]]:
    """The objects of each partition of the window, sorted by partition and URI.

    A `{date:…}` in the URI (each of %Y, %m and %d once) makes one partition `date=2026-11-21` of each day; without it
    there is one, `all`. What the URI names may be a folder or one single object. Of a folder, the objects that match
    `spec.pattern` count (relative to the dated folder; `**` crosses folders). Left at `**`: for `images` every object,
    whatever it is called (what is no image becomes a rejection), for the others those of SUFFIXES. A name that starts
    with a dot, or lies in such a folder, never counts. A day without objects gives no partition.

    Raises JobError where the URI is malformed, a range asks for days of an archive without dates, or nothing exists at
    a URI without dates.
    """
    template = canonical(spec.uri)
    if "{" not in template and "}" not in template:
        return {UNDATED: _undated(storage, spec, template, window)}
    before, form, after = _date_field(template)

    def objects_of(day: date) -> tuple[date, list[Object]]:
        return day, _objects(storage, spec, before + day.strftime(form) + after)

    if window.kind == "range":
        found = list(storage.ahead(partial(objects_of, day) for day in _days(window)))
    else:
        walked = map(objects_of, _walk(storage, before, form + after, newest_first=window.kind == "last"))
        holding = ((day, objects) for day, objects in walked if objects)
        found = list(holding if window.kind == "all" else islice(holding, 1))
    return {f"date={day}": objects for day, objects in sorted(found) if objects}


def reaches(spec: InputSpec, uri: str) -> bool:
    """Whether the archive, in some window, would hold an object of this URI."""
    template = canonical(spec.uri)
    folder = re.escape(template)
    if "{" in template or "}" in template:
        before, form, after = _date_field(template)
        folder = re.escape(before) + _level(form) + re.escape(after)
    found = re.match(folder.removesuffix("/") + "/", canonical(uri))
    return found is not None and _counts(spec, canonical(uri)[found.end() :])


def matches(pattern: str, name: str) -> bool:
    """Whether a relative name fits a glob: `*` and `?` stay within a folder, `**` crosses folders."""
    return _compiled(pattern).fullmatch(name) is not None


def _undated(storage: Storage, spec: InputSpec, uri: str, window: Window) -> list[Object]:
    if window.kind == "range" and spec.partition_column is None:
        raise JobError(f"the window asks for days, but input.uri {uri} has no {{date:%Y-%m-%d}} in it; use window all")
    objects = _objects(storage, spec, uri)
    if not objects and not storage.is_folder(uri) and storage.head(uri) is None:
        raise JobError(f"there is neither a folder nor an object at input.uri {uri}; check its spelling")
    return objects


def _objects(storage: Storage, spec: InputSpec, uri: str) -> list[Object]:
    """The objects of one partition: those in the folder, else the object of that very name."""
    below = [found for found in storage.list(uri) if _counts(spec, found.uri[len(uri.removesuffix("/")) + 1 :])]
    if below:
        return sorted(below, key=lambda found: found.uri)
    single = None if uri.endswith("/") else storage.head(uri)
    return [] if single is None else [single]


def _counts(spec: InputSpec, name: str) -> bool:
    if name.startswith(".") or "/." in name:
        return False
    if spec.pattern == "**":
        return name.lower().endswith(SUFFIXES[spec.format])
    return matches(spec.pattern, name)


def _date_field(template: str) -> tuple[str, str, str]:
    """What stands before the date, its format, and what stands behind it."""
    field = re.fullmatch(r"([^{}]*)\{date:([^{}]+)\}([^{}]*)", template)
    if field is None:
        raise JobError(f"input.uri {template} may hold one {{date:%Y-%m-%d}} and no other braces")
    before, form, after = field.groups()
    directives = _DIRECTIVE.findall(form)
    if sorted(directives) != ["%Y", "%d", "%m"] or form.endswith("%"):
        raise JobError(f"the date in input.uri {template} must hold %Y, %m and %d once each, and no other directive")
    return before, form, after


def _walk(storage: Storage, before: str, rest: str, *, newest_first: bool) -> Iterator[date]:
    """The days that have a folder or an object, found level by level."""
    folder, _, begun = before.rpartition("/")
    levels = [level for level in (begun + rest).split("/") if level]
    # Level by level is newest first only where years stand above months and months above days.
    depth = {d: next(i for i, level in enumerate(levels) if d in level) for d in _DIGITS}
    in_order = depth["%Y"] <= depth["%m"] <= depth["%d"]
    days = _descend(storage, folder, levels, {}, as_object=not rest.endswith("/"))
    yield from days if newest_first and in_order else sorted(set(days), reverse=newest_first)


def _descend(
    storage: Storage, folder: str, levels: Sequence[str], known: dict[str, str], *, as_object: bool
) -> Iterator[date]:
    if len(known) == len(_DIGITS):  # what is left of the path is fixed; whether it is there, the listing will show
        day = _date(known)
        if day is not None:
            yield day
        return
    level, deeper = levels[0], levels[1:]
    if not _DIRECTIVE.search(level):
        yield from _descend(storage, join(folder, level), deeper, known, as_object=as_object)
        return
    pattern, top = re.compile(_level(level)), len(folder.removesuffix("/")) + 1
    fits = [(name, fit.groupdict()) for name in storage.folders(folder) if (fit := pattern.fullmatch(name))]
    if not fits and not deeper and as_object:
        names = (found.uri[top:] for found in storage.list(folder))
        fits = [(name, fit.groupdict()) for name in names if (fit := pattern.fullmatch(name))]
    for name, values in sorted(fits, key=lambda f: [f[1].get(k, "") for k in ("Y", "m", "d")], reverse=True):
        if all(known.get(key, value) == value for key, value in values.items()):
            yield from _descend(storage, join(folder, name), deeper, known | values, as_object=as_object)


def _level(level: str) -> str:
    pieces = re.split(r"(%[Ymd])", level)
    return "".join(f"(?P<{p[1]}>{_DIGITS[p]})" if p in _DIGITS else re.escape(p) for p in pieces)


def _days(window: Window) -> Iterator[date]:
    if window.first is None or window.last is None:
        return
    for number in range((window.last - window.first).days + 1):
        yield window.first + timedelta(days=number)


def _date(values: dict[str, str]) -> date | None:
    return parse_day(f"{values['Y']}-{values['m']}-{values['d']}")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(_glob(pattern), re.DOTALL)
    except re.error as error:
        raise JobError(f"the pattern {pattern!r} is not a glob: {error}") from error


def _glob(pattern: str) -> str:
    """A regular expression for a glob whose `**` stands for any number of folders, none included."""
    out, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            out, at = out + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif (close := pattern.find("]", at + 2)) > 0 and pattern[at] == "[":
            inside = pattern[at + 1 : close].replace("\\", r"\\").replace("[", r"\[")
            out, at = out + f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]", close + 1
        else:
            out, at = out + {"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at])), at + 1
    return out
