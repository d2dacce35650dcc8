"""Contracts held against files: what is accepted, what is refused, and with which words."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml
from models import TinyModel, free_model, nan_model, threshold_model, unet_model
from onnx import TensorProto, helper, load_from_string, numpy_helper

from unet_batch.contract import Contract, ModelOutput
from unet_batch.errors import ContractError
from unet_batch.model.contract import METADATA_KEY, draft, find_contract, resolve
from unet_batch.model.model import Model, ModelFile, Tensor
from unet_batch.model.tile_size import unplaceable
from unet_batch.session.model_files import read_model
from unet_batch.spec import TilingSpec, parse_yaml, validate

WHOLE = TilingSpec()


def opened(tiny: TinyModel) -> ModelFile:
    return read_model(tiny.data, "tiny.onnx", None)


def changed(contract: Contract, section: str, **fields: Any) -> Contract:
    """The contract with other fields in one section, validated as a whole."""
    tree = contract.model_dump()
    tree[section].update(fields)
    return Contract.model_validate(tree)


def problem(contract: Contract, file: ModelFile, tiling: TilingSpec = WHOLE) -> str:
    with pytest.raises(ContractError) as caught:
        resolve(contract, file, tiling)
    return str(caught.value)


def two_inputs() -> bytes:
    axes = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "prior"], ["mask"])],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in ("image", "prior")],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, axes)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


# Reading ---------------------------------------------------------------------------------------------------------


def test_a_file_says_its_tensors_and_digest() -> None:
    """Open axes keep their symbols or None; dtypes are NumPy's words."""
    tiny = threshold_model("nhwc", channels=1, size=64)
    file = opened(tiny)
    assert file.sha256 == hashlib.sha256(tiny.data).hexdigest()
    assert file.inputs == (Tensor("input:0", "float32", ("unk__1", 64, 64, 1)),)
    assert file.outputs == (Tensor("Identity:0", "float32", ("unk__2", 64, 64, 2)),)


def test_the_pinned_digest_is_accepted() -> None:
    """The digest of the job file, in lower-case hex."""
    tiny = free_model()
    pinned = hashlib.sha256(tiny.data).hexdigest()
    assert read_model(tiny.data, "m.onnx", pinned).sha256 == pinned


def test_another_digest_than_the_pinned_one_is_refused() -> None:
    """Before anything opens the bytes."""
    with pytest.raises(ContractError, match=r"m\.onnx has the SHA-256 .* but model\.sha256 is 0000"):
        read_model(b"junk", "m.onnx", "0" * 64)


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x00" * 100, free_model().data[:-20]])
def test_bytes_that_are_no_model_are_refused(junk: bytes) -> None:
    """The message names the file."""
    with pytest.raises(ContractError, match=r"m\.onnx cannot be opened as an ONNX model"):
        read_model(junk, "m.onnx", None)


def test_a_model_with_external_data_is_refused() -> None:
    """A model is one file: bytes cannot point to a neighbour, and so cannot read one."""
    model = load_from_string(threshold_model().data)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    with pytest.raises(ContractError, match="external data is not supported"):
        read_model(model.SerializeToString(), "m.onnx", None)


def test_operators_that_nobody_brings_are_named_by_their_domain() -> None:
    """With what to do about them; functions of the model's own are no strangers."""
    model = load_from_string(free_model().data)
    model.graph.node[0].domain = "my.team"
    model.opset_import.append(helper.make_opsetid("my.team", 1))
    with pytest.raises(ContractError, match=r"m\.onnx has operators of my\.team, .* in session\.custom_ops"):
        read_model(model.SerializeToString(), "m.onnx", None)
    source = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(
        helper.make_function("my.team", "Slice", ["x", "a", "b", "c"], ["y"], [source], [helper.make_opsetid("", 17)])
    )
    assert read_model(model.SerializeToString(), "m.onnx", None).outputs[0].name == "mask"


# Finding ---------------------------------------------------------------------------------------------------------


def with_metadata(tiny: TinyModel, text: str) -> ModelFile:
    return replace(opened(tiny), metadata={METADATA_KEY: text})


def test_a_contract_beside_the_model_wins() -> None:
    """Over the one in the model's metadata."""
    tiny = threshold_model()
    file = with_metadata(tiny, "input: {channels: 1, color: gray}")
    assert find_contract(file, tiny.contract_yaml.encode(), "tiny.yaml") == tiny.contract


