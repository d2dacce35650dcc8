"""ONNX files as graphs: parsed as untrusted input, and queried.

Uses the `onnx` package, which each function imports on use. The caller reads the bytes.

A model is untrusted code. `parse` accepts the graphs that this project scores and refuses others: external data,
operators of unknown domains, control flow, functions, inputs that are not tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from unet_batch.errors import ModelRefused

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains whose operators are part of ONNX Runtime; other domains need a native library."""
CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
MAX_NODES = 20_000
"""Limit; the largest graphs of segmentation models have a few thousand nodes."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Shape = tuple[int | str | None, ...]

QUANTISED = (
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantize",
    "MatMulInteger",
    "MatMulNBits",
    "QAttention",
    "QGemm",
    "QLinear",
    "QuantizeLinear",
)
"""Prefixes of operators that only quantised models have, of ONNX and of ONNX Runtime."""
_QUANTISED_OPERANDS = {
    "QuantizeLinear": (0,),
    "DequantizeLinear": (0,),
    "QLinearConv": (0, 3, 8),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3, 6),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
}
"""Inputs of quantised operators that hold values; the other inputs are scales and zero points."""
_NO_WEIGHTS = frozenset({"Clip", "Expand", "Pad", "Pow", "Range", "Resize", "Reshape", "Slice", "Tile", "Upsample"})
"""Operators whose inputs after the first are settings."""


def parse(data: bytes, uri: str, *, custom_domains: Collection[str] = ()) -> ModelProto:
    """The model in these bytes. Raises ModelRefused if they are not a model, or if `refusals` finds something."""
    model = read(data, uri)
    if found := refusals(model, custom_domains=custom_domains):
        raise ModelRefused(f"{uri} is refused: {'; '.join(found)}. Export it as one plain file without these")
    return model


def read(data: bytes, uri: str) -> ModelProto:
    """The model in these bytes, without the checks of `parse`. Raises ModelRefused if they are not a model."""
    import onnx

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # the classes of protobuf's errors depend on the installed version
        raise ModelRefused(f"{uri} is not an ONNX model: {type(error).__name__}: {error}") from error
    if not model.graph.node or not model.graph.output:  # almost any bytes parse as an empty message
        raise ModelRefused(f"{uri} is not an ONNX model: it has {len(model.graph.node)} nodes")
    if not all(isinstance(text, str) for text in _names(model)):  # bytes if the UTF-8 is invalid
        raise ModelRefused(f"{uri} is not an ONNX model: some of its names are not text")
    if not all(len(node.output) for node in model.graph.node):
        raise ModelRefused(f"{uri} is not an ONNX model: it has a node without an output")
    return model


def refusals(model: ModelProto, *, custom_domains: Collection[str] = ()) -> list[str]:
    """Why a model must not be run, a phrase each; empty if it may be run.

    custom_domains: domains of operators for which the job has a library.
    """
    found = []
    if outside := external(model):
        found.append(f"{len(outside)} tensors lie outside the file ({outside[0]})")
    nodes = [*_all_nodes(model.graph)]
    if domains := sorted({n.domain for n in nodes} - DOMAINS.union(custom_domains)):
        found.append(f"operators of unknown domains ({', '.join(domains)})")
    if flow := sorted({n.op_type for n in nodes if n.op_type in CONTROL_FLOW}):
        found.append(f"control flow ({', '.join(flow)})")
    if len(model.functions):
        found.append(f"{len(model.functions)} functions of its own ({model.functions[0].name})")
    if len(nodes) > MAX_NODES:
        found.append(f"{len(nodes):,} nodes, more than {MAX_NODES:,}")
    for word, values in (("input", inputs(model)), ("output", outputs(model))):
        found += [f"{word} {name} is not a tensor of numbers" for name, dtype, _ in values if dtype in ("", "object")]
    return found


def external(model: ModelProto) -> list[str]:
    """Names of all tensors whose values are in another file."""
    from onnx import TensorProto

    stored = _all_tensors(model)
    return sorted({t.name for t in stored if t.data_location == TensorProto.EXTERNAL or t.external_data})


def domains(model: ModelProto) -> set[str]:
    """Domains of all operators, without the model's own functions."""
    own = {(function.domain, function.name) for function in model.functions}
    nodes = [*_all_nodes(model.graph), *(node for function in model.functions for node in _inside(function.node))]
    return {node.domain for node in nodes if (node.domain, node.op_type) not in own}


def inputs(model: ModelProto) -> list[tuple[str, str, Shape]]:
    """Name, NumPy's name of the type ("" if it is not a tensor) and shape of each input that needs a value."""
    stored = {t.name for t in model.graph.initializer}  # old files (2018) also declare them as inputs
    return [tensor(value) for value in model.graph.input if value.name not in stored]


def outputs(model: ModelProto) -> list[tuple[str, str, Shape]]:
    """The same of each output."""
    return [tensor(value) for value in model.graph.output]


