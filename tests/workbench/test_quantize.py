"""Fewer bits, the same masks: what a quantised file keeps, what it gives back, and when there is none."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import threshold_model, unet_model
from onnx import TensorProto, helper

from unet_batch.contract import Contract, ModelInput, ModelOutput
from unet_batch.errors import JobError, ModelRefused, ShapeMismatch
from unet_batch.gate.parity import Tolerance
from unet_batch.model import graph
from unet_batch.model.contract import METADATA_KEY, find_contract, resolve
from unet_batch.session.engines import file_precision
from unet_batch.session.model_files import read_model
from unet_batch.spec import TilingSpec
from unet_batch.workbench.graph_edit import set_metadata
from unet_batch.workbench.quantize import QUANTIZE_KEY, QuantizeSpec, quantize, rows
from unet_batch.workbench.quantize_graph import FloatGraph
from unet_batch.workbench.variants import Variant, measure, variants
from unet_batch.workbench.variants import rows as table_of

SIDE = 32
ANYTHING = Tolerance(max_flipped=1.0, min_dice=0.0)


def resolved(tiny):
    return resolve(tiny.contract, read_model(tiny.data, "the model", None), TilingSpec())


def pictures(count: int, channels: int = 3, side: int = SIDE) -> list[np.ndarray]:
    """Smooth gradients with noise, float32 in 0 to 1; the seed is 7."""
    random = np.random.default_rng(7)
    ramp = np.linspace(0, 1, side, dtype=np.float32)
    found = []
    for _ in range(count):
        tile = ramp[:, None, None] * random.uniform(0.2, 1) + random.normal(0, 0.05, (side, side, channels))
        found.append(np.clip(tile, 0, 1).astype(np.float32))
    return found


@pytest.fixture(scope="module")
def unet():
    return unet_model(SIDE, base=4, levels=2)


@pytest.fixture(scope="module")
def quantized(unet):
    return quantize(unet.data, resolved(unet), pictures(9), QuantizeSpec(tolerance=ANYTHING))


def classifier() -> bytes:
    """A network with five scores for each image, the third always the largest."""
    random = np.random.default_rng(0)
    bias = np.float32([0, 0, 9, 0, 0])
    tensors = {"conv": random.normal(0, 1, (8, 3, 3, 3)), "gemm": random.normal(0, 0.1, (8, 5)), "bias": bias}
    nodes = [
        helper.make_node("Conv", ["image", "conv"], ["a"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "gemm", "bias"], ["scores"]),
    ]
    shapes = {"image": ["n", 3, SIDE, SIDE], "scores": ["n", 5]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    kept = [onnx.numpy_helper.from_array(np.float32(value), name) for name, value in tensors.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "classifier", ends[:1], ends[1:], kept),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    data: bytes = model.SerializeToString()
    return data


def test_the_notes_about_a_classifier_speak_of_images():
    """It has one label for each image and no pixels."""
    contract = Contract(
        input=ModelInput(fit="stretch"), output=ModelOutput(classes=tuple("abcde"), label_from="class_scores")
    )
    model = resolve(contract, read_model(classifier(), "the model", None), TilingSpec())
    found = quantize(classifier(), model, pictures(9), QuantizeSpec(tolerance=ANYTHING))
    [note] = [note for note in found.report.notes if "no evidence" in note]
    assert note.startswith("the fp32 file gives every held-out image the same label, so Dice is no evidence")
    assert not any("pixel" in note for note in found.report.notes)


def test_the_file_is_int8_and_smaller(unet, quantized):
    """Weights are stored in 8 bits, and the engine's own look at the file says so."""
    assert file_precision(quantized.data) == "int8"
    weights = [t for t in onnx.load_from_string(quantized.data).graph.initializer if t.data_type == TensorProto.INT8]
    assert any(len(tensor.dims) == 4 for tensor in weights)
    assert quantized.report.file_bytes == len(quantized.data)


