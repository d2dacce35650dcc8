"""Rules for names: globs, suffixes, and names that never count.

The same rules hold for objects of a store and for members of tars.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from itertools import chain, pairwise

from unet_batch.errors import JobError
from unet_batch.records import PASSED_EXAMPLES, PassedOver

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""Suffixes of tars, uncompressed and compressed with gzip, bzip2, xz and Zstandard."""

ALTERNATIVES = 1000
"""Most patterns that the braces of one pattern may expand to."""

_MAC = "__MACOSX"
_DOUBLE = (".gz", ".bz2", ".xz", ".zst")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_hidden(name: str) -> bool:
    """Whether a relative name never counts: it or one of its folders begins with a dot, or macOS added it."""
    if "." not in name and _MAC not in name:
        return False
    return any((step.startswith(".") and step not in (".", "..")) or step == _MAC for step in name.split("/"))


def suffix_of(name: str) -> str:
    """`.txt` of `s/a.TXT`, `.csv.gz` of `a.csv.gz`; empty for a name without a suffix."""
    last = name.rpartition("/")[2]
    stem, dot, ending = last.rpartition(".")
    if not dot or not stem or not ending.isalnum() or len(ending) > 12:
        return ""
    suffix = "." + ending.lower()
    inner = stem.rpartition(".")
    if suffix in _DOUBLE and inner[0] and inner[2].isalpha():
        return f".{inner[2].lower()}{suffix}"
    return suffix


def matches(pattern: str, name: str) -> bool:
    """Whether a relative name matches a glob. `*` and `?` do not cross folders, `**` does; `{a,b}` matches a or b.

    `{000..123}` matches the numbers of a range, as in WebDataset. A suffix matches in upper or lower case. Raises
    JobError if the glob is malformed, or can match no name.
    """
    return _compiled(pattern, crosses=False).fullmatch(name) is not None


class Globs:
    """Several globs. Raises JobError if one of them is malformed."""

    def __init__(self, patterns: Iterable[str], *, members: bool) -> None:
        """members: patterns of tar members: `*` crosses folders, and upper and lower case match.

        Otherwise a pattern without a slash is compared with the last name of a path, as in .gitignore.
        """
        self._members = members
        self._whole = [_compiled(p, crosses=members) for p in patterns if members or "/" in p]
        self._last = [_compiled(p, crosses=False) for p in patterns if not members and "/" not in p]
        self._folders: set[str] = set()

    def named_folder(self, name: str) -> str | None:
        """A folder of this name that a pattern names, although patterns match whole names or last names only.

        Each folder is returned once; None for all other names.
        """
        folder = name.rpartition("/")[0]
        if self._members or not folder or folder in self._folders:
            return None
        self._folders.add(folder)
        steps = folder.split("/")
        paths = ("/".join(steps[:count]) for count in range(1, len(steps) + 1))
        found = (path for path in paths if any(glob.fullmatch(path) for glob in self._whole))
        named = (step for step in steps if any(glob.fullmatch(step) for glob in self._last))
        return next(chain(found, named), None)

    def match(self, name: str) -> bool:
        """Whether any glob matches a relative name."""
        if self._members:
            name = name.lower().removeprefix("./")
        last = name.rpartition("/")[2]
        return any(glob.fullmatch(name) for glob in self._whole) or any(glob.fullmatch(last) for glob in self._last)


