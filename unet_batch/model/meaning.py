"""The meaning of an output from its graph: logits, probabilities or labels, their bounds, and whether it is repeatable.

Works on nodes and stored tensors. All results are certain; None means that the graph does not decide it and that it
must be measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unet_batch.contract import ModelOutput
from unet_batch.model.bounds import DEPTH, PROBABILITIES, SAME, YES_OR_NO, Bounds, TensorBounds
from unet_batch.model.graph import array, attribute, constants, numpy_type, opsets

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "ConvInteger", "MatMulInteger"})
_FUSED = frozenset({"FusedConv", "NhwcFusedConv", "FusedGemm"})
_NORMS = frozenset({"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization"})
_DECIDES = YES_OR_NO | {"ArgMax", "ArgMin", "Ceil", "Floor", "Hardmax", "Round", "Sign"}
"""Operators whose results are decisions, not scores; a Cast to integers is one too."""
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_SIZES = frozenset({"Shape", "Size"})
_TRAINING = "is in training mode, so export it in evaluation mode (`model.eval()`)"
_BY_FACTORS = _FUSED | {"Conv", "ConvTranspose", "Gemm", "MatMul", "Mul"}
"""Operators whose result does not depend on the image if one of their first two inputs is zero everywhere."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """The certain properties of the values of an output."""

    activation: str | None
    """The right value of `output.activation`: logits, softmax, sigmoid, labels; None if several are possible."""
    made_by: str
    """The operator that computes the values; operators that only move values are skipped."""
    bounds: Bounds
    """All values lie within."""
    decided: bool
    """Whether the values come from a comparison, a rounding or an ArgMax."""
    softmax_axis: int | None
    """The axis of the output along which a Softmax sums to 1; None if there is none or it is unknown."""
    constant: str | None
    """Why the output is the same for every image; None if it depends on the image."""
    unstable: tuple[str, ...]
    """Why a tile's output is random or depends on other tiles of its batch, a phrase each."""


def meaning(model: ModelProto, output: str) -> Meaning:
    """The meaning of one output of the graph."""
    walk = _Walk(model)
    last, axes = walk.origin(output)
    kind = walk.kind(output)
    return Meaning(
        activation=kind,
        made_by="" if last is None else last.op_type,
        bounds=walk.reach(output),
        decided=last is not None and last.op_type in _DECIDES | {"Cast"},
        softmax_axis=None if last is None or axes is None else walk.softmax_axis(last, axes),
        constant=walk.constant(output),
        unstable=tuple(walk.unstable(output)),
    )


def contradictions(found: Meaning, output: ModelOutput, layout: str) -> list[str]:
    """Contradictions between the graph and a contract's output, one sentence each. layout: of the resolved output."""
    said, ends = output.activation, f"the file ends in {found.made_by}"
    sentences = [f"its result is not repeatable: {phrase}" for phrase in found.unstable]
    if found.constant is not None:
        return [*sentences, f"its output is the same for every image: {found.constant}"]
    one = len(output.classes) == 1
    if found.activation == "softmax" and one:
        return [*sentences, f"{ends} over one class, which is 1 everywhere: export it with a Sigmoid, or two classes"]
    wrong = _wrong(found, output)
    if wrong is not None:
        sentences.append(f"{ends}{wrong[0]}, but output.activation says {said}: {wrong[1]}")
    axis = {"nchw": 1, "nhwc": 3, "nk": 1}.get(layout)
    if found.softmax_axis not in (None, axis) and axis is not None:
        sentences.append(f"its Softmax runs along axis {found.softmax_axis}, but the classes are on axis {axis}")
    return sentences


def _wrong(found: Meaning, output: ModelOutput) -> tuple[str, str] | None:
    """The actual meaning of the values, and what to write; None if the graph does not contradict the contract."""
    said, low, high = output.activation, *found.bounds
    is_a = found.activation
    if is_a == "labels":
        fits = said == "labels" or (said == "masks" and len(output.classes) == 1)
        return None if fits else (", which gives labels", "write output.activation: labels")
    if is_a in ("softmax", "sigmoid"):
        per = "over the classes" if is_a == "softmax" else "per class"
        return None if said == is_a else (f", which gives probabilities {per}", f"write output.activation: {is_a}")
    if is_a == "logits":
        return None if said == "logits" else ("", "write output.activation: logits")
    if said == "logits" and low >= 0 and high <= 1:
        if found.decided:
            return ", which gives 0 or 1", "write output.activation: masks, or labels"
        return (
            ", and every value lies between 0 and 1",
            "write softmax for exclusive classes, sigmoid for independent classes",
        )
    if said in ("labels", "masks") and not found.decided and low >= 0 and high <= 1:
        return ", and its values lie between 0 and 1", "write output.activation: softmax, or sigmoid"
    return None


