"""Packed models against their networks: plain ONNX Runtime on one side, our NumPy code around it on the other."""

from __future__ import annotations

import hashlib
import json

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from networks import Network
from onnx import TensorProto, checker, helper, load_from_string
from packing import changed, noise, prediction_of, resolved, run, scores_of
from real_models import real_contract, real_model

from unet_batch.errors import ContractError, ModelRefused
from unet_batch.imaging.preprocess import LARGEST
from unet_batch.model.contract import find_contract, resolve
from unet_batch.model.packed import PACK_KEY
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import SessionSpec, TilingSpec
from unet_batch.workbench.graph_edit import set_metadata
from unet_batch.workbench.packing.pack import PackSpec, pack

KINDS = [("logits", 1), ("sigmoid", 1), ("logits", 2), ("softmax", 2), ("logits", 4), ("softmax", 3)]


def packed_of(made: models.TinyModel, spec: PackSpec = PackSpec()):  # noqa: B008 - frozen
    return pack(made.data, resolved(made.data, made.contract), spec)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("activation", "classes"), KINDS)
def test_labels_are_those_of_the_unpacked_way(layout, channels, activation, classes):
    """Pixel for pixel, for both layouts and every kind of head that has one label per pixel."""
    made = models.threshold_model(layout, channels, classes, activation=activation)
    model = resolved(made.data, made.contract)
    packed = pack(made.data, model, PackSpec())
    pixels = noise((2, 24, 40, channels))
    labels = run(packed.data, {"pixels": pixels})["labels"]
    expected = [prediction_of(scores, model).labels_hw for scores in scores_of(made.data, model, pixels)]
    assert labels.dtype == np.uint8
    assert len(np.unique(labels)) > 1
    assert np.array_equal(labels, np.stack(expected))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_classes_that_overlap_come_as_a_mask_each(layout):
    """(N, K, H, W) of 0 and 1, for every layout of the network."""
    made = models.threshold_model(layout, 3, 3, activation="sigmoid")
    model = resolved(made.data, made.contract)
    packed = pack(made.data, model, PackSpec())
    pixels = noise((2, 24, 40, 3))
    result = run(packed.data, {"pixels": pixels})
    scores = scores_of(made.data, model, pixels)
    assert np.array_equal(result["labels"], scores > 0.5)
    assert result["labels"].shape == (2, 3, 24, 40)
    assert packed.model.contract.output.activation == "masks"


@pytest.mark.parametrize("activation", ["logits", "sigmoid"])
def test_the_threshold_of_the_contract_decides(activation):
    """0.2 for a probability, log(0.2 / 0.8) for a logit; a pixel at the threshold is below it."""
    made = models.threshold_model("nchw", 1, 1, activation=activation)
    contract = changed(made.contract, target={"threshold": 0.2})
    model = resolved(made.data, contract)
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    labels = run(pack(made.data, model, PackSpec()).data, {"pixels": pixels})["labels"]
    assert np.array_equal(labels[0], prediction_of(scores_of(made.data, model, pixels)[0], model).labels_hw)
    assert labels.sum() > (pixels > 127).sum()


@pytest.mark.parametrize("classes", [2, 3])
def test_equal_scores_give_the_first_class(classes):
    """As NumPy decides it: with all weights zero every score is equal."""
    net = Network()
    data = net.model(net.conv("image", (3, classes))).SerializeToString()
    contract = changed(models.threshold_model("nchw", 3, classes).contract)
    packed = pack(data, resolved(data, contract), PackSpec())
    result = run(packed.data, {"pixels": noise((1, 8, 8, 3))})
    assert not result["labels"].any()


