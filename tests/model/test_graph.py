"""ONNX files read with distrust: what is refused, and what the rest is said to hold."""

from __future__ import annotations

import models
import numpy as np
import onnxruntime as ort
import pytest
from odd_graphs import PLAIN, float_tensor, hidden, model_of, pointing_outside
from onnx import TensorProto, helper, load_from_string, numpy_helper

from unet_batch.errors import ModelRefused
from unet_batch.model import graph


@pytest.mark.parametrize(
    "data", [b"", b"not a model", b"\x08\x08", bytes(1000)], ids=["empty", "text", "bare", "zeros"]
)
def test_bytes_that_hold_no_graph_are_refused(data):
    """Almost any bytes parse as an empty message, so a model must have nodes and outputs."""
    with pytest.raises(ModelRefused, match=r"nuclei\.onnx is not an ONNX model"):
        graph.read(data, "nuclei.onnx")


def test_a_node_without_a_result_is_refused():
    """Everything that walks a graph believes in at least one."""
    with pytest.raises(ModelRefused, match="a node without an output"):
        graph.read(model_of(PLAIN, helper.make_node("Relu", ["x"], [])).SerializeToString(), "m.onnx")


def test_a_name_that_is_no_text_is_refused():
    """Broken UTF-8 parses, and fails wherever the name is used."""
    data = model_of(helper.make_node("Relu", ["x"], ["y"], name="latin")).SerializeToString()
    with pytest.raises(ModelRefused, match="names are not text"):
        graph.read(data.replace(b"latin", b"\xe4\xf6\xfc\xdf\xff"), "m.onnx")


def test_a_file_that_ends_early_is_refused():
    """Half a download is no model."""
    data = models.unet_model(64, 8, 2).data
    with pytest.raises(ModelRefused, match="not an ONNX model"):
        graph.read(data[: len(data) // 2], "half.onnx")


@pytest.mark.parametrize("place", ["initializer", "constant", "sparse initializer", "sparse constant", "subgraph"])
def test_weights_outside_the_file_are_refused_wherever_the_reference_hides(place):
    """External data makes a model read files of the machine that opens it."""
    with pytest.raises(ModelRefused, match=r"1 tensors lie outside the file \(w\)"):
        graph.parse(hidden(place).SerializeToString(), "m.onnx")


def test_an_operator_of_an_unknown_domain_is_refused_by_name():
    """Its code would come from a native library."""
    node = helper.make_node("Magic", ["x"], ["y"], domain="ai.example")
    model = model_of(node, opsets=(("", 17), ("ai.example", 1)))
    with pytest.raises(ModelRefused, match=r"operators of unknown domains \(ai\.example\)"):
        graph.parse(model.SerializeToString(), "m.onnx")


def test_a_domain_that_the_job_brings_a_library_for_is_allowed():
    """custom_domains widens the list by name."""
    node = helper.make_node("Magic", ["x"], ["y"], domain="ai.example")
    model = model_of(node, opsets=(("", 17), ("ai.example", 1)))
    assert graph.refusals(model, custom_domains=["ai.example"]) == []


def test_an_operator_set_that_no_node_uses_is_harmless():
    """Exporters declare domains on stock."""
    assert graph.refusals(model_of(PLAIN, opsets=(("", 17), ("ai.onnx.training", 1)))) == []


def test_control_flow_is_refused():
    """A loop's cost is decided by its input."""
    body = helper.make_graph([], "body", [], [])
    node = helper.make_node("Loop", ["", "", "x"], ["y"], body=body)
    with pytest.raises(ModelRefused, match=r"control flow \(Loop\)"):
        graph.parse(model_of(node).SerializeToString(), "m.onnx")


def test_functions_of_its_own_are_refused():
    """Rules are checked on nodes, and a function would hide some."""
    function = helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [])
    model = model_of(PLAIN, functions=[function])
    with pytest.raises(ModelRefused, match=r"1 functions of its own \(Twice\)"):
        graph.parse(model.SerializeToString(), "m.onnx")


def test_too_many_nodes_are_refused():
    """20,000 nodes are allowed, one more is not."""
    chain = [helper.make_node("Relu", [f"t{n}"], [f"t{n + 1}"]) for n in range(graph.MAX_NODES)]
    assert graph.refusals(model_of(*chain)) == []
    assert graph.refusals(model_of(*chain, PLAIN)) == ["20,001 nodes, more than 20,000"]


@pytest.mark.parametrize(
    "kind",
    [
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None)),
        helper.make_tensor_type_proto(TensorProto.STRING, [1]),
    ],
    ids=["sequence", "text"],
)
def test_an_input_that_is_no_tensor_of_numbers_is_refused(kind):
    """Pictures are tensors of numbers."""
    model = model_of(PLAIN)
    model.graph.input[0].type.CopyFrom(kind)
    assert graph.refusals(model) == ["input x is not a tensor of numbers"]


