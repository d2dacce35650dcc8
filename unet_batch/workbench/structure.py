"""What kind of network a graph is: its skip connections, and how often it halves its input.

Knows nodes and the sizes of tensors, as `shapes` found them for one tile. Knows no contract and no session.

Each tensor gets two numbers. *area*: its pixels. *widest*: each path from the input has a smallest area; this is the
largest of them. For a feature of the encoder both are equal; for one that was upsampled, widest is smaller. A node
that joins one of each is a skip connection, whatever its name is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from unet_batch.model.graph import attribute, fixed_names
from unet_batch.model.shapes import InferredTensor

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "QLinearConv", "ConvInteger", "NhwcFusedConv"})
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "QLinearAveragePool"})
_CHANNELS_SECOND = CONVOLUTIONS | _POOLS | {"DepthToSpace", "SpaceToDepth"}
"""Operators that ONNX defines on (N, C, H, W) alone: here the place of the channels is certain."""
_GLOBAL_POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "QLinearGlobalAveragePool"})
_JOINS = {"Concat": "concat", "QLinearConcat": "concat", "Add": "add", "Sum": "add", "QLinearAdd": "add"}
_NEVER_SMALLER = 0.8
"""Smallest widest / area of an encoder's feature: a crop or a padding of some pixels is no change of level."""
_FROM_BELOW = 0.5
"""Largest widest / area of a feature that came back up: one axis was halved at least."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A place where an earlier feature joins one that came back up from a smaller one."""

    node: str
    kind: str
    """`concat` (along the channels) or `add`."""
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What a graph's wiring says about its network."""

    skips: tuple[Skip, ...]
    """In the order of the graph: the deepest first."""
    multiple_hw: tuple[int, int] | None
    """What the rows and columns of a tile must be multiples of for every level to have whole pixels; None: unknown."""

    @property
    def levels(self) -> int | None:
        """How often the network halves its input."""
        return None if self.multiple_hw is None else math.ceil(math.log2(max(self.multiple_hw)))


@dataclass(slots=True)
class _Feature:
    """A tensor that still has pixels; what has none (global averages, shape arithmetic, constants) has no entry."""

    area: int
    widest: int
    stride_hw: tuple[Fraction, Fraction]
    channel_axis: int | None
    """None after a Reshape, until an operator that is sure of it."""


def structure(model: ModelProto, sizes: Mapping[str, InferredTensor], channel_axis: int) -> Structure:
    """The structure of a graph whose input has its channels on this axis (1 or 3)."""
    fixed = fixed_names(model)
    features: dict[str, _Feature] = {}
    for value in model.graph.input:
        dims = _dims(sizes, value.name)
        if value.name not in fixed and dims is not None and len(dims) == 4:
            area = _area(dims, channel_axis)
            features[value.name] = _Feature(area, area, (Fraction(1), Fraction(1)), channel_axis)
    joins: list[tuple[NodeProto, tuple[int, ...], list[_Feature]]] = []
    strides = [(Fraction(1), Fraction(1))]
    convolved: list[int] = []
    for node in model.graph.node:
        before = [features[name] for name in node.input if name in features]
        if not before or node.op_type in _GLOBAL_POOLS or _reduces_pixels(node, before[0], sizes):
            continue
        after = _after(node, before, sizes)
        if node.op_type in CONVOLUTIONS:
            convolved.append(after.area)
        strides.append(after.stride_hw)
        features.update(dict.fromkeys(node.output, after))
        dims = _dims(sizes, node.output[0])
        if len(before) > 1 and dims is not None and _joins_features(node, before, len(dims)):
            joins.append((node, dims, before))
    bottleneck = min(convolved, default=0)
    return Structure(
        skips=tuple(_skip(node, dims, before) for node, dims, before in joins if _is_skip(before, bottleneck)),
        multiple_hw=None if not features else (_whole(s[0] for s in strides), _whole(s[1] for s in strides)),
    )


