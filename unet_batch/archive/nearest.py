"""The nearest existing name to a URI where nothing was found: shows a misspelt folder or another day.

Reads one listing of names for each level of the URI.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from datetime import date
from itertools import islice

from unet_batch.archive.window import Window, level_pattern
from unet_batch.errors import StorageError
from unet_batch.store.objects import join, path_of, scheme_of
from unet_batch.store.storage import Storage, canonical

LISTED = 1000
"""Most objects of a folder that are compared with the missing name."""
SIMILAR = 0.5
"""Smallest similarity of two names (difflib's ratio)."""
LATEST, EARLIEST = {"Y": 9999, "m": 12, "d": 31}, {"Y": 1, "m": 1, "d": 1}


def nearest(storage: Storage, template: str, window: Window) -> str | None:
    """The URI of the nearest folder or object; None if there is none, or if the URI exists.

    template: an archive's URI, with or without a date. Of several days, the nearest to the end of the window.
    """
    try:
        found = _descended(storage, canonical(template), window.last)
    except StorageError:
        return None  # this is only a hint: do not add a second error
    return path_of(found) if found is not None and scheme_of(found) == "file" else found


def _descended(storage: Storage, template: str, target: date | None) -> str | None:
    scheme, path = scheme_of(template), path_of(template)
    folder, levels = f"{scheme}://", [level for level in _split(path) if level]
    if scheme == "file":
        folder = "file:///"
    else:
        folder, levels = f"{scheme}://{levels[0]}", levels[1:]
    reached, exact = folder, True
    wanted = {"Y": target.year, "m": target.month, "d": target.day} if target else dict(LATEST)
    for number, level in enumerate(levels):
        name, same = _step(storage, reached, level, last=number == len(levels) - 1, wanted=wanted)
        if name is None:
            # No similar name: the folder above is the hint, unless it is the root of the store.
            return reached if not exact or number > 1 else None
        exact = exact and same
        reached = join(reached, name)
    return None if exact else reached


def _split(path: str) -> list[str]:
    """The levels of a path, also inside the braces of a date."""
    return path.replace("{date:", "").replace("}", "").split("/")


def _step(storage: Storage, folder: str, level: str, *, last: bool, wanted: dict[str, int]) -> tuple[str | None, bool]:
    """The name in a folder that is nearest to a level, and whether it is exactly the level's name.

    wanted: year, month and day to search for, by Y, m and d. It is changed to the first or last day of a year if only
    another year is found.
    """
    if "%" not in level:
        if storage.is_folder(join(folder, level)) or (last and storage.head(join(folder, level)) is not None):
            return level, True
        names: Sequence[str] = storage.folders(folder)
        if last:
            top = len(folder.removesuffix("/")) + 1
            objects = {found.uri[top:].partition("/")[0] for found in islice(storage.list(folder), LISTED)}
            names = sorted({*names, *objects})
        near = difflib.get_close_matches(level, [name for name in names if not name.startswith(".")], 1, SIMILAR)
        return (near[0] if near else None), False
    pattern = re.compile(level_pattern(level))
    names = storage.folders(folder)
    if last and not any(map(pattern.fullmatch, names)):
        top = len(folder.removesuffix("/")) + 1
        names = sorted({found.uri[top:].partition("/")[0] for found in islice(storage.list(folder), LISTED)})
    fits = [(name, fit.groupdict()) for name in names if (fit := pattern.fullmatch(name))]
    if not fits:
        return None, False
    name, values = min(fits, key=lambda fit: [abs(int(fit[1][k]) - wanted[k]) for k in "Ymd" if k in fit[1]])
    exact = True
    for key in "Ymd":
        if key in values and int(values[key]) != wanted[key]:
            exact = False
            earlier = int(values[key]) < wanted[key]
            wanted |= {
                k: value for k, value in (LATEST if earlier else EARLIEST).items() if "Ymd".index(k) > "Ymd".index(key)
            }
            break
    return name, exact