def test_the_first_and_the_last_layer_stay_fp32(unet, quantized):
    """Their nodes read no dequantised value; the two are a third of the error for no speed."""
    model = onnx.load_from_string(quantized.data)
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    by_name = {node.name: node for node in model.graph.node}
    assert len(quantized.report.kept) == 2
    for name in quantized.report.kept:
        assert made.get(by_name[name].input[1]) != "DequantizeLinear"
    others = [n for n in model.graph.node if n.op_type == "Conv" and n.name not in quantized.report.kept]
    assert others
    assert all(made.get(node.input[1]) == "DequantizeLinear" for node in others)


def test_its_scores_are_those_of_the_float_model_within_a_few_percent(unet, quantized):
    """ONNX Runtime itself, run on both files with a tile that calibrated nothing, differs by rounding only."""
    feed = {"image": pictures(12)[-1].transpose(2, 0, 1)[None]}
    expected, found = (
        ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for data in (unet.data, quantized.data)
    )
    assert not np.array_equal(expected, found)
    assert np.abs(expected - found).max() < 0.1 * np.abs(expected).max()


def test_metadata_and_contract_come_along(unet):
    """The new file resolves by itself, and says what it was made from."""
    model = onnx.load_from_string(unet.data)
    set_metadata(model, {METADATA_KEY: unet.contract_yaml, "team": "north"})
    data = model.SerializeToString()
    file = read_model(data, "the model", None)
    source = resolve(find_contract(file, None, ""), file, TilingSpec())
    made = quantize(data, source, pictures(3), QuantizeSpec(tolerance=ANYTHING))
    again = read_model(made.data, "the new model", made.model.sha256)
    assert resolve(find_contract(again, None, ""), again, TilingSpec()) == made.model
    assert again.metadata["team"] == "north"
    assert json.loads(again.metadata[QUANTIZE_KEY])["source_sha256"] == source.sha256


def test_a_breach_gives_layers_back_to_fp32_the_most_sensitive_first(unet):
    """With a tolerance between the first attempt's error and none, a mixture passes with more layers in fp32."""
    first = quantize(unet.data, resolved(unet), pictures(9), QuantizeSpec(tolerance=ANYTHING)).report.parity
    limit = Tolerance(max_flipped=1.0, min_dice=0.0, max_abs_error=0.7 * first.max_abs_error)
    report = quantize(unet.data, resolved(unet), pictures(9), QuantizeSpec(tolerance=limit)).report
    assert report.attempts[0].breaches
    assert not report.attempts[-1].breaches
    assert 2 < len(report.kept) < report.layers
    assert [error for _, error in report.sensitivity] == sorted((e for _, e in report.sensitivity), reverse=True)
    assert report.sensitivity[0][1] > 0
    assert report.parity.max_abs_error <= limit.max_abs_error


def test_a_model_that_no_mixture_keeps_is_refused(unet):
    """A tolerance that 8 bits cannot hold leaves all layers in fp32, and that is no result."""
    exact = Tolerance(max_flipped=0.0, min_dice=1.0, max_abs_error=1e-9)
    with pytest.raises(ModelRefused, match=r"no mixture of int8 and fp32 .* layers in fp32,"):
        quantize(unet.data, resolved(unet), pictures(4), QuantizeSpec(tolerance=exact))


def test_tiles_that_judge_calibrate_nothing(unet, monkeypatch):
    """Every third tile is held out: an extreme one among them leaves the file as it is."""
    tiles = pictures(6)
    loud = [tile * 50 if n % 3 == 2 else tile for n, tile in enumerate(tiles)]
    spec = QuantizeSpec(tolerance=ANYTHING)
    files = [quantize(unet.data, resolved(unet), images, spec).data for images in (tiles, loud)]
    scales = [
        {t.name: t.float_data or t.raw_data for t in onnx.load_from_string(data).graph.initializer} for data in files
    ]
    assert scales[0] == scales[1]


