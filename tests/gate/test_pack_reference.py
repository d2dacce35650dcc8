"""Reference pictures of packed files: which changes the gate notices."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib

import models
import numpy as np
import pytest
from networks import Network
from onnx import load_from_string, numpy_helper
from packing import changed, resolved

from unet_batch.contract import ModelOutput
from unet_batch.errors import ModelFailed, ModelRefused
from unet_batch.gate.pack_reference import references, sample, synthetic, verify_references
from unet_batch.gate.parity import Tolerance, decide, label_parity
from unet_batch.model.graph import metadata
from unet_batch.model.packed import PACK_KEY
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import SessionSpec
from unet_batch.workbench.graph_edit import set_metadata
from unet_batch.workbench.packing.pack import PackSpec, pack

UNET = models.unet_model(64, 8, 2)
TOLERANCE = Tolerance(max_flipped=1e-3, min_dice=0.0)


def packed_unet(spec: PackSpec = PackSpec()):  # noqa: B008 - frozen
    return pack(UNET.data, resolved(UNET.data, UNET.contract), spec)


def runner(packed, data: bytes | None = None):
    """A session of the packed file, or of another one, as the gate has it."""
    return open_session(data or packed.data, packed.model, SessionSpec(), Device(1)).run


def verify(packed, run, data: bytes | None = None) -> list[str]:
    return verify_references(data or packed.data, "m.onnx", run, TOLERANCE)


def entry_of(data: bytes) -> dict:
    return json.loads(metadata(load_from_string(data))[PACK_KEY])


def with_entry(data: bytes, **changes) -> bytes:
    """The file with other fields in its entry."""
    model = load_from_string(data)
    set_metadata(model, {PACK_KEY: json.dumps(entry_of(data) | changes)})
    return model.SerializeToString()


# What is noticed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [PackSpec(), PackSpec(pre=False), PackSpec(post=False)])
def test_a_packed_file_gives_the_labels_of_its_network(spec):
    """All six pictures."""
    packed = packed_unet(spec)
    assert len(entry_of(packed.data)["pictures"]) == 6
    assert verify(packed, runner(packed)) == []


def test_masks_of_overlapping_classes_are_compared_one_by_one():
    """An empty mask in place of the second is noticed."""
    made = models.threshold_model("nhwc", 3, 3, activation="sigmoid", size=64)
    packed = pack(made.data, resolved(made.data, made.contract), PackSpec())
    right = runner(packed)
    assert verify(packed, right) == []
    keep = np.array([1, 0, 1]).reshape(1, 3, 1, 1)
    assert verify(packed, lambda tiles: right(tiles) * keep)[0].startswith("picture 0: ")


def test_a_fixed_batch_is_filled():
    """A file that takes three tiles gets three."""
    made = models.threshold_model(size=32, batch=3)
    packed = pack(made.data, resolved(made.data, made.contract), PackSpec())
    assert verify(packed, runner(packed)) == []


def test_another_channel_order_is_noticed():
    """The user feeds BGR to a network for RGB."""
    packed = packed_unet()
    right = runner(packed)
    problems = verify(packed, lambda tiles: right(np.ascontiguousarray(tiles[..., ::-1])))
    assert "picture 0: " in problems[0]
    assert "labels flipped" in problems[0]


def test_another_normalisation_is_noticed():
    """Pixels at half their brightness, as a wrong divisor makes them."""
    made = models.threshold_model(classes=3, size=64)
    packed = pack(made.data, resolved(made.data, made.contract), PackSpec())
    right = runner(packed)
    assert verify(packed, lambda tiles: right(tiles // 2))


def test_other_weights_are_noticed():
    """The same architecture of another seed."""
    packed = packed_unet()
    other = models.unet_model(64, 8, 2, seed=1)
    swapped = pack(other.data, resolved(other.data, other.contract), PackSpec())
    assert len(verify(packed, runner(packed, swapped.data))) == 6


def test_one_kernel_that_was_changed_is_noticed():
    """Its sign is turned: one of the eight of the second convolution."""
    packed = packed_unet()
    model = load_from_string(packed.data)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "down0b_w")
    values = numpy_helper.to_array(weight).copy()
    values[0] *= -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    assert verify(packed, runner(packed, model.SerializeToString()))


def test_a_provider_that_makes_nan_is_noticed():
    """Labels alone would look like background."""
    packed = packed_unet()
    right = runner(packed)
    problems = verify(packed, lambda tiles: right(tiles) * np.float32(np.nan))
    assert problems == [f"picture {n}: the model returns NaN or infinity" for n in range(6)]


def test_flips_at_ties_are_tolerated():
    """The last bits of another machine: 3 of 4,096 labels of each picture."""
    packed = packed_unet()
    right = runner(packed)

    def almost(tiles):
        labels = right(tiles).copy()
        labels[0, 0, 0, :3] = (labels[0, 0, 0, :3] + 1) % 3
        return labels

    assert verify(packed, almost) == []


def test_labels_of_another_size_are_noticed():
    """Half as many rows and columns."""
    packed = packed_unet()
    right = runner(packed)
    problems = verify(packed, lambda tiles: right(tiles)[:, :, ::2, ::2])
    assert problems[0] == "picture 0: there are 1,024 labels, not 4,096"


def test_errors_of_the_run_come_through():
    """A failure is no disagreement."""

    def fails(_tiles):
        raise ModelFailed("no")

    with pytest.raises(ModelFailed):
        verify(packed_unet(), fails)


# What is refused ------------------------------------------------------------------------------------------------------


def test_a_file_without_references_is_refused():
    """It was never packed."""
    with pytest.raises(ModelRefused, match="was not packed"):
        verify_references(UNET.data, "m.onnx", lambda tiles: tiles, TOLERANCE)


def test_a_file_of_the_first_version_is_refused_with_the_way_out():
    """Its entry has another form and other pictures."""
    data = with_entry(packed_unet().data, version=1)
    with pytest.raises(ModelRefused, match=r"m\.onnx: it was packed by another .* pack it again"):
        verify_references(data, "m.onnx", lambda tiles: tiles, TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"pictures": 3},
        {"pictures": []},
        {"pictures": [{"number": 1}]},
        {"pictures": [{"number": 0, "sha256": "", "labels": "%%%"}]},
        {"pictures": [{}] * 7},
        {"batch": "many"},
        {"batch": 0},
        {"batch": 1 << 40},
        {"batch": float("inf")},
        {"shape_hwc": [1 << 20, 1 << 20, 3]},
        {"shape_hwc": "wide"},
        {"dtype": "float64"},
        {"dtype": []},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_an_entry_that_pack_did_not_write_is_refused(changes):
    """Metadata is untrusted: no picture of a terapixel is made."""
    data = with_entry(packed_unet().data, **changes)
    with pytest.raises(ModelRefused, match="was not written by `model pack`"):
        verify_references(data, "m.onnx", lambda tiles: tiles, TOLERANCE)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (bytes(50 << 20), "there are 4,096 labels, not 1,048,576"),
        (bytes(7), "there are 4,096 labels, not 7"),
        (bytes([200]) * 64 * 64, "labels of 200.0 to 200.0 are compared, not 0 to 2"),
    ],
    ids=["a decompression bomb", "too few", "no class"],
)
def test_labels_that_the_network_cannot_give_are_a_problem(labels, problem):
    """At most a mebibyte of them is decompressed."""
    packed = packed_unet()
    first = entry_of(packed.data)["pictures"][0] | {"labels": base64.b64encode(zlib.compress(labels)).decode()}
    [found] = verify(packed, runner(packed), with_entry(packed.data, pictures=[first]))
    assert problem in found


def test_a_picture_with_another_digest_is_a_problem():
    """Another version of the generator: the labels are of other pixels."""
    packed = packed_unet()
    first = entry_of(packed.data)["pictures"][0] | {"sha256": "0" * 64}
    problems = verify(packed, runner(packed), with_entry(packed.data, pictures=[first]))
    assert problems == ["picture 0: another version of unet-batch computed other pixels"]


# What the file keeps --------------------------------------------------------------------------------------------------


def test_pictures_for_which_the_network_returns_nan_are_left_out():
    """Bright ones, here."""
    kept = references(
        lambda pixels: None if pixels.max() > 200 else np.zeros((1, 64, 64), np.uint8), (64, 64, 3), "uint8"
    )
    assert 0 < len(kept["pictures"]) < 6


def test_of_large_label_maps_every_nth_row_and_column_is_kept():
    """500 rows and 300 columns: every eighth, 63 by 38, however noisy the labels are."""
    labels = np.random.default_rng(0).integers(0, 256, (1, 500, 300)).astype(np.uint8)
    assert np.array_equal(sample(labels), labels[:, ::8, ::8])
    kept = references(lambda _pixels: labels, (500, 300, 1), "uint8")
    raw = zlib.decompress(base64.b64decode(kept["pictures"][0]["labels"]))
    assert np.array_equal(np.frombuffer(raw, np.uint8).reshape(1, 63, 38), labels[:, ::8, ::8])


@pytest.mark.parametrize(("activation", "classes", "planes"), [("logits", 3, 1), ("sigmoid", 1, 1), ("sigmoid", 3, 3)])
def test_labels_are_decided_as_a_row_is(activation, classes, planes):
    """One map where classes exclude each other, one mask each where they overlap."""
    output = ModelOutput(activation=activation, classes=tuple("abc"[:classes]), background=None)
    scores = np.random.default_rng(0).random((classes, 8, 8), np.float32)
    labels = decide(scores, output)
    assert labels.shape == (planes, 8, 8)
    expected = scores > 0.5 if activation == "sigmoid" else scores.argmax(axis=0)[None]
    assert np.array_equal(labels, expected)


def test_labels_are_compared_by_class():
    """Dice of each, whether there is one map or a mask each."""
    one = np.array([[[0, 1], [1, 1]]], np.uint8)
    assert label_parity(one, one, ("a", "b")).dice == (1.0, 1.0)
    masks = np.stack([one[0], 1 - one[0]])
    assert label_parity(masks, masks[::-1].copy(), ("a", "b")).dice == (0.0, 0.0)


def test_sixteen_bit_references_are_made_of_sixteen_bits():
    """The packed file takes uint16, and so do its references."""
    net = Network()
    weight = np.array([[[[8.0]]], [[[0.0]]]])
    data = net.model(net.add("Conv", "image", net.constant(weight), net.constant([-2.0, 0.0])), channels=1)
    contract = changed(models.free_model(3, 2).contract, source={"color": "gray", "channels": 1})
    raw = data.SerializeToString()
    packed = pack(raw, resolved(raw, contract), PackSpec(source_dtype="uint16"))
    seen = []
    right = runner(packed)

    def watched(tiles):
        seen.append(tiles.dtype)
        return right(tiles)

    assert verify(packed, watched) == []
    assert set(seen) == {np.dtype("uint16")}


# The pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "dtype", "digest"),
    [
        (0, "uint8", "d4ab045ec21021c8"),
        (1, "uint8", "3090221faa556236"),
        (2, "uint8", "11f2738b346a329d"),
        (3, "uint16", "3d06bd3f478257e8"),
        (4, "uint16", "292e1fd25a74120a"),
        (5, "uint16", "74a94e67273bad64"),
    ],
)
def test_a_picture_never_changes(number, dtype, digest):
    """Packed files hold the labels of these very pixels: another picture needs another version of the entry."""
    pixels = synthetic(number, (96, 130, 3), dtype)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("number", range(6))
def test_a_picture_has_structure_and_its_channels_differ(number):
    """Dark and bright places, and no two channels alike: another order of channels must show."""
    pixels = synthetic(number, (256, 256, 4), "uint8").astype(int)
    assert pixels.shape == (256, 256, 4)
    assert all(pixels[:, :, channel].std() > 5 for channel in range(4))
    assert all(abs(pixels[:, :, a] - pixels[:, :, b]).mean() > 4 for a in range(4) for b in range(a))


def test_sixteen_bit_pictures_use_their_range():
    """A network that is trained on x / 65535 sees the same as one on x / 255."""
    assert np.array_equal(synthetic(1, (32, 32, 1), "uint16"), synthetic(1, (32, 32, 1), "uint8") * np.uint16(257))


def test_a_tiny_picture_is_possible():
    """Some networks take 1 x 1."""
    assert synthetic(2, (1, 1, 1), "uint8").shape == (1, 1, 1)
