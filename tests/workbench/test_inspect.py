"""What `model inspect` says about models whose answer is known, with the quirks of real files, and about real files."""

from __future__ import annotations

import hashlib
import io
import json

import models
import numpy as np
import pytest
import yaml
from networks import Network
from odd_graphs import PLAIN, hidden, model_of
from onnx import TensorProto, defs, helper, load_from_string
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema as onnxruntime_schemas
from real_models import real_model
from rich.console import Console

from unet_batch.errors import ModelRefused, ShapeMismatch
from unet_batch.model.contract import METADATA_KEY, find_contract, resolve
from unet_batch.session.model_files import read_model
from unet_batch.spec import TilingSpec
from unet_batch.workbench.graph_edit import set_metadata
from unet_batch.workbench.inspect import NOT_ON_CUDA, inspect
from unet_batch.workbench.inspect_text import render
from unet_batch.workbench.packing.pack import PackSpec, pack

UNET = models.unet_model(None, 8, 3)


def printed(data: bytes, name="m.onnx") -> str:
    console = Console(width=200, file=io.StringIO())
    for part in render(inspect(data, name)):
        console.print(part)
    return console.file.getvalue()


def test_a_unet_is_described():
    """Tensors, opset, parameters, network, cost: everything that the file holds."""
    seen = inspect(UNET.data, "unet.onnx")
    weights = load_from_string(UNET.data).graph.initializer
    assert seen.sha256 == hashlib.sha256(UNET.data).hexdigest()
    assert seen.bytes == len(UNET.data)
    assert (seen.opset, seen.ir_version, seen.domains) == (17, 8, {})
    assert [(t.name, t.dtype, t.shape) for t in seen.inputs] == [("image", "float32", ("batch", 3, "height", "width"))]
    assert seen.parameters == sum(int(np.prod(tensor.dims)) for tensor in weights)
    assert seen.precision == "fp32"
    assert (seen.levels, seen.multiple_hw) == (3, (8, 8))
    assert seen.tile_hw == (256, 256)
    assert seen.operators["Conv"] == seen.cpu_nodes["Conv"] == 15
    assert (seen.refusals, seen.cpu_problem, seen.cuda_estimate, seen.findings) == ((), None, {}, ())


def test_figures_are_for_the_tile_that_is_asked_for():
    """Four times the pixels, four times the products and bytes."""
    small, large = (inspect(UNET.data, "m", tile_hw=(side, side)).cost for side in (64, 128))
    assert large.multiply_adds == 4 * small.multiply_adds
    assert large.peak_bytes == 4 * small.peak_bytes


def test_figures_are_per_tile_where_the_batch_is_fixed():
    """A file of four tiles per run costs what a file of one does, for each."""
    one, four = (inspect(models.unet_model(64, 4, 2, batch=batch).data, "m") for batch in (1, 4))
    assert one.cost == four.cost
    assert four.findings == ("the batch axis is fixed at 4: every run takes exactly 4 tile(s)",)


def test_an_open_tile_is_rounded_up_to_whole_levels():
    """A network that halves by 3 five times has no tile of 256."""
    net = Network()
    here, width = "image", 3
    for _ in range(3):
        here, width = net.conv(here, (width, 4), stride=3), 4
    seen = inspect(net.model(here).SerializeToString(), "m")
    assert (seen.multiple_hw, seen.tile_hw) == ((27, 27), (270, 270))


def test_a_tile_of_another_size_than_the_files_is_a_mismatch():
    """Figures for it would be of no model."""
    with pytest.raises(ShapeMismatch, match="m fixes its tiles at 64x64"):
        inspect(models.unet_model(64, 4, 2).data, "m", tile_hw=(128, 128))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (models.threshold_model(two_outputs=True), "the model has 2 outputs: choose one with output.name"),
        (models.threshold_model(lying_symbols=True), "output mask has the batch's symbol on another axis"),
        (models.threshold_model(half_size=True), "the output of a tile of 256x256 is 128x128"),
        (models.threshold_model("nhwc", half_size=True), "the output of a tile of 256x256 is 128x128"),
        (models.threshold_model(batch=1), "the batch axis is fixed at 1"),
    ],
)
def test_what_is_odd_about_a_file_is_said(made, expected):
    """Each quirk that published models have, in a sentence."""
    assert any(expected in finding for finding in inspect(made.data, "m").findings)


@pytest.mark.parametrize(
    "made",
    [
        models.threshold_model("nchw", 3, 2),
        models.threshold_model("nhwc", 1, 3, activation="softmax"),
        models.threshold_model("nchw", 4, 2, activation="sigmoid", size=64),
        models.threshold_model("nchw", 3, 3, activation="labels"),
        models.threshold_model("nchw", 3, 1, unnamed_axes=True, activation="sigmoid"),
        models.threshold_model("nchw", 3, 2, dtype="uint8"),
        models.unet_model(None, 8, 4),
    ],
)
def test_the_draft_is_a_contract_that_fits_the_file(made):
    """As far as a file can say it: axes, type, channels, classes, activation, and the multiple of its levels."""
    seen = inspect(made.data, "m")
    file = read_model(made.data, "m", None)
    contract = find_contract(file, seen.contract.encode(), "draft")
    resolved = resolve(contract, file, TilingSpec())
    truth = made.contract
    assert not seen.contract_embedded
    assert (resolved.planes, contract.output.activation) == (
        resolve(truth, file, TilingSpec()).planes,
        truth.output.activation,
    )
    assert (contract.input.layout, contract.input.channels) == (truth.input.layout, truth.input.channels)
    if resolved.tile_hw is None:
        assert contract.input.multiple == truth.input.multiple


