"""nnU-Net's own way where masks cannot be equal: resampled pictures, statistics of a part, regions in one mask.

Legend: H, W pixels; C channels; K regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.imaging.resize import resize_logits
from unet_batch.workbench.importers.difference import Normalise, Way

SMALLEST_STD = 1e-8
"""nnU-Net's least divisor."""


def resampled(spacing: Sequence[float]) -> Way:
    """Pictures that are resampled to a spacing after their normalisation, and scores that are resampled back.

    Cubic convolution stands for nnU-Net's cubic splines; the way back is bilinear, as there.
    """

    def values(pixels_hwc: NDArray[Any], normalise: Normalise) -> NDArray[Any]:
        import torch

        size_hw = [max(round(side / step), 1) for side, step in zip(pixels_hwc.shape[:2], spacing, strict=True)]
        image_nchw = torch.from_numpy(np.moveaxis(normalise(pixels_hwc), 2, 0)[None].copy())
        made = torch.nn.functional.interpolate(image_nchw, size=size_hw, mode="bicubic", align_corners=False)
        return np.ascontiguousarray(np.moveaxis(made[0].numpy(), 0, 2))

    return Way(values=values, back=resize_logits)


def masked_statistics(channels: Sequence[bool]) -> Way:
    """A z-score of the pixels that are not 0 in some channel, with the holes in them; the others become 0.

    channels: of each channel, whether it is done so (`use_mask_for_norm`).
    """

    def values(pixels_hwc: NDArray[Any], normalise: Normalise) -> NDArray[Any]:
        inside_hw = without_holes((pixels_hwc != 0).any(axis=2))
        result = normalise(pixels_hwc).copy()
        for channel, is_masked in enumerate(channels):
            if is_masked and inside_hw.any():
                found = pixels_hwc[..., channel].astype(np.float64)
                mean, std = found[inside_hw].mean(), found[inside_hw].std()
                normal_hw = (found - mean) / max(std, SMALLEST_STD)
                result[..., channel] = np.where(inside_hw, normal_hw, found)
        return result

    return Way(values=values)


def in_one_mask() -> Way:
    """Regions that are painted over each other: pixels of several regions keep one of them."""

    def decided(
        _ours_hw: NDArray[Any], _theirs_hw: NDArray[Any], scores_khw: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        count_hw = (scores_khw > 0.5).sum(axis=0)
        return count_hw, np.minimum(count_hw, 1)

    return Way(decided=decided)


def without_holes(mask_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with what it encloses: all but the pixels from which a path of neighbours leads to the border."""
    outside_hw = np.zeros_like(mask_hw)
    outside_hw[[0, -1]], outside_hw[:, [0, -1]] = ~mask_hw[[0, -1]], ~mask_hw[:, [0, -1]]
    before = -1
    while (count := int(outside_hw.sum())) != before:
        before = count
        for grown, came in ((outside_hw, outside_hw), (outside_hw.T, outside_hw.T)):
            grown[1:] |= came[:-1]
            grown[:-1] |= came[1:]
            outside_hw &= ~mask_hw
    return ~outside_hw
