"""Sizes without a run, held against sizes in a run."""

from __future__ import annotations

import models
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, load_from_string, numpy_helper

from unet_batch.model.graph import constants
from unet_batch.model.shapes import InferredTensor, shapes, unknowable, with_outputs


def run_all(model, feed):
    """Every tensor that a node makes, as ONNX Runtime computes it."""
    names = [name for node in model.graph.node for name in node.output if name]
    session = ort.InferenceSession(with_outputs(model, names), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feed), strict=True))


def padded_model():
    """A convolution behind a padding that is computed inside, as traced PyTorch code writes it."""
    nodes = [
        helper.make_node("Shape", ["weight"], ["four"]),
        helper.make_node("Gather", ["four", "first"], ["two"]),  # the kernels' number, 2
        helper.make_node("Mul", ["two", "four_times"], ["eight"]),
        helper.make_node("ConstantOfShape", ["eight"], ["pads"], value=numpy_helper.from_array(np.array([0]))),
        helper.make_node("Pad", ["image", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "weight"], ["mask"]),
    ]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "weight"),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.array([4], np.int64), "four_times"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("made", "name", "dims"),
    [
        (models.unet_model(None, 8, 3), "image", (2, 3, 32, 48)),
        (models.threshold_model("nhwc", half_size=True), "input:0", (1, 8, 6, 3)),
        (models.threshold_model(activation="labels"), "image", (3, 3, 5, 7)),
        (models.free_model(), "image", (1, 3, 4, 4)),
    ],
)
def test_every_size_is_that_of_a_run(made, name, dims):
    """Oracle: ONNX Runtime with every intermediate tensor as an output."""
    model = load_from_string(made.data)
    found = shapes(model, {name: dims})
    computed = run_all(model, {name: np.zeros(dims, np.float32)})
    assert {key: found[key].known for key in computed} == {key: value.shape for key, value in computed.items()}
    assert {key: found[key].dtype for key in computed} == {key: value.dtype for key, value in computed.items()}


def test_symbols_that_files_misplace_do_not_bind_sizes():
    """The output's height carries the batch's symbol in a published model."""
    model = load_from_string(models.threshold_model(lying_symbols=True).data)
    assert shapes(model, {"image": (2, 3, 8, 8)})["mask"].known == (2, 2, 8, 8)


def test_sizes_of_the_export_example_are_ignored():
    """value_info of a traced model holds the sizes of the picture that it was traced with."""
    model = load_from_string(models.unet_model(None, 8, 1).data)
    model.graph.value_info.append(helper.make_tensor_value_info("pool0", TensorProto.FLOAT, [1, 8, 99, 99]))
    assert shapes(model, {"image": (1, 3, 64, 64)})["pool0"].known == (1, 8, 32, 32)


def test_constants_have_their_own_sizes():
    """Weights, large ones too, whose values inference never sees."""
    model = load_from_string(models.unet_model(64, 32, 2).data)
    found = shapes(model, {"image": (1, 3, 64, 64)})
    assert len(constants(model)) > 8
    for name, tensor in constants(model).items():
        assert found[name].known == tuple(tensor.dims)


def test_a_size_that_is_computed_inside_is_found_with_the_help_of_a_run():
    """Inference alone gives up; the values of the padding settle it."""
    model = padded_model()
    dims = {"image": (1, 3, 10, 10)}
    assert shapes(model, dims)["mask"].known is None
    names = unknowable(model)
    assert "pads" in names
    session = ort.InferenceSession(with_outputs(model, names), providers=["CPUExecutionProvider"])
    known = dict(zip(names, session.run(names, {"image": np.zeros((1, 3, 10, 10), np.float32)}), strict=True))
    assert shapes(model, dims, known)["mask"].known == (1, 2, 8, 8)


def test_results_of_foreign_operators_are_among_the_unknowable():
    """ONNX's inference knows no operator of ONNX Runtime's own domain."""
    node = helper.make_node("QLinearConcat", ["s", "z", "x", "s", "z"], ["y"], domain="com.microsoft", axis=1)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.UINT8, None)])
    assert unknowable(helper.make_model(graph)) == ["y"]


def test_a_size_in_bytes_needs_every_size():
    """None rather than a guess."""
    assert InferredTensor(np.dtype("float16"), (2, 3)).size_bytes == 12
    assert InferredTensor(np.dtype("float16"), (2, None)).size_bytes is None
    assert InferredTensor(None, (2, 3)).size_bytes is None
    assert InferredTensor(np.dtype("uint8"), None).known is None