def test_classes_that_the_file_leaves_open_are_counted():
    """The output declares no axis, shape inference finds three classes."""
    model = load_from_string(models.threshold_model(classes=3).data)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    assert "- class_2\n" in inspect(model.SerializeToString(), "m").contract


def test_a_contract_inside_the_file_is_shown_instead_of_a_draft():
    """Values from the contract win over guesses, also for the layout."""
    made = models.threshold_model("nhwc", 3, 3, size=3)  # 3 x 3 x 3: the axes alone could be either
    model = load_from_string(made.data)
    set_metadata(model, {METADATA_KEY: made.contract_yaml})
    seen = inspect(model.SerializeToString(), "m")
    assert (seen.contract, seen.contract_embedded, seen.metadata) == (made.contract_yaml, True, (METADATA_KEY,))
    assert seen.tile_hw == (3, 3)


@pytest.mark.parametrize("place", ["initializer", "subgraph"])
def test_a_file_that_a_job_would_refuse_is_described_and_not_opened(place):
    """The reason of a refusal is found without running the model."""
    seen = inspect(hidden(place).SerializeToString(), "m")
    assert "lie outside the file" in seen.refusals[0]
    assert (seen.cpu_problem, seen.cpu_nodes) == ("the file is refused", {})


def test_a_file_that_does_not_open_is_described_with_the_reason():
    """An operator that ONNX Runtime does not know, in a domain that it does."""
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    seen = inspect(model_of(node).SerializeToString(), "m")
    assert "NoSuchOperator" in seen.cpu_problem
    assert seen.operators == {"NoSuchOperator": 1}


def test_a_graph_whose_sizes_cannot_be_inferred_is_described_with_the_reason():
    """An operator without the results that it must have."""
    net = Network()
    seen = inspect(net.model(net.add("DynamicQuantizeLinear", "image")).SerializeToString(), "m")
    assert "DynamicQuantizeLinear" in seen.findings[0]
    assert seen.cost is None


def test_a_circle_in_the_graph_does_not_hang():
    """The author of such a file sees that."""
    nodes = [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Identity", ["b"], ["b"])]
    seen = inspect(model_of(*nodes, outputs=("b",)).SerializeToString(), "m")
    assert seen.cpu_problem is not None


def test_bytes_that_are_no_model_are_refused():
    """The one thing that inspection cannot describe."""
    with pytest.raises(ModelRefused, match="not an ONNX model"):
        inspect(b"not a model", "m")


def test_a_model_of_something_else_is_described_without_tiles():
    """Two axes are no batch of pictures."""
    model = model_of(PLAIN)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 10]))
    seen = inspect(model.SerializeToString(), "m")
    assert (seen.tile_hw, seen.multiple_hw, seen.cost) == (None, None, None)
    assert seen.findings[0].startswith("the first input is not a batch of images (its shape: ['n', 10])")


def test_a_second_input_is_found():
    """A job feeds one."""
    model = load_from_string(models.threshold_model().data)
    model.graph.input.append(helper.make_tensor_value_info("threshold", TensorProto.FLOAT, []))
    model.graph.node[-1].CopyFrom(helper.make_node("Add", ["head", "threshold"], ["mask"]))
    seen = inspect(model.SerializeToString(), "m")
    assert seen.findings[0] == "the model needs 2 inputs; a job feeds one: export it with one input"
    assert seen.cost.multiply_adds > 0


def test_operators_without_a_cuda_kernel_are_estimated():
    """A quantised convolution in operator form, and labelled as an estimate where people see it."""
    net = Network()
    scale, zero = net.constant(0.1), net.constant(0, "uint8")
    pixels = net.add("QuantizeLinear", "image", scale, zero)
    kernel = net.constant(np.zeros((2, 3, 1, 1)), "int8")
    result = net.add("QLinearConv", pixels, scale, zero, kernel, scale, net.constant(0, "int8"), scale, zero)
    data = net.model(net.add("DequantizeLinear", result, scale, zero)).SerializeToString()
    seen = inspect(data, "m")
    assert seen.cuda_estimate == {"QLinearConv": 1}
    assert seen.precision == "int8"
    assert "estimate: left to the CPU: QLinearConv 1" in printed(data)


def test_the_list_of_missing_kernels_names_real_operators():
    """Each is an operator of ONNX or of ONNX Runtime, so that no misspelling hides in the list."""
    known = {schema.name for schema in (*defs.get_all_schemas(), *onnxruntime_schemas())}
    assert known >= NOT_ON_CUDA


