"""U-Net as published and as usual today, U-Net++ and Attention U-Net as PyTorch modules that take a state dict.

Knows PyTorch, which importing this module needs. Knows nothing of ONNX, weights files or contracts. Each function
returns a fresh module with random weights: float32 (N, in_channels, H, W) → float32 logits (N, classes, H, W), where H
and W are multiples of 2^depth. The logits of `original_unet` are smaller than its input.

Papers: U-Net, Ronneberger et al. 2015, arXiv:1505.04597. U-Net++, Zhou et al. 2018, arXiv:1807.10165. Attention U-Net,
Oktay et al. 2018, arXiv:1804.03999. All but `original_unet` differ from the papers in what became usual since:
convolutions are padded, so that a mask has its picture's size, and each is followed by batch normalisation.
"""

from __future__ import annotations

import itertools
from typing import Literal

from unet_batch import extras
from unet_batch.errors import JobError

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise ImportError(f"unet_batch.architectures needs PyTorch: run {extras.command('export')}") from error

Up = Literal["transposed", "bilinear"]


def unet(in_channels: int = 1, classes: int = 3, *, base: int = 32, depth: int = 4, up: Up = "transposed") -> nn.Module:
    """The U-Net of Ronneberger et al.: every decoder level sees the encoder level of its size, concatenated.

    base: channels of the first level, doubled at each of `depth` halvings. up: 2x2 transposed convolutions (as in the
    paper), or bilinear interpolation and a 1x1 convolution, which has no checkerboard and quantises better.
    Raises JobError for an argument below 1 or another `up`; so do the other two.
    """
    return _Unet(_widths(in_channels, classes, base, depth, up), in_channels, classes, up)


def original_unet(in_channels: int = 1, classes: int = 2, *, base: int = 64, depth: int = 4) -> nn.Module:
    """The U-Net as published: unpadded 3x3 convolutions with a bias and without normalisation, 2x2 transposed ones.

    The output is smaller than the input by a margin on each side, and skips are cropped to their middle: 572 x 572
    gives 388 x 388 with depth 4. Sides of the input are 16 · n + 12 then; in general all sides with which no level has
    an odd size. Without the paper's dropout, which is for training.
    """
    return _OriginalUnet(_widths(in_channels, classes, base, depth, "transposed"), in_channels, classes)


def unet_plus_plus(
    in_channels: int = 1, classes: int = 3, *, base: int = 32, depth: int = 4, up: Up = "transposed"
) -> nn.Module:
    """The nested U-Net of Zhou et al.: every level of the encoder is brought to every size above it, densely joined.

    One head, at the last node of the first row: deep supervision (a head per column) is for training.
    """
    return _UnetPlusPlus(_widths(in_channels, classes, base, depth, up), in_channels, classes, up)


def attention_unet(
    in_channels: int = 1, classes: int = 3, *, base: int = 32, depth: int = 4, up: Up = "transposed"
) -> nn.Module:
    """The U-Net of Oktay et al.: additive gates, fed by the coarser level, decide what of a skip gets through."""
    return _AttentionUnet(_widths(in_channels, classes, base, depth, up), in_channels, classes, up)


def _widths(in_channels: int, classes: int, base: int, depth: int, up: str) -> list[int]:
    """Channels of each level, the widest last."""
    numbers = {"in_channels": in_channels, "classes": classes, "base": base, "depth": depth}
    for name, number in numbers.items():
        if number < 1:
            raise JobError(f"{name} is {number}: write a number of at least 1")
    if up not in ("transposed", "bilinear"):
        raise JobError(f"up is {up!r}: write transposed or bilinear")
    return [base << level for level in range(depth + 1)]


