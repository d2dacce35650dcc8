"""What the rows and columns of a tile must be multiples of: by how much a graph makes its features smaller.

Knows nodes and the sizes of tensors, as `shapes` found them for one tile. Knows no contract and no session.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from unet_batch.model.graph import attribute, fixed_names
from unet_batch.model.shapes import InferredTensor

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv", "ConvInteger", "NhwcFusedConv"})
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool", "QLinearAveragePool"})
_UNCHANGED = Fraction(1), Fraction(1)


def multiple_hw(model: ModelProto, sizes: Mapping[str, InferredTensor]) -> tuple[int, int] | None:
    """What height and width must be multiples of so that every feature has whole pixels; None if no input has 4 axes.

    Each tensor has a stride: how many rows and columns of the input lie in one of its own. The answer is the largest.
    """
    strides = _strides(model, sizes)
    if not strides:
        return None
    return math.ceil(max(stride[0] for stride in strides.values())), math.ceil(max(s[1] for s in strides.values()))


def output_stride(model: ModelProto, sizes: Mapping[str, InferredTensor], name: str) -> int | None:
    """How many rows, and columns, of the input one of this tensor stands for; None if it differs, or is unknown."""
    rows, columns = _strides(model, sizes).get(name, (Fraction(0), Fraction(0)))
    return int(rows) if rows == columns and rows >= 1 and rows.denominator == 1 else None


def _strides(model: ModelProto, sizes: Mapping[str, InferredTensor]) -> dict[str, tuple[Fraction, Fraction]]:
    """Of every tensor that has a plane: how many rows and columns of the input lie in one of its own."""
    fixed = fixed_names(model)
    strides = {v.name: _UNCHANGED for v in model.graph.input if v.name not in fixed and len(_dims(sizes, v.name)) == 4}
    for node in model.graph.node:
        before = [strides[name] for name in node.input if name in strides]
        if before and not _loses_the_plane(node, sizes):
            rows, columns = _change(node, sizes)
            after = max(stride[0] for stride in before) * rows, max(stride[1] for stride in before) * columns
            strides.update(dict.fromkeys(node.output, after))
    return strides


def _change(node: NodeProto, sizes: Mapping[str, InferredTensor]) -> tuple[Fraction, Fraction]:
    """By how much a node makes rows and columns fewer (2: halves, 1/2: doubles)."""
    if node.op_type in _CONVOLUTIONS or node.op_type in _POOLS:
        height, width = attribute(node, "strides", (1, 1))
        return Fraction(height), Fraction(width)
    if node.op_type == "ConvTranspose":
        height, width = attribute(node, "strides", (1, 1))
        return Fraction(1, height), Fraction(1, width)
    if node.op_type in ("DepthToSpace", "SpaceToDepth"):
        block = attribute(node, "blocksize", 1)
        change = Fraction(block) if node.op_type == "SpaceToDepth" else Fraction(1, block)
        return change, change
    came, went = _dims(sizes, node.input[0]), _dims(sizes, node.output[0])
    if node.op_type in ("Resize", "Upsample") and len(came) == len(went) == 4:
        rows = 2 if came[1] == went[1] else 1  # channels are never resized: here (N, C, H, W), else (N, H, W, C)
        return Fraction(came[rows], max(went[rows], 1)), Fraction(came[rows + 1], max(went[rows + 1], 1))
    return _UNCHANGED


def _loses_the_plane(node: NodeProto, sizes: Mapping[str, InferredTensor]) -> bool:
    """Whether a node gives a size as numbers, or one pixel for a whole plane: what follows from it is no level."""
    if node.op_type in ("Shape", "Size"):
        return True
    came, went = _dims(sizes, node.input[0]), _dims(sizes, node.output[0])
    return node.op_type in _POOLS and math.prod(went[2:]) == 1 and math.prod(came[2:]) > 4  # 2 x 2 may be a level


def _dims(sizes: Mapping[str, InferredTensor], name: str) -> tuple[int, ...]:
    """() if unknown."""
    return (sizes[name].known if name in sizes else None) or ()
