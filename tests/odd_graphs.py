"""ONNX graphs that tests build node by node, and some that point to other files."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper


def model_of(*nodes, outputs=("y",), constants=(), opsets=(("", 17),), ir_version=8, **more) -> ModelProto:
    """A model with one float input `x` of any shape; nothing is checked."""
    body = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        list(constants),
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    return helper.make_model(body, opset_imports=imports, ir_version=ir_version, **more)


def float_tensor(name="w", values=(1.0, 2.0)) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def pointing_outside(name="w") -> TensorProto:
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.dims.append(2)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secrets"
    return tensor


def sparse(values: TensorProto) -> SparseTensorProto:
    indices = numpy_helper.from_array(np.arange(2, dtype=np.int64), "i")
    return helper.make_sparse_tensor(values, indices, [2])


def hidden(place: str) -> ModelProto:
    """A model with a reference to another file, in one of the places that can hold one."""
    add = helper.make_node("Add", ["x", "w"], ["y"])
    if place == "initializer":
        return model_of(add, constants=[pointing_outside()])
    if place == "constant":
        return model_of(helper.make_node("Constant", [], ["w"], value=pointing_outside()), add)
    if place == "sparse initializer":
        model = model_of(add)
        model.graph.sparse_initializer.append(sparse(pointing_outside()))
        return model
    if place == "sparse constant":
        return model_of(helper.make_node("Constant", [], ["w"], sparse_value=sparse(pointing_outside())), add)
    inner = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        [pointing_outside()],
    )
    return model_of(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


PLAIN = helper.make_node("Relu", ["x"], ["y"])
