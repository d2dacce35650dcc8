"""References in packed files: what a later check notices, and what it does not."""

from __future__ import annotations

import base64
import json
import zlib

import models
import numpy as np
import pytest
from networks import Network
from onnx import load_from_string, numpy_helper
from packing import changed, noise, resolved, run

from unet_batch.contract import ModelOutput
from unet_batch.errors import ModelFailed, ModelRefused, ShapeMismatch
from unet_batch.model.graph import metadata
from unet_batch.model.graph_edit import set_metadata
from unet_batch.model.pack import PackSpec, pack
from unet_batch.model.pack_reference import PACK_KEY, choose, decide, label_parity, verify_reference

UNET = models.unet_model(64, 8, 2)


def packed_unet(spec: PackSpec = PackSpec(), **more):  # noqa: B008 - frozen
    return pack(UNET.data, resolved(UNET.data, UNET.contract), spec, **more)


def runner(packed, data: bytes | None = None):
    """The packed file, or another one, behind the call that `verify_reference` makes."""
    model = packed.model

    def call(tiles):
        feed = tiles if model.contract.input.layout == "nhwc" else np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))
        return run(data or packed.data, {model.input_name: feed})

    return call


def with_entry(data: bytes, **changes) -> bytes:
    """The file with other words in its entry."""
    model = load_from_string(data)
    entry = json.loads(metadata(model)[PACK_KEY])
    set_metadata(model, {PACK_KEY: json.dumps(entry | changes)})
    return model.SerializeToString()


@pytest.mark.parametrize("spec", [PackSpec(), PackSpec(pre=False), PackSpec(post=False)])
def test_a_packed_file_says_what_its_network_said(spec):
    """Three synthetic pictures, every label."""
    packed = packed_unet(spec)
    check = verify_reference(packed.data, runner(packed))
    assert check.ok
    assert (check.checked, check.missing, check.problems) == (3, 0, ())
    assert (check.parity.pixels, check.parity.flipped) == (3 * 64 * 64, 0)


def test_masks_of_overlapping_classes_are_checked_one_by_one():
    """A decision per pixel and class."""
    made = models.threshold_model("nhwc", 3, 3, activation="sigmoid", size=64)
    packed = pack(made.data, resolved(made.data, made.contract), PackSpec())
    check = verify_reference(packed.data, runner(packed))
    assert check.ok
    assert check.parity.decisions == 3 * 3 * 64 * 64


def test_a_fixed_batch_is_filled():
    """A file that takes three tiles gets three."""
    made = models.threshold_model(size=32, batch=3)
    packed = pack(made.data, resolved(made.data, made.contract), PackSpec())
    assert verify_reference(packed.data, runner(packed)).ok


def test_a_wrong_channel_order_is_noticed():
    """Somebody feeds BGR to a network of RGB."""
    packed = packed_unet()
    right = runner(packed)
    check = verify_reference(packed.data, lambda tiles: right(np.ascontiguousarray(tiles[..., ::-1])))
    assert not check.ok
    assert "channels, normalisation or weights are not those that were packed" in check.problems[0]
    assert packed.tells["channels_reversed"] > 0.01


