"""What a name says: globs, suffixes, and names that never count. Opens nothing.

One set of rules for objects of a store and for members of tars, so that both are taken and passed over alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from itertools import pairwise

from unet_batch.errors import JobError
from unet_batch.records import PASSED_EXAMPLES, PassedOver, ShardFormat

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""Tars as they are written, and as gzip, bzip2, xz and Zstandard pack them."""

SUFFIXES: dict[ShardFormat, tuple[str, ...]] = {
    "images": ("",),
    "webdataset": TAR_SUFFIXES,
    "parquet": (".parquet",),
    "manifest": (".csv", ".jsonl", ".ndjson", ".parquet"),
}
"""Which names count where `input.pattern` is left at `**`; letters in either case."""

ALTERNATIVES = 1000
"""Most patterns that the braces of one pattern may make."""

_MAC = "__MACOSX"
_DOUBLE = (".gz", ".bz2", ".xz", ".zst")


def is_hidden(name: str) -> bool:
    """Whether a relative name never counts: it or a folder in it begins with a dot, or macOS added it to an archive."""
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
    """Whether a relative name fits a glob: `*` and `?` stay within a folder, `**` crosses folders, `{a,b}` is a choice.

    A suffix fits in letters of either case. Raises JobError where the pattern is no glob.
    """
    return _compiled(pattern, crosses=False).fullmatch(name) is not None


class Globs:
    """Several globs that are asked together. Raises JobError where one of them is malformed."""

    def __init__(self, patterns: Iterable[str], *, members: bool) -> None:
        """members: patterns of tar members, in which `*` crosses folders and letters fit in either case.

        Otherwise a pattern without a slash is held against the last name alone, as in .gitignore.
        """
        self._members = members
        self._whole = [_compiled(p, crosses=members) for p in patterns if members or "/" in p]
        self._last = [_compiled(p, crosses=False) for p in patterns if not members and "/" not in p]

    def match(self, name: str) -> bool:
        """Whether any of them fits a relative name."""
        if self._members:
            name = name.lower().removeprefix("./")
        last = name.rpartition("/")[2]
        return any(glob.fullmatch(name) for glob in self._whole) or any(glob.fullmatch(last) for glob in self._last)


class Tally:
    """Counts what is passed over, by what it is, and keeps the first names of each."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, tuple[str, ...]]] = {}

    def note(self, what: str, name: str) -> None:
        """Count one more. what: a noun such as `hidden name`, or `.txt file`, whose plural ends in s."""
        count, names = self._kinds.get(what, (0, ()))
        self._kinds[what] = count + 1, (*names, name) if len(names) < PASSED_EXAMPLES else names

    def add(self, passed: PassedOver) -> None:
        """Count what was counted elsewhere."""
        for what, number, examples in passed.kinds:
            count, names = self._kinds.get(what, (0, ()))
            self._kinds[what] = count + number, (*names, *examples)[:PASSED_EXAMPLES]

    def found(self) -> PassedOver:
        """What was counted so far."""
        return PassedOver(tuple((what, count, names) for what, (count, names) in sorted(self._kinds.items())))


@cache
def _compiled(pattern: str, *, crosses: bool) -> re.Pattern[str]:
    """crosses: of tar members: `*` crosses folders, and all letters are compared in lower case."""
    text = pattern.lower() if crosses else pattern
    if not text:
        raise JobError("an empty pattern fits no name; write ** for every name")
    choices = _choices(text, pattern)
    try:
        return re.compile(
            "|".join(f"(?:{_translated(choice, pattern, crosses=crosses)})" for choice in choices), re.DOTALL
        )
    except re.error as error:
        raise JobError(f"the pattern {pattern!r} is not a glob: {error}") from error


def _choices(text: str, pattern: str) -> list[str]:
    """The patterns that the braces of one stand for, as shells expand them; `{` in brackets is itself."""
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
                tails = _choices(text[at + 1 :], pattern)
                found = [text[:opened] + i + tail for one in inner for i in _choices(one, pattern) for tail in tails]
                if len(found) > ALTERNATIVES:
                    raise JobError(f"the braces of the pattern {pattern!r} make more than {ALTERNATIVES} patterns")
                return found
        at += 1
    if depth:
        raise JobError(f"the pattern {pattern!r} is not a glob: a brace is not closed, or was never opened")
    return [text]


def _translated(pattern: str, whole: str, *, crosses: bool) -> str:
    """A regular expression for a glob without braces, whose `**` stands for any number of folders, none included."""
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