def test_a_row_of_the_table_is_the_same():
    """Classes, areas, boxes and run lengths from packed labels are those from scores; probabilities are gone."""
    made = models.unet_model(64, 8, 2)
    model = resolved(made.data, made.contract)
    packed = pack(made.data, model, PackSpec())
    pixels = noise((1, 64, 64, 3))
    labels = run(packed.data, {"pixels": pixels})["labels"]
    found = prediction_of(labels.astype(np.float32), packed.model)
    expected = prediction_of(scores_of(made.data, model, pixels)[0], model)
    assert len(expected.classes) > 1
    assert [(c.name, c.area_px, c.bbox, c.rle) for c in found.classes] == [
        (c.name, c.area_px, c.bbox, c.rle) for c in expected.classes
    ]
    assert (found.label, found.score) == (expected.label, None)


@pytest.mark.slow
def test_the_packed_file_resolves_to_the_packed_model():
    """The contract inside the file is complete: no YAML beside it is needed."""
    for made in (models.threshold_model("nhwc", 1, 3), models.unet_model(64, 8, 2), models.threshold_model(batch=2)):
        for spec in (PackSpec(), PackSpec(pre=False), PackSpec(post=False)):
            packed = packed_of(made, spec)
            file = read_model(packed.data, "packed.onnx", packed.model.sha256)
            assert resolve(find_contract(file, None, "nowhere"), file, TilingSpec()) == packed.model


def test_the_packed_contract_says_pixels_and_labels():
    """uint8, NHWC, not normalised; labels without probabilities; everything else as it was."""
    made = models.threshold_model("nchw", 3, 3, size=64)
    source = {"color": "bgr", "exif": "ignore", "pad_value": 7.0, "pad_units": "source"}
    before = changed(made.contract, source=source, target={"background": 2})
    after = pack(made.data, resolved(made.data, before), PackSpec()).model.contract
    assert (after.input.name, after.input.layout, after.input.dtype) == ("pixels", "nhwc", "uint8")
    assert after.input.normalize.kind == "none"
    assert (after.output.name, after.output.layout, after.output.activation) == ("labels", "nhw", "labels")
    assert after.input.model_dump(include=set(source)) == source
    assert (after.input.height, after.input.width) == (64, 64)
    assert (after.output.classes, after.output.background) == (before.output.classes, 2)


@pytest.mark.parametrize(
    ("rule", "source_max"),
    [
        ({"kind": "unit"}, 255.0),
        ({"kind": "mean_std", "mean": [0.0], "std": [1.0]}, 255.0),
        ({"kind": "unit", "max": 100.0}, None),
        ({"kind": "scale", "scale": 0.5}, None),
    ],
)
def test_a_packed_contract_refuses_sources_of_another_depth_than_its_graph_divides_by(rule, source_max):
    """The graph knows the type of its pixels only, so the contract says which largest value they must declare."""
    made = models.threshold_model("nchw", 3, 3, size=64)
    contract = changed(made.contract, source={"normalize": rule})
    assert pack(made.data, resolved(made.data, contract), PackSpec()).model.contract.input.source_max == source_max


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({}, ("constant", 0.0, "source")),
        ({"normalize": {"kind": "mean_std", "mean": [0.2], "std": [1.0]}}, ("constant", 51.0, "source")),
        ({"normalize": {"kind": "mean_std", "mean": [0.485, 0.456, 0.406], "std": [0.2]}}, ("refuse", 0.0, None)),
        ({"pad_value": 114.0, "pad_units": "source"}, ("constant", 114.0, "source")),
        ({"padding": "reflect"}, ("reflect", 0.0, None)),
    ],
)
def test_a_packed_contract_pads_with_the_source_value_that_becomes_the_padding(source, expected):
    """Padding comes before the graph's normalisation; where no source value becomes it, such pictures are refused."""
    made = models.threshold_model("nchw", 3, 3, size=64)
    packed = pack(made.data, resolved(made.data, changed(made.contract, source=source)), PackSpec())
    taken = packed.model.contract.input
    assert (taken.padding, taken.pad_value, taken.pad_units) == expected
    assert ("rejects images that need padding" in " ".join(packed.notes)) == (expected[0] == "refuse")


