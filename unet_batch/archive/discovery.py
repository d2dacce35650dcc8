"""Which objects belong to which partition: dates in paths, windows and patterns; and what was passed over.

Uses names only and opens nothing; `inventory` reads what is inside an object.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial

from unet_batch.archive.formats import CONTAINERS
from unet_batch.archive.names import Globs, Tally, is_hidden, matches, suffix_of
from unet_batch.archive.window import DIGITS, DIRECTIVE, UNDATED, Window, date_field, level_pattern, parse_day
from unet_batch.errors import JobError
from unet_batch.records import PassedOver
from unet_batch.spec import PICTURE_SUFFIXES, InputSpec
from unet_batch.store.storage import Object, Storage, canonical, join

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Discovered:
    """The objects in a window's folders."""

    partitions: dict[str, list[Object]]
    """The objects of each partition that has any, sorted by partition and URI; an archive without dates always has one
    partition."""
    passed: PassedOver
    """Names in these folders that do not count."""


class Selection:
    """Which names of an archive count. Raises JobError if a glob is malformed."""

    def __init__(self, spec: InputSpec) -> None:
        self._suffixes = CONTAINERS[spec.format].suffixes if spec.pattern == "**" else None
        self._pattern = spec.pattern
        self._exclude = Globs(spec.exclude, members=False)
        self._warned: set[str] = set()
        self._images_elsewhere = CONTAINERS[spec.format].images_elsewhere
        Globs(spec.members, members=True)
        matches(spec.pattern, "")

    def refusal(self, name: str) -> str | None:
        """The kind of a relative name that does not count, e.g. `.txt file`; None if it counts."""
        if is_hidden(name):
            return "hidden name"
        if self._exclude.match(name):
            return "excluded name"
        if name.lower().endswith(self._suffixes) if self._suffixes else matches(self._pattern, name):
            if (folder := self._exclude.named_folder(name)) is not None and folder not in self._warned:
                self._warned.add(folder)
                log.warning(
                    "input.exclude names the folder %s, and that leaves out no file: write **/%s/** to leave out what "
                    "is in it",
                    folder,
                    folder,
                )
            return None
        suffix = suffix_of(name)
        return f"{suffix} file" if suffix else "unsuffixed file"

    def is_worth_saying(self, name: str) -> bool:
        """Whether a name that does not count is reported. Images beside a manifest are not: its rows refer to them."""
        return not (self._images_elsewhere and suffix_of(name)[1:] in PICTURE_SUFFIXES)


class Search:
    """A search for the objects of a window, one partition after the other, so that few are in memory at once.

    Raises JobError, in `partitions` too, if the URI or a glob is malformed, or if the window asks for days and the
    archive has no dates.
    """

    def __init__(self, storage: Storage, spec: InputSpec, window: Window) -> None:
        self._storage = storage
        self._spec = spec
        self._window = window
        self._template = canonical(spec.uri)
        self._selection = Selection(spec)
        self._tally = Tally()
        self._passed = PassedOver()

    @property
    def passed(self) -> PassedOver:
        """Names that do not count, in the folders that were searched so far."""
        return self._passed + self._tally.found()

    def partitions(self) -> Iterator[tuple[str, list[Object]]]:
        """Each partition that has an object, with its objects sorted by URI, as they are found.

        An archive without dates always has one partition.
        """
        if "{" not in self._template and "}" not in self._template:
            yield (
                UNDATED,
                _undated(
                    self._storage, self._spec, self._selection, self._template, window=self._window, tally=self._tally
                ),
            )
            return
        before, form, after = date_field(self._template)

        def objects_of(day: date) -> tuple[date, list[Object], Tally]:
            mine, uri = Tally(), before + day.strftime(form) + after  # a tally for each day: they are listed on threads
            objects = _objects(self._storage, self._selection, uri, mine)
            if not objects and self._storage.leads_nowhere(uri.removesuffix("/")):
                mine.note("unread link", day.isoformat())
            return day, objects, mine

        newest = self._window.kind == "last"
        if self._window.kind == "range":
            days = self._window.days()
        else:
            days = _walk(self._storage, before, form + after, newest_first=newest, tally=self._tally)
        listed: Iterator[tuple[date, list[Object], Tally]] = (
            map(objects_of, days) if newest else self._storage.map_bounded(partial(objects_of, day) for day in days)
        )
        for day, objects, mine in listed:
            self._passed += mine.found()
            if objects:
                yield f"date={day}", objects
                if newest:
                    return


def discover(storage: Storage, spec: InputSpec, window: Window) -> Discovered:
    """The objects of each partition of the window.

    With a `{date:…}` in the URI (%Y, %m and %d once each), each day is one partition, `date=2026-11-21`; without it
    there is one partition, `all`. The URI may be that of a folder or of a single object; a day's folder may be a link.
    In a folder, objects count whose name matches `spec.pattern` (relative to the dated folder; `**` crosses folders).
    With the default `**`, every object counts for `images` (other files become rejections), and those with the suffixes
    of the container for the others. Names that start with a dot, names in such folders, and names that match
    `spec.exclude` never count. A day without objects gives no partition. A missing folder counts as empty, because a
    mount may be lost.

    Raises JobError if the URI or a glob is malformed, or if the window asks for days and the archive has no dates.
    """
    search = Search(storage, spec, window)
    return Discovered(dict(sorted(search.partitions())), search.passed)


