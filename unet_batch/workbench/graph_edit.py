"""Small changes to ONNX graphs: names, declarations, metadata, and removal of unused nodes.

Each function imports `onnx` on use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.errors import ModelRefused
from unet_batch.model.graph import Shape, metadata

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto


def declare(name: str, dtype: str, shape: Shape) -> ValueInfoProto:
    """An input or output. dtype: NumPy's name. shape: sizes, symbols, or None for an open axis; also 0 and below."""
    from onnx import helper

    axes = [None if isinstance(size, int) and size <= 0 else size for size in shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), axes)


def build(
    nodes: Sequence[NodeProto], taken: ValueInfoProto, returned: ValueInfoProto, *, opset: int, ir_version: int
) -> bytes:
    """The bytes of a model with one input and one output."""
    from onnx import helper

    graph = helper.make_graph(list(nodes), "part", [taken], [returned])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    data: bytes = model.SerializeToString()
    return data


def check(model: ModelProto) -> None:
    """Raise ModelRefused if ONNX's checker, with shape inference, finds an error."""
    from onnx import checker, shape_inference

    try:
        checker.check_model(model, full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError, ValueError) as error:
        raise ModelRefused(f"the graph is not valid ONNX: {' '.join(str(error).split())}") from error


def set_metadata(model: ModelProto, entries: Mapping[str, str]) -> None:
    """Add or replace entries of the model's custom metadata; keep other entries."""
    merged = metadata(model) | dict(entries)
    del model.metadata_props[:]
    for key, value in merged.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def without_metadata(model: ModelProto, key: str) -> None:
    """Remove an entry of the model's custom metadata."""
    kept = {name: value for name, value in metadata(model).items() if name != key}
    del model.metadata_props[:]
    set_metadata(model, kept)


def rename(model: ModelProto, names: Mapping[str, str]) -> None:
    """Rename tensors everywhere in a graph."""
    for node in model.graph.node:
        for side in (node.input, node.output):
            for place, name in enumerate(side):
                side[place] = names.get(name, name)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.name = names.get(value.name, value.name)
    for sparse in model.graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)


def end_in(model: ModelProto, output: str, operator: str, *, axis: int | None = None) -> str:
    """Add an operator behind an output, which it replaces in its place; returns the new output's name."""
    from onnx import helper

    name = f"{output}_{operator.lower()}"
    node = helper.make_node(operator, [output], [name])
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    model.graph.node.append(node)
    for value in model.graph.output:
        value.name = name if value.name == output else value.name
    return name


def prune(model: ModelProto) -> None:
    """Remove nodes, constants and declarations that no output needs."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    for place in range(len(graph.node) - 1, -1, -1):
        if needed.intersection(graph.node[place].output):
            needed.update(graph.node[place].input)
        else:
            del graph.node[place]
    for place in range(len(graph.initializer) - 1, -1, -1):
        if graph.initializer[place].name not in needed:
            del graph.initializer[place]
    for place in range(len(graph.value_info) - 1, -1, -1):
        if graph.value_info[place].name not in needed:
            del graph.value_info[place]