def test_a_letterbox_whose_padding_no_source_value_becomes_is_not_packed():
    """Every picture would be refused; the sentence says what to write."""
    made = models.threshold_model("nchw", 3, 3, size=64)
    rule = {"kind": "mean_std", "mean": [0.485, 0.456, 0.406], "std": [0.2]}
    contract = changed(made.contract, source={"normalize": rule, "fit": "letterbox"})
    with pytest.raises(ModelRefused, match="pad_units: source"):
        pack(made.data, resolved(made.data, contract), PackSpec())


def test_our_own_session_runs_a_packed_file():
    """Tiles of bytes in, labels out."""
    made = models.unet_model(64, 8, 2)
    packed = packed_of(made)
    session = open_session(packed.data, packed.model, SessionSpec(), Device(threads=1))
    pixels = noise((2, 64, 64, 3))
    assert np.array_equal(session.run(pixels)[:, 0], run(packed.data, {"pixels": pixels})["labels"])


# What goes in ---------------------------------------------------------------------------------------------------------

RULES = [
    {"kind": "none"},
    {"kind": "unit"},
    {"kind": "scale", "scale": 0.0123, "offset": -1.7},
    {"kind": "mean_std", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    {"kind": "mean_std", "mean": [0.5], "std": [0.25]},
    {"kind": "window", "center": 110.5, "width": 77.0},
    {"kind": "window", "center": 40.0, "width": 400.0, "low": 1.0, "high": -1.0},
]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values()))[:24])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_are_normalised_to_the_same_bits(rule, dtype, layout):
    """Every rule that is a formula per pixel; the network is a copy, so its scores are the normalised pixels."""
    net = Network()
    data = net.model("image", layout=layout).SerializeToString()
    contract = models.free_model(3, 3).contract
    contract = changed(contract, source={"normalize": rule, "layout": layout}, target={"layout": layout})
    model = resolved(data, contract)
    packed = pack(data, model, PackSpec(post=False, source_dtype=dtype))
    pixels = noise((2, 32, 24, 3), dtype)
    found = run(packed.data, {"pixels": pixels})["mask"]
    found = found if layout == "nchw" else found.transpose(0, 3, 1, 2)
    assert found.dtype == np.float32
    assert np.array_equal(found, scores_of(data, model, pixels))


def test_sixteen_bit_pixels_are_divided_by_their_own_largest_value():
    """65535, not 255: the mistake that makes every picture white."""
    made = models.threshold_model("nchw", 1, 2)
    packed = packed_of(made, PackSpec(source_dtype="uint16"))
    pixels = np.array([[[[20000], [40000]]]], np.uint16)
    assert run(packed.data, {"pixels": pixels})["labels"].tolist() == [[[0, 1]]]
    assert LARGEST["uint16"] == 65535


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
def test_a_normalisation_by_the_picture_itself_stays_outside(kind):
    """A graph sees tiles, never the picture that they were cut from; the output alone can be packed."""
    made = models.threshold_model()
    model = resolved(made.data, changed(made.contract, source={"normalize": {"kind": kind}}))
    with pytest.raises(ModelRefused, match=f"normalize {kind} needs statistics of the whole image"):
        pack(made.data, model, PackSpec())
    packed = pack(made.data, model, PackSpec(pre=False))
    assert packed.model.contract.input.normalize.kind == kind


def test_a_network_that_takes_bytes_is_packed_too():
    """Nothing is normalised, only the axes move."""
    made = models.threshold_model(dtype="uint8")
    packed = packed_of(made)
    pixels = noise((1, 8, 8, 3))
    expected = run(made.data, {"image": pixels.transpose(0, 3, 1, 2).copy()})["mask"].argmax(1)
    assert np.array_equal(run(packed.data, {"pixels": pixels})["labels"], expected)
    with pytest.raises(ModelRefused, match="takes uint8 pixels, not uint16"):
        packed_of(made, PackSpec(source_dtype="uint16"))


