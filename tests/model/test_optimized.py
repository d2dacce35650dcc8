"""An optimised file: its recommendation is read as untrusted text, and it gives its fp32 network back."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from optimized_files import ANYTHING, in_8_bits, pictures, recommending, resolved, small_unet

from unet_batch.errors import ContractError
from unet_batch.model import graph
from unet_batch.model.optimized import OPTIMIZE_KEY, fp32_network, recommendation
from unet_batch.session.model_files import bytes_for
from unet_batch.workbench.quantize import QuantizeSpec, outputs, quantize


@pytest.fixture(scope="module")
def tiny():
    return small_unet()


@pytest.fixture(scope="module")
def eight_bits(tiny):
    return in_8_bits(tiny)


def test_the_fp32_network_inside_gives_the_values_of_the_original(tiny, eight_bits):
    """Only the QDQ pairs are gone: weights, biases and Relu are those of the fp32 file."""
    inside = fp32_network(eight_bits)
    assert inside is not None
    assert graph.precision(graph.read(inside, "it")) == "fp32"
    expected, found, rounded = (outputs(data, resolved(tiny), pictures(2)) for data in (tiny.data, inside, eight_bits))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(rounded - expected).max() > 100 * np.abs(found - expected).max()


def test_a_file_with_stored_8_bit_weights_has_no_fp32_network(tiny):
    """What was rounded is lost."""
    made = quantize(tiny.data, resolved(tiny), pictures(3), QuantizeSpec(tolerance=ANYTHING))
    assert fp32_network(made.data) is None
    assert fp32_network(tiny.data) is None


def test_a_pair_at_the_output_keeps_the_outputs_name():
    """The output is then the tensor before the pair."""
    axes = [1, 1, 4, 4]
    nodes = [
        helper.make_node("Relu", ["image"], ["sharp"]),
        helper.make_node("QuantizeLinear", ["sharp", "scale"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["mask"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("image", "mask")]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], [helper.make_tensor("scale", 1, [], [0.5])])
    inside = fp32_network(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    assert inside is not None
    model = onnx.load_from_string(inside)
    assert [node.op_type for node in model.graph.node] == ["Relu", "Identity"]
    assert (list(model.graph.node[1].input), list(model.graph.initializer)) == (["sharp"], [])


def test_only_an_optimised_file_is_changed_for_fp32(tiny, eight_bits):
    """The bytes of other files are what is scored, and what the fingerprint names."""
    assert bytes_for(eight_bits, "fp32") == eight_bits
    made = recommending(eight_bits, resolved(tiny), precision="int8")
    assert bytes_for(made, "int8") == made
    assert bytes_for(made, "fp32") == fp32_network(made)


def test_a_recommendation_comes_back_as_it_was_written(tiny):
    """Through the metadata of the file; a file without one has none."""
    made = graph.metadata(graph.read(recommending(tiny.data, resolved(tiny), threads=2), "it"))
    found = recommendation(made, "m.onnx")
    assert found is not None
    assert (found.engine, found.threads, found.batch_max) == ("onnxruntime", 2, 2)
    assert found.to_text() == made[OPTIMIZE_KEY]
    assert recommendation({}, "m.onnx") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no JSON", "was not written by"),
        ("[1]", "was not written by"),
        ({"version": 99}, "another version of unet-batch: optimise it again"),
        ({"ladder": {}}, "was not written by"),
        ({"ladder": "12"}, "was not written by"),
        ({"ladder": {"0": 1.0}}, "was not written by"),
        ({"threads": 0}, "was not written by"),
        ({"threads": "2"}, "was not written by"),
        ({"engine": 3}, "was not written by"),
        ({"references": []}, "was not written by"),
        ({"surprise": 1}, "was not written by"),
    ],
)
def test_text_that_optimize_did_not_write_is_refused_by_name(tiny, change, said):
    """The metadata of a file is untrusted."""
    text = graph.metadata(graph.read(recommending(tiny.data, resolved(tiny)), "it"))[OPTIMIZE_KEY]
    text = change if isinstance(change, str) else json.dumps(json.loads(text) | change)
    with pytest.raises(ContractError, match=rf"^m\.onnx: .*{said}"):
        recommendation({OPTIMIZE_KEY: text}, "m.onnx")
