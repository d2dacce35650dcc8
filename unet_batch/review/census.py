"""Figures over the published rows of some partitions: counts, reasons, areas, confidences, and images to review.

Plain Arrow over a few columns without masks, one row group at a time, so that any engine that reads the table finds the
same figures. Memory: 8 bytes per class and image, and a few names.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

COLUMNS = [
    "image_key", "status", "reason", "message", "run_id", "label", "confidence", "entropy",
    "classes.list.element.id", "classes.list.element.name", "classes.list.element.fraction",
]  # fmt: skip
EXAMPLES = 3
"""Example images per reason."""
BINS = 20
QUANTILES = (0.05, 0.5, 0.95)
AREA_HISTOGRAM_MAXIMA = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CONFIDENCE_HISTOGRAM_MINIMA = (0.99, 0.98, 0.95, 0.9, 0.8, 0.5, 0.0)
"""Allowed upper and lower ends of histograms: round numbers, so that two reports can be compared."""
FEW = 0.5
"""Share of images with empty masks below which the report lists examples of them."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of rows, of one partition or of all."""

    rows: int = 0
    ok: int = 0
    rejected: int = 0
    of_this_run: int = 0
    """Rows that this run scored; other runs scored the rest."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.rows + other.rows,
            self.ok + other.ok,
            self.rejected + other.rejected,
            self.of_this_run + other.of_this_run,
        )


@dataclass(frozen=True, slots=True)
class Rejected:
    """The images that were rejected for one reason."""

    reason: str
    images: int
    examples: tuple[tuple[str, str], ...]
    """Image key and message of the first ones."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Number of values between neighbouring edges; the last bin includes its upper edge."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class over all scored images."""

    id: int
    name: str
    images: int
    """Images with at least one pixel of the class; of a classifier: images with this label."""
    share: float
    """Share of all scored images."""
    mean: float | None
    """Mean area fraction over these images; None if there are none."""
    quantiles: tuple[float, ...]
    """QUANTILES of the same."""
    histogram: Histogram | None


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """An image to review, and the place of its row."""

    rank: float
    """Sort key of the review."""
    image_key: str
    partition: str
    row: int
    confidence: float | None = None
    entropy: float | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of a census."""

    counts: Counts
    rejected: tuple[Rejected, ...]
    classes: tuple[ClassFigures, ...]
    confidence: Histogram | None
    """None if the rows have no confidence."""
    mean_confidence: float | None
    queue: tuple[Candidate, ...]
    """The least confident images first."""
    empty: int
    """Scored images without a pixel of any class."""
    empty_examples: tuple[str, ...]
    """Image keys of the first of them, if most images are not empty."""
    sample: tuple[Candidate, ...]
    """The images whose keys have the smallest hashes: the same images even if their rows are replaced."""


