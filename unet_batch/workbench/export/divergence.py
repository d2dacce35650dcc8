"""Finds the first node of an ONNX graph whose output differs from PyTorch, and its module.

In a graph of PyTorch's exporter, tensors have the same names as in the captured program. Nodes run one at a time, each
with PyTorch's values as inputs. So an error belongs to that node: rounding does not accumulate, and nodes after a wrong
node are not reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unet_batch.errors import ModelRefused, UnetBatchError
from unet_batch.session.plain_session import PlainSession
from unet_batch.workbench.export.network import share
from unet_batch.workbench.export.problems import CodePlace, brief, noted_place, place_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = npt.NDArray[Any]

WRONG = 1e-4
"""Error of a single node, as a share of its largest value, that is more than rounding."""
SUSPECT = 1e-5
"""The same for a node that is reported only if no other node is wrong. Correct nodes of U-Nets stay below 3e-6."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A node whose result differs from the network's."""

    node: str
    operator: str
    """ONNX's name of the operator."""
    place: CodePlace
    """CodePlace in the network."""
    share: float
    """Largest error as a share of the largest value; infinite if the shape differs, or NaN is on one side only."""
    with_nodes: tuple[str, ...]
    """Earlier nodes of the same PyTorch operation, whose outputs have no counterpart in PyTorch."""
    problem: str | None = None
    """A problem other than a wrong value: a shape, or a node that cannot run."""

    def __str__(self) -> str:
        among = f" (or {', '.join(self.with_nodes)}, which feed it)" if self.with_nodes else ""
        error = self.problem or f"its output is wrong by {self.share:.2g} of its largest value"
        return f"the first node that diverges is {self.operator} {self.node}{among}, from {self.place}: {error}"


def first_divergence(model: ModelProto, program: Any, image_1chw: Array) -> Divergence | None:
    """The first node, in the graph's order, that diverges from the captured program; None if no single node does.

    model: the exported graph. program: its `ExportedProgram`. image_1chw: float32 (1, C, H, W), of any size that the
    graph accepts. None with a wrong result means that ONNX Runtime's optimiser changes it.
    """
    wanted, nodes = _run_program(program, image_1chw)
    last = program.graph_signature.user_outputs[0]
    wanted[model.graph.output[0].name] = wanted[last]
    nodes[model.graph.output[0].name] = nodes[last]
    values: dict[str, Array] = {model.graph.input[0].name: image_1chw}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    unknown: dict[str, tuple[str, ...]] = {}  # tensor without a counterpart in PyTorch → its nodes
    suspect: Divergence | None = None
    for node in model.graph.node:
        makers = tuple(dict.fromkeys(maker for name in node.input for maker in unknown.get(name, ())))
        where = next((nodes[name] for name in node.output if name in nodes), None)
        place = place_of(where.meta) if where is not None else noted_place(node)
        try:
            found = _run_node(model, node, values, stored)
        except UnetBatchError as error:
            return Divergence(node.name, node.op_type, place, np.inf, makers, f"it cannot run: {error}")
        for name, array in found.items():
            right = wanted.get(name)
            if right is None or (array.dtype.kind != "f" and right.shape != array.shape):  # a size tensor
                values[name] = array
                unknown[name] = (*makers, node.name)
                continue
            if right.shape != array.shape:
                shapes = f"it returns {_said(array)}, where PyTorch has {_said(right)}"
                return Divergence(node.name, node.op_type, place, np.inf, makers, shapes)
            off_by = share(right, array)
            if off_by > SUSPECT and (suspect is None or off_by > WRONG):
                suspect = Divergence(node.name, node.op_type, place, off_by, makers)
            if off_by > WRONG:
                return suspect
            values[name] = right
    return suspect


def captured_otherwise(network_outputs: Mapping[str, Array], program: Any, image_1chw: Array) -> str | None:
    """The path of the first module whose result differs between captured program and network; None if none does.

    network_outputs: by module path in the order of completion, from `network.outputs_by_module`.
    """
    values, nodes = _run_program(program, image_1chw)
    output = values[program.graph_signature.user_outputs[0]]
    if _equal(network_outputs[""], output):
        return None
    captured: dict[str, list[Array]] = {}
    for name, node in nodes.items():
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            if "@" not in key and not key.startswith("_empty"):  # @: a later call of the same module
                captured.setdefault(str(path), []).append(values[name])
    for path, array in network_outputs.items():
        # A module may return another tensor than the one it computed last.
        if path in captured and not any(_equal(array, value) for value in captured[path]):
            return path
    return ""


def _equal(reference: Array, other: Array) -> bool:
    return reference.shape == other.shape and share(reference, other) <= WRONG


def _run_program(program: Any, image_1chw: Array) -> tuple[dict[str, Array], dict[str, Any]]:
    """Every tensor of a captured program by its node's name, and the nodes. Raises ModelRefused if it fails."""
    import torch

    values: dict[str, Array] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Any) -> Any:
            try:
                result = super().run_node(n)
            except Exception as error:
                where = place_of(n.meta)
                raise ModelRefused(f"the captured program fails on this image in {where}: {brief(error)}") from error
            if isinstance(result, torch.Tensor):
                values[n.name] = result.detach().numpy()
            return result

    signature = program.graph_signature
    stored = {**program.state_dict, **program.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    graph = program.graph_module
    image = torch.from_numpy(image_1chw)
    feeds = [stored[names[n.name]] if n.name in names else image for n in graph.graph.nodes if n.op == "placeholder"]
    with torch.no_grad():
        Recorder(graph).run(*feeds)
    return values, {node.name: node for node in graph.graph.nodes if node.name in values}


def _run_node(
    model: ModelProto, node: NodeProto, values: Mapping[str, Array], stored: Mapping[str, Any]
) -> dict[str, Array]:
    """The outputs of a single node in ONNX Runtime without its optimiser."""
    from onnx import helper

    fed = {name: values[name] for name in node.input if name in values}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in fed.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        [stored[name] for name in dict.fromkeys(node.input) if name in stored],
    )
    alone: ModelProto = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = PlainSession(alone.SerializeToString(), optimise=False)
    return session.run({name: np.ascontiguousarray(array) for name, array in fed.items()})


def _said(array: Array) -> str:
    return "x".join(map(str, array.shape))
