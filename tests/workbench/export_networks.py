"""Networks that people might export, good and ill, as factories: imported by the tests that have PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Call(nn.Module):
    """A function as a module, so that it has a name in the network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Small(nn.Module):
    """One level: convolution, group normalisation, a middle of choice at half the size, transposed convolution."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        self.low = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.middle = middle or nn.Identity()
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x)
        return self.head(torch.cat([fine, self.up(self.middle(self.low(fine)))], 1))


class PyramidPool(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(size)

    def forward(self, x: Tensor) -> Tensor:
        return x * functional.interpolate(self.pool(x), size=x.shape[2:])


class OnlyWhileExporting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if torch.compiler.is_exporting() else x


class NeverEvaluates(Small):
    def train(self, mode: bool = True) -> "NeverEvaluates":
        return super().train(True)


class TwoOutputs(Small):
    def forward(self, x: Tensor) -> Any:
        mask = super().forward(x)
        return {"mask": mask, "twice": 2 * mask}


class OneInAList(Small):
    def forward(self, x: Tensor) -> Any:
        return [super().forward(x)]


class PadsByItself(Small):
    """Any size: pads to an even one and crops."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return super().forward(functional.pad(x, (0, -width % 2, 0, -height % 2)))[:, :, :height, :width]


class BranchesOnSizes(Small):
    """Any size in PyTorch, but the branch that is taken is the only one in the file."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = functional.pad(x, (0, 1 if width % 2 else 0, 0, 1 if height % 2 else 0))
        return super().forward(padded)[:, :, :height, :width]


class AddsPosition(Small):
    """A parameter of the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 1, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.position)


def small() -> nn.Module:
    return Small()


class Needs(Small):
    """A network of an argument without a default."""

    def __init__(self, channels: int, base: int = 4) -> None:
        super().__init__(nn.Conv2d(channels, base, 1))


def sized(base: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, base, 3, padding=1), nn.ReLU(), nn.Conv2d(base, 3, 1))


def interpolates() -> nn.Module:
    return Small(
        Call(
            lambda x: functional.interpolate(functional.interpolate(x, scale_factor=0.5), x.shape[2:], mode="bilinear")
        )
    )


def attends() -> nn.Module:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(x.shape)

    return Small(Attention())


def squeezes() -> nn.Module:
    return Small(Call(lambda x: x * functional.adaptive_avg_pool2d(x, 1).sigmoid()))


def pools_to(size: int) -> nn.Module:
    return Small(PyramidPool(size))


def kth_value() -> nn.Module:
    return Small(Call(lambda x: x + x.kthvalue(1, dim=2, keepdim=True).values))


def singular_values() -> nn.Module:
    return Small(Call(lambda x: x + torch.linalg.svd(x).S.sum((1, 2))[:, None, None, None]))


def inverts() -> nn.Module:
    return Small(Call(lambda x: x + torch.linalg.inv(x @ x.transpose(2, 3) + 100 * torch.eye(16))))


def cumulates() -> nn.Module:
    return Small(Call(lambda x: x.cumprod(3)))


def freezes_batch() -> nn.Module:
    return Small(Call(lambda x: x.reshape(2, 4, -1).reshape(x.shape)))


def branches_on_pixels() -> nn.Module:
    return Small(Call(lambda x: x if x.mean() > 0 else -x))


def leaves_torch() -> nn.Module:
    return Small(Call(lambda x: torch.from_numpy(2 * x.numpy())))


def drops_out() -> nn.Module:
    return Small(Call(lambda x: functional.dropout(x, 0.5)))


def normalises_batches() -> nn.Module:
    return Small(nn.BatchNorm2d(4, track_running_stats=False))


def normalises_first() -> nn.Module:
    return Small(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)))


def normalises_after() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 4, 2, stride=2),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 3, 1),
    )


def otherwise_while_exporting() -> nn.Module:
    return Small(OnlyWhileExporting())


def never_evaluates() -> nn.Module:
    return NeverEvaluates()


def two_outputs() -> nn.Module:
    return TwoOutputs()


def one_in_a_list() -> nn.Module:
    return OneInAList()


def pads_by_itself() -> nn.Module:
    return PadsByItself()


def branches_on_sizes() -> nn.Module:
    return BranchesOnSizes()


def adds_position() -> nn.Module:
    return AddsPosition()


def divides_by_three() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(3), nn.ConvTranspose2d(4, 3, 3, stride=3))


def halves() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(4, 3, 1))


def shrinks(kernel: int | tuple[int, int] = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, kernel), nn.Conv2d(4, 3, kernel))


def classifier() -> nn.Module:
    """Scores of the whole image: (N, 3)."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def probabilities() -> nn.Module:
    return nn.Sequential(Small(), nn.Softmax(1))


def one_class() -> nn.Module:
    return nn.Sequential(Small(), nn.Conv2d(3, 1, 1))


def labels() -> nn.Module:
    return nn.Sequential(Small(), Call(lambda x: x.argmax(1)))


def holds_nan() -> nn.Module:
    network = Small()
    network.head.bias.data[0] = float("nan")
    return network


def double() -> nn.Module:
    return Small().double()


def no_network() -> int:
    return 3


def lazy() -> nn.Module:
    return nn.LazyConv2d(3, 1)


def fails() -> nn.Module:
    raise ValueError("no such backbone")