def tensor(value: ValueInfoProto) -> tuple[str, str, Shape]:
    """Name, NumPy's name of the type and shape of one declaration, with its sizes as declared."""
    if not value.type.HasField("tensor_type"):
        return value.name, "", ()
    declared = value.type.tensor_type
    dtype = numpy_type(declared.elem_type)
    shape = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in declared.shape.dim)
    return value.name, "" if dtype is None else dtype.name, shape


def opsets(model: ModelProto) -> dict[str, int]:
    """Version by domain; ONNX's own domain is ""."""
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}


def metadata(model: ModelProto) -> dict[str, str]:
    """The model's custom metadata."""
    return {entry.key: entry.value for entry in model.metadata_props}


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or the default: numbers, texts, tuples of them, or a tensor."""
    from onnx import helper

    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            if isinstance(value, bytes):
                return value.decode(errors="replace")
            return tuple(value) if entry.ints or entry.floats else value
    return default


def array(tensor: TensorProto) -> npt.NDArray[Any]:
    """The values of a stored tensor."""
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def constants(model: ModelProto) -> dict[str, TensorProto]:
    """Every stored tensor by name: initialisers and Constant nodes."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")
    return found


def fixed_names(model: ModelProto) -> set[str]:
    """Tensors that depend on no input: constants, and tensors computed only from constants."""
    fixed = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    for node in model.graph.node:
        if not node.op_type.startswith("Random") and all(name in fixed for name in node.input if name):
            fixed.update(node.output)
    return fixed


def weights(model: ModelProto) -> dict[str, TensorProto]:
    """Trained constants: floats and quantised values with at least one axis, without settings."""
    stored = constants(model)
    used: set[str] = set()
    for node in model.graph.node:
        operands = (0,) if node.op_type in _NO_WEIGHTS else _QUANTISED_OPERANDS.get(node.op_type)
        used.update(name for place, name in enumerate(node.input) if operands is None or place in operands)
    quantised = {
        name
        for node in model.graph.node
        if node.op_type in _QUANTISED_OPERANDS
        for name in node.input
        if name in stored
    }
    types = _weight_types()
    return {
        name: tensor
        for name, tensor in stored.items()
        if name in used and tensor.dims and (tensor.data_type in types or name in quantised)
    }


def elements(tensor: TensorProto) -> int:
    """Number of values of a stored tensor."""
    return int(np.prod(tensor.dims, dtype=np.int64))


def precision(model: ModelProto) -> Precision:
    """Precision of the file, with its branches and functions: `int8` if a tensor is quantised, `fp16` or `bf16` if
    weights with more than one element are stored in it or cast to it, else `fp32`."""
    from onnx import TensorProto

    nodes = [*_all_nodes(model.graph), *(node for function in model.functions for node in _inside(function.node))]
    if any(node.op_type.startswith(QUANTISED) for node in nodes):
        return "int8"
    halves: dict[int, Precision] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    stored = constants(model).keys() | {t.name for inner in _branches(nodes) for t in inner.initializer}
    types = [tensor.data_type for tensor in _all_tensors(model) if elements(tensor) > 1]
    types += [attribute(n, "to", 0) for n in nodes if n.op_type == "Cast" and {*n.input} & stored]
    found = Counter(halves[code] for code in types if code in halves)
    return found.most_common(1)[0][0] if found else "fp32"


def numpy_type(code: int) -> np.dtype[Any] | None:
    """NumPy's type for ONNX's code; None if there is none."""
    from onnx import helper

    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(code))
    except KeyError:
        return None


def _weight_types() -> set[int]:
    """ONNX's codes of the types that weights have."""
    from onnx import TensorProto

    return {
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.INT8,
        TensorProto.UINT8,
    }


def _names(model: ModelProto) -> Iterator[object]:
    for node in _all_nodes(model.graph):
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        yield value.name


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    yield from _inside(graph.node)


def _inside(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, and the nodes of their subgraphs."""
    for node in nodes:
        yield node
        for inner in _branches([node]):
            yield from _inside(inner.node)


def _branches(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """The graphs that nodes hold as attributes."""
    for entry in (entry for node in nodes for entry in node.attribute):
        yield from (entry.g, *entry.graphs)


def _all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that can refer to a file: initialisers, attributes and sparse tensors, also in subgraphs."""

    def of_nodes(nodes: Sequence[NodeProto]) -> Iterator[TensorProto]:
        for entry in (entry for node in nodes for entry in node.attribute):
            yield from (entry.t, *entry.tensors)
            for sparse in (entry.sparse_tensor, *entry.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (entry.g, *entry.graphs):
                yield from of_graph(inner)

    def of_graph(graph: GraphProto) -> Iterator[TensorProto]:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from of_nodes(graph.node)

    yield from of_graph(model.graph)
    for function in model.functions:
        yield from of_nodes(function.node)