def test_every_reason_is_said_at_once():
    """All problems in one message, so that one new export is enough."""
    node = helper.make_node("Magic", ["x", "w"], ["y"], domain="ai.example")
    model = model_of(node, constants=[pointing_outside()])
    with pytest.raises(
        ModelRefused, match=r"1 tensors .*; operators of unknown domains .*\. Export it as one plain file"
    ):
        graph.parse(model.SerializeToString(), "m.onnx")


@pytest.mark.parametrize("made", [models.threshold_model(), models.unet_model(64, 8, 2), models.free_model()])
def test_an_ordinary_model_passes(made):
    """What ONNX Runtime opens and these rules allow."""
    assert graph.refusals(graph.parse(made.data, "m.onnx")) == []


def test_constants_that_old_files_declare_as_inputs_are_none():
    """IR version 3 wants every initialiser among the inputs; ONNX Runtime agrees on what has to be fed."""
    model = model_of(helper.make_node("Add", ["x", "w"], ["y"]), constants=[float_tensor()], ir_version=3)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [name for name, _, _ in graph.inputs(model)] == [value.name for value in session.get_inputs()] == ["x"]


def test_shapes_are_declared_with_numbers_symbols_and_open_axes():
    """A number, a symbol, or None."""
    model = load_from_string(models.threshold_model(size=64, unnamed_axes=True).data)
    assert graph.inputs(model) == [("image", "float32", (None, 3, 64, 64))]
    assert graph.outputs(load_from_string(models.threshold_model().data))[0][2] == ("batch_size", 2, None, None)


@pytest.mark.parametrize(
    ("dtypes", "nodes", "expected"),
    [
        (["float32"], [], "fp32"),
        (["float16"], [], "fp16"),
        (["bfloat16"], [], "bf16"),
        (["float16"], [helper.make_node("QuantizeLinear", ["x", "s"], ["q"])], "int8"),
        (["float32"], [helper.make_node("QLinearAdd", ["x"], ["q"], domain="com.microsoft")], "int8"),
        (["float32"], [helper.make_node("Cast", ["w0"], ["c"], to=TensorProto.FLOAT16)], "fp16"),
    ],
)
def test_the_precision_is_that_of_weights_and_quantised_operators(dtypes, nodes, expected):
    """What `model.precision` of a job has to say."""
    weights = [
        TensorProto(name=f"w{n}", data_type=TensorProto.DataType.Value(d.upper().replace("FLOAT32", "FLOAT")))
        for n, d in enumerate(dtypes)
    ]
    for weight in weights:
        weight.dims.append(8)
    assert graph.precision(model_of(PLAIN, *nodes, constants=weights)) == expected


def test_weights_are_counted_without_scales_settings_and_scalars():
    """Parameters are what training found: of a quantised convolution its kernel and bias, of a Resize nothing."""
    constants = [
        numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.int8), "kernel"),
        numpy_helper.from_array(np.zeros(4, np.int32), "bias"),
        numpy_helper.from_array(np.ones(4, np.float32), "scales"),
        numpy_helper.from_array(np.zeros(4, np.int8), "zeros"),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "sizes"),
        numpy_helper.from_array(np.float32(6), "six"),
        numpy_helper.from_array(np.ones(5, np.float32), "unused"),
    ]
    model = model_of(
        helper.make_node("DequantizeLinear", ["kernel", "scales", "zeros"], ["k"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "scales"], ["b"], axis=0),
        helper.make_node("Conv", ["x", "k", "b"], ["c"]),
        helper.make_node("Min", ["c", "six"], ["m"]),
        helper.make_node("Resize", ["m", "", "sizes"], ["y"]),
        constants=constants,
    )
    assert {name: graph.elements(tensor) for name, tensor in graph.weights(model).items()} == {"kernel": 108, "bias": 4}


def test_weights_in_constant_nodes_count_too():
    """Some exporters know no initialisers."""
    node = helper.make_node("Constant", [], ["w"], value=float_tensor(values=np.ones((2, 3))))
    model = model_of(node, helper.make_node("Mul", ["x", "w"], ["y"]))
    assert list(map(graph.elements, graph.weights(model).values())) == [6]


def test_what_follows_from_constants_alone_is_fixed():
    """Random numbers are not."""
    model = model_of(
        helper.make_node("Neg", ["w"], ["n"]),
        helper.make_node("RandomUniformLike", ["w"], ["r"]),
        helper.make_node("Add", ["n", "x"], ["y"]),
        constants=[float_tensor()],
    )
    assert graph.fixed_names(model) == {"w", "n"}


def test_attributes_come_as_python_values():
    """Texts as text, lists as tuples, and the default where there is none."""
    node = helper.make_node("Pad", ["x"], ["y"], mode="reflect", pads=[1, 2])
    assert graph.attribute(node, "mode", "") == "reflect"
    assert graph.attribute(node, "pads", ()) == (1, 2)
    assert graph.attribute(node, "value", 0.5) == 0.5
