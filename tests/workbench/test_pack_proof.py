"""The proof of a pack: every way in which a packed file could lie is found."""

from __future__ import annotations

import models
import numpy as np
import pytest
from onnx import ModelProto, helper, load_from_string, numpy_helper
from packing import noise, resolved

from unet_batch.errors import ModelRefused
from unet_batch.workbench.packing.pack import PackSpec, pack
from unet_batch.workbench.packing.proof import Unpacked, prove, prove_input

MADE = models.threshold_model("nchw", 3, 3)
PICTURES = [noise((32, 32, 3), seed=seed) for seed in range(2)]


def proven(data: bytes, *, exact: bool = True) -> tuple[int, int]:
    """The proof of another file in place of the packed one."""
    model = resolved(MADE.data, MADE.contract)
    packed = pack(MADE.data, model, PackSpec())
    return prove(data, packed.model, Unpacked(MADE.data, model), PICTURES, exact=exact)


def honest() -> ModelProto:
    packed = pack(MADE.data, resolved(MADE.data, MADE.contract), PackSpec())
    return load_from_string(packed.data)


def last(model: ModelProto, output: str):
    """The node that makes an output."""
    return next(node for node in model.graph.node if output in node.output)


def constant(model: ModelProto, name: str, values) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def test_an_honest_pack_passes():
    """And says what a tile moves: float32 pixels and scores before, bytes after."""
    assert proven(honest().SerializeToString()) == (32 * 32 * 6 * 4, 32 * 32 * (3 + 1) + 1)


def test_another_weight_is_found():
    """One kernel that is a tenth larger."""
    model = honest()
    weight = next(t for t in model.graph.initializer if t.name == "weight")
    values = numpy_helper.to_array(weight).copy()
    values[1] *= 1.1
    weight.CopyFrom(numpy_helper.from_array(values, "weight"))
    with pytest.raises(ModelRefused, match=r"other labels than the network: picture 0: [\d,]+ of 1,024 labels differ"):
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
    packed = pack(MADE.data, unpacked.model, PackSpec())
    with pytest.raises(ModelRefused, match="1 of 1,024 labels differ"):
        prove(model.SerializeToString(), packed.model, unpacked, dark, exact=True)
    prove(model.SerializeToString(), packed.model, unpacked, dark, exact=False)


def test_a_guard_that_cries_without_reason_is_found():
    """finite = 0 for finite scores."""
    model = honest()
    last(model, "finite").output[0] = "guard"
    model.graph.node.append(helper.make_node("Sub", ["guard", "guard"], ["finite"]))
    with pytest.raises(ModelRefused, match="finite scores are reported as NaN"):
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
    with pytest.raises(ModelRefused, match="is not detected"):
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