@pytest.mark.parametrize("text", ["input: {channels: 1, color: gray}", '{"input": {"channels": 1, "color": "gray"}}'])
def test_a_contract_in_the_metadata_may_be_yaml_or_json(text: str) -> None:
    """In either form."""
    assert find_contract(with_metadata(free_model(), text), None, "free.yaml").input.channels == 1


def test_metadata_of_a_real_file_reaches_the_contract() -> None:
    """Through ONNX Runtime, from the bytes."""
    model = load_from_string(free_model().data)
    helper.set_model_props(model, {METADATA_KEY: "output: {classes: [no, yes]}"})
    file = read_model(model.SerializeToString(), "free.onnx", None)
    with pytest.raises(ContractError, match=r"metadata unet_batch\.contract of free\.onnx"):
        find_contract(file, None, "free.yaml")  # YAML reads no and yes as booleans
    helper.set_model_props(model, {METADATA_KEY: "output: {classes: [ground, cell]}"})
    file = read_model(model.SerializeToString(), "free.onnx", None)
    assert find_contract(file, None, "free.yaml").output.classes == ("ground", "cell")


def test_a_wrong_key_names_the_right_one() -> None:
    """A job error of the contract file is a contract error."""
    with pytest.raises(ContractError, match=r"tiny\.yaml: unknown key input\.chanels; did you mean channels\?"):
        find_contract(opened(free_model()), b"input: {chanels: 3}", "tiny.yaml")


def test_without_a_contract_the_message_holds_a_draft() -> None:
    """Enough to begin with, and where to put it."""
    with pytest.raises(ContractError) as caught:
        find_contract(opened(unet_model(64, base=2)), None, "s3://models/unet.yaml")
    assert "write one to s3://models/unet.yaml" in str(caught.value)
    assert "height: 64" in str(caught.value)


def test_a_draft_says_what_the_graph_ends_in() -> None:
    """A softmax at the end is no logit: a draft must be right also if the user does not read it."""
    for word in ("logits", "softmax", "sigmoid"):
        tiny = threshold_model(activation=word)
        with pytest.raises(ContractError, match=f"activation: {word}\n"):
            find_contract(opened(tiny), None, "tiny.yaml")
    assert "\n  multiple: 8\n" in draft(opened(free_model()), multiple=8)


DRAFTED = [
    threshold_model(),
    threshold_model("nhwc", channels=1, size=64, batch=1),
    threshold_model(activation="labels", dtype="uint8"),
    threshold_model(classes=1, unnamed_axes=True),
    threshold_model(channels=6, classes=3, lying_symbols=True, size=32),
    threshold_model(two_outputs=True),
    unet_model(64, base=2),
    free_model(),
    nan_model(),
]


@pytest.mark.parametrize("tiny", DRAFTED)
def test_a_draft_fits_the_file_it_was_read_from(tiny: TinyModel) -> None:
    """A draft loads before the user edits it."""
    file = opened(tiny)
    contract = validate(Contract, parse_yaml(draft(file).encode(), "draft"), "draft")
    model = resolve(contract, file, WHOLE)
    assert model.contract.input.layout == tiny.contract.input.layout
    assert model.contract.input.channels == tiny.contract.input.channels
    assert model.contract.input.dtype == tiny.contract.input.dtype


def test_masks_are_numbers_of_any_type() -> None:
    """A packed model returns them as uint8, (N, K, H, W); with one class the channel axis may be missing."""
    several = load_from_string(threshold_model(classes=3, activation="sigmoid").data)
    several.graph.node[-1].output[0] = "soft"
    several.graph.node.append(helper.make_node("Cast", ["soft"], ["mask"], to=TensorProto.UINT8))
    several.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    file = read_model(several.SerializeToString(), "m.onnx", None)
    contract = changed(threshold_model(classes=3).contract, "output", activation="masks")
    model = resolve(contract, file, WHOLE)
    assert (model.planes, model.output_layout, model.contract.output.multi_label) == (3, "nchw", True)
    assert "uint8, which cannot be sigmoid" in problem(changed(contract, "output", activation="sigmoid"), file)