def reaches(spec: InputSpec, uri: str) -> bool:
    """Whether an object of this URI would count in some window. Raises JobError as `discover` does."""
    template = canonical(spec.uri)
    folder = re.escape(template)
    if "{" in template or "}" in template:
        before, form, after = date_field(template)
        folder = re.escape(before) + level_pattern(form) + re.escape(after)
    found = re.match(folder.removesuffix("/") + "/", canonical(uri))
    selection = Selection(spec)
    return found is not None and selection.refusal(canonical(uri)[found.end() :]) is None


def _undated(
    storage: Storage, spec: InputSpec, selection: Selection, uri: str, *, window: Window, tally: Tally
) -> list[Object]:
    if window.kind == "range" and spec.partition_column is None:
        raise JobError(f"the window asks for days, but input.uri {uri} has no {{date:%Y-%m-%d}} in it; use window all")
    return _objects(storage, selection, uri, tally)


def _objects(storage: Storage, selection: Selection, uri: str, tally: Tally) -> list[Object]:
    """The objects of one partition: those in the folder, else the object with exactly this name."""
    below: list[Object] = []
    top = len(uri.removesuffix("/")) + 1
    for found in storage.list(uri):
        name = found.uri[top:]
        what = selection.refusal(name)
        if what is None:
            below.append(found)
        elif selection.is_worth_saying(name):
            # A link that is not followed may lead to a folder of images, so it is always reported.
            tally.note(what if found.problem is None else "unread link", name)
    if below:
        return sorted(below, key=lambda found: found.uri)
    single = None if uri.endswith("/") else storage.head(uri)
    return [] if single is None else [single]


def _walk(storage: Storage, before: str, rest: str, *, newest_first: bool, tally: Tally) -> Iterator[date]:
    """The days that have a folder or an object, searched level by level."""
    folder, _, begun = before.rpartition("/")
    levels = [level for level in (begun + rest).split("/") if level]
    # This order is newest first only if years are above months and months above days.
    depth = {d: next(i for i, level in enumerate(levels) if d in level) for d in DIGITS}
    in_order = depth["%Y"] <= depth["%m"] <= depth["%d"]
    descent = _Descent(storage, len(folder.removesuffix("/")) + 1, tally, as_object=not rest.endswith("/"))
    days = descent.days(folder, levels, {})
    yield from days if newest_first and in_order else sorted(set(days), reverse=newest_first)


class _Descent:
    """A search for days through the levels of a URI; it counts the folders that are not days."""

    def __init__(self, storage: Storage, top: int, tally: Tally, *, as_object: bool) -> None:
        """top: length of the URI above the first level. as_object: whether a day may be a single object."""
        self._storage = storage
        self._top = top
        self._tally = tally
        self._as_object = as_object

    def days(self, folder: str, levels: Sequence[str], known: dict[str, str]) -> Iterator[date]:
        """The days below a folder, newest first. known: year, month or day from the levels above."""
        if len(known) == len(DIGITS):  # the rest of the path is fixed; the listing will show whether it exists
            day = parse_day(f"{known['Y']}-{known['m']}-{known['d']}")
            if day is not None:
                yield day
            else:
                self._note(folder, "undated folder")
            return
        level, deeper = levels[0], levels[1:]
        if not DIRECTIVE.search(level):
            yield from self.days(join(folder, level), deeper, known)
            return
        for name, values in self._fitting(folder, level, last=not deeper):
            if all(known.get(key, value) == value for key, value in values.items()):
                yield from self.days(join(folder, name), deeper, known | values)

    def _fitting(self, folder: str, level: str, *, last: bool) -> list[tuple[str, dict[str, str]]]:
        """Names that match a level, with their parts of the date, newest first."""
        pattern = re.compile(level_pattern(level))
        names = self._storage.folders(folder)
        if not names and self._storage.leads_nowhere(folder):
            self._note(folder, "unread link")
        fits = [(name, fit.groupdict()) for name in names if (fit := pattern.fullmatch(name))]
        undated = [(name, "undated folder") for name in names if not pattern.fullmatch(name)]
        if not fits and last and self._as_object:
            top = len(folder.removesuffix("/")) + 1
            objects = [found.uri[top:] for found in self._storage.list(folder)]
            fits = [(name, fit.groupdict()) for name in objects if (fit := pattern.fullmatch(name))]
            others = (name for name in objects if not pattern.fullmatch(name) and "/" not in name)
            undated += [(name, f"{suffix_of(name) or 'unsuffixed'} file") for name in others]
        for name, what in undated:
            self._note(join(folder, name), what)
        return sorted(fits, key=lambda f: [f[1].get(k, "") for k in ("Y", "m", "d")], reverse=True)

    def _note(self, uri: str, what: str) -> None:
        name = uri[self._top :]
        self._tally.note("hidden name" if is_hidden(name) else what, name)
