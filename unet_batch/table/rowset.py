"""Which row wins: the one rule by which rows of the same image in several objects become one.

Publication, survey, sweep, comparison and report ask this module and no other, so that what a plan counts as done is
what is published, and what a comparison shows is what the next publication would take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from unet_batch.errors import Reason
from unet_batch.table.parts import RowKey

Name = tuple[str, str]
"""A source's key and version: rows that share both are rows of the same bytes."""


@dataclass(frozen=True, slots=True)
class Winner:
    """The rows of one source that count."""

    container: int
    """Number of the object that holds them, from 0 in the order in which they were asked."""
    pages: tuple[RowKey, ...]
    """Pages 0 to n − 1."""

    @property
    def rejected(self) -> bool:
        """Whether any page is a rejection."""
        return any(page.reason is not None for page in self.pages)

    @property
    def may_pass(self) -> bool:
        """Whether any page was rejected for a reason that scoring the same bytes again may end differently."""
        return any(page.reason is not None and may_pass(page.reason) for page in self.pages)


def choose(containers: Iterable[Sequence[RowKey]], versions: Mapping[str, str] | None = None) -> dict[Name, Winner]:
    """The rows that count of every source, by its key and version.

    containers: the rows of each object, published rows before staged ones. versions: of the inventory, by source key;
    rows of any other version do not count. None counts rows of every version, each version for itself.

    1. All pages of a source come from one object, and only from one that has every page from 0 to n − 1 exactly once.
    2. Of several, the one with the most predicted pages wins: another try can only make rows better.
    3. Of equals, the one with the fewest rejected pages, and of equals again the first.
    """
    chosen: dict[Name, Winner] = {}
    for number, keys in enumerate(containers):
        sources: dict[Name, list[RowKey]] = {}
        for key in keys:
            if versions is None or versions.get(key.source_key) == key.version:
                sources.setdefault((key.source_key, key.version), []).append(key)
        for name, pages in sources.items():
            if not _is_complete(pages):
                continue
            now = chosen.get(name)
            if now is None or _rank(pages) > _rank(now.pages):
                chosen[name] = Winner(number, tuple(sorted(pages, key=lambda page: page.page)))
    return chosen


def may_pass(reason: str) -> bool:
    """Whether another try may end differently; False for a reason of another version of this package."""
    try:
        return Reason(reason).retryable
    except ValueError:
        return False


def _is_complete(pages: Sequence[RowKey]) -> bool:
    count = pages[0].pages
    if len(pages) == 1:
        return pages[0].page == 0 and count == 1
    return sorted(page.page for page in pages) == list(range(count)) and all(page.pages == count for page in pages)


def _rank(pages: Sequence[RowKey]) -> tuple[int, int]:
    rejected = sum(page.reason is not None for page in pages)
    return len(pages) - rejected, -rejected
