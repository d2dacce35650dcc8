"""The size of every tensor in a graph, by ONNX's shape inference.

No session is opened: the caller passes values that only a run can compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unet_batch.errors import ModelRefused
from unet_batch.model.graph import constants, elements, numpy_type

if TYPE_CHECKING:
    from onnx import ModelProto

FEW_ELEMENTS = 4096
"""Constants above this size are weights: no shape depends on their values, so shape inference does not need them."""

ONNX = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Domains whose operators shape inference knows."""
_SIZE_OPERANDS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "Upsample": (1,),
}
"""Inputs whose values determine the size of an output."""


@dataclass(frozen=True, slots=True)
class InferredTensor:
    """Type and size of a tensor by shape inference."""

    dtype: np.dtype[Any] | None
    """None if unknown, or if NumPy has no such type."""
    dims: tuple[int | None, ...] | None
    """None if the rank is unknown."""

    @property
    def known(self) -> tuple[int, ...] | None:
        """The dims if all are known, else None."""
        if self.dims is None or any(d is None for d in self.dims):
            return None
        return tuple(d for d in self.dims if d is not None)

    @property
    def size_bytes(self) -> int | None:
        dims = self.known
        return None if dims is None or self.dtype is None else int(np.prod(dims, dtype=np.int64)) * self.dtype.itemsize


def unknowable(model: ModelProto) -> list[str]:
    """Tensors that shape inference may need the values of: computed tensors that determine a size (even if they depend
    on constants only), and results of operators outside ONNX."""
    stored = constants(model)
    found = {
        node.input[place]: None
        for node in model.graph.node
        for place in _SIZE_OPERANDS.get(node.op_type, ())
        if place < len(node.input) and node.input[place] and node.input[place] not in stored
    }
    found |= {name: None for node in model.graph.node if node.domain not in ONNX for name in node.output if name}
    return list(found)


def with_outputs(model: ModelProto, names: Sequence[str]) -> bytes:
    """The bytes of the model with these tensors as its only outputs."""
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:]
    for name in names:
        changed.graph.output.add().name = name
    data: bytes = changed.SerializeToString()
    return data


def shapes(
    model: ModelProto, sizes: Mapping[str, Sequence[int]], known: Mapping[str, npt.NDArray[Any]] | None = None
) -> dict[str, InferredTensor]:
    """Type and size of every tensor by shape inference, for these sizes of the inputs.

    Declarations of other tensors are ignored: in real files they may have the batch's symbol on the height, or sizes of
    the example in the export. known: values, from a run, of tensors that inference cannot compute.
    """
    from onnx import shape_inference

    bare = _skeleton(model, sizes, known or {})
    try:
        inferred = shape_inference.infer_shapes(bare, data_prop=True).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise ModelRefused(f"the sizes of its tensors cannot be inferred: {' '.join(str(error).split())}") from error
    found = {}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        tensor = value.type.tensor_type
        dims = None
        if tensor.HasField("shape"):
            dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found[value.name] = InferredTensor(numpy_type(tensor.elem_type), dims)
    for name, stored in constants(model).items():
        found[name] = InferredTensor(numpy_type(stored.data_type), tuple(stored.dims))
    for name, values in (known or {}).items():
        found[name] = InferredTensor(values.dtype, values.shape)
    return found


def _skeleton(
    model: ModelProto, sizes: Mapping[str, Sequence[int]], known: Mapping[str, npt.NDArray[Any]]
) -> ModelProto:
    """The graph without the values of its weights: inference needs only their sizes, and copies a model three times."""
    import onnx
    from onnx import helper, numpy_helper

    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.name = "skeleton"
    for value in model.graph.input:
        bare.graph.input.add().CopyFrom(value)
        if value.name in sizes:
            del bare.graph.input[-1].type.tensor_type.shape.dim[:]
            for size in sizes[value.name]:
                bare.graph.input[-1].type.tensor_type.shape.dim.add().dim_value = size
    for value in model.graph.output:
        bare.graph.output.add().CopyFrom(value)
        bare.graph.output[-1].type.tensor_type.ClearField("shape")
    stored = constants(model)
    for name, tensor in stored.items():
        if elements(tensor) <= FEW_ELEMENTS:
            bare.graph.initializer.add().CopyFrom(tensor)
        else:
            bare.graph.initializer.add(data_type=tensor.data_type).dims.extend(tensor.dims)
        bare.graph.initializer[-1].name = name
    for name, values in known.items():
        if values.size <= FEW_ELEMENTS:
            bare.graph.initializer.append(numpy_helper.from_array(values, name))
        else:
            code = helper.np_dtype_to_tensor_dtype(values.dtype)
            bare.graph.initializer.add(name=name, data_type=code).dims.extend(values.shape)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in stored:
            continue
        bare.graph.node.add().CopyFrom(node)
        if any(name in known for name in node.output):
            outputs = [f"{name} as computed" if name in known else name for name in node.output]
            del bare.graph.node[-1].output[:]
            bare.graph.node[-1].output.extend(outputs)
    return bare
