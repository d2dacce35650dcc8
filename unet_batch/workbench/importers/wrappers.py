"""Networks around a network: the mean of folds, an activation, a transposition, poolings that ONNX can express."""

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


def with_softmax(network: Any) -> Any:
    """A module that returns the softmax of the network's output over the classes."""
    import torch

    return torch.nn.Sequential(network, torch.nn.Softmax(dim=1)).eval()


def transposed(network: Any) -> Any:
    """A module for (N, C, H, W) around a network for (N, C, W, H)."""
    import torch

    class Transposed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image_nchw: Any) -> Any:
            return self.network(image_nchw.transpose(2, 3)).transpose(2, 3)

    return Transposed().eval()


def with_sigmoid(network: Any) -> Any:
    """A module that returns the sigmoid of the network's output: one probability per class."""
    import torch

    return torch.nn.Sequential(network, torch.nn.Sigmoid()).eval()


def with_exact_pooling(network: Any) -> Any:
    """The network with every AdaptiveAvgPool2d to more than one value as two products of matrices; changed in place.

    PyTorch's exporter writes such a pooling for one size of the image, or as thousands of nodes. Along an axis of
    length L, bin i of n is the mean over [floor(i·L/n), ceil((i+1)·L/n)), as in PyTorch: a row of a matrix (n, L).
    """
    import torch

    def bins(length: Any, count: int, like: Any) -> Any:
        number = torch.arange(count, device=like.device)
        first = torch.div(number * length, count, rounding_mode="floor")
        end = torch.div((number + 1) * length + count - 1, count, rounding_mode="floor")
        at = torch.arange(length, device=like.device)
        inside = (at[None] >= first[:, None]) & (at[None] < end[:, None])
        return inside.to(like.dtype) / (end - first)[:, None].to(like.dtype)

    class ExactPool(torch.nn.AdaptiveAvgPool2d):
        def forward(self, values_nchw: Any) -> Any:
            size = self.output_size
            height, width = (size, size) if isinstance(size, int) else size
            if height is not None:
                values_nchw = torch.matmul(bins(values_nchw.shape[2], height, values_nchw), values_nchw)
            if width is not None:
                values_nchw = torch.matmul(values_nchw, bins(values_nchw.shape[3], width, values_nchw).T)
            return values_nchw

    for module in network.modules():
        if type(module) is torch.nn.AdaptiveAvgPool2d and module.output_size not in (1, (1, 1)):
            module.__class__ = ExactPool  # not a new module: its parent may hold it in a list as well
    return network