class Tally:
    """Counts the names that are passed over, by kind, and keeps the first names of each kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, tuple[str, ...]]] = {}

    def note(self, what: str, name: str) -> None:
        """Count one name. what: its kind, a noun such as `hidden name` or `.txt file`, with a plural in s."""
        count, names = self._kinds.get(what, (0, ()))
        self._kinds[what] = count + 1, (*names, name) if len(names) < PASSED_EXAMPLES else names

    def add(self, passed: PassedOver) -> None:
        """Add other counts."""
        for what, number, examples in passed.kinds:
            count, names = self._kinds.get(what, (0, ()))
            self._kinds[what] = count + number, (*names, *examples)[:PASSED_EXAMPLES]

    def found(self) -> PassedOver:
        """The counts so far."""
        return PassedOver(tuple((what, count, names) for what, (count, names) in sorted(self._kinds.items())))


@cache
def _compiled(pattern: str, *, crosses: bool) -> re.Pattern[str]:
    """The compiled glob. crosses: for tar members: `*` crosses folders, and the case of letters is ignored."""
    text = pattern.lower() if crosses else pattern
    if not text:
        raise JobError("an empty pattern matches no name; write ** for every name")
    _check_relative(pattern, refused=("./",) if crosses else ("/", "./", "../"))
    choices = _choices(text, pattern)
    try:
        return re.compile(
            "|".join(f"(?:{_translated(choice, pattern, crosses=crosses)})" for choice in choices), re.DOTALL
        )
    except re.error as error:
        raise JobError(f"the pattern {pattern!r} is not a glob: {error}") from error


def _check_relative(pattern: str, refused: tuple[str, ...]) -> None:
    """Raise JobError for a pattern that matches no name. refused: beginnings that no name has."""
    if pattern.startswith(refused):
        raise JobError(
            f"the pattern {pattern!r} matches no name: names are relative to their folder or tar, such as sub/a.png"
        )
    if pattern.endswith("/"):
        raise JobError(f"the pattern {pattern!r} matches no name: write {pattern}** for what is in a folder")


def _range(text: str, pattern: str) -> list[str] | None:
    """The numbers of `000..123`, as wide as the wider end where an end has leading zeros; None for other texts."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    first, last = int(found[1]), int(found[2])
    padded = any(len(end) > 1 and end.startswith("0") for end in found.groups())
    width = max(map(len, found.groups())) if padded else 1
    if abs(last - first) >= ALTERNATIVES:
        raise JobError(f"the braces of the pattern {pattern!r} make more than {ALTERNATIVES} patterns")
    step = 1 if last >= first else -1
    return [f"{number:0{width}}" for number in range(first, last + step, step)]


def _choices(text: str, pattern: str) -> list[str]:
    """The patterns that the braces expand to, as in shells; a `{` inside brackets is literal."""
    opened, depth, pieces, at = -1, 0, [], 0
    while at < len(text):
        letter = text[at]
        if letter == "[" and (close := text.find("]", at + 2)) > 0:
            at = close
        elif letter == "{":
            depth += 1
            if depth == 1:
                opened, pieces = at, [at]
        elif letter == "," and depth == 1:
            pieces.append(at)
        elif letter == "}":
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                bounds = [*pieces, at]
                inner = [text[a + 1 : b] for a, b in pairwise(bounds)]
                inner = (_range(inner[0], pattern) if len(inner) == 1 else None) or inner
                tails = _choices(text[at + 1 :], pattern)
                found = [text[:opened] + i + tail for one in inner for i in _choices(one, pattern) for tail in tails]
                if len(found) > ALTERNATIVES:
                    raise JobError(f"the braces of the pattern {pattern!r} make more than {ALTERNATIVES} patterns")
                return found
        at += 1
    if depth:
        raise JobError(f"the pattern {pattern!r} is not a glob: its braces are not balanced")
    return [text]


def _translated(pattern: str, whole: str, *, crosses: bool) -> str:
    """A regular expression for a glob without braces; `**` matches any number of folders, including none."""
    dot = pattern.rfind(".", pattern.rfind("/") + 1)
    before = pattern[: max(dot, 0)]
    if dot < 0 or crosses or before.count("[") != before.count("]"):
        return _pieces(pattern, whole, crosses=crosses)
    return _pieces(before, whole, crosses=False) + f"(?i:{_pieces(pattern[dot:], whole, crosses=False)})"


def _pieces(pattern: str, whole: str, *, crosses: bool) -> str:
    out, at = "", 0
    any_letter = "." if crosses else "[^/]"
    while at < len(pattern):
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            out, at = out + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "[":
            close = pattern.find("]", at + 3 if pattern[at + 1 : at + 2] in ("!", "^") else at + 2)
            if close < 0:
                raise JobError(f"the pattern {whole!r} is not a glob: a bracket is not closed; write [[] for a bracket")
            inside = pattern[at + 1 : close].replace("\\", r"\\").replace("[", r"\[")
            out, at = out + f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]", close + 1
        else:
            out += {"*": f"{any_letter}*", "?": any_letter}.get(pattern[at], re.escape(pattern[at]))
            at += 1
    return out
