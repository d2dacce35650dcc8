"""What a graph's wiring says: networks of known kinds, and whether they are recognised."""

from __future__ import annotations

import models
import pytest
from networks import Network
from onnx import load_from_string

from unet_batch.model.shapes import shapes
from unet_batch.workbench.structure import Skip, Structure, structure


def structure_of(model, side=64, layout="nchw", channels=3) -> Structure:
    dims = (1, channels, side, side) if layout == "nchw" else (1, side, side, channels)
    return structure(model, shapes(model, {"image": dims}), 3 if layout == "nhwc" else 1)


def found(model, **more) -> list[tuple[str, int]]:
    """Kind and rows of each skip connection."""
    return [(skip.kind, skip.height) for skip in structure_of(model, **more).skips]


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_a_unet_has_a_skip_and_a_halving_for_each_level(levels):
    """The deepest skip comes first."""
    seen = structure_of(load_from_string(models.unet_model(None, 4, levels).data))
    assert seen.levels == levels
    assert seen.multiple_hw == (2**levels, 2**levels)
    assert [skip.height for skip in seen.skips] == [64 >> level for level in reversed(range(levels))]


def test_a_skip_is_told_with_its_node_and_size():
    """So that somebody can find it in a viewer."""
    seen = structure_of(load_from_string(models.unet_model(64, 4, 1).data))
    assert seen.skips == (Skip("cat0", "concat", 64, 64),)


def test_added_skips_are_skips():
    """LinkNet and feature pyramids add where a U-Net concatenates."""
    net = Network()
    first = net.conv("image", (3, 4))
    deep = net.conv(net.pool(first), (4, 4))
    assert found(net.model(net.add("Add", net.up(deep, (4, 4)), first))) == [("add", 64)]


def test_residual_additions_are_no_skips():
    """Both sides stayed at their size, strided blocks included."""
    net = Network()
    first = net.conv("image", (3, 4))
    same = net.add("Add", net.conv(first, (4, 4)), first)
    strided = net.add("Add", net.conv(same, (4, 4), stride=2), net.conv(same, (4, 4), stride=2, kernel=1))
    seen = structure_of(net.model(strided))
    assert (seen.skips, seen.multiple_hw) == ((), (2, 2))


def test_an_attention_gate_does_not_hide_a_skip():
    """The gate is computed from the decoder, so the skip's ancestors include the deep side's."""
    net = Network()
    first = net.conv("image", (3, 4))
    up = net.up(net.conv(net.pool(first), (4, 4)), (4, 4))
    gate = net.add("Sigmoid", net.conv(net.add("Relu", net.add("Add", up, net.conv(first, (4, 4)))), (4, 1)))
    joined = net.add("Concat", net.add("Mul", first, gate), up, axis=1)
    assert ("concat", 64) in found(net.model(net.conv(joined, (8, 2))))


def test_nested_skips_are_each_found():
    """U-Net++ joins three features at once, two of which came back up."""
    net = Network()
    x00 = net.conv("image", (3, 4))
    x10 = net.conv(net.pool(x00), (4, 4))
    x20 = net.conv(net.pool(x10), (4, 4))
    x01 = net.conv(net.add("Concat", x00, net.up(x10, (4, 4)), axis=1), (8, 4))
    x11 = net.conv(net.add("Concat", x10, net.up(x20, (4, 4)), axis=1), (8, 4))
    x02 = net.add("Concat", x00, x01, net.up(x11, (4, 4)), axis=1)
    assert [height for _, height in found(net.model(net.conv(x02, (12, 2))))] == [64, 32, 64]


@pytest.mark.parametrize("way", ["resize", "depth to space", "upsample by shape arithmetic"])
def test_every_way_up_is_followed(way):
    """Interpolation, pixel shuffle, and sizes taken from the skip."""
    net = Network()
    first = net.conv("image", (3, 4))
    deep = net.conv(net.pool(first), (4, 16))
    if way == "resize":
        up = net.resize(deep)
    elif way == "depth to space":
        up = net.add("DepthToSpace", deep, blocksize=2)
    else:
        picture = net.add("Slice", net.add("Shape", first), net.constant([2], "int64"), net.constant([4], "int64"))
        kept = net.add("Slice", net.add("Shape", deep), net.constant([0], "int64"), net.constant([2], "int64"))
        up = net.add("Resize", deep, "", "", net.add("Concat", kept, picture, axis=0))
    channels = 8 if way == "depth to space" else 20
    seen = structure_of(net.model(net.conv(net.add("Concat", up, first, axis=1), (channels, 2))))
    assert [skip.height for skip in seen.skips] == [64]
    assert seen.multiple_hw == (2, 2)


def test_a_skip_in_nhwc_is_found():
    """Keras models concatenate on the last axis, between transposes."""
    net = Network()
    first = net.conv(net.add("Transpose", "image", perm=[0, 3, 1, 2]), (3, 4))
    up = net.up(net.conv(net.pool(first), (4, 4)), (4, 4))
    sides = [net.add("Transpose", side, perm=[0, 2, 3, 1]) for side in (up, first)]
    joined = net.add("Concat", *sides, axis=3)
    back = net.conv(net.add("Transpose", joined, perm=[0, 3, 1, 2]), (8, 2))
    model = net.model(net.add("Transpose", back, perm=[0, 2, 3, 1]), layout="nhwc")
    assert found(model, layout="nhwc") == [("concat", 64)]