def _after(node: NodeProto, before: list[_Feature], sizes: Mapping[str, InferredTensor]) -> _Feature:
    """What a node makes of its features."""
    first = before[0]
    came, went = _dims(sizes, node.input[0]), _dims(sizes, node.output[0])
    pictures = came is not None and went is not None and len(came) == 4 and len(went) == 4
    axis = 1 if pictures and node.op_type in _CHANNELS_SECOND else first.channel_axis
    if node.op_type == "Reshape" or (came is not None and len(came) == 4 and not pictures):
        axis = None
    elif node.op_type == "Transpose" and axis is not None:
        axis = attribute(node, "perm", (3, 2, 1, 0)).index(axis)
    area, widest = max(f.area for f in before), max(f.widest for f in before)
    stride = max(f.stride_hw[0] for f in before), max(f.stride_hw[1] for f in before)
    if came is not None and went is not None and pictures and axis in (1, 3):
        if node.op_type in _CHANNELS_SECOND:  # whatever a Reshape did before, here the pixels can be counted again
            widest = min(widest, _area(came, axis))
        area = _area(went, axis)
        widest = min(widest, area)
        change = _change(node, came, went, axis)
        stride = stride[0] * change[0], stride[1] * change[1]
    return _Feature(area, widest, stride, axis)


def _change(node: NodeProto, came: tuple[int, ...], went: tuple[int, ...], axis: int) -> tuple[Fraction, Fraction]:
    """By how much a node makes rows and columns fewer (2: halves, 1/2: doubles)."""
    if node.op_type in _POOLS or node.op_type in CONVOLUTIONS:
        height, width = attribute(node, "strides", (1, 1))
        if node.op_type == "ConvTranspose":
            return Fraction(1, height), Fraction(1, width)
        return Fraction(height), Fraction(width)
    if node.op_type in ("DepthToSpace", "SpaceToDepth"):
        block = attribute(node, "blocksize", 1)
        change = Fraction(block) if node.op_type == "SpaceToDepth" else Fraction(1, block)
        return change, change
    if node.op_type in ("Resize", "Upsample"):
        rows, columns = _pixel_axes(axis)
        return Fraction(came[rows], max(went[rows], 1)), Fraction(came[columns], max(went[columns], 1))
    return Fraction(1), Fraction(1)


def _reduces_pixels(node: NodeProto, feature: _Feature, sizes: Mapping[str, InferredTensor]) -> bool:
    """Whether nothing of the picture's plane is left: averages over all of it, and its size as numbers."""
    if node.op_type in ("Shape", "Size"):
        return True
    dims = _dims(sizes, node.output[0])
    if dims is None or feature.area <= 4:
        return False
    if node.op_type.startswith("Reduce"):
        return len(dims) <= 2 or (len(dims) == 4 and _area(dims, feature.channel_axis) == 1)
    return node.op_type in _POOLS and len(dims) == 4 and dims[2] * dims[3] == 1


def _joins_features(node: NodeProto, before: list[_Feature], rank: int) -> bool:
    if rank != 4 or node.op_type not in _JOINS or len({f.area for f in before}) > 1:
        return False
    if before[0].channel_axis is None:
        return False
    return _JOINS[node.op_type] == "add" or attribute(node, "axis", 1) % 4 == before[0].channel_axis


def _is_skip(before: list[_Feature], bottleneck: int) -> bool:
    kept = any(f.widest >= _NEVER_SMALLER * f.area for f in before)
    came_back = any(f.widest <= _FROM_BELOW * f.area for f in before)
    return kept and came_back and before[0].area > bottleneck


def _skip(node: NodeProto, dims: tuple[int, ...], before: list[_Feature]) -> Skip:
    rows, columns = _pixel_axes(before[0].channel_axis)
    return Skip(node.name or node.output[0], _JOINS[node.op_type], dims[rows], dims[columns])


def _dims(sizes: Mapping[str, InferredTensor], name: str) -> tuple[int, ...] | None:
    return sizes[name].known if name in sizes else None


def _pixel_axes(channel_axis: int | None) -> tuple[int, int]:
    return (1, 2) if channel_axis == 3 else (2, 3)


def _area(dims: tuple[int, ...], channel_axis: int | None) -> int:
    rows, columns = _pixel_axes(channel_axis)
    return dims[rows] * dims[columns]


def _whole(strides: Iterable[Fraction]) -> int:
    return math.ceil(max(strides))