def test_fp16_takes_and_returns_float32(unet):
    """Half the file, the same contract, and ONNX's own checker is content."""
    made = quantize(unet.data, resolved(unet), pictures(3), QuantizeSpec(kind="fp16", tolerance=ANYTHING))
    assert file_precision(made.data) == "fp16"
    assert len(made.data) < 0.65 * len(unet.data)
    model = onnx.load_from_string(made.data)
    onnx.checker.check_model(model)
    assert [dtype for _, dtype, _ in (*graph.inputs(model), *graph.outputs(model))] == ["float32", "float32"]
    assert made.report.parity.max_abs_error < 0.02 * made.report.parity.reference_peak


def test_nodes_that_would_overflow_in_fp16_stay_fp32():
    """Scores of 10^7 are beyond 65504, and the CPU need not show it: it computes most of an fp16 file in fp32."""
    tiny = threshold_model(channels=3, size=SIDE)
    model = onnx.load_from_string(tiny.data)
    model.graph.node[-1].output[0] = "small"
    model.graph.initializer.append(helper.make_tensor("large", TensorProto.FLOAT, [1], [1e6]))
    model.graph.node.append(helper.make_node("Mul", ["small", "large"], ["mask"]))
    data = model.SerializeToString()
    source = resolve(tiny.contract, read_model(data, "the model", None), TilingSpec())
    spec = QuantizeSpec(kind="fp16", keep_last=False, keep_first=False)
    made = onnx.load_from_string(quantize(data, source, pictures(3), spec).data)
    stored = {tensor.name: tensor.data_type for tensor in made.graph.initializer}
    assert stored["large"] == TensorProto.FLOAT
    assert stored["weight"] == TensorProto.FLOAT16


def test_a_quantised_file_is_not_quantised_again(quantized):
    """A quantised file is not quantised again."""
    with pytest.raises(ModelRefused, match="already in int8"):
        quantize(quantized.data, quantized.model, pictures(3), QuantizeSpec())


def test_one_tile_is_too_few(unet):
    """Calibration and judgement need a tile each."""
    with pytest.raises(JobError, match="1 tiles are too few"):
        quantize(unet.data, resolved(unet), pictures(1), QuantizeSpec())


def test_tiles_of_another_size_are_refused_before_anything_runs(unet):
    """The message is that of a session."""
    with pytest.raises(ShapeMismatch, match="32x32"):
        quantize(unet.data, resolved(unet), pictures(3, side=16), QuantizeSpec())


def test_a_model_of_an_old_opset_is_converted(unet):
    """Scales per channel need opset 13; files of 2020 have 12."""
    model = onnx.load_from_string(unet.data)
    model.opset_import[0].version = 12  # its operators mean the same there
    old = model.SerializeToString()
    source = resolve(unet.contract, read_model(old, "the model", None), TilingSpec())
    made = quantize(old, source, pictures(3), QuantizeSpec(tolerance=ANYTHING))
    assert graph.opsets(onnx.load_from_string(made.data))[""] >= 13


def test_a_fixed_batch_axis_is_filled():
    """Real models have a batch of their own; each tile is judged alone."""
    tiny = unet_model(SIDE, base=4, levels=2, batch=2)
    report = quantize(tiny.data, resolved(tiny), pictures(3), QuantizeSpec(tolerance=ANYTHING)).report
    assert report.parity.images == 1


def test_groups_hold_every_node_before_the_tail_once(unet):
    """What is taken back in turns is all there is, and nothing twice."""
    with FloatGraph(unet.data, "image", [pictures(1)[0].transpose(2, 0, 1)[None]], reduce_range=False) as floats:
        names = [name for group in floats.groups(4) for name in group]
        every = [node.name for node in onnx.load_from_string(floats.data).graph.node]
        assert len(floats.groups(4)) == 4
        assert sorted([*names, *floats.tail]) == sorted(every)