def test_pixels_that_do_not_fit_into_half_precision_are_refused():
    """16-bit values as they are reach infinity in float16; `normalize` rejects such pictures, a graph could not."""
    net = Network()
    half = net.add("Cast", "image", to=TensorProto.FLOAT)
    model_proto = net.model(net.conv(half, (3, 2)))
    model_proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    data = model_proto.SerializeToString()
    contract = changed(models.free_model(3, 2).contract, source={"dtype": "float16", "normalize": {"kind": "none"}})
    assert pack(data, resolved(data, contract), PackSpec()).model.contract.input.dtype == "uint8"
    with pytest.raises(ModelRefused, match="do not fit into float16"):
        pack(data, resolved(data, contract), PackSpec(source_dtype="uint16"))


# What comes out -------------------------------------------------------------------------------------------------------


def test_a_nan_that_labels_cannot_show_is_told_for_its_tile():
    """The ill tile alone: labels look harmless, `finite` does not."""
    made = models.nan_model()
    packed = packed_of(made)
    pixels = np.full((3, 8, 8, 3), 20, np.uint8)
    pixels[1, 4, 4] = 255
    result = run(packed.data, {"pixels": pixels})
    assert result["finite"].tolist() == [1, 0, 1]
    assert result["labels"][1, 4, 4] == 0


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_every_kind_of_value_that_is_no_number_is_told(value, channel):
    """In any class, also where another class wins."""
    packed = packed_of(models.free_model(3, 3), PackSpec(pre=False))
    tiles = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    tiles[0, channel, 3, 3] = value
    assert run(packed.data, {"image": tiles})["finite"].tolist() == [0, 1]


def test_infinities_of_both_signs_do_not_cancel():
    """Their sum is NaN."""
    packed = packed_of(models.free_model(3, 3), PackSpec(pre=False))
    tiles = np.zeros((1, 3, 8, 8), np.float32)
    tiles[0, 0, 0, 0], tiles[0, 1, 1, 1] = np.inf, -np.inf
    assert run(packed.data, {"image": tiles})["finite"].tolist() == [0]


def test_the_graph_returns_labels_and_the_guard():
    """No probability is computed."""
    graph = load_from_string(packed_of(models.threshold_model(classes=3)).data).graph
    assert [value.name for value in graph.output] == ["labels", "finite"]
    assert not {node.op_type for node in graph.node} & {"Exp", "Log", "Reciprocal"}


def test_of_several_outputs_the_contracts_one_is_packed():
    """The others are cut off, with the nodes that made them."""
    packed = packed_of(models.threshold_model(two_outputs=True))
    assert [value.name for value in load_from_string(packed.data).graph.output] == ["labels", "finite"]


@pytest.mark.parametrize("spec", [PackSpec(), PackSpec(post=False), PackSpec(pre=False)])
def test_half_size_masks_stay_at_half_size(spec):
    """The way back to the picture's size is not the graph's."""
    packed = packed_of(models.threshold_model(half_size=True), spec)
    assert packed.data


def test_bytes_moved_are_counted_for_a_tile():
    """float32 pixels and scores before; bytes, labels and the guard after."""
    packed = packed_of(models.unet_model(64, 8, 2, in_channels=3, classes=3))
    assert packed.bytes_before == 64 * 64 * (3 + 3) * 4
    assert packed.bytes_after == 64 * 64 * (3 + 1) + 1


# The file -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 18, 21])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("activation", "classes"), [("logits", 1), ("logits", 2), ("logits", 3), ("sigmoid", 2)])
def test_operators_are_written_as_the_files_opset_wants_them(opset, layout, activation, classes):
    """Axes move from attributes to inputs, Clip's bounds too; the file keeps its opset and IR version."""
    made = models.threshold_model(layout, 3, classes, activation=activation)
    model = load_from_string(made.data)
    model.opset_import[0].version = opset
    model.ir_version = 10 if opset == 21 else 8
    data = model.SerializeToString()
    contract = changed(made.contract, source={"normalize": {"kind": "window", "center": 120.0, "width": 200.0}})
    packed = pack(data, resolved(data, contract), PackSpec())
    after = load_from_string(packed.data)
    assert (after.opset_import[0].version, after.ir_version) == (opset, model.ir_version)
    checker.check_model(after, full_check=True)


