"""How plausible masks are, and whether a network knows its input: figures that rank variants of a contract.

They support a guess and prove nothing. Legend: H, W pixels; N tiles, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import UnetBatchError
from unet_batch.imaging.overlay import displayed
from unet_batch.model import graph
from unet_batch.model.shapes import with_outputs
from unet_batch.session.plain_session import PlainSession

if TYPE_CHECKING:
    from onnx import ModelProto

ONE_LABEL = 0.998
"""Share of a picture's pixels with the same label from which its mask counts as empty or full."""
MOST_LAYERS = 6
"""Normalisation layers that are compared, from the input on: they see the pixels most directly."""


def is_trivial(labels_hw: NDArray[Any]) -> bool:
    """Whether the mask is empty, full, or nearly so."""
    return bool(np.unique(labels_hw, return_counts=True)[1].max() > ONE_LABEL * labels_hw.size)


def edge_ratio(picture_hwc: NDArray[Any], labels_hw: NDArray[Any]) -> float:
    """Mean contrast along the borders of labels, as a share of the picture's mean contrast.

    picture_hwc: source values, (H, W, C). labels_hw: of the same size. About 1 where borders have nothing to do with
    the picture, more where they lie on its edges; 0 without borders. Contrast is the mean absolute difference of
    neighbours within 3 × 3 pixels, so that a border may be a pixel off.
    """
    if min(labels_hw.shape) < 4:
        return 0.0
    gray_hw = displayed(picture_hwc, "rgb").astype(np.float32).mean(axis=2)
    steps = np.abs(np.diff(gray_hw, axis=0))[:, :-1] + np.abs(np.diff(gray_hw, axis=1))[:-1]
    padded = np.pad(steps, 1, mode="edge")
    height, width = steps.shape
    near = [padded[row : row + height, column : column + width] for row in range(3) for column in range(3)]
    contrast = np.mean(near, axis=0)
    border = (labels_hw[:-1, :-1] != labels_hw[1:, :-1]) | (labels_hw[:-1, :-1] != labels_hw[:-1, 1:])
    usual = float(np.mean(contrast))
    if not border.any() or usual == 0:
        return 0.0
    return float(np.mean(contrast[border])) / usual


class NormLayers:
    """The first batch normalisations of a graph, which hold mean and variance of their input in training.

    With pixels like those of the training, the input of these layers has about the same mean and variance. Exports
    usually merge these layers into convolutions; then there are none.
    """

    def __init__(self, model: ModelProto, data_name: str) -> None:
        """data_name: the graph's input."""
        stored = graph.constants(model)
        self._stored: list[tuple[NDArray[Any], NDArray[Any]]] = []
        names: list[str] = []
        for node in model.graph.node:
            if node.op_type == "BatchNormalization" and {*node.input[3:5]} <= stored.keys():
                names.append(node.input[0])
                mean, variance = (graph.array(stored[name]).astype(np.float64) for name in node.input[3:5])
                self._stored.append((mean, np.maximum(variance, 1e-6)))
            if len(names) == MOST_LAYERS:
                break
        self._data_name, self._names = data_name, names
        self._session: PlainSession | None = None
        self._wanted = [name for name in dict.fromkeys(names) if name != data_name]
        if self._wanted:
            try:
                self._session = PlainSession(with_outputs(model, self._wanted))
            except UnetBatchError:
                self._names = []

    @property
    def found(self) -> bool:
        """Whether there is anything to compare."""
        return bool(self._names)

    def distance(self, batches: Sequence[NDArray[Any]]) -> float | None:
        """How far the layers' inputs are from their statistics; None if that cannot be measured.

        batches: in the graph's own layout. Median over channels and layers of the Kullback–Leibler divergence of two
        normal distributions, in nats: 0 for equal statistics.
        """
        if not self._names:
            return None
        sums: list[list[NDArray[np.float64]]] = [[] for _ in self._names]
        try:
            for batch in batches:
                found = {self._data_name: batch}
                if self._session is not None:
                    found |= self._session.run({self._data_name: batch}, self._wanted)
                for place, name in enumerate(self._names):
                    values = np.moveaxis(found[name].astype(np.float64), 1, 0).reshape(found[name].shape[1], -1)
                    sums[place].append(np.stack([values.mean(axis=1), (values**2).mean(axis=1)]))
        except (UnetBatchError, ValueError, IndexError):
            return None
        return divergence(sums, self._stored)


def divergence(moments: Sequence[Moments], stored: Sequence[Statistics]) -> float | None:
    """Median over channels and layers of the divergence in nats; None if the layers do not fit, or are not finite.

    moments: by layer, means and mean squares of each batch by channel. stored: by layer, mean and variance.
    """
    distances: list[NDArray[np.float64]] = []
    for batches, (mean, variance) in zip(moments, stored, strict=True):
        first, second = np.mean(batches, axis=0)
        spread = np.maximum(second - first**2, 1e-12)
        if first.shape != mean.shape or not np.isfinite(spread).all():
            return None
        distances.append(0.5 * (spread / variance + (first - mean) ** 2 / variance - 1 - np.log(spread / variance)))
    return float(np.median(np.concatenate(distances)))


Moments = list[NDArray[np.float64]]
Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]


class Layers(Protocol):
    """Normalisation layers whose statistics of the training are known."""

    @property
    def found(self) -> bool:
        """Whether there is anything to compare."""

    def distance(self, batches: Sequence[NDArray[Any]]) -> float | None:
        """How far the layers' inputs are from their statistics, as `NormLayers.distance`."""
