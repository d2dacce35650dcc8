"""The nodes that `pack` adds to a network: from source pixels to its input, from its scores to labels.

ONNX's operators from opset 7 on. The arithmetic is that of `imaging.preprocess.normalize` and
`imaging.postprocess.reduce`, step by step in float32, so pixels and labels are bit-identical.

Legend: N tiles, C channels, K classes, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.contract import CtWindow, Divide, MeanStd, ModelInput, ModelOutput, Normalize, Raw, Scale
from unet_batch.errors import ModelRefused
from unet_batch.imaging.preprocess import LARGEST
from unet_batch.model.packed import FINITE, LABELS, PIXELS, SourceType

if TYPE_CHECKING:
    from onnx import NodeProto

OLDEST_OPSET = 7
"""From opset 7 on arithmetic broadcasts as in NumPy; ONNX Runtime does not support older files."""
LARGEST_SUM = np.finfo(np.float32).max


class Nodes:
    """A list of new nodes; each result gets an unused name."""

    def __init__(self, opset: int, prefix: str) -> None:
        self.made: list[NodeProto] = []
        self.has_integers = opset >= 9
        """Whether the opset allows integers in a Constant node."""
        self._opset, self._prefix = opset, prefix

    def add(
        self, operator: str, inputs: Sequence[str], settings: Mapping[str, Any] | None = None, *, to: str = ""
    ) -> str:
        """Add one node; returns the name of its result, which is `to` if given."""
        from onnx import helper

        here = f"{self._prefix}/{operator}_{len(self.made)}"
        result = to or f"{here}_out"
        node = helper.make_node(operator, inputs, [result], name=here)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in (settings or {}).items())
        self.made.append(node)
        return result

    def constant(self, value: Any) -> str:
        """A Constant node; unlike initialisers, every IR version accepts it."""
        from onnx import numpy_helper

        return self.add("Constant", [], {"value": numpy_helper.from_array(np.asarray(value))})

    def cast(self, name: str, dtype: str, *, to: str = "") -> str:
        from onnx import helper

        return self.add("Cast", [name], {"to": int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))}, to=to)

    def combine(self, operator: str, name: str, value: float | np.float32 | np.ndarray[Any, Any]) -> str:
        """A tensor and a float32 constant."""
        return self.add(operator, [name, self.constant(np.asarray(value, np.float32))])

    def clip(self, name: str, low: float | np.float32, high: float | np.float32) -> str:
        if self._opset < 11:
            return self.add("Clip", [name], {"min": float(low), "max": float(high)})
        return self.add("Clip", [name, self.constant(np.float32(low)), self.constant(np.float32(high))])

    def sum(self, name: str, axes: Sequence[int]) -> str:
        if self._opset < 13:
            return self.add("ReduceSum", [name], {"keepdims": 0, "axes": list(axes)})
        return self.add("ReduceSum", [name, self.constant(np.asarray(axes, np.int64))], {"keepdims": 0})

    def squeeze(self, name: str, axis: int) -> str:
        if self._opset < 13:
            return self.add("Squeeze", [name], {"axes": [axis]})
        return self.add("Squeeze", [name, self.constant(np.asarray([axis], np.int64))])


def add_input(nodes: Nodes, spec: ModelInput, source: SourceType, *, to: str) -> None:
    """From (N, H, W, C) source pixels to the network's input tensor.

    Raises ModelRefused for a normalisation that is not a formula per pixel.
    """
    name = PIXELS
    if spec.layout == "nchw":  # before the cast: ONNX Runtime transposes bytes 6 to 20 times faster than floats
        name = nodes.add("Transpose", [name], {"perm": [0, 3, 1, 2]})
    if spec.dtype not in ("uint8", "uint16"):
        name = nodes.cast(name, "float32")
        for operator, value in _steps(spec.normalize, LARGEST[source]):
            values = np.broadcast_to(np.asarray(value, np.float32), spec.channels)
            if (values == values[0]).all():
                name = nodes.combine(operator, name, values[0])
            else:
                name = nodes.combine(operator, name, values[:, None, None] if spec.layout == "nchw" else values)
        if isinstance(rule := spec.normalize, CtWindow):
            name = nodes.clip(name, min(rule.low, rule.high), max(rule.low, rule.high))
        if spec.dtype == "float16":
            name = nodes.cast(name, "float16")
    nodes.add("Identity", [name], to=to)


def _steps(rule: Normalize, largest: float) -> list[tuple[str, Any]]:
    """Operators and constants, a number or one per channel, in the order of `imaging.preprocess`."""
    shift: Any = 0.0
    factor: Any = 1.0
    add: Any = 0.0
    if isinstance(rule, Divide):
        factor = 1 / (rule.max or largest)
    elif isinstance(rule, Scale):
        factor, add = rule.scale, rule.offset
    elif isinstance(rule, MeanStd):
        mean, std = np.array(rule.mean), np.array(rule.std)
        factor, add = 1 / ((rule.max or largest) * std), -mean / std
    elif isinstance(rule, CtWindow):
        shift, factor, add = rule.center - rule.width / 2, (rule.high - rule.low) / rule.width, rule.low
    elif not isinstance(rule, Raw):
        raise ModelRefused(
            f"normalize {rule.kind} needs statistics of the whole image, but a graph gets tiles: pack only the output"
        )
    steps = (("Sub", shift, 0), ("Mul", factor, 1), ("Add", add, 0))
    return [(operator, value) for operator, value, neutral in steps if not np.all(np.asarray(value) == neutral)]


def add_outputs(nodes: Nodes, scores: str, dtype: str, output: ModelOutput, layout: str) -> None:
    """From the network's scores to `labels` and `finite`.

    scores: of this NumPy type, in this layout (nchw, nhwc, or nhw for one class).
    """
    if dtype != "float32":
        scores = nodes.cast(scores, "float32")
    axis = {"nchw": 1, "nhwc": 3}.get(layout)
    # The sum is NaN or infinite if a score is, on every provider, in one pass. A sum of finite scores that overflows
    # also counts as infinite: such scores are wrong as well.
    total = nodes.sum(scores, (1, 2) if axis is None else (1, 2, 3))
    small = nodes.combine("Less", nodes.add("Abs", [total]), LARGEST_SUM)
    nodes.cast(small, "uint8", to=FINITE)
    if output.multi_label:
        _own_thresholds(nodes, scores, output, axis)
    else:
        assert axis is not None  # noqa: S101 - several classes have a channel axis, `contract.resolve` saw to that
        _best_label(nodes, scores, len(output.classes), axis)


def _best_label(nodes: Nodes, scores: str, classes: int, axis: int) -> None:
    if classes == 2 and axis == 1 and nodes.has_integers:  # 4 times faster than ArgMax, which has 64-bit indices
        first, second = _channel(nodes, scores, 0), _channel(nodes, scores, 1)
        nodes.cast(nodes.add("Greater", [second, first]), "uint8", to=LABELS)
    else:
        nodes.cast(nodes.add("ArgMax", [scores], {"axis": axis, "keepdims": 0}), "uint8", to=LABELS)


def _own_thresholds(nodes: Nodes, scores: str, output: ModelOutput, axis: int | None) -> None:
    """(N, H, W) for one class; (N, K, H, W) of 0 and 1 for several."""
    name = nodes.combine("Greater", scores, output.value_threshold)
    several = len(output.classes) > 1
    name = nodes.cast(name, "uint8", to=LABELS if axis is None or (several and axis == 1) else "")
    if axis == 3 and several:
        nodes.add("Transpose", [name], {"perm": [0, 3, 1, 2]}, to=LABELS)
    elif axis is not None and not several:
        nodes.add("Identity", [nodes.squeeze(name, axis)], to=LABELS)


def _channel(nodes: Nodes, scores: str, number: int) -> str:
    """One class of (N, K, H, W): (N, H, W)."""
    return nodes.add("Gather", [scores, nodes.constant(np.int64(number))], {"axis": 1})