# Resolving: accepted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tiny",
    [
        pytest.param(threshold_model(lying_symbols=True), id="the height carries the batch's symbol"),
        pytest.param(threshold_model("nhwc"), id="colons in names, and two batch symbols"),
        pytest.param(threshold_model(unnamed_axes=True), id="unnamed axes"),
        pytest.param(threshold_model(two_outputs=True), id="two outputs, one named"),
        pytest.param(threshold_model(half_size=True), id="masks of half the size"),
        pytest.param(threshold_model(half_size=True, size=64), id="masks of half a fixed size"),
        pytest.param(threshold_model(classes=1, activation="sigmoid"), id="one sigmoid channel"),
        pytest.param(threshold_model("nhwc", activation="labels", dtype="uint8"), id="labels"),
    ],
)
def test_quirks_of_real_files_are_accepted(tiny: TinyModel) -> None:
    """Symbols are never unified by name; only numbers are compared."""
    model = resolve(tiny.contract, opened(tiny), WHOLE)
    assert model.batch is None
    assert model.tile_hw == ((64, 64) if opened(tiny).inputs[0].fixed("height", model.contract.input.layout) else None)


def test_an_undeclared_output_shape_is_believed() -> None:
    """ONNX Runtime gives () for it; the first run checks the channels."""
    tiny = free_model()
    file = replace(opened(tiny), outputs=(Tensor("mask", "float32", ()),))
    assert resolve(tiny.contract, file, WHOLE).output_layout == "nchw"


def test_a_fixed_size_fills_the_contract() -> None:
    """What the file decides need not be written twice."""
    tiny = threshold_model(size=64)
    model = resolve(tiny.contract, opened(tiny), WHOLE)
    assert (model.contract.input.height, model.contract.input.width, model.tile_hw) == (64, 64, (64, 64))


def test_tiling_size_decides_where_the_file_is_open() -> None:
    """Side of every tile."""
    tiny = unet_model(None, base=2)
    assert resolve(tiny.contract, opened(tiny), TilingSpec(size=64)).tile_hw == (64, 64)


def test_the_contracts_size_decides_where_the_file_and_the_job_are_open() -> None:
    """Rows first, columns second."""
    tiny = unet_model(None, base=2)
    contract = changed(tiny.contract, "input", height=32, width=64)
    assert resolve(contract, opened(tiny), WHOLE).tile_hw == (32, 64)


def test_without_any_size_tiles_are_as_large_as_pictures() -> None:
    """None: any multiple of `multiple`."""
    tiny = unet_model(None, base=2)
    assert resolve(tiny.contract, opened(tiny), WHOLE).tile_hw is None


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_axis_is_the_models_batch(batch: int) -> None:
    """ONNX Runtime refuses any other."""
    tiny = threshold_model(batch=batch)
    assert resolve(tiny.contract, opened(tiny), WHOLE).batch == batch


def test_a_batch_axis_that_only_the_output_fixes_counts_too() -> None:
    """A Reshape with a constant 1 in the graph shows there alone."""
    tiny = free_model()
    file = replace(opened(tiny), outputs=(Tensor("mask", "float32", (1, 2, None, None)),))
    assert resolve(tiny.contract, file, WHOLE).batch == 1


def test_a_declared_zero_fixes_nothing() -> None:
    """Some exporters write 0 or -1 for an open axis."""
    tiny = free_model()
    file = replace(opened(tiny), inputs=(Tensor("image", "float32", (0, 3, -1, 0)),))
    model = resolve(tiny.contract, file, WHOLE)
    assert (model.batch, model.tile_hw) == (None, None)


@pytest.mark.parametrize("tiny", DRAFTED[:4])
def test_a_model_survives_json(tiny: TinyModel) -> None:
    """Actors get it as bytes."""
    model = resolve(tiny.contract, opened(tiny), WHOLE)
    assert Model.from_json(model.to_json()) == model


def test_the_builders_contract_survives_yaml() -> None:
    """What scripts write beside a model is what tests use."""
    tiny = threshold_model(channels=4, classes=1, two_outputs=True)
    assert Contract.model_validate(yaml.safe_load(tiny.contract_yaml)) == tiny.contract


# Resolving: refused ----------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones() -> None:
    """Input and output alike, both in one message."""
    tiny = threshold_model(two_outputs=True)
    contract = changed(changed(tiny.contract, "input", name="x"), "output", name="y")
    message = problem(contract, opened(tiny))
    assert "tiny.onnx does not match its contract" in message
    assert "no input named x; it has: image" in message
    assert "no output named y; it has: features, mask" in message


