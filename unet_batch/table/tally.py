"""A tally: counts over a partition's rows, by which `plausibility` judges them; kept in the published object's footer.

It is counted from the rows while they are merged, so it costs no second pass, and tallies of other nights are read
without their rows. Only counting imports pyarrow.compute (0.1 s of processor time): worker processes do not count.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

TALLY_METADATA = b"unet_batch.tally"
FULL = 0.99
"""Share of an image from which one class counts as covering it whole."""
LEVELS_PER_DECADE = 16
LEAST_DOUBT = 1e-7
"""Doubt is 1 − confidence; levels of confidence divide it logarithmically, because confidences crowd below 1."""


@dataclass(slots=True)
class Tally:
    """Counts over rows; images are pages with a prediction."""

    ok: int = 0
    """Images with a prediction."""
    empty: int = 0
    """Images without a pixel of any class."""
    dim: int = 0
    """Images that use little of the range that their values are divided by (`worker.loaded.DIM`)."""
    full: Counter[int] = field(default_factory=Counter)
    """Class id → images that it covers whole."""
    seen: Counter[int] = field(default_factory=Counter)
    """Class id → images with at least one pixel of it; of a classifier: images with this label."""
    confidence: Counter[int] = field(default_factory=Counter)
    """Level of confidence → images; see `level_of`."""

    def add(self, table: pa.Table) -> None:
        """Count rows, as the table's columns status, label, classes and confidence hold them."""
        import pyarrow.compute as pc

        is_ok = pc.equal(table.column("status").cast(pa.string()), "ok")
        self.ok += pc.sum(is_ok).as_py() or 0
        cells = table.column("classes")
        nothing = pc.and_(pc.is_null(table.column("label").cast(pa.string())), pc.equal(pc.list_value_length(cells), 0))
        self.empty += pc.sum(pc.and_(is_ok, nothing)).as_py() or 0
        for chunk in cells.chunks:
            flat = chunk.flatten()
            flat = flat.filter(pc.is_valid(pc.struct_field(flat, "fraction")))
            ids = np.asarray(pc.struct_field(flat, "id"))
            covers = np.asarray(pc.struct_field(flat, "fraction")) >= FULL
            self.seen.update(_counted(ids))
            self.full.update(_counted(ids[covers]))
        self.seen.update(_counted(_labels_of_a_classifier(table)))
        confidences = np.asarray(pc.drop_null(table.column("confidence")), np.float64)
        self.confidence.update(_counted(levels_of(confidences)))

    def to_json(self) -> bytes:
        """JSON for a footer."""
        return json.dumps(
            {
                "ok": self.ok,
                "empty": self.empty,
                "dim": self.dim,
                **{name: sorted(getattr(self, name).items()) for name in ("full", "seen", "confidence")},
            },
            separators=(",", ":"),
        ).encode()

    @staticmethod
    def from_json(text: bytes) -> Tally:
        """Raises ValueError, KeyError or TypeError for another text."""
        tree: dict[str, Any] = json.loads(text)
        counters = (Counter({int(k): int(n) for k, n in tree[name]}) for name in ("full", "seen", "confidence"))
        return Tally(int(tree["ok"]), int(tree["empty"]), int(tree["dim"]), *counters)


def levels_of(confidences: np.ndarray) -> np.ndarray:
    """Levels of confidences, float64 in [0, 1]: 0 is no confidence, higher is surer."""
    doubt = np.clip(1 - confidences, LEAST_DOUBT, 1)
    levels: np.ndarray = np.floor(-LEVELS_PER_DECADE * np.log10(doubt)).astype(np.int64)
    return levels


def median_confidence(levels: Mapping[int, int]) -> float:
    """The middle of the level that holds the median image; levels: not empty."""
    half, below = sum(levels.values()) / 2, 0
    for level in sorted(levels):
        below += levels[level]
        if below >= half:
            break
    return 1 - float(10.0 ** (-(level + 0.5) / LEVELS_PER_DECADE))


def distance(a: Mapping[int, int], b: Mapping[int, int]) -> float:
    """Kolmogorov–Smirnov distance of two sets of levels: the largest difference of their cumulated shares, 0 to 1."""
    total_a, total_b = sum(a.values()), sum(b.values())
    below_a = below_b = largest = 0.0
    for level in sorted(a.keys() | b.keys()):
        below_a += a.get(level, 0) / total_a
        below_b += b.get(level, 0) / total_b
        largest = max(largest, abs(below_a - below_b))
    return largest


def _labels_of_a_classifier(table: pa.Table) -> np.ndarray:
    """Class ids of the labels of a classifier's rows: its classes have no area, and the first one is the label."""
    import pyarrow.compute as pc

    some = pc.greater(pc.fill_null(pc.list_value_length(table.column("classes")), 0), 0)
    rows = table.filter(pc.and_(some, pc.is_valid(table.column("label"))))
    first = pc.list_element(rows.column("classes"), 0)
    return np.asarray(pc.struct_field(first, "id").filter(pc.is_null(pc.struct_field(first, "fraction"))))


def _counted(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
