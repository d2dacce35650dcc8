"""The cost of a graph per tile: multiply-adds, and the largest number of bytes of values in memory at once.

Computed from the nodes and the sizes of tensors (`shapes`). Use the figures to compare models; an engine fuses,
reorders and pads, so measurements of a run differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unet_batch.model.graph import attribute, fixed_names
from unet_batch.model.shapes import InferredTensor

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_WEIGHTS_AT = {
    "Conv": 1,
    "FusedConv": 1,
    "NhwcFusedConv": 1,
    "ConvInteger": 1,
    "QLinearConv": 3,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QLinearMatMul": 3,
}
"""Operator → number of the input with its weights. Multiply-adds of other operators are not counted."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one run of a graph at given sizes."""

    multiply_adds: int
    """Of convolutions and matrix products."""
    uncounted: int
    """Convolutions and matrix products of unknown size, which are missing in `multiply_adds`."""
    peak_bytes: int
    """Most bytes of values at once if nodes run in the file's order; ONNX Runtime on a CPU takes about twice this."""
    unsized: int
    """Tensors of unknown size, which are missing in `peak_bytes`."""


def cost(model: ModelProto, sizes: Mapping[str, InferredTensor]) -> Cost:
    """Multiply-adds and peak memory of a graph at these sizes. Tensors that depend only on constants do not count."""
    products = [_multiply_adds(node, sizes) for node in model.graph.node if node.op_type in _WEIGHTS_AT]
    peak, unsized = _peak(model, sizes)
    return Cost(
        multiply_adds=sum(count for count in products if count is not None),
        uncounted=products.count(None),
        peak_bytes=peak,
        unsized=unsized,
    )


def _multiply_adds(node: NodeProto, sizes: Mapping[str, InferredTensor]) -> int | None:
    place = _WEIGHTS_AT[node.op_type]
    if place >= len(node.input):
        return None
    first, second, out = (sizes.get(name) for name in (node.input[0], node.input[place], node.output[0]))
    if second is None or first is None or out is None:
        return None
    came, factor, went = first.known, second.known, out.known
    if came is None or factor is None or went is None:
        return None
    if node.op_type == "ConvTranspose":  # weights are (channels in, channels out / group, ...)
        return math.prod(came) * math.prod(factor[1:])
    if node.op_type == "Gemm":
        return math.prod(went) * came[0 if attribute(node, "transA", 0) else 1]
    if "MatMul" in node.op_type:
        return math.prod(went) * came[-1]
    return math.prod(went) * math.prod(factor[1:])  # weights are (channels out, channels in / group, ...)


def _peak(model: ModelProto, sizes: Mapping[str, InferredTensor]) -> tuple[int, int]:
    fixed = fixed_names(model)
    nodes = [node for node in model.graph.node if not all(name in fixed for name in node.output)]
    last = {name: place for place, node in enumerate(nodes) for name in node.input}
    returned = {value.name for value in model.graph.output}
    alive = {value.name: 0 for value in model.graph.input if value.name not in fixed}
    unsized: set[str] = set()

    def bytes_of(name: str) -> int:
        size = sizes[name].size_bytes if name in sizes else None
        if size is None:
            unsized.add(name)
        return size or 0

    alive = {name: bytes_of(name) for name in alive}
    total = peak = sum(alive.values())
    for place, node in enumerate(nodes):
        for name in node.output:
            if name:
                alive[name] = bytes_of(name)
                total += alive[name]
        peak = max(peak, total)
        # A value is freed after its last reader, or at once if it has none; outputs stay to the end.
        for name in {*node.input, *node.output} & alive.keys():
            if last.get(name, place) <= place and name not in returned:
                total -= alive.pop(name)
    return peak, len(unsized)