def test_another_normalisation_is_noticed():
    """Pixels at half their brightness, as a wrong divisor makes them."""
    made = models.threshold_model(classes=3, size=64)
    packed = pack(made.data, resolved(made.data, made.contract), PackSpec())
    right = runner(packed)
    assert not verify_reference(packed.data, lambda tiles: right(tiles // 2)).ok
    assert packed.tells["half_as_bright"] > 0.01


def test_other_weights_are_noticed():
    """The same architecture of another seed."""
    packed = packed_unet()
    other = models.unet_model(64, 8, 2, seed=1)
    swapped = pack(other.data, resolved(other.data, other.contract), PackSpec())
    check = verify_reference(packed.data, runner(packed, swapped.data))
    assert any("labels flipped" in problem for problem in check.problems)


def test_one_kernel_that_was_changed_is_noticed():
    """Its sign is turned: one of the eight of the second convolution."""
    packed = packed_unet()
    model = load_from_string(packed.data)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "down0b_w")
    values = numpy_helper.to_array(weight).copy()
    values[0] *= -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    assert not verify_reference(packed.data, runner(packed, model.SerializeToString())).ok


def test_a_provider_that_makes_nan_is_noticed():
    """Labels alone would look like background."""
    packed = packed_unet()
    right = runner(packed)
    check = verify_reference(packed.data, lambda tiles: right(tiles) | {"finite": np.zeros(1, np.uint8)})
    assert [problem.partition(": ")[2] for problem in check.problems] == ["the model returns NaN or infinity"] * 3


def test_flips_at_ties_are_tolerated():
    """Another machine's last bits: 3 of 12,288 labels."""
    packed = packed_unet()
    right = runner(packed)

    def almost(tiles):
        result = right(tiles)
        result["labels"][0, 0, 0] = (result["labels"][0, 0, 0] + 1) % 3
        return result

    check = verify_reference(packed.data, almost)
    assert check.ok
    assert check.parity.flipped == 3


def test_given_pictures_are_known_by_their_digest():
    """Their labels are in the file, their pixels are not: who has them gives them again."""
    image = noise((64, 64, 3))
    packed = packed_unet(images=[image])
    without = verify_reference(packed.data, runner(packed))
    assert (without.checked, without.missing, without.ok) == (3, 1, True)
    full = verify_reference(packed.data, runner(packed), images=[noise((64, 64, 3), seed=9), image])
    assert (full.checked, full.missing, full.ok) == (4, 0, True)


def test_a_run_that_returns_something_else_is_a_mismatch():
    """A name that the contract does not know, or another size."""
    packed = packed_unet()
    with pytest.raises(ShapeMismatch, match="the run returned mask, but not labels"):
        verify_reference(packed.data, lambda tiles: {"mask": tiles})
    check = verify_reference(packed.data, lambda tiles: {"labels": np.zeros((1, 32, 32), np.uint8)})
    assert "labels come back as (1, 32, 32), not (1, 64, 64)" in check.problems[0]


def test_errors_of_the_run_come_through():
    """A failure is no disagreement."""

    def fails(_tiles):
        raise ModelFailed("no")

    with pytest.raises(ModelFailed):
        verify_reference(packed_unet().data, fails)


def test_a_file_without_references_is_refused():
    """It was never packed."""
    with pytest.raises(ModelRefused, match="was not packed"):
        verify_reference(UNET.data, dict)


def bomb() -> str:
    return base64.b64encode(zlib.compress(bytes(50 << 20))).decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"references": 3},
        {"references": [{"number": 1}]},
        {"batch": "many"},
        {"batch": 1 << 40},
        {"shape_hwc": [1 << 20, 1 << 20, 3]},
        {"labels": bomb()},
        {"labels": "%%%"},
        {"labels_shape": [1, 2, 3]},
        {"shape_hwc": "wide"},
    ],
    ids=str,
)
def test_an_entry_that_no_pack_wrote_is_refused(changes):
    """Metadata is as untrusted as the rest: no bomb is unpacked, no picture of a terapixel is made."""
    data = packed_unet().data
    if not changes.keys() & {"references", "batch"}:
        entry = json.loads(metadata(load_from_string(data))[PACK_KEY])
        changes = {"references": [entry["references"][0] | changes]}
    with pytest.raises(ModelRefused, match="was not written by a pack"):
        verify_reference(with_entry(data, **changes), dict)


def test_a_picture_that_cannot_be_made_again_is_said():
    """Another version of the generator: the labels are of other pixels."""
    packed = packed_unet()
    entry = json.loads(metadata(load_from_string(packed.data))[PACK_KEY])
    data = with_entry(packed.data, references=[entry["references"][0] | {"digest": "0" * 64}])
    assert "cannot be made again" in verify_reference(data, runner(packed)).problems[0]


def test_the_check_is_plain_json():
    """For a run's record."""
    packed = packed_unet()
    tree = json.loads(json.dumps(verify_reference(packed.data, runner(packed)).to_json()))
    assert (tree["ok"], tree["checked"], tree["parity"]["flipped"]) == (True, 3, 0)


def test_the_most_telling_pictures_are_kept():
    """Those with the most different labels; a picture that is background everywhere says little."""

    def labels_of(pixels):
        return (pixels.mean(axis=2) > 90).astype(np.uint8)[None]

    references, tells = choose(labels_of, (64, 64, 3), "uint8", [])
    kept = [reference.labels_phw().mean() for reference in references]
    assert len(references) == 3
    assert all(0.02 < share < 0.98 for share in kept)
    assert tells["channels_reversed"] == 0


def test_pictures_that_make_the_network_ill_are_left_out():
    """References need answers."""

    def labels_of(pixels):
        return None if pixels.max() > 90 else np.zeros((1, 64, 64), np.uint8)

    references, _ = choose(labels_of, (64, 64, 3), "uint8", [])
    assert all(reference.pixels().max() <= 90 for reference in references)


def test_a_given_picture_that_makes_the_network_ill_is_refused():
    """Somebody should know."""
    image = np.full((64, 64, 3), 255, np.uint8)

    def labels_of(pixels):
        return None if pixels.min() > 250 else np.zeros((1, 64, 64), np.uint8)

    with pytest.raises(ModelRefused, match="for given picture 0"):
        choose(labels_of, (64, 64, 3), "uint8", [image])


def test_labels_that_do_not_compress_are_thinned_out():
    """Every second, fourth, eighth row and column, until they fit."""

    def labels_of(pixels):
        return (np.random.default_rng(int(pixels.sum())).integers(0, 256, (1, 512, 512))).astype(np.uint8)

    references, _ = choose(labels_of, (512, 512, 1), "uint8", [])
    assert {reference.step for reference in references} == {8}
    assert sum(len(reference.labels) for reference in references) <= 40 << 10
    first = references[0]
    assert np.array_equal(first.labels_phw(), labels_of(first.pixels())[:, ::8, ::8])


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

    assert verify_reference(packed.data, watched).ok
    assert set(seen) == {np.dtype("uint16")}