class _Walk:
    """Follows a graph back from its output."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._made_by = {name: node for node in model.graph.node for name in node.output}
        self._constants = constants(model)
        self._opset = opsets(model).get("", 1)
        self._kinds: dict[str, str | None] = {}
        self._reach = TensorBounds(self._made_by, self._constants)

    def origin(self, name: str) -> tuple[NodeProto | None, list[int] | None]:
        """The node that computes a tensor's values; and for each axis of the tensor, the axis of the node's output."""
        axes: list[int] | None = [0, 1, 2, 3]
        whole: NodeProto | None = None
        for _ in self._model.graph.node:  # a file may contain a cycle
            node = self._made_by.get(name)
            if node is None or node.op_type not in SAME or not node.input:
                undecided = whole is not None and (node is None or node.op_type not in _DECIDES)
                return (whole, None) if undecided else (node, axes)
            if node.op_type == "Cast" and _is_whole(attribute(node, "to", 0)):
                whole = node
            if node.op_type == "Transpose" and axes is not None:
                perm = attribute(node, "perm", (3, 2, 1, 0))
                axes = [perm[axis] for axis in axes] if len(perm) == len(axes) else None
            elif node.op_type not in ("Identity", "Cast", "CastLike", "DequantizeLinear", "QuantizeLinear", "Resize"):
                axes = None
            name = node.input[0]
        return None, None

    def kind(self, name: str, depth: int = 0) -> str | None:
        """The activation of a tensor's values if it is certain, else None."""
        if name not in self._kinds:
            self._kinds[name] = None  # used if the tensor depends on itself
            self._kinds[name] = self._kind(name, depth)
        return self._kinds[name]

    def _kind(self, name: str, depth: int) -> str | None:
        node, _ = self.origin(name)
        if node is None or depth > DEPTH:
            return None
        kind, operands = node.op_type, [name for name in node.input if name and name not in self._constants]
        if kind in PROBABILITIES:
            return PROBABILITIES[kind]
        if kind in ("ArgMax", "ArgMin"):
            return "labels"
        if kind == "LogSoftmax":
            return "logits"
        if kind == "Div":  # TensorFlow's softmax, as tf2onnx writes it
            parts = [made.op_type for made, _ in map(self.origin, node.input) if made is not None]
            if parts == ["Exp", "ReduceSum"]:
                return "softmax"
        if kind in _FUSED:
            fused = attribute(node, "activation", "")
            return PROBABILITIES.get(fused) if fused else self._of_products(node)
        if kind in _CONVOLUTIONS or kind in _NORMS:
            return self._of_products(node)
        if kind in ("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Concat") and operands:
            kinds = {self.kind(operand, depth + 1) for operand in dict.fromkeys(operands)}
            if kind in ("Add", "Sub", "Sum") and "logits" in kinds and not any(map(self._limited, operands)):
                return "logits"  # a residual sum without bounded terms
            alike = kinds.pop() if len(kinds) == 1 else None
            # A mean of probabilities is a probability, a sum is not: the bounds decide.
            return alike if alike == "logits" or kind == "Concat" else None
        return None

    def _of_products(self, node: NodeProto) -> str | None:
        """Logits, unless the factors are bounded: a filter over probabilities may give probabilities."""
        fed = [name for name in node.input[:2] if name not in self._constants]
        return None if fed and self._limited(fed[0]) else "logits"

    def _limited(self, name: str) -> bool:
        return all(math.isfinite(limit) for limit in self._reach.of(name))

    def reach(self, output: str) -> Bounds:
        """Lower and upper bound of all values of the output."""
        return self._reach.of(output)

    def softmax_axis(self, node: NodeProto, axes: Sequence[int]) -> int | None:
        """The axis of the output that a Softmax runs along."""
        if node.op_type != "Softmax":
            return None
        axis = int(attribute(node, "axis", -1 if self._opset >= 13 else 1)) % 4
        if self._opset < 13 and axis != 3:
            return None  # it runs over all later axes: their sizes decide
        return list(axes).index(axis)

    def constant(self, output: str) -> str | None:
        """Why the output does not depend on the image; None if it does."""
        fed = {value.name for value in self._model.graph.input} - self._constants.keys()
        for node in self._model.graph.node:
            if node.op_type in _SIZES:
                continue
            lost = self._clips_to_one(node) or (node.op_type in _BY_FACTORS and any(map(self._is_zero, node.input[:2])))
            inside = any(entry.HasField("g") for entry in node.attribute)  # inputs of a branch are not listed here
            if inside or (not lost and any(name in fed for name in node.input)):
                fed.update(node.output)
        return None if output in fed else "it is not connected to the input"

    def _is_zero(self, name: str) -> bool:
        stored = self._constants.get(name)
        return stored is not None and self._reach.of(name) == (0.0, 0.0)

    def _clips_to_one(self, node: NodeProto) -> bool:
        if node.op_type != "Clip":
            return False
        low, high = self._reach.of(node.output[0])
        return low >= high

    def unstable(self, output: str) -> list[str]:
        """Why two runs of one tile may differ, a phrase each."""
        wanted, found = {output}, dict[str, None]()
        for node in reversed(self._model.graph.node):
            if not wanted.intersection(node.output):
                continue
            wanted.update(node.input)
            if node.op_type in _RANDOM:
                found[f"it uses random numbers ({node.op_type}), so export it without them"] = None
            elif node.op_type == "Dropout" and self._is_on(node):
                found[f"a Dropout {_TRAINING}"] = None
            elif node.op_type == "BatchNormalization" and (
                attribute(node, "training_mode", 0) or len([name for name in node.output if name]) > 1
            ):
                found[f"a BatchNormalization {_TRAINING}"] = None
        return list(found)

    def _is_on(self, node: NodeProto) -> bool:
        if len(node.input) < 3 or node.input[2] not in self._constants:
            return False
        ratio = self._reach.of(node.input[1])[1] if node.input[1] else 0.5
        return bool(array(self._constants[node.input[2]]).any()) and ratio > 0


def _is_whole(code: int) -> bool:
    """Whether ONNX's code of a type is an integer type."""
    dtype = numpy_type(code)
    return dtype is not None and dtype.kind in "iub"
