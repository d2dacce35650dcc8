"""An evaluation or a comparison as one self-contained HTML file: its tables, and the images that differ most.

Formats figures and computes none. All text is escaped, and the page forbids scripts, as that of a run does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from unet_batch.review.differences.compare_tables import TableOfTexts, score_text
from unet_batch.review.differences.pictures import A_COLOR, B_COLOR, BOTH_COLOR, PairPicture
from unet_batch.review.page import template
from unet_batch.store.objects import redact

_NUMBER = re.compile(r"[\d,.]*( %)?")
_WORDS = {"of class", "in A", "in B"}
"""Headings of columns that hold no key and no digest."""


@dataclass(frozen=True, slots=True)
class Words:
    """What the two sides are called."""

    title: str
    a: str
    b: str
    only_a: str
    only_b: str


EVALUATION = Words("held against the truth", "prediction", "truth", "found, and not in the truth", "missed")
COMPARISON = Words("two runs compared", "A", "B", "only in A", "only in B")


@dataclass(frozen=True, slots=True)
class DifferencePage:
    """What the page shows."""

    job: str
    words: Words
    about: tuple[tuple[str, str], ...]
    """What was compared: name and text."""
    gate: Literal["passed", "failed", "none"]
    sentences: tuple[str, ...]
    """What failed, or what a person should know first."""
    tables: tuple[TableOfTexts, ...]
    notes: tuple[str, ...]
    pictures: tuple[PairPicture, ...]


def render(page: DifferencePage, *, now: datetime | None = None) -> bytes:
    """The page, UTF-8. now: the moment that it names as its own."""
    text = template("difference.html").render(
        page=page,
        tables=[(title, headings, _redacted(rows), _kinds(headings, rows)) for title, headings, rows in page.tables],
        colors={"a": _hex(A_COLOR), "b": _hex(B_COLOR), "both": _hex(BOTH_COLOR)},
        redact=redact,
        score=score_text,
        made=now or datetime.now(UTC),
        stretched=any(picture.views is not None and picture.views.stretched for picture in page.pictures),
    )
    return text.lstrip().encode()


def _redacted(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[redact(cell) for cell in row] for row in rows]


def _kinds(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The style of each column: numbers, words, or keys."""
    numbers = [all(_NUMBER.fullmatch(row[column]) for row in rows) for column in range(len(headings))]
    return ["n" if n else "words" if name in _WORDS else "key" for n, name in zip(numbers, headings, strict=True)]


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
