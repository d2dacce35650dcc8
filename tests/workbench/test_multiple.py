"""What tiles must be multiples of: networks of known kinds."""

from __future__ import annotations

import models
import pytest
from networks import Network
from onnx import load_from_string

from unet_batch.model.shapes import shapes
from unet_batch.workbench.multiple import multiple_hw


def multiple_of(model, side=64, layout="nchw", channels=3) -> tuple[int, int] | None:
    dims = (1, channels, side, side) if layout == "nchw" else (1, side, side, channels)
    return multiple_hw(model, shapes(model, {"image": dims}))


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_a_unet_halves_once_for_each_level(levels):
    """What comes back up counts no more."""
    assert multiple_of(load_from_string(models.unet_model(None, 4, levels).data)) == (2**levels, 2**levels)


def test_two_unets_in_a_row_need_what_one_needs():
    """The second one begins at the size of the tile."""
    net, here = Network(), "image"
    for width in (3, 4):
        first = net.conv(here, (width, 4))
        here = net.add("Concat", net.up(net.conv(net.pool(first), (4, 4)), (4, 2)), net.conv(first, (4, 2)), axis=1)
    assert multiple_of(net.model(here)) == (2, 2)


@pytest.mark.parametrize("way", ["resize", "depth to space", "upsample by shape arithmetic"])
def test_every_way_up_is_followed(way):
    """Interpolation, pixel shuffle, and sizes taken from the skip: another halving behind it needs no more."""
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
    joined = net.conv(net.add("Concat", up, first, axis=1), (channels, 2))
    assert multiple_of(net.model(net.pool(joined))) == (2, 2)


def test_channels_may_be_last():
    """Keras models work between transposes, and resize with channels first or last."""
    net = Network()
    first = net.conv(net.add("Transpose", "image", perm=[0, 3, 1, 2]), (3, 4))
    deep = net.add("Transpose", net.conv(net.pool(first), (4, 4)), perm=[0, 2, 3, 1])
    scales = net.constant([1, 2, 2, 1])
    up = net.add("Transpose", net.add("Resize", deep, "", scales), perm=[0, 3, 1, 2])
    back = net.pool(net.conv(net.add("Concat", up, first, axis=1), (8, 2)))
    model = net.model(net.add("Transpose", back, perm=[0, 2, 3, 1]), layout="nhwc")
    assert multiple_of(model, layout="nhwc") == (2, 2)


def test_one_gray_channel_that_is_reshaped_instead_of_transposed_is_followed():
    """tf2onnx writes a Reshape where the moved axis has one entry."""
    net = Network()
    first = net.conv(net.add("Reshape", "image", net.constant([-1, 1, 64, 64], "int64")), (1, 4))
    up = net.up(net.conv(net.pool(first), (4, 4)), (4, 4))
    model = net.model(net.conv(net.add("Concat", up, first, axis=1), (8, 2)), layout="nhwc", channels=1)
    assert multiple_of(model, layout="nhwc", channels=1) == (2, 2)


def test_an_average_over_the_picture_is_no_level():
    """Squeeze-and-excite, image pooling, a reduction and a pool as large as the plane have one pixel."""
    net = Network()
    first = net.squeeze_excite(net.conv("image", (3, 4), stride=2), 4)
    everywhere = net.resize(net.conv(net.add("GlobalAveragePool", first), (4, 4), kernel=1), 32.0)
    mean = net.conv(net.add("ReduceMean", first, axes=[2, 3], keepdims=1), (4, 4), kernel=1)
    pooled = net.add("AveragePool", first, kernel_shape=[32, 32], strides=[32, 32])
    joined = net.add("Concat", first, everywhere, net.add("Mul", net.add("Mul", first, mean), pooled), axis=1)
    assert multiple_of(net.model(net.conv(joined, (12, 2)))) == (2, 2)


def test_strides_of_any_kind_multiply():
    """A convolution by 4 and a pooling by 2 need multiples of 8."""
    net = Network()
    assert multiple_of(net.model(net.pool(net.conv("image", (3, 4), stride=4, kernel=5)))) == (8, 8)


def test_a_network_that_halves_one_axis_says_so():
    """Rows and columns are told apart."""
    net = Network()
    weight = net.constant([[[[0.0]]] * 3] * 4)
    assert multiple_of(net.model(net.add("Conv", "image", weight, strides=[1, 2]))) == (1, 2)


def test_a_model_without_levels_takes_any_size():
    """A 1x1 convolution."""
    assert multiple_of(load_from_string(models.threshold_model().data)) == (1, 1)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "settings", "levels"),
    [
        ("BasicUNet", {"features": (4, 4, 8, 8, 16, 4)}, 4),
        ("AttentionUnet", {"channels": (4, 8, 16), "strides": (2, 2)}, 2),
        ("UNet", {"channels": (4, 8, 16), "strides": (2, 2)}, 2),
    ],
)
def test_networks_of_monai_are_recognised(name, settings, levels):
    """Oracle: MONAI's own networks, exported by PyTorch."""
    pytest.importorskip("onnxscript")
    torch, nets = pytest.importorskip("torch"), pytest.importorskip("monai.networks.nets")
    net = getattr(nets, name)(spatial_dims=2, in_channels=1, out_channels=2, **settings).eval()
    example = (torch.zeros(1, 1, 64, 64),)
    model = torch.onnx.export(net, example, dynamo=True, verbose=False, input_names=["image"]).model_proto
    assert multiple_of(model, channels=1) == (2**levels, 2**levels)
