"""Compare the rows of two runs or models, image by image.

Knows which rows belong to the same image; reads no archive and no model, and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unet_batch.archive.window import Window
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.scope import EVERYTHING, Scope
from unet_batch.review.agreement import TOP, Agreement, Found, Obstacle
from unet_batch.review.scored import Name, ScoredRows
from unet_batch.review.sides import EXAMPLES, RowsOfSide, Side
from unet_batch.store.storage import canonical
from unet_batch.table.layout import Layout
from unet_batch.table.rows import partition_values

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 1024
"""Rows of each side that are read together; only their masks are in memory, and all keys."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides, and how far their rows agree."""

    a: Side
    b: Side
    partitions: Mapping[str, Agreement]
    """Those in which either side has rows; the buckets of a partition are taken together."""
    total: Agreement
    notes: tuple[str, ...]
    """Sentences about rows that were missing or left out."""

    def to_json(self) -> dict[str, Any]:
        """All figures, for `json.dumps`; the images that differ most are those of all partitions together."""
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "partitions": {name: found.to_json() for name, found in self.partitions.items()},
            "total": {
                **self.total.to_json(),
                "most_flipped": [image.to_json() for image in self.total.most_flipped],
            },
            "notes": list(self.notes),
        }


def compare(
    prepared: Prepared, a: str, b: str, window: Window, *, b_output: str | None = None, top: int = TOP
) -> Comparison:
    """The rows of B held against those of A, partition by partition.

    a, b: a run of the output, which stands for all rows of its fingerprint, whichever run scored them; the first 8 or
    more hex digits of a fingerprint; `published`, whatever readers see; or `job`, the fingerprint of this job.
    b_output: URI of another job's output, where b is looked for; read with this job's `output.options`.
    top: how many images that differ most are kept.

    Rows of a fingerprint are those that its next publication would take. Rows are of the same image where image key
    and version are equal; a version that was scored on one side only does not count where another one was on both.
    Raises JobError where a word names nothing, and StorageError where the store fails.
    """
    other = prepared if b_output is None else replace(prepared, layout=Layout(canonical(b_output).rstrip("/")))
    # `last` is the newest day that either side has rows of, so it is found among all of them.
    scope = EVERYTHING if window.kind == "last" else Scope(window)
    sides = RowsOfSide(prepared, a, scope), RowsOfSide(other, b, scope)
    partitions: dict[str, Agreement] = {}
    without: dict[str, list[str]] = {}
    damaged: dict[str, None] = {}
    for name in sorted({*sides[0].partitions, *sides[1].partitions}, reverse=window.kind == "last"):
        rows_a, rows_b = (side.read(name) for side in sides)
        missing = [letter for letter, rows in (("A", rows_a), ("B", rows_b)) if not rows.places]
        if missing:
            without.setdefault(" and ".join(missing), []).append(name)
        if len(missing) < len(sides):
            partitions[name] = _agreement(rows_a, rows_b, top)
            log.info("%s: compared %d images", name, partitions[name].compared)
        damaged |= dict.fromkeys(rows_a.damaged + rows_b.damaged)
        if window.kind == "last" and partitions and "date" in partition_values(name):
            break
    partitions = dict(sorted(partitions.items()))
    total = sum(partitions.values(), Agreement(top=top))
    same = sides[0].fingerprint == sides[1].fingerprint and b_output is None
    notes = (*_absences(without), *_damages(list(damaged)), *_sameness(total, same=same))
    return Comparison(sides[0].side(), sides[1].side(), partitions, total, notes)


def _agreement(a: ScoredRows, b: ScoredRows, top: int) -> Agreement:
    """The agreement of one partition; its images are read bucket by bucket, in the order of keys."""
    both = sorted(a.places.keys() & b.places.keys(), key=lambda name: (a.bucket(a.places[name]), name))
    rest_a = {key for key, _ in a.places.keys() - b.places.keys()}
    rest_b = {key for key, _ in b.places.keys() - a.places.keys()}
    replaced = {key for key, _ in both if key in rest_a or key in rest_b}
    changed = (rest_a & rest_b) - replaced
    found = Agreement(
        top=top,
        only_a=len(rest_a - changed - replaced),
        only_b=len(rest_b - changed - replaced),
        not_comparable={Obstacle.OTHER_VERSION: Found(len(changed), min(changed))} if changed else {},
    )
    for begin in range(0, len(both), ROWS_AT_ONCE):
        found += _of_images(a, b, both[begin : begin + ROWS_AT_ONCE], top)
    return found


def _of_images(a: ScoredRows, b: ScoredRows, names: Sequence[Name], top: int) -> Agreement:
    rows_a, rows_b = (side.take([side.places[name] for name in names]) for side in (a, b))
    return Agreement.of(zip((key for key, _ in names), rows_a, rows_b, strict=True), top=top)


def _absences(without: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for letters, names in sorted(without.items()):
        shown = ", ".join(names[:EXAMPLES]) + (" …" if len(names) > EXAMPLES else "")
        verb = "have" if "and" in letters else "has"
        yield f"{letters} {verb} no rows in {len(names)} partition(s) of the window: {shown}"


def _damages(damaged: Sequence[str]) -> Iterator[str]:
    if damaged:
        yield (
            f"{len(damaged)} object(s) are damaged, and rows in them do not count, e.g. {damaged[0]}: "
            "verify says more, and the next run of their job scores them again"
        )


def _sameness(total: Agreement, *, same: bool) -> Iterator[str]:
    if same:
        yield "A and B are the same rows: nothing can differ"
    elif not total.compared:
        yield "no image has a prediction on both sides"