class Census:
    """Collects figures, one partition at a time."""

    def __init__(self, run: str, *, queue: int, sample: int, classes: Mapping[int, str] | None = None) -> None:
        """queue, sample: number of images to keep for review. classes: id → name, also of classes without pixels."""
        self._run = run
        self._most = {"queue": queue, "sample": sample}
        self._names = dict(classes or {})
        self._counts = Counts()
        self._reasons: Counter[str] = Counter()
        self._reason_examples: dict[str, list[tuple[str, str]]] = {}
        self._fractions: dict[int, list[NDArray[np.float64]]] = {}
        self._labels: Counter[str] = Counter()
        self._confidences: list[NDArray[np.float64]] = []
        self._queue: list[Candidate] = []
        self._sample: list[Candidate] = []
        self._empty = 0
        self._empty_examples: list[str] = []

    def add(self, partition: str, file: pq.ParquetFile) -> Counts:
        """Count the rows of a published object. Raises ArrowException, OSError or KeyError if it is damaged."""
        of_file, first = Counts(), 0
        groups = range(file.metadata.num_row_groups)
        for table in [
            file.read_row_group(group, columns=COLUMNS) for group in groups
        ]:  # read all first, so that a damaged object counts nothing
            of_file += self._add(partition, table, first)
            first += len(table)
        self._counts += of_file
        return of_file

    def figures(self) -> Figures:
        """The figures so far."""
        confidences = np.concatenate(self._confidences) if self._confidences else np.empty(0)
        mostly_full = self._empty < FEW * self._counts.ok
        return Figures(
            counts=self._counts,
            rejected=tuple(
                Rejected(reason, images, tuple(self._reason_examples[reason]))
                for reason, images in sorted(self._reasons.items(), key=lambda entry: (-entry[1], entry[0]))
            ),
            classes=tuple(self._class(id_, name) for id_, name in sorted(self._names.items())),
            confidence=_histogram(confidences, _lower_end(confidences), 1.0) if confidences.size else None,
            mean_confidence=float(confidences.mean()) if confidences.size else None,
            queue=tuple(self._queue),
            empty=self._empty,
            empty_examples=tuple(self._empty_examples) if mostly_full else (),
            sample=tuple(self._sample),
        )

    def _add(self, partition: str, table: pa.Table, first: int) -> Counts:
        table = table.append_column("row", pa.array(range(first, first + len(table)), pa.int64()))
        is_ok = pc.equal(table.column("status").cast(pa.string()), "ok")
        ok, refused = table.filter(is_ok), table.filter(pc.invert(is_ok))
        self._add_rejected(refused)
        self._add_classes(ok)
        self._add_empty(ok)
        self._add_confidences(partition, ok)
        self._keep("sample", self._sampled(partition, ok))
        mine = pc.sum(pc.equal(table.column("run_id").cast(pa.string()), self._run)).as_py() or 0
        return Counts(len(table), len(ok), len(refused), mine)

    def _add_rejected(self, table: pa.Table) -> None:
        columns = (table.column(name).to_pylist() for name in ("image_key", "reason", "message"))
        for key, reason, message in zip(*columns, strict=True):
            self._reasons[reason] += 1
            examples = self._reason_examples.setdefault(reason, [])
            if len(examples) < EXAMPLES:
                examples.append((key, message or ""))

    def _add_classes(self, table: pa.Table) -> None:
        cells = pa.concat_arrays(table.column("classes").chunks) if table.num_rows else None
        if cells is None:
            return
        flat = cells.flatten()
        has_area = pc.is_valid(pc.struct_field(flat, "fraction"))
        if not pc.all(has_area, min_count=0).as_py():  # rows of a classifier: their classes have no area
            self._labels.update(label for label in table.column("label").to_pylist() if label is not None)
            self._names |= dict(zip(*(pc.struct_field(flat, name).to_pylist() for name in ("id", "name")), strict=True))
            flat = flat.filter(has_area)
        ids, fractions = (pc.struct_field(flat, name) for name in ("id", "fraction"))
        for id_ in pc.unique(ids).to_pylist():
            chosen = pc.equal(ids, id_)
            self._fractions.setdefault(id_, []).append(np.asarray(fractions.filter(chosen), np.float64))
            if id_ not in self._names:
                self._names[id_] = pc.struct_field(flat, "name").filter(chosen)[0].as_py()

    def _add_empty(self, table: pa.Table) -> None:
        empty = table.filter(pc.equal(pc.list_value_length(table.column("classes")), 0)).column("image_key")
        self._empty += len(empty)
        left = self._most["queue"] - len(self._empty_examples)
        self._empty_examples += empty.slice(0, max(left, 0)).to_pylist()

    def _add_confidences(self, partition: str, table: pa.Table) -> None:
        sure = table.filter(pc.is_valid(table.column("confidence")))
        if not sure.num_rows:
            return
        self._confidences.append(np.asarray(sure.column("confidence"), np.float64))
        order = [("confidence", "ascending"), ("image_key", "ascending")]
        least = sure.sort_by(order).slice(0, self._most["queue"])
        self._keep("queue", (_candidate(partition, row, row["confidence"]) for row in _rows(least)))

    def _sampled(self, partition: str, table: pa.Table) -> Iterable[Candidate]:
        """The images of a table whose keys have the smallest hashes."""
        keys = table.column("image_key").to_pylist()
        ranks = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") for key in keys]  # exact as a float
        places = heapq.nsmallest(self._most["sample"], range(len(keys)), key=lambda place: (ranks[place], keys[place]))
        chosen = table.take(pa.array(places, pa.int64()))
        return (_candidate(partition, row, ranks[place]) for place, row in zip(places, _rows(chosen), strict=True))

    def _keep(self, which: str, found: Iterable[Candidate]) -> None:
        kept: list[Candidate] = getattr(self, f"_{which}")
        kept[:] = heapq.nsmallest(
            self._most[which], [*kept, *found], key=lambda candidate: (candidate.rank, candidate.image_key)
        )

    def _class(self, id_: int, name: str) -> ClassFigures:
        pieces = self._fractions.get(id_)
        if pieces is None:
            images = self._labels[name]
            return ClassFigures(id_, name, images, images / self._counts.ok if images else 0.0, None, (), None)
        found = np.concatenate(pieces)
        top = next(top for top in AREA_HISTOGRAM_MAXIMA if found.max() <= top or top == AREA_HISTOGRAM_MAXIMA[-1])
        return ClassFigures(
            id=id_,
            name=name,
            images=found.size,
            share=found.size / self._counts.ok,
            mean=float(found.mean()),
            quantiles=tuple(float(value) for value in np.quantile(found, QUANTILES)),
            histogram=_histogram(found, 0.0, top),
        )


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    names = ["image_key", "row", "confidence", "entropy", "label"]
    return [dict(row) for row in table.select(names).to_pylist()]


def _candidate(partition: str, row: Mapping[str, Any], rank: float) -> Candidate:
    return Candidate(
        rank=float(rank),
        image_key=row["image_key"],
        partition=partition,
        row=row["row"],
        confidence=row["confidence"],
        entropy=row["entropy"],
        label=row["label"],
    )


def _lower_end(values: NDArray[np.float64]) -> float:
    lowest = float(values.min())
    return next(
        foot for foot in CONFIDENCE_HISTOGRAM_MINIMA if lowest >= foot or foot == CONFIDENCE_HISTOGRAM_MINIMA[-1]
    )


def _histogram(values: NDArray[np.float64], low: float, high: float) -> Histogram:
    counts, edges = np.histogram(np.clip(values, low, high), BINS, (low, high))
    return Histogram(tuple(float(edge) for edge in edges), tuple(int(count) for count in counts))


def rows_at(file: pq.ParquetFile, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The given rows of a published object, in the given order; reads only their row groups."""
    found: dict[int, dict[str, Any]] = {}
    first = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        inside = sorted(row for row in set(rows) if first <= row < first + count)
        if inside:
            table = file.read_row_group(group, columns=list(columns))
            chosen = table.take(pa.array([row - first for row in inside], pa.int64()))
            found |= dict(zip(inside, chosen.to_pylist(), strict=True))
        first += count
    return [found[row] for row in rows]
