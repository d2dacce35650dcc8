"""The way back from an image that `input.crop` has cut: scores for the whole image, which say background outside."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.contract import ModelOutput
from unet_batch.imaging.preprocess import Geometry, whole
from unet_batch.imaging.resize import resize_logits

CERTAIN = 40.0
"""Logit outside of the box, with its sign: its probability is 0 or 1 in float32."""


def on_whole_image(values_khw: NDArray[Any], geometry: Geometry, output: ModelOutput) -> tuple[NDArray[Any], Geometry]:
    """Scores (K, H, W) of the whole image and their geometry; the arguments themselves if nothing was cut.

    values_khw: what the model returned for the fitted picture, at its size or another resolution. Outside of the box
    the pixels are class 0; where classes are independent, of no class.
    """
    if geometry.cut is None:
        return values_khw, geometry
    top, left, height, width = geometry.cut
    content_hw = geometry.resized_hw
    if values_khw.shape[1:] != geometry.fitted_hw:
        values_khw = _enlarged(values_khw, geometry.fitted_hw, output)
    whole_khw = np.full((len(values_khw), height, width), _absent(output), np.float32)
    if not output.multi_label and not output.decided:
        whole_khw[0] = CERTAIN if output.activation == "logits" else 1.0
    whole_khw[:, top : top + content_hw[0], left : left + content_hw[1]] = values_khw[
        :, geometry.top : geometry.top + content_hw[0], geometry.left : geometry.left + content_hw[1]
    ]
    return whole_khw, whole((height, width))


def _absent(output: ModelOutput) -> float:
    """The value of a class that a pixel does not belong to."""
    return -CERTAIN if output.activation == "logits" else 0.0


def _enlarged(values_khw: NDArray[Any], size_hw: tuple[int, int], output: ModelOutput) -> NDArray[Any]:
    if not output.decided:
        return resize_logits(values_khw, size_hw)
    rows, columns = (
        ((2 * np.arange(side) + 1) * found) // (2 * side)
        for side, found in zip(size_hw, values_khw.shape[1:], strict=True)
    )
    return values_khw[:, rows[:, None], columns]
