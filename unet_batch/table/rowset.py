"""The rule that chooses one of several rows of the same image in several objects.

Publication, survey, sweep, comparison and report all use this module. So a plan counts the rows that will be published,
and a comparison shows the rows that the next publication would choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from unet_batch.errors import Reason
from unet_batch.table.parts import RowKey

Name = tuple[str, str]
"""A source's key and version; rows with the same name come from the same bytes."""


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """The chosen rows of one source."""

    container: int
    """Number of the object that holds them, from 0, in the order of `choose`'s containers."""
    pages: tuple[RowKey, ...]
    """Pages 0 to n − 1."""

    @property
    def rejected(self) -> bool:
        """Whether any page is a rejection."""
        return any(page.reason is not None for page in self.pages)

    @property
    def may_pass(self) -> bool:
        """Whether any page has a retryable rejection."""
        return any(page.reason is not None and may_pass(page.reason) for page in self.pages)


def choose(containers: Iterable[Sequence[RowKey]], versions: Mapping[str, str] | None = None) -> dict[Name, ChosenRows]:
    """Source key and version → the chosen rows.

    containers: the rows of each object, published rows before staged ones. versions: source key → version, of the
    inventory; rows of other versions do not count. None: choose for every version.

    1. All pages of a source come from one object, which must have every page from 0 to n − 1 exactly once.
    2. Of several objects, the one with the most predicted pages: a retry can only improve rows.
    3. Then the one with the fewest rejected pages, then the first.
    """
    chosen: dict[Name, ChosenRows] = {}
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
                chosen[name] = ChosenRows(number, tuple(sorted(pages, key=lambda page: page.page)))
    return chosen


def may_pass(reason: str) -> bool:
    """Whether a reason is retryable; False for an unknown reason of another version of this package."""
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