def test_an_opset_without_broadcasting_is_refused():
    """Opset 6 is of 2017; ONNX Runtime promises nothing below 7."""
    made = models.threshold_model()
    model = load_from_string(made.data)
    model.opset_import[0].version = 6
    with pytest.raises(ModelRefused, match="of opset 6: export it again"):
        pack(model.SerializeToString(), resolved(made.data, made.contract), PackSpec())


def test_constants_declared_as_inputs_stay_so():
    """IR version 3 demands it, and its checker too."""
    made = models.threshold_model()
    model = load_from_string(made.data)
    model.ir_version, model.opset_import[0].version = 3, 8
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    data = model.SerializeToString()
    packed = pack(data, resolved(data, made.contract), PackSpec())
    assert [v.name for v in load_from_string(packed.data).graph.input] == ["pixels", "weight", "bias"]


def test_symbols_of_the_batch_stay():
    """Open axes keep the names that they have; a symbol that the file misplaced is dropped."""
    packed = packed_of(models.threshold_model("nhwc"))
    session = ort.InferenceSession(packed.data, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["unk__1", "height", "width", 3]
    assert session.get_outputs()[0].shape == ["unk__1", None, None]
    lying = load_from_string(packed_of(models.threshold_model(lying_symbols=True)).data)
    assert [d.dim_param for d in lying.graph.output[0].type.tensor_type.shape.dim] == [
        "batch_size",
        "",
        "Convoutput_dim_3",
    ]


def test_a_fixed_batch_stays_fixed():
    """Three tiles per run, before and after."""
    made = models.threshold_model(size=32, batch=3)
    packed = packed_of(made)
    assert packed.model.batch == 3
    assert run(packed.data, {"pixels": noise((3, 32, 32, 3))})["labels"].shape == (3, 32, 32)


def test_a_network_that_uses_our_names_itself_is_packed():
    """Its own `pixels`, `labels` and `finite` are renamed inside."""
    made = models.threshold_model()
    model = load_from_string(made.data)
    for node in model.graph.node:
        for side in (node.input, node.output):
            for place, name in enumerate(side):
                side[place] = {"image": "pixels", "logits": "finite", "mask": "labels"}.get(name, name)
    model.graph.input[0].name, model.graph.output[0].name = "pixels", "labels"
    data = model.SerializeToString()
    packed = pack(data, resolved(data, made.contract), PackSpec())
    pixels = noise((1, 8, 8, 3))
    assert np.array_equal(
        run(packed.data, {"pixels": pixels})["labels"], run(packed_of(made).data, {"pixels": pixels})["labels"]
    )
    half = pack(data, resolved(data, made.contract), PackSpec(post=False))
    assert run(half.data, {"pixels": pixels})["labels"].dtype == np.float32


@pytest.mark.slow
def test_metadata_of_the_file_is_kept_and_ours_is_small():
    """Contract and references fit into 64 KiB, even where a label map is noise of 20 classes."""
    net = Network()
    kernel = np.random.default_rng(0).normal(size=(20, 3, 1, 1)) * 1000
    scores = net.add("Sin", net.add("Conv", "image", net.constant(kernel)))
    model = net.model(scores)
    set_metadata(model, {"author": "somebody"})
    data = model.SerializeToString()
    names = [f"class_{n}" for n in range(20)]
    contract = changed(models.free_model().contract, source={"height": 512, "width": 512}, target={"classes": names})
    packed = pack(data, resolved(data, contract), PackSpec())
    metadata = read_model(packed.data, "m", None).metadata
    assert metadata["author"] == "somebody"
    assert sum(map(len, metadata.values())) < 64 << 10
    entry = json.loads(metadata[PACK_KEY])
    assert entry["source_sha256"] == hashlib.sha256(data).hexdigest()
    assert (entry["normalize"]["kind"], entry["activation"]) == ("unit", "logits")
    assert [picture["number"] for picture in entry["pictures"]] == [0, 1, 2, 3, 4, 5]


def test_numbers_in_the_contract_survive_the_way_through_yaml():
    """1e-05 without a dot is text to a YAML reader."""
    made = models.threshold_model("nchw", 1, 1)
    contract = changed(made.contract, source={"normalize": {"kind": "scale", "scale": 1e-05, "offset": 1e22}})
    packed = pack(made.data, resolved(made.data, contract), PackSpec(pre=False))
    file = read_model(packed.data, "m", None)
    assert find_contract(file, None, "m").input.normalize == contract.input.normalize


def test_the_source_is_left_as_it_is():
    """Packing makes a new file."""
    made = models.unet_model(64, 8, 2)
    before = hashlib.sha256(made.data).hexdigest()
    packed = packed_of(made)
    assert hashlib.sha256(made.data).hexdigest() == before
    assert packed.model.sha256 == hashlib.sha256(packed.data).hexdigest()
    assert onnx.load_from_string(packed.data).metadata_props


def test_the_same_pack_is_the_same_bytes():
    """A fingerprint is over bytes, so packing twice must not make two models."""
    made = models.unet_model(64, 8, 2)
    assert packed_of(made).data == packed_of(made).data


# Quantised and half-precision networks --------------------------------------------------------------------------------


def quantised(data: bytes, folder, **settings) -> bytes:
    """By ONNX Runtime's own quantiser, calibrated on noise."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Noise(CalibrationDataReader):
        def __init__(self):
            tiles = np.random.default_rng(0).random((4, 1, 3, 64, 64), np.float32)
            self.tiles = iter([{"image": tile} for tile in tiles])

        def get_next(self):
            return next(self.tiles, None)

    source, target = folder / "float.onnx", folder / "int8.onnx"
    source.write_bytes(data)
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(source, target, Noise(), **types, **settings)
    return target.read_bytes()


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_quantised_network_is_packed(form, tmp_path):
    """Quantise first, then pack: the packed file says what the quantised one says."""
    from onnxruntime.quantization import QuantFormat

    made = models.unet_model(64, 8, 2)
    data = quantised(made.data, tmp_path, quant_format=QuantFormat[form])
    model = resolved(data, made.contract)
    pixels = noise((1, 64, 64, 3))
    labels = run(pack(data, model, PackSpec()).data, {"pixels": pixels})["labels"][0]
    expected = prediction_of(scores_of(data, model, pixels)[0], model).labels_hw
    assert (labels == expected).mean() > 0.999


def test_a_half_precision_network_is_packed():
    """float16 in and out: cast behind the normalisation and before the decision."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = models.unet_model(64, 8, 2)
    data = convert_float_to_float16(load_from_string(made.data), keep_io_types=False).SerializeToString()
    contract = changed(made.contract, source={"dtype": "float16"})
    model = resolved(data, contract)
    packed = pack(data, model, PackSpec())
    pixels = noise((1, 64, 64, 3))
    expected = prediction_of(scores_of(data, model, pixels)[0], model).labels_hw
    assert (run(packed.data, {"pixels": pixels})["labels"][0] == expected).mean() > 0.999


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "spec", "sentence"),
    [
        (models.threshold_model(), PackSpec(pre=False, post=False), "neither its input nor its output"),
        (models.threshold_model(activation="labels"), PackSpec(), "it already returns labels: pack only the input"),
        (models.threshold_model(channels=4, classes=300), PackSpec(), "300 classes do not fit into uint8"),
    ],
)
def test_what_cannot_be_packed_is_refused_with_the_way_out(made, spec, sentence):
    """One sentence each."""
    with pytest.raises(ModelRefused, match=sentence):
        packed_of(made, spec)