def test_activations_quantised_at_run_time_are_warned_of():
    """Their scale is taken from the whole batch."""
    net = Network()
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["image"], ["quantised", "scale", "zero"]))
    seen = inspect(net.model(net.add("DequantizeLinear", "quantised", "scale", "zero")).SerializeToString(), "m")
    assert "a tile's labels depend on other tiles" in seen.findings[-1]


def test_the_json_holds_everything():
    """For machines: plain types, and the number of levels."""
    tree = json.loads(json.dumps(inspect(UNET.data, "unet.onnx").to_json()))
    assert (tree["levels"], tree["multiple_hw"]) == (3, [8, 8])
    assert tree["inputs"][0]["shape"] == ["batch", 3, "height", "width"]
    assert tree["cost"]["multiply_adds"] > 0


def test_people_see_a_page():
    """The figures and the draft; names in brackets are no markup."""
    page = printed(models.unet_model(None, 8, 2).data, "unet[bold].onnx")
    assert "unet[bold].onnx" in page
    assert "levels" in page
    assert "multiples of 4x4" in page
    assert "draft of a contract:" in page
    assert "  multiple: 4\n" in "\n".join(line.rstrip() for line in page.splitlines()) + "\n"


def test_a_draft_can_be_copied_from_a_narrow_terminal():
    """No line is cut at 80 columns, and what a comment goes on with is a comment."""
    tiny = models.unet_model(None, base=2, levels=1)
    console = Console(width=80, record=True, file=io.StringIO())
    for part in render(inspect(tiny.data, "file:///a/folder/with/a/rather/long/name/for/a/model.onnx")):
        console.print(part)
    shown = console.export_text().split("draft of a contract:")[1]
    assert "classes." in shown.replace("\n# ", " ")
    assert yaml.safe_load(shown)["input"]["channels"] == 3


def test_outputs_that_a_contract_inside_chose_from_are_no_finding():
    """Packed files have one for labels and one that says whether their scores were finite."""
    tiny = models.unet_model(32, base=2, levels=1)
    model = resolve(tiny.contract, read_model(tiny.data, "the model", None), TilingSpec())
    seen = inspect(pack(tiny.data, model, PackSpec()).data, "packed.onnx")
    assert len(seen.outputs) == 2
    assert not any("outputs" in finding for finding in seen.findings)


@pytest.mark.real
def test_the_nuclei_model_halves_five_times():
    """Counted by hand in a viewer: five pixel shuffles."""
    seen = inspect(real_model("nuclei"), "nuclei.onnx")
    assert (seen.levels, seen.tile_hw) == (5, (1024, 1024))
    assert (seen.parameters // 10**5, seen.precision, seen.opset) == (49, "fp32", 12)
    assert "layout: nhwc" in seen.contract
    assert "activation: softmax" in seen.contract
    assert (seen.cost.uncounted, seen.cost.unsized) == (0, 0)
    assert seen.findings == ()


@pytest.mark.real
def test_the_clouds_model_is_followed_through_computed_paddings():
    """33 paddings whose sizes are computed inside, half-precision weights, and a symbol on the wrong axis."""
    seen = inspect(real_model("clouds"), "clouds.onnx")
    assert seen.levels == 5
    assert (seen.parameters // 10**5, seen.precision, seen.opset) == (195, "fp16", 17)
    assert (seen.cost.uncounted, seen.cost.unsized) == (0, 0)
    assert ["has the batch's symbol" in finding for finding in seen.findings] == [True]


@pytest.mark.real
def test_the_text_model_is_followed_with_every_axis_open():
    """A feature pyramid of four levels below a stride of 2."""
    seen = inspect(real_model("text"), "text.onnx")
    assert (seen.multiple_hw, seen.parameters // 10**4) == ((32, 32), 245)
    assert "activation: sigmoid" in seen.contract
    assert "- class_0\n" in seen.contract
    assert "class_1" not in seen.contract


def with_contract(text: str) -> bytes:
    model = load_from_string(models.threshold_model().data)
    model.metadata_props.add(key=METADATA_KEY, value=text)
    return model.SerializeToString()


def test_a_contract_that_unfolds_without_end_is_a_finding():
    """Eleven lines of aliases stand for 10¹¹ values; a megabyte of comments is no contract either."""
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    assert "cannot be used" in " ".join(inspect(with_contract(bomb), "bomb.onnx").findings)
    long = inspect(with_contract("# a comment\n" * 100_000), "long.onnx")
    assert "at most 65536 are read" in " ".join(long.findings)
    assert not long.contract_embedded
    assert len(long.contract) < 1000


def test_a_contract_that_the_graph_contradicts_is_a_finding():
    """As a job says it before it runs."""
    tiny = models.threshold_model(activation="sigmoid")
    text = models.TinyModel(tiny.data, models.threshold_model().contract).contract_yaml
    model = load_from_string(tiny.data)
    model.metadata_props.add(key=METADATA_KEY, value=text)
    found = inspect(model.SerializeToString(), "wrong.onnx").findings
    assert any("ends in Sigmoid" in sentence for sentence in found)