def test_the_report_is_a_table_and_json(quantized):
    """What the command prints and what lies beside the file."""
    assert rows(quantized.report)[1][0] == f"2 of {quantized.report.layers}"
    assert json.loads(json.dumps(quantized.report.to_json()))["attempts"][-1]["parity"]["images"] == 3
    assert any("check.reference" in note for note in quantized.report.notes)


def test_a_model_that_finds_nothing_is_named(unet, quantized):
    """A Dice of 1 over masks that are one class everywhere is no proof, and the report says so."""
    blind = onnx.load_from_string(unet.data)
    returned, score = blind.graph.output[0].name, blind.graph.node[-1]
    score.output[0] = "score"
    loud = helper.make_tensor("loud", TensorProto.FLOAT, [1, 3, 1, 1], [1e3, 0, 0])
    blind.graph.initializer.append(loud)
    blind.graph.node.append(helper.make_node("Add", ["score", "loud"], [returned]))
    data = blind.SerializeToString()
    source = resolve(unet.contract, read_model(data, "the model", None), TilingSpec())
    made = quantize(data, source, pictures(12), QuantizeSpec(tolerance=ANYTHING))
    assert any("Dice is no evidence" in note for note in made.report.notes)
    assert not any("Dice is no evidence" in note for note in quantized.report.notes)


def test_a_result_near_the_limit_is_named(unet, quantized):
    """Other images may be worse: the gate will look at some."""
    share = quantized.report.parity.flipped_share
    assert share > 0
    limit = Tolerance(max_flipped=1.5 * share, min_dice=0.0)
    near = quantize(unet.data, resolved(unet), pictures(9), QuantizeSpec(tolerance=limit))
    assert any("near a limit" in note for note in near.report.notes)
    assert not any("near a limit" in note for note in quantized.report.notes)


def test_a_contract_that_lay_beside_the_model_is_put_inside(unet, quantized):
    """The new file lies somewhere else, and resolves by itself."""
    assert METADATA_KEY not in graph.metadata(onnx.load_from_string(unet.data))
    file = read_model(quantized.data, "the new model", None)
    assert resolve(find_contract(file, None, ""), file, TilingSpec()) == quantized.model


def test_a_verdict_is_a_few_words(unet):
    """What was breached lies in the JSON; the table fits a terminal."""
    first = quantize(unet.data, resolved(unet), pictures(9), QuantizeSpec(tolerance=ANYTHING)).report.parity
    limit = Tolerance(max_flipped=1.0, min_dice=0.0, max_abs_error=0.7 * first.max_abs_error)
    report = quantize(unet.data, resolved(unet), pictures(9), QuantizeSpec(tolerance=limit)).report
    assert rows(report)[1][-1] == "not within the tolerance"
    assert rows(report)[-1][-1] == "within the tolerance"
    assert "the largest error of a value" in report.to_json()["attempts"][0]["breaches"][0]


@pytest.mark.slow
def test_the_table_holds_every_variant_against_fp32(unet, quantized):
    """fp32 is 1 by definition and flips nothing; a child process told its peak, more than its beginning."""
    source = resolved(unet)
    ways = variants(unet.data, quantized.data)
    figures = measure(ways[:2], source, pictures(2), rounds=2)
    assert [row.name for row in figures] == ["fp32", "int8"]
    assert figures[0].speed == 1
    assert figures[0].parity.flipped == 0
    assert figures[1].parity.max_abs_error > 0
    assert all(row.peak_bytes > row.model_bytes > 0 for row in figures)
    assert len(table_of(figures)) == 3


@pytest.mark.slow
def test_a_variant_that_does_not_run_is_left_out(unet, caplog):
    """The table names what ran; the log says why a row is missing."""
    broken = Variant("broken", unet.data[:100], "onnxruntime", "fp32")
    figures = measure(
        [Variant("fp32", unet.data, "onnxruntime", "fp32"), broken], resolved(unet), pictures(1), rounds=1
    )
    assert [row.name for row in figures] == ["fp32"]
    assert "left out: broken: " in caplog.text