def test_one_gray_channel_that_is_reshaped_instead_of_transposed_is_followed():
    """tf2onnx writes a Reshape where the moved axis has one entry."""
    net = Network()
    first = net.conv(net.add("Reshape", "image", net.constant([-1, 1, 64, 64], "int64")), (1, 4))
    up = net.up(net.conv(net.pool(first), (4, 4)), (4, 4))
    model = net.model(net.conv(net.add("Concat", up, first, axis=1), (8, 2)), layout="nhwc", channels=1)
    assert found(model, layout="nhwc", channels=1) == [("concat", 64)]


def test_pictures_joined_side_by_side_are_no_skip():
    """A concatenation along the rows joins places, not features."""
    net = Network()
    first = net.conv("image", (3, 4))
    up = net.up(net.conv(net.pool(first), (4, 4)), (4, 4))
    assert found(net.model(net.add("Concat", up, first, axis=2))) == []


def test_an_average_over_the_picture_is_no_level():
    """Squeeze-and-excite and image pooling have one pixel, and are neither bottleneck nor skip."""
    net = Network()
    first = net.squeeze_excite(net.conv("image", (3, 4), stride=2), 4)
    everywhere = net.resize(net.conv(net.add("GlobalAveragePool", first), (4, 4), kernel=1), 32.0)
    seen = structure_of(net.model(net.conv(net.add("Concat", first, everywhere, axis=1), (8, 2))))
    assert (seen.skips, seen.multiple_hw) == ((), (2, 2))


def test_an_average_written_as_a_reduction_is_no_level():
    """ReduceMean over both axes is what some exporters make of global pooling."""
    net = Network()
    first = net.conv("image", (3, 4))
    mean = net.conv(net.add("ReduceMean", first, axes=[2, 3], keepdims=1), (4, 4), kernel=1)
    assert structure_of(net.model(net.add("Mul", first, mean))).multiple_hw == (1, 1)


def test_a_gated_feature_is_joined_like_any_other():
    """Squeeze-and-excite multiplies a feature by an average of itself."""
    net = Network()
    first = net.squeeze_excite(net.conv("image", (3, 4)), 4)
    up = net.up(net.conv(net.pool(first), (4, 4)), (4, 4))
    assert found(net.model(net.add("Concat", up, first, axis=1))) == [("concat", 64)]


def test_strides_of_any_kind_multiply():
    """A convolution by 4 and a pooling by 2 need multiples of 8."""
    net = Network()
    seen = structure_of(net.model(net.pool(net.conv("image", (3, 4), stride=4, kernel=5))))
    assert (seen.multiple_hw, seen.levels) == ((8, 8), 3)


def test_a_network_that_halves_one_axis_says_so():
    """Rows and columns are told apart."""
    net = Network()
    weight = net.constant([[[[0.0]]] * 3] * 4)
    seen = structure_of(net.model(net.add("Conv", "image", weight, strides=[1, 2])))
    assert seen.multiple_hw == (1, 2)


def test_unpadded_convolutions_and_cropped_skips_are_a_unet():
    """Ronneberger's network of 2015 crops its skips by a few pixels."""
    net = Network()
    valid = net.constant([[[[0.0] * 3] * 3] * 3] * 4)
    first = net.add("Conv", "image", valid)  # 62
    deep = net.add("Conv", net.pool(first), net.constant([[[[0.0] * 3] * 3] * 4] * 4))  # 31 → 29
    axes = net.constant([2, 3], "int64")
    crop = net.add("Slice", first, net.constant([2, 2], "int64"), net.constant([60, 60], "int64"), axes)
    assert found(net.model(net.add("Concat", net.up(deep, (4, 4)), crop, axis=1))) == [("concat", 58)]


def test_a_model_without_levels_has_none():
    """A 1x1 convolution takes any size."""
    seen = structure_of(load_from_string(models.threshold_model().data))
    assert (seen.levels, seen.multiple_hw, seen.skips) == (0, (1, 1), ())


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "settings", "levels", "joined"),
    [
        ("BasicUNet", {"features": (4, 4, 8, 8, 16, 4)}, 4, {64, 32, 16, 8}),
        ("AttentionUnet", {"channels": (4, 8, 16), "strides": (2, 2)}, 2, {64, 32}),
        # Halves in its first layer, and its lowest skip goes past a convolution of the same size.
        ("UNet", {"channels": (4, 8, 16), "strides": (2, 2)}, 2, {32}),
    ],
)
def test_networks_of_monai_are_recognised(name, settings, levels, joined):
    """Oracle: MONAI's own networks, exported by PyTorch."""
    pytest.importorskip("onnxscript")
    torch, nets = pytest.importorskip("torch"), pytest.importorskip("monai.networks.nets")
    net = getattr(nets, name)(spatial_dims=2, in_channels=1, out_channels=2, **settings).eval()
    example = (torch.zeros(1, 1, 64, 64),)
    model = torch.onnx.export(net, example, dynamo=True, verbose=False, input_names=["image"]).model_proto
    seen = structure_of(model, channels=1)
    assert seen.levels == levels
    assert {skip.height for skip in seen.skips if skip.kind == "concat"} == joined