def test_one_of_several_outputs_must_be_named() -> None:
    """Nothing is guessed."""
    tiny = threshold_model(two_outputs=True)
    message = problem(changed(tiny.contract, "output", name=None), opened(tiny))
    assert "2 outputs (features, mask): choose one with output.name" in message


def test_a_model_with_two_inputs_is_refused_even_when_one_is_named() -> None:
    """ONNX Runtime would demand the other one in every run."""
    contract = changed(free_model(3, 3).contract, "input", name="image")
    message = problem(contract, read_model(two_inputs(), "two.onnx", None))
    assert "needs all of its 2 inputs (image, prior)" in message


def test_another_dtype_is_refused() -> None:
    """The file's word and the contract's."""
    tiny = threshold_model(dtype="uint8")
    message = problem(changed(tiny.contract, "input", dtype="float32"), opened(tiny))
    assert "input image is uint8, but input.dtype says float32" in message


def test_other_channels_are_refused_with_a_hint_at_the_layout() -> None:
    """The commonest mistake has its repair in the message."""
    tiny = threshold_model("nhwc", channels=3, size=64)
    message = problem(changed(tiny.contract, "input", layout="nchw"), opened(tiny))
    assert "is nchw with 64 channels, but input.channels says 3 (with input.layout nhwc it would fit)" in message


def test_other_classes_than_channels_are_refused() -> None:
    """The output's channel axis against the names."""
    tiny = threshold_model(classes=3)
    message = problem(changed(tiny.contract, "output", classes=["a", "b"]), opened(tiny))
    assert "output mask is nchw with 3 channels, but output.classes says 2" in message


def test_all_mismatches_are_told_at_once() -> None:
    """People correct a contract in one go."""
    tiny = threshold_model(classes=3, dtype="uint8", size=64)
    contract = changed(changed(tiny.contract, "output", classes=["a"]), "input", dtype="float32", height=32, width=64)
    message = problem(contract, opened(tiny))
    assert message.count("; ") == 2


def test_a_size_that_the_file_contradicts_is_refused() -> None:
    """Height and width are told apart."""
    tiny = threshold_model(size=64)
    message = problem(changed(tiny.contract, "input", height=64, width=32), opened(tiny))
    assert "fixes its width at 64, but the contract says input.width: 32" in message
    assert "height" not in message


def test_a_tiling_size_that_the_file_contradicts_is_refused() -> None:
    """The job must not promise tiles that the model cannot take."""
    tiny = threshold_model(size=64)
    assert "tiling.size is 128, but the model fixes its height at 64" in problem(
        tiny.contract, opened(tiny), TilingSpec(size=128)
    )


def test_a_tiling_size_off_the_multiple_is_refused() -> None:
    """A U-Net that halves four times takes multiples of 16."""
    tiny = unet_model(None, base=2)
    assert "tiling.size 40 is not a multiple of 16" in problem(tiny.contract, opened(tiny), TilingSpec(size=40))


def test_a_contract_size_off_the_multiple_is_refused() -> None:
    """Where the file leaves the axis open."""
    tiny = unet_model(None, base=2)
    contract = changed(tiny.contract, "input", height=32, width=40)
    assert "input.width 40 is not a multiple of 16" in problem(contract, opened(tiny))


def test_one_side_alone_is_refused() -> None:
    """A tile has two."""
    tiny = unet_model(None, base=2)
    assert "only one side of a tile is known, 32" in problem(changed(tiny.contract, "input", height=32), opened(tiny))


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_a_resize_needs_a_size(fit: str) -> None:
    """Neither the file nor the contract says one; a tile's size is not meant."""
    tiny = free_model()
    contract = changed(tiny.contract, "input", fit=fit)
    assert f"fit {fit} needs a size" in problem(contract, opened(tiny))
    message = problem(contract, opened(tiny), TilingSpec(size=64))
    assert f"fit {fit} needs a size" in message
    assert "tiling.size is" not in message


def test_a_resize_to_another_size_than_the_tiles_is_refused() -> None:
    """Two sizes for one picture."""
    contract = changed(free_model().contract, "input", fit="stretch", height=32, width=32)
    assert "tiling.size is 64, but fit stretch makes 32x32" in problem(
        contract, opened(free_model()), TilingSpec(size=64)
    )


