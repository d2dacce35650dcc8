"""The normalisation layers of a PyTorch network, compared with pictures before an export merges them into convolutions.

Only `source` makes them, where it holds the network; the comparison is that of `evidence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.workbench.draft.evidence import MOST_LAYERS, divergence


class TrainedLayers:
    """The first batch normalisations of a network that hold running statistics."""

    def __init__(self, network: Any) -> None:
        """network: a `torch.nn.Module` in evaluation mode with its trained weights."""
        self._network = network
        modules = [m for m in network.modules() if getattr(m, "running_mean", None) is not None]
        self._modules = modules[:MOST_LAYERS]
        self._stored = [
            (_array(module.running_mean), np.maximum(_array(module.running_var), 1e-6)) for module in self._modules
        ]

    @property
    def found(self) -> bool:
        """Whether there is anything to compare; a network that was never trained has means of 0."""
        return any(bool(mean.any()) for mean, _ in self._stored)

    def distance(self, batches: Sequence[NDArray[Any]]) -> float | None:
        """As `NormLayers.distance`. batches: float32 (N, C, H, W)."""
        import torch

        moments: list[list[NDArray[np.float64]]] = [[] for _ in self._modules]
        hooks = []
        for place, module in enumerate(self._modules):

            def note(_module: Any, inputs: tuple[Any, ...], place: int = place) -> None:
                values = np.moveaxis(_array(inputs[0]), 1, 0).reshape(inputs[0].shape[1], -1)
                moments[place].append(np.stack([values.mean(axis=1), (values**2).mean(axis=1)]))

            hooks.append(module.register_forward_pre_hook(note))
        try:
            with torch.no_grad():
                for batch in batches:
                    self._network(torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32)))
        finally:
            for hook in hooks:
                hook.remove()
        return divergence(moments, self._stored)


def _array(tensor: Any) -> NDArray[np.float64]:
    found: NDArray[np.float64] = tensor.detach().cpu().numpy().astype(np.float64)
    return found
