"""The gate's measurement: a session held against one that is trusted, on the same tiles.

Knows sessions, tiles and tolerances. Knows no archive, and not where the tiles come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import ModelOutput
from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.session.session import Session

CORRELATED = 0.99
"""Least correlation of scores that counts as agreement where labels cannot tell: 8-bit files reach 0.999."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """How far a session is from the trusted one."""

    parity: Parity
    """Of all tiles together."""
    breaches: tuple[str, ...]
    """A sentence for each way in which it is out of tolerance; none where all is well."""
    tells: bool
    """Whether agreement means anything: the trusted labels vary, or else the scores of both follow each other."""
    worst: int
    """Which tile differs most."""
    trusted_labels_hw: NDArray[np.uint8]
    """Of the worst tile."""
    tested_labels_hw: NDArray[np.uint8]

    def to_json(self) -> dict[str, Any]:
        return {
            "parity": self.parity.to_json(),
            "breaches": list(self.breaches),
            "tells": self.tells,
            "worst": self.worst,
        }


def check(tested: Session, trusted: Session, tiles_nhwc: NDArray[Any], tolerance: Tolerance) -> CheckReport:
    """Runs the same tiles through both sessions.

    tiles_nhwc: (N, H, W, C) of the contract's dtype, N ≥ 1. The trusted session runs them one by one, the tested one
    side by side where its batch axis allows, because batches are what it will run.
    Raises ShapeMismatch where the sessions return masks of different sizes or classes, and what sessions raise.
    """
    output = tested.model.contract.output
    expected_nkhw = _one_by_one(trusted, tiles_nhwc)
    fixed = tested.model.batch is not None
    found_nkhw = _one_by_one(tested, tiles_nhwc) if fixed else tested.run(tiles_nhwc)
    each = [Parity.of(a[None], b[None], output) for a, b in zip(expected_nkhw, found_nkhw, strict=True)]
    total = each[0]
    for parity in each[1:]:
        total += parity
    worst = max(range(len(each)), key=lambda n: _badness(each[n]))
    return CheckReport(
        parity=total,
        breaches=tuple(tolerance.breaches(total)),
        tells=_labels_vary(expected_nkhw, output) or _scores_follow(expected_nkhw, found_nkhw, output),
        worst=worst,
        trusted_labels_hw=labels(expected_nkhw[worst], output),
        tested_labels_hw=labels(found_nkhw[worst], output),
    )


def labels(values_khw: NDArray[Any], output: ModelOutput) -> NDArray[np.uint8]:
    """A picture's label map for people: 255 where a value is not finite; where classes overlap, the most certain."""
    decided = values_khw[0] if output.activation == "labels" else np.argmax(values_khw, axis=0)
    if output.multi_label:
        threshold = (
            output.threshold if output.activation != "logits" else np.log(output.threshold / (1 - output.threshold))
        )
        decided = np.where(values_khw.max(axis=0) > threshold, decided + 1, 0)
    finite = np.isfinite(values_khw).all(axis=0)
    return np.where(finite, np.nan_to_num(decided), 255).astype(np.uint8)


def picture(tile_hwc: NDArray[Any], report: CheckReport) -> NDArray[np.uint8]:
    """The worst tile for people, side by side: the tile, the trusted labels, the tested ones, and where they differ."""
    gray = tile_hwc.astype(np.float32).mean(axis=2)
    low, high = float(gray.min()), float(gray.max())
    gray_hw = ((gray - low) / (high - low or 1.0) * 255).astype(np.uint8)
    size = report.trusted_labels_hw.shape
    rows = np.arange(size[0]) * gray_hw.shape[0] // size[0]
    columns = np.arange(size[1]) * gray_hw.shape[1] // size[1]
    top = max(int(report.trusted_labels_hw.max()), int(report.tested_labels_hw.max()), 1)
    panels: Sequence[NDArray[np.uint8]] = [
        gray_hw[np.ix_(rows, columns)],
        (report.trusted_labels_hw.astype(np.uint16) * 255 // top).astype(np.uint8),
        (report.tested_labels_hw.astype(np.uint16) * 255 // top).astype(np.uint8),
        np.where(report.trusted_labels_hw != report.tested_labels_hw, 255, 0).astype(np.uint8),
    ]
    return np.concatenate(panels, axis=1)


def _labels_vary(values_nkhw: NDArray[Any], output: ModelOutput) -> bool:
    return len(set().union(*(np.unique(labels(values_khw, output)).tolist() for values_khw in values_nkhw))) > 1


def _scores_follow(expected_nkhw: NDArray[Any], found_nkhw: NDArray[Any], output: ModelOutput) -> bool:
    """Whether the scores of every class rise and fall together: what is left where all pictures are empty.

    Finished labels have no scores, and scores that are the same everywhere follow nothing.
    """
    if output.decided:
        return False
    for expected_nhw, found_nhw in zip(expected_nkhw.swapaxes(0, 1), found_nkhw.swapaxes(0, 1), strict=True):
        one, other = (plane.astype(np.float64) - plane.mean(dtype=np.float64) for plane in (expected_nhw, found_nhw))
        spread = float(np.sqrt((one * one).sum() * (other * other).sum()))
        if not spread or float((one * other).sum()) < CORRELATED * spread:
            return False
    return True


def _badness(parity: Parity) -> tuple[int, int, float]:
    return parity.other_nan + parity.other_inf, parity.flipped, parity.max_abs_error


def _one_by_one(session: Session, tiles_nhwc: NDArray[Any]) -> NDArray[Any]:
    size = session.model.batch or 1
    return np.concatenate([session.run(np.repeat(tile[None], size, axis=0))[:1] for tile in tiles_nhwc])
