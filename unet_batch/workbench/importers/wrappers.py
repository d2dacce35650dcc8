"""Networks around a network: the mean of folds, a sigmoid at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def mean_of(networks: Sequence[Any]) -> Any:
    """A module whose output is the mean of the networks' outputs; the network itself if there is one."""
    if len(networks) == 1:
        return networks[0]
    import torch

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.folds = torch.nn.ModuleList(networks)

        def forward(self, image: Any) -> Any:
            total = self.folds[0](image)
            for fold in self.folds[1:]:
                total = total + fold(image)
            return total / len(self.folds)

    return Mean().eval()


def with_sigmoid(network: Any) -> Any:
    """A module that returns the sigmoid of the network's output: one probability per class."""
    import torch

    return torch.nn.Sequential(network, torch.nn.Sigmoid()).eval()
