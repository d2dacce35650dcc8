"""The proof of a pack: every way in which a packed file could lie is found."""

from __future__ import annotations

import models
import numpy as np
import pytest
from onnx import ModelProto, helper, load_from_string, numpy_helper
from packing import noise, resolved

from unet_batch.contract import ModelOutput
from unet_batch.errors import ModelRefused
from unet_batch.model.pack import PackSpec, pack
from unet_batch.model.pack_proof import Unpacked, certainty, prove, prove_input

MADE = models.threshold_model("nchw", 3, 3)
PICTURES = [noise((32, 32, 3), seed=seed) for seed in range(2)]


def proven(data: bytes, *, exact: bool = True) -> tuple[int, int]:
    """The proof of another file in place of the packed one."""
    model = resolved(MADE.data, MADE.contract)
    packed = pack(MADE.data, model, PackSpec(confidence=True, entropy=True))
    return prove(data, packed.model, Unpacked(MADE.data, model), PICTURES, exact=exact)


def honest() -> ModelProto:
    packed = pack(MADE.data, resolved(MADE.data, MADE.contract), PackSpec(confidence=True, entropy=True))
    return load_from_string(packed.data)


def last(model: ModelProto, output: str):
    """The node that makes an output."""
    return next(node for node in model.graph.node if output in node.output)


def constant(model: ModelProto, name: str, values) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def test_an_honest_pack_passes():
    """And says what a tile moves: float32 pixels and scores before, bytes after."""
    assert proven(honest().SerializeToString()) == (32 * 32 * 6 * 4, 32 * 32 * (3 + 1 + 1 + 1) + 1)


def test_another_weight_is_found():
    """One kernel that is a tenth larger."""
    model = honest()
    weight = next(t for t in model.graph.initializer if t.name == "weight")
    values = numpy_helper.to_array(weight).copy()
    values[1] *= 1.1
    weight.CopyFrom(numpy_helper.from_array(values, "weight"))
    with pytest.raises(ModelRefused, match=r"does not say the same as the network: picture 0: [\d,]+ of 1,024 labels"):
        proven(model.SerializeToString())


def test_a_single_wrong_label_is_found():
    """fp32 is held to the pixel."""
    model = honest()
    node = last(model, "labels")
    node.output[0] = "almost"
    spot = np.zeros((1, 32, 32), np.uint8)
    spot[0, 0, 0] = 1
    constant(model, "spot", spot)
    model.graph.node.append(helper.make_node("Cast", ["almost"], ["wide"], to=6))
    model.graph.node.append(helper.make_node("Cast", ["spot"], ["wide_spot"], to=6))
    model.graph.node.append(helper.make_node("Max", ["wide", "wide_spot"], ["changed"]))
    model.graph.node.append(helper.make_node("Cast", ["changed"], ["labels"], to=2))
    dark = [np.zeros((32, 32, 3), np.uint8)]
    unpacked = Unpacked(MADE.data, resolved(MADE.data, MADE.contract))
    packed = pack(MADE.data, unpacked.model, PackSpec(confidence=True, entropy=True))
    with pytest.raises(ModelRefused, match="1 of 1,024 labels differ"):
        prove(model.SerializeToString(), packed.model, unpacked, dark, exact=True)
    prove(model.SerializeToString(), packed.model, unpacked, dark, exact=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["confidence", "entropy"])
def test_a_certainty_that_is_two_levels_off_is_found(name):
    """One level is rounding, two are not."""
    model = honest()
    node = last(model, name)
    node.output[0] = "almost"
    constant(model, "two", np.float32(2))
    model.graph.node.append(helper.make_node("Cast", ["almost"], ["number"], to=1))
    model.graph.node.append(helper.make_node("Sub", ["number", "two"], ["less"]))
    model.graph.node.append(helper.make_node("Abs", ["less"], ["positive"]))
    model.graph.node.append(helper.make_node("Cast", ["positive"], [name], to=2))
    with pytest.raises(ModelRefused, match=f"{name} is off by [23] of 255 levels"):
        proven(model.SerializeToString())


def test_a_guard_that_cries_without_reason_is_found():
    """finite = 0 for finite scores."""
    model = honest()
    last(model, "finite").output[0] = "guard"
    model.graph.node.append(helper.make_node("Sub", ["guard", "guard"], ["finite"]))
    with pytest.raises(ModelRefused, match="finite scores count as NaN"):
        proven(model.SerializeToString())


def test_a_guard_that_sleeps_is_found():
    """finite = 1 for a NaN: only a picture that makes the network ill can show it."""
    made = models.nan_model()
    model = resolved(made.data, made.contract)
    packed = pack(made.data, model, PackSpec())
    changed = load_from_string(packed.data)
    last(changed, "finite").output[0] = "guard"
    changed.graph.node.append(helper.make_node("Sub", ["guard", "guard"], ["none"]))
    constant(changed, "one", np.uint8([1]))
    changed.graph.node.append(helper.make_node("Add", ["none", "one"], ["finite"]))
    bright = [np.full((8, 8, 3), 255, np.uint8)]
    with pytest.raises(ModelRefused, match="goes unseen"):
        prove(changed.SerializeToString(), packed.model, Unpacked(made.data, model), bright, exact=True)


def test_tiles_of_one_batch_that_are_mixed_up_are_found():
    """Each tile alone is right; two together come back in the other order."""
    model = honest()
    last(model, "labels").output[0] = "ordered"
    constant(model, "start", np.int64([-1]))
    constant(model, "end", np.int64([-(2**31)]))
    constant(model, "axis", np.int64([0]))
    constant(model, "step", np.int64([-1]))
    model.graph.node.append(helper.make_node("Slice", ["ordered", "start", "end", "axis", "step"], ["labels"]))
    with pytest.raises(ModelRefused, match=r"tile 0 of a batch: .* labels differ"):
        proven(model.SerializeToString())


def test_the_input_is_proven_for_every_value():
    """All 65,536 of them, where pixels have 16 bits."""
    prove_input(resolved(MADE.data, MADE.contract), "uint16", 17, 8)


def test_a_pictures_scores_are_computed_once():
    """Choosing references and proving the pack ask for the same pictures."""
    unpacked = Unpacked(MADE.data, resolved(MADE.data, MADE.contract))
    assert unpacked.run(PICTURES[0])[0] is unpacked.run(PICTURES[0].copy())[0]


def output(activation: str, classes: int) -> ModelOutput:
    return ModelOutput(activation=activation, classes=tuple(map(str, range(classes))), background=None)


def test_certainty_of_equal_scores_is_none():
    """1 / K, and all of the entropy."""
    top, doubt = certainty(np.zeros((4, 1, 1), np.float32), output("logits", 4))
    assert (float(top[0, 0]), float(doubt[0, 0])) == pytest.approx((0.25, 1.0))


def test_certainty_of_a_sure_score_is_all():
    """0 · log 0 is 0."""
    scores = np.array([1, 0, 0], np.float32).reshape(3, 1, 1)
    top, doubt = certainty(scores, output("softmax", 3))
    assert (float(top[0, 0]), float(doubt[0, 0])) == (1, 0)


def test_certainty_of_one_class_counts_both_outcomes():
    """p = 0.2 is as sure as 0.8, with 0.722 bits of doubt."""
    for scores, kind in ((np.float32(0.2), "sigmoid"), (np.float32(np.log(0.25)), "logits")):
        top, doubt = certainty(np.full((1, 1, 1), scores), output(kind, 1))
        assert (float(top[0, 0]), float(doubt[0, 0])) == pytest.approx((0.8, 0.7219281), abs=1e-6)
