"""Lower and upper bounds of the values of a tensor, from the graph alone: interval arithmetic.

A finite bound is certain, except for rounding. Operators that are not handled have infinite bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.model.graph import array, attribute

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

Bounds = tuple[float, float]
ANY: Bounds = (-math.inf, math.inf)
DEPTH = 64
"""Most nodes that are followed back from the output; tensors beyond them are unknown."""
SAME = frozenset(
    """
    Cast CastLike DepthToSpace DequantizeLinear Dropout Expand Flatten Gather Identity QuantizeLinear Reshape Resize
    Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Upsample
    """.split()  # noqa: SIM905 - a column of quoted names reads worse
)
"""Operators that only move values, except for rounding and interpolation."""
PROBABILITIES = {
    "Sigmoid": "sigmoid",
    "HardSigmoid": "sigmoid",
    "QLinearSigmoid": "sigmoid",
    "Softmax": "softmax",
    "QLinearSoftmax": "softmax",
}
"""Operators that return probabilities → the contract's activation."""
YES_OR_NO = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"})
_FROM_MINUS_ONE_TO_ONE = frozenset({"Cos", "Erf", "Sign", "Sin", "Softsign", "Tanh"})


class TensorBounds:
    """The bounds of one graph's tensors."""

    def __init__(self, made_by: Mapping[str, NodeProto], stored: Mapping[str, TensorProto]) -> None:
        """made_by: name of a tensor → the node that computes it. stored: constants by name."""
        self._made_by, self._stored = made_by, stored
        self._found: dict[str, Bounds] = {}

    def of(self, name: str, depth: int = 0) -> Bounds:
        """Lowest and highest value of a tensor."""
        if name not in self._found:
            self._found[name] = ANY  # used if the tensor depends on itself
            self._found[name] = self._bounds(name, depth)
        return self._found[name]

    def _bounds(self, name: str, depth: int) -> Bounds:
        if name in self._stored:
            if self._stored[name].external_data:
                return ANY
            values = array(self._stored[name])
            if not values.size or values.dtype.kind not in "fiub" or not np.isfinite(values).all():
                return ANY
            return float(values.min()), float(values.max())
        node = self._made_by.get(name)
        if node is None or depth > DEPTH:
            return ANY
        kind = node.op_type
        if kind in YES_OR_NO or kind in PROBABILITIES or kind == "Hardmax":
            return 0.0, 1.0
        if attribute(node, "activation", "") in PROBABILITIES:  # ONNX Runtime fuses activations into convolutions
            return 0.0, 1.0
        if kind in _FROM_MINUS_ONE_TO_ONE:
            return -1.0, 1.0
        if kind == "Clip":
            return self._clip(node, depth)
        rule = _RULES.get(kind)
        scaled = kind == "DequantizeLinear" and node.input[0] in self._stored
        if rule is None or scaled or attribute(node, "mode", "nearest") == "cubic":
            return ANY
        places = node.input[1:] if kind == "Where" else node.input[:1] if kind in SAME | _FIRST else node.input
        return rule([self.of(place, depth + 1) for place in places if place])

    def _clip(self, node: NodeProto, depth: int) -> Bounds:
        limits = [float(attribute(node, "min", -math.inf)), float(attribute(node, "max", math.inf))]
        for place, given in enumerate(node.input[1:3]):
            if given:
                limits[place] = self.of(given, depth + 1)[place]
        low, high = self.of(node.input[0], depth + 1)
        return min(max(low, limits[0]), limits[1]), max(min(high, limits[1]), limits[0])


_FIRST = frozenset(
    {"Pad", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "MaxPool", "AveragePool", "GlobalAveragePool"}
)
"""Operators whose bounds depend only on the first input."""


def _union(found: Sequence[Bounds]) -> Bounds:
    return min(low for low, _ in found), max(high for _, high in found)


def _with_zero(found: Sequence[Bounds]) -> Bounds:
    return _union([*found, (0.0, 0.0)])


def _sum(found: Sequence[Bounds]) -> Bounds:
    return sum(low for low, _ in found), sum(high for _, high in found)


def _mean(found: Sequence[Bounds]) -> Bounds:
    low, high = _sum(found)
    return low / len(found), high / len(found)


def _product(found: Sequence[Bounds]) -> Bounds:
    (a, b), (c, d) = found
    every = [0.0 if 0.0 in (x, y) else x * y for x in (a, b) for y in (c, d)]
    return min(every), max(every)


def _inverse(found: Sequence[Bounds]) -> Bounds:
    low, high = found[0]
    if low <= 0 <= high:
        return (0.0, math.inf) if low == 0 < high else ANY
    return 1 / high, 1 / low


def _increasing(function: Callable[[float], float]) -> Callable[[Sequence[Bounds]], Bounds]:
    return lambda found: (function(found[0][0]), function(found[0][1]))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _negative(found: Sequence[Bounds]) -> Bounds:
    low, high = found[0]
    return -high, -low


_RULES: Mapping[str, Callable[[Sequence[Bounds]], Bounds]] = {
    **dict.fromkeys([*SAME, "Concat", "Where", "ReduceMean", "ReduceMax", "ReduceMin", "MaxPool"], _union),
    **dict.fromkeys(["Pad", "AveragePool", "GlobalAveragePool"], _with_zero),
    "Max": lambda found: (max(low for low, _ in found), max(high for _, high in found)),
    "Min": lambda found: (min(low for low, _ in found), min(high for _, high in found)),
    "Add": _sum,
    "Sum": _sum,
    "Mean": _mean,
    "Sub": lambda found: _sum([found[0], _negative(found[1:])]),
    "Neg": _negative,
    "Mul": _product,
    "Div": lambda found: _product([found[0], _inverse(found[1:])]),
    "Reciprocal": _inverse,
    "Relu": _increasing(lambda value: max(value, 0.0)),
    "Exp": _increasing(_exp),
    "Softplus": lambda _: (0.0, math.inf),
    "LogSoftmax": lambda _: (-math.inf, 0.0),
    "Round": _increasing(lambda value: value if math.isinf(value) else float(round(value))),
    "Floor": _increasing(lambda value: value if math.isinf(value) else float(math.floor(value))),
    "Ceil": _increasing(lambda value: value if math.isinf(value) else float(math.ceil(value))),
    "ArgMax": lambda _: (0.0, math.inf),
    "ArgMin": lambda _: (0.0, math.inf),
    "ReduceSum": lambda found: (0.0 if found[0][0] >= 0 else -math.inf, math.inf),
}
