"""Small changes to graphs: ONNX Runtime runs what comes out, and ONNX's checker passes it."""

from __future__ import annotations

import models
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, load_from_string

from unet_batch.errors import ModelRefused
from unet_batch.model import graph
from unet_batch.workbench import graph_edit


def session_of(model) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_metadata_is_added_and_replaced_and_the_rest_is_kept():
    """ONNX Runtime reads what was written."""
    model = load_from_string(models.threshold_model().data)
    graph_edit.set_metadata(model, {"author": "a", "kept": "k"})
    graph_edit.set_metadata(model, {"author": "b"})
    assert graph.metadata(model) == {"author": "b", "kept": "k"}
    assert session_of(model).get_modelmeta().custom_metadata_map == {"author": "b", "kept": "k"}


def test_a_renamed_tensor_has_its_new_name_everywhere():
    """Inputs, outputs, constants and nodes; the result is the same."""
    model = load_from_string(models.threshold_model(channels=1, classes=2).data)
    tiles = np.random.default_rng(0).random((1, 1, 4, 4), np.float32)
    before = session_of(model).run(None, {"image": tiles})[0]
    graph_edit.rename(model, {"image": "in", "mask": "out", "weight": "kernel", "logits": "scores"})
    graph_edit.check(model)
    assert np.array_equal(session_of(model).run(["out"], {"in": tiles})[0], before)


def test_pruning_takes_out_what_no_output_needs():
    """Nodes, and the constants that only they read."""
    model = load_from_string(models.threshold_model(two_outputs=True).data)
    del model.graph.output[1]
    assert model.graph.output[0].name == "features"
    graph_edit.prune(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
    assert list(model.graph.initializer) == []
    tiles = np.ones((1, 3, 2, 2), np.float32)
    assert np.array_equal(session_of(model).run(None, {"image": tiles})[0], tiles)


def test_pruning_a_graph_without_waste_changes_nothing():
    """Every node of a U-Net is needed."""
    model = load_from_string(models.unet_model(64, 8, 2).data)
    before = model.SerializeToString(deterministic=True)
    graph_edit.prune(model)
    assert model.SerializeToString(deterministic=True) == before


def test_an_axis_that_files_declare_as_0_or_below_is_open():
    """Some exporters write -1 for an open axis."""
    value = graph_edit.declare("x", "uint8", ("batch", -1, 0, 3, None))
    assert graph.tensor(value) == ("x", "uint8", ("batch", None, None, 3, None))


def test_a_part_is_built_with_its_opset():
    """One input, one output, any nodes."""
    data = graph_edit.build(
        [helper.make_node("Abs", ["x"], ["y"])],
        graph_edit.declare("x", "float32", (None,)),
        graph_edit.declare("y", "float32", (None,)),
        opset=13,
        ir_version=7,
    )
    model = graph.parse(data, "part")
    assert (graph.opsets(model), model.ir_version) == ({"": 13}, 7)
    assert session_of(model).run(None, {"x": np.array([-1], np.float32)})[0].tolist() == [1]


def test_a_graph_that_the_checker_faults_is_refused():
    """A type that shape inference contradicts is found before the file is run."""
    model = load_from_string(models.threshold_model().data)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(ModelRefused, match="not valid ONNX"):
        graph_edit.check(model)