def test_a_packed_file_is_not_packed_again():
    """Its references would be lost."""
    packed = packed_of(models.threshold_model(), PackSpec(post=False))
    with pytest.raises(ModelRefused, match="already packed"):
        pack(packed.data, packed.model, PackSpec(pre=False))


def test_finished_labels_can_have_their_input_packed():
    """Then the file takes bytes and returns what it returned."""
    made = models.threshold_model(activation="labels", classes=3)
    packed = packed_of(made, PackSpec(post=False))
    pixels = noise((1, 8, 8, 3))
    tiles = (pixels.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    assert np.array_equal(run(packed.data, {"pixels": pixels})["mask"], run(made.data, {"image": tiles})["mask"])


def test_probabilities_that_are_none_are_found_while_packing():
    """A contract that calls a Relu's numbers probabilities would be packed into wrong labels."""
    net = Network()
    data = net.model(net.add("Relu", net.conv("image", (3, 1)))).SerializeToString()
    contract = changed(models.threshold_model("nchw", 3, 1).contract, target={"activation": "sigmoid"})
    wide = changed(contract, source={"normalize": {"kind": "scale", "scale": 1.0}})
    with pytest.raises(ContractError, match="perhaps they are logits"):
        pack(data, resolved(data, wide), PackSpec())


def test_a_network_that_answers_nothing_is_refused():
    """NaN on every reference picture leaves nothing to prove a pack by."""
    net = Network()
    scores = net.add("Log", net.add("Neg", net.add("Add", net.add("Abs", "image"), net.constant(1.0))))
    data = net.model(scores).SerializeToString()
    contract = models.free_model(3, 3).contract
    with pytest.raises(ModelRefused, match="NaN or infinity for every reference picture"):
        pack(data, resolved(data, contract), PackSpec())


def test_external_data_is_refused_here_too():
    """Packing parses with the same distrust."""
    made = models.threshold_model()
    model = load_from_string(made.data)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "../weights"
    with pytest.raises(ModelRefused, match="outside the file"):
        pack(model.SerializeToString(), resolved(made.data, made.contract), PackSpec())


def test_notes_say_what_changes_for_a_job():
    """Overlap, resizing, probabilities, and the one type of pictures that is left."""
    made = models.threshold_model(size=64)
    notes = " ".join(packed_of(made).notes)
    assert "takes uint8 images and rejects others" in notes
    assert "cannot be blended where tiles overlap" in notes
    assert "no mean_probability" in notes
    stretched = changed(made.contract, source={"fit": "stretch"})
    notes = " ".join(pack(made.data, resolved(made.data, stretched), PackSpec()).notes)
    assert "nearest pixel" in notes
    assert "blended" not in notes


def test_a_file_whose_reference_labels_are_constant_says_that_a_change_goes_unseen():
    """All weights are zero: every pixel of every picture gets the first class."""
    net = Network()
    data = net.model(net.conv("image", (3, 2))).SerializeToString()
    contract = changed(models.threshold_model("nchw", 3, 2).contract)
    sentence = "the gate cannot notice a changed file: write the unpacked model in `check.reference`"
    assert sentence in " ".join(pack(data, resolved(data, contract), PackSpec()).notes)
    assert sentence not in " ".join(packed_of(models.threshold_model()).notes)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("nuclei", "uint16", marks=pytest.mark.more_models),
        pytest.param("clouds", "uint16", marks=pytest.mark.more_models),
        ("text", "uint8"),
    ],
)
def test_published_models_are_packed(name, dtype):
    """Softmax in NHWC, half-precision logits of four bands, sigmoid with every axis open: same labels each."""
    data = real_model(name)
    model = resolved(data, real_contract(name))
    packed = pack(data, model, PackSpec(source_dtype=dtype))
    side, channels = (model.tile_hw or (96, 96)), model.contract.input.channels
    pixels = noise((1, *side, channels), dtype, seed=5)
    scores = scores_of(data, model, pixels)[0]
    labels = run(packed.data, {"pixels": pixels})["labels"][0]
    assert np.array_equal(labels, prediction_of(scores, model).labels_hw)
    assert packed.bytes_after < packed.bytes_before / 2
