"""MONAI's own way where masks cannot be equal: resized pixels that keep fractions, nearest pixels on the way back,
logits that are blended, and steps on finished masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import Kernel
from unet_batch.imaging.resize import resize
from unet_batch.workbench.importers.difference import Normalise, Way

LEAST = np.float32(1e-12)
"""Replaces a probability of 0 before its logarithm."""


def resized(size_hw: tuple[int, int], kernel: Kernel, *, normalised_first: bool) -> Way:
    """A Resize in float32. normalised_first: whether statistics are those of the image before it."""

    def values(pixels_hwc: NDArray[Any], normalise: Normalise) -> NDArray[Any]:
        if normalised_first:
            return resize(normalise(pixels_hwc), size_hw, kernel)
        return normalise(resize(pixels_hwc.astype(np.float32), size_hw, kernel))

    return Way(values=values)


def nearest_back() -> Way:
    """An Invert that takes the nearest pixel."""

    def back(scores_khw: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
        return np.moveaxis(resize(np.moveaxis(scores_khw, 0, 2), size_hw, "nearest"), 2, 0)

    return Way(back=back)


def blended_logits(*, sigmoid: bool) -> Way:
    """Windows that are averaged as logits, and then get their sigmoid or softmax."""

    def tile(values_khw: NDArray[Any]) -> NDArray[Any]:
        logits = np.log(np.maximum(values_khw, LEAST))
        # Of a softmax, logarithms are the logits but for a number that all classes of a pixel share.
        return logits - np.log(np.maximum(1 - values_khw, LEAST)) if sigmoid else logits

    def blended(logits_khw: NDArray[Any]) -> NDArray[Any]:
        if sigmoid:
            found: NDArray[Any] = 1 / (1 + np.exp(-logits_khw))
            return found
        weights = np.exp(logits_khw - logits_khw.max(axis=0))
        shares: NDArray[Any] = weights / weights.sum(axis=0)
        return shares

    return Way(tile=tile, blended=blended)


def on_masks(name: str, arguments: Mapping[str, Any]) -> Way:
    """A step of MONAI on a finished label map, such as KeepLargestConnectedComponent; MONAI itself computes it.

    arguments: plain values of the bundle, without those of dictionary transforms.
    """

    def decided(
        ours_hw: NDArray[Any], theirs_hw: NDArray[Any], _scores_khw: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        import torch
        from monai import transforms

        step = getattr(transforms, name)(**arguments)
        changed = step(torch.from_numpy(theirs_hw.astype(np.int64)[None]))
        return ours_hw, np.asarray(changed)[0]

    return Way(decided=decided)