def test_a_label_map_is_no_logits() -> None:
    """Rank and dtype both say so."""
    tiny = threshold_model(activation="labels", dtype="uint8")
    message = problem(changed(tiny.contract, "output", activation="logits"), opened(tiny))
    assert "output mask has 3 axes" in message
    assert "output mask is uint8, which cannot be logits" in message


def test_several_classes_need_a_channel_axis() -> None:
    """Layout nhw holds finished labels, or one class."""
    tiny = free_model()
    file = replace(opened(tiny), outputs=(Tensor("mask", "float32", (None, None, None)),))
    assert "layout nhw has no channel axis" in problem(changed(tiny.contract, "output", layout="nhw"), file)


def test_two_fixed_batches_that_differ_are_refused() -> None:
    """Such a graph mixes images."""
    tiny = threshold_model(batch=4)
    file = replace(opened(tiny), outputs=(Tensor("mask", "float32", (1, 2, None, None)),))
    assert "fixed at 4 in the input and at 1 in the output" in problem(tiny.contract, file)


def without_padding(size: int | None, out: int | None) -> ModelFile:
    """Twenty 3x3 convolutions without padding: 40 pixels fewer. out: what the file declares."""
    tiny = threshold_model(size=size)
    model = load_from_string(tiny.data)
    last = model.graph.node[-1].output[0]
    kernel = numpy_helper.from_array(np.full((2, 2, 3, 3), 0.1, np.float32), "kernel")
    model.graph.initializer.append(kernel)
    for number in range(20):
        model.graph.node[-1].output[0] = f"wider{number}"
        model.graph.node.append(helper.make_node("Conv", [f"wider{number}", "kernel"], [last]))
    for axis in model.graph.output[0].type.tensor_type.shape.dim[2:]:
        axis.Clear()
        if out is not None:
            axis.dim_value = out
    return read_model(model.SerializeToString(), "valid.onnx", None)


@pytest.mark.parametrize(("size", "out"), [(256, 216), (256, None), (80, 40), (None, None)])
def test_a_mask_that_is_smaller_by_a_border_is_refused(size: int | None, out: int | None) -> None:
    """Stretched over its tile it would be up to 20 pixels off, for every declared shape."""
    contract = changed(threshold_model().contract, "input", multiple=1)
    if (size, out) == (80, 40):  # exactly half, and declared so: only a run would tell
        assert resolve(contract, without_padding(size, out), WHOLE).tile_hw == (80, 80)
        return
    message = problem(contract, without_padding(size, out))
    assert "which is neither its size nor an integer fraction of it" in message


def test_a_tile_size_of_the_job_is_what_an_open_size_is_tried_with() -> None:
    """80 becomes 40 by chance, 128 becomes 88."""
    contract = threshold_model().contract
    assert "128x128 is 88x88" in problem(contract, without_padding(None, None), TilingSpec(size=128))


@pytest.mark.parametrize(
    ("output_hw", "placed"),
    [
        ((256, 256), True),
        ((128, 128), True),
        ((64, 128), True),
        ((1, 1), True),
        ((None, 64), True),
        ((512, 512), False),
        ((216, 256), False),
        ((255, 255), False),
        ((100, None), False),
        ((0, 256), False),
    ],
)
def test_an_output_is_its_tile_or_an_integer_fraction_of_it(output_hw: tuple[int, int], placed: bool) -> None:
    """A finer mask than its picture (512 for 256) has no place in a row either."""
    assert (unplaceable((256, 256), output_hw) is None) == placed


def test_a_contract_that_the_graph_contradicts_is_refused() -> None:
    """In one sentence, with what to write."""
    tiny = threshold_model(activation="sigmoid")
    message = problem(changed(tiny.contract, "output", activation="logits"), opened(tiny))
    assert "the file ends in Sigmoid" in message
    assert message.endswith("output.activation says logits: write output.activation: sigmoid")


@pytest.mark.parametrize(("activation", "expected"), [("logits", np.log(0.9 / 0.1)), ("sigmoid", 0.9), ("masks", 0.9)])
def test_a_threshold_is_compared_in_the_units_of_the_output(activation: str, expected: float) -> None:
    """The logit of a probability of 0.9 is log 9."""
    output = ModelOutput(activation=activation, classes=("nucleus",), background=None, threshold=0.9)
    assert output.value_threshold == pytest.approx(expected, rel=1e-15)