def _two_convolutions(inside: int, outside: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inside, outside):
        layers += [
            # No bias: the normalisation that follows has one.
            nn.Conv2d(width, outside, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _doubled(inside: int, outside: int, up: Up) -> nn.Module:
    """Twice the height and width, with `outside` channels."""
    if up == "transposed":
        return nn.ConvTranspose2d(inside, outside, kernel_size=2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(inside, outside, kernel_size=1),
    )


class _Encoder(nn.Module):
    """Features of every level, the finest first."""

    def __init__(self, widths: list[int], in_channels: int) -> None:
        super().__init__()
        insides = [in_channels, *widths[:-1]]
        self.levels = nn.ModuleList(_two_convolutions(a, b) for a, b in zip(insides, widths, strict=True))
        self.pool = nn.MaxPool2d(2)

    def forward(self, image: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for level in self.levels:
            image = level(self.pool(features[-1]) if features else image)
            features.append(image)
        return features


class _Unet(nn.Module):
    def __init__(self, widths: list[int], in_channels: int, classes: int, up: Up) -> None:
        super().__init__()
        self.encoder = _Encoder(widths, in_channels)
        self.up = nn.ModuleList(_doubled(wide, fine, up) for fine, wide in itertools.pairwise(widths))
        self.decoder = nn.ModuleList(_two_convolutions(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.encoder(image)
        coarse = features[-1]
        for level in reversed(range(len(self.decoder))):
            skip = self.skip(level, features[level], coarse)
            coarse = self.decoder[level](torch.cat([skip, self.up[level](coarse)], dim=1))
        logits: Tensor = self.head(coarse)
        return logits

    def skip(self, _level: int, fine: Tensor, _coarse: Tensor) -> Tensor:
        """What of an encoder level its decoder sees: all of it."""
        return fine


class _OriginalUnet(nn.Module):
    def __init__(self, widths: list[int], in_channels: int, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_unpadded(a, b) for a, b in itertools.pairwise([in_channels, *widths]))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(_doubled(wide, fine, "transposed") for fine, wide in itertools.pairwise(widths))
        self.decoder = nn.ModuleList(_unpadded(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        features = [self.down[0](image)]
        for level in list(self.down)[1:]:
            features.append(level(self.pool(features[-1])))
        coarse = features[-1]
        for level in reversed(range(len(self.decoder))):
            doubled = self.up[level](coarse)
            coarse = self.decoder[level](torch.cat([_middle(features[level], doubled), doubled], dim=1))
        logits: Tensor = self.head(coarse)
        return logits


def _unpadded(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel_size=3), nn.ReLU(), nn.Conv2d(outside, outside, kernel_size=3), nn.ReLU()
    )


def _middle(fine: Tensor, as_large_as: Tensor) -> Tensor:
    """The middle of a feature map."""
    height, width = as_large_as.shape[2:]
    top, left = (fine.shape[2] - height) // 2, (fine.shape[3] - width) // 2
    return fine[:, :, top : top + height, left : left + width]


class _AttentionUnet(_Unet):
    def __init__(self, widths: list[int], in_channels: int, classes: int, up: Up) -> None:
        super().__init__(widths, in_channels, classes, up)
        self.gates = nn.ModuleList(_Gate(fine, wide) for fine, wide in itertools.pairwise(widths))

    def skip(self, level: int, fine: Tensor, coarse: Tensor) -> Tensor:
        """What of an encoder level its decoder sees: what its gate lets through."""
        gated: Tensor = self.gates[level](fine, coarse)
        return gated


class _Gate(nn.Module):
    """Additive attention (Oktay et al., eq. 1): computed at the coarser size, applied at the finer."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.of_skip = nn.Conv2d(fine, fine, kernel_size=2, stride=2, bias=False)
        self.of_signal = nn.Conv2d(coarse, fine, kernel_size=1)
        self.weight = nn.Conv2d(fine, 1, kernel_size=1)
        self.doubled = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        both = torch.relu(self.of_skip(skip) + self.of_signal(signal))
        return skip * self.doubled(torch.sigmoid(self.weight(both)))


class _UnetPlusPlus(nn.Module):
    """Node (level, column) joins all earlier columns of its level with the doubled node below; column 0 encodes."""

    def __init__(self, widths: list[int], in_channels: int, classes: int, up: Up) -> None:
        super().__init__()
        self.depth = len(widths) - 1
        self.encoder = _Encoder(widths, in_channels)
        self.up = nn.ModuleDict()
        self.nodes = nn.ModuleDict()
        for level, column in self.places():
            width = widths[level]
            self.up[f"{level}_{column}"] = _doubled(widths[level + 1], width, up)
            self.nodes[f"{level}_{column}"] = _two_convolutions((column + 1) * width, width)
        self.head = nn.Conv2d(widths[0], classes, kernel_size=1)

    def places(self) -> list[tuple[int, int]]:
        """Levels and columns in an order in which each node's inputs come first."""
        columns = range(1, self.depth + 1)
        return [(level, column) for column in columns for level in range(self.depth + 1 - column)]

    def forward(self, image: Tensor) -> Tensor:
        rows = [[feature] for feature in self.encoder(image)]
        for level, column in self.places():
            here = f"{level}_{column}"
            doubled = self.up[here](rows[level + 1][column - 1])
            rows[level].append(self.nodes[here](torch.cat([*rows[level], doubled], dim=1)))
        logits: Tensor = self.head(rows[0][-1])
        return logits
