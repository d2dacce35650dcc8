"""The gate's measurement: a session is compared with a trusted one on the same tiles."""

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
"""Smallest correlation of scores that counts as agreement if all labels are the same; 8-bit files reach 0.999."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of a comparison."""

    parity: Parity
    """Over all tiles."""
    breaches: tuple[str, ...]
    """A sentence for each exceeded tolerance; empty if there is none."""
    is_conclusive: bool
    """Whether agreement is evidence: the trusted labels vary, or the scores of both sessions are correlated."""
    worst: int
    """Number of the tile with the largest difference."""
    trusted_labels_hw: NDArray[np.uint8]
    """uint8 (H, W), of the worst tile; `tested_labels_hw` too."""
    tested_labels_hw: NDArray[np.uint8]

    def to_json(self) -> dict[str, Any]:
        return {
            "parity": self.parity.to_json(),
            "breaches": list(self.breaches),
            "conclusive": self.is_conclusive,
            "worst": self.worst,
        }


def check(tested: Session, trusted: Session, tiles_nhwc: NDArray[Any], tolerance: Tolerance) -> CheckReport:
    """Run the same tiles in both sessions and compare the results.

    tiles_nhwc: (N, H, W, C) of the contract's dtype, N ≥ 1. The trusted session runs them one by one, the tested one as
    a batch if its batch axis allows it, because it will score batches.
    Raises ShapeMismatch if the sessions return masks of different sizes or classes, and the errors of sessions.
    """
    output = tested.model.contract.output
    expected_nkhw = _one_by_one(trusted, tiles_nhwc)
    fixed = tested.model.batch is not None
    found_nkhw = _one_by_one(tested, tiles_nhwc) if fixed else tested.run(tiles_nhwc)
    each = [Parity.of(a[None], b[None], output) for a, b in zip(expected_nkhw, found_nkhw, strict=True)]
    total = each[0]
    for parity in each[1:]:
        total += parity
    worst = max(range(len(each)), key=lambda n: _severity(each[n]))
    return CheckReport(
        parity=total,
        breaches=tuple(tolerance.breaches(total)),
        is_conclusive=_labels_vary(expected_nkhw, output) or _scores_correlate(expected_nkhw, found_nkhw, output),
        worst=worst,
        trusted_labels_hw=labels(expected_nkhw[worst], output),
        tested_labels_hw=labels(found_nkhw[worst], output),
    )


def labels(values_khw: NDArray[Any], output: ModelOutput) -> NDArray[np.uint8]:
    """A label map for display, uint8 (H, W): 255 if a value is not finite; of overlapping classes the most probable."""
    decided = values_khw[0] if output.activation == "labels" else np.argmax(values_khw, axis=0)
    if output.multi_label:
        decided = np.where(values_khw.max(axis=0) > output.value_threshold, decided + 1, 0)
    finite = np.isfinite(values_khw).all(axis=0)
    return np.where(finite, np.nan_to_num(decided), 255).astype(np.uint8)


def picture(tile_hwc: NDArray[Any], report: CheckReport) -> NDArray[np.uint8]:
    """The worst tile as uint8 (H, W, 3), side by side: the tile, trusted labels, tested labels, differences."""
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


def _scores_correlate(expected_nkhw: NDArray[Any], found_nkhw: NDArray[Any], output: ModelOutput) -> bool:
    """Whether the scores of every class are correlated; used if all labels are the same.

    False for labels without scores, and for constant scores.
    """
    if output.decided:
        return False
    for expected_nhw, found_nhw in zip(expected_nkhw.swapaxes(0, 1), found_nkhw.swapaxes(0, 1), strict=True):
        one, other = (plane.astype(np.float64) - plane.mean(dtype=np.float64) for plane in (expected_nhw, found_nhw))
        spread = float(np.sqrt((one * one).sum() * (other * other).sum()))
        if not spread or float((one * other).sum()) < CORRELATED * spread:
            return False
    return True


def _severity(parity: Parity) -> tuple[int, int, float]:
    return parity.other_nan + parity.other_inf, parity.flipped, parity.max_abs_error


def _one_by_one(session: Session, tiles_nhwc: NDArray[Any]) -> NDArray[Any]:
    size = session.model.batch or 1
    return np.concatenate([session.run(np.repeat(tile[None], size, axis=0))[:1] for tile in tiles_nhwc])
