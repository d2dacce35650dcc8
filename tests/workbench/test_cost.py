"""Multiply-adds and memory: single operators by hand, a whole network by PyTorch's counter."""

from __future__ import annotations

import models
import numpy as np
import pytest
from networks import Network
from onnx import load_from_string

from unet_batch.model.shapes import InferredTensor, shapes
from unet_batch.workbench.cost import Cost, cost


def cost_of(model, dims=(1, 3, 8, 8), name="image") -> Cost:
    return cost(model, shapes(model, {name: dims}))


def products(net: Network, result: str, dims=(1, 3, 8, 8)) -> int:
    seen = cost_of(net.model(result), dims)
    assert seen.uncounted == 0
    return seen.multiply_adds


def test_a_convolution_costs_its_kernel_for_each_value_it_returns():
    """4 kernels of 3·3·3 on 4 x 4 pixels: 8 x 8 by strides of 2."""
    net = Network()
    assert products(net, net.conv("image", (3, 4), stride=2)) == 4 * 27 * 16


def test_a_grouped_convolution_costs_its_own_channels_only():
    """Depthwise: one channel each."""
    net = Network()
    assert products(net, net.conv("image", (3, 3), group=3)) == 3 * 9 * 64


def test_a_transposed_convolution_costs_its_kernel_for_each_value_it_takes():
    """Every input value meets 5 kernels of 2·2, overlap or not."""
    net = Network()
    assert products(net, net.up("image", (3, 5))) == 3 * 64 * 5 * 4


def test_a_batch_costs_its_tiles():
    """Twice the tiles, twice the products."""
    net = Network()
    assert products(net, net.conv("image", (3, 4)), (2, 3, 8, 8)) == 2 * 4 * 27 * 64


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_costs_rows_times_columns_times_their_length(transposed):
    """(2 x 7) · (7 x 5), either way round."""
    net = Network()
    first = net.constant(np.zeros((7, 2) if transposed else (2, 7)))
    result = net.add("Gemm", first, net.constant(np.zeros((7, 5))), transA=transposed)
    assert products(net, result) == 2 * 7 * 5


def test_a_matrix_product_costs_each_of_its_batch():
    """(1, 3, 8, 8) · (8 x 5)."""
    net = Network()
    assert products(net, net.add("MatMul", "image", net.constant(np.zeros((8, 5))))) == 3 * 8 * 8 * 5


@pytest.mark.parametrize("form", ["QDQ", "QLinearConv", "ConvInteger"])
def test_a_quantised_convolution_costs_what_a_float_one_does(form):
    """The weights are the second, the fourth input, or behind a DequantizeLinear."""
    net = Network()
    scale, kernel = net.constant(0.1), net.constant(np.zeros((4, 3, 3, 3)), "int8")
    pixels = net.add("QuantizeLinear", "image", scale, net.constant(0, "uint8"))
    pads = [1, 1, 1, 1]
    if form == "QDQ":
        sides = [net.add("DequantizeLinear", side, scale) for side in (pixels, kernel)]
        result = net.add("Conv", *sides, pads=pads)
    elif form == "ConvInteger":
        result = net.add("ConvInteger", pixels, kernel, pads=pads)
    else:
        zero, of_kernel = net.constant(0, "uint8"), net.constant(0, "int8")
        result = net.add("QLinearConv", pixels, scale, zero, kernel, scale, of_kernel, scale, zero, pads=pads)
    assert products(net, result) == 4 * 27 * 64


def test_what_cannot_be_counted_is_said():
    """A product of unknown size is no product of size 0."""
    net = Network()
    model = net.model(net.conv(net.add("Relu", "image"), (3, 4)))
    sizes = shapes(model, {"image": (1, 3, 8, 8)})
    sizes["conv1"] = InferredTensor(np.dtype("float32"), (1, 4, None, None))
    assert cost(model, sizes).uncounted == 1
    assert cost(model, sizes).unsized == 1


def test_a_chain_holds_two_tensors_at_a_time():
    """The one that is read and the one that is written: 3 · 64 floats each."""
    net = Network()
    assert cost_of(net.model(net.add("Relu", net.add("Relu", "image")))).peak_bytes == 2 * 3 * 64 * 4


def test_a_skip_is_held_until_it_is_read():
    """While the deep side works, the skip lives: input and skip, then skip and two of the deep side."""
    net = Network()
    skip = net.add("Relu", "image")
    deep = net.add("Neg", net.add("Abs", skip))
    assert cost_of(net.model(net.add("Add", skip, deep))).peak_bytes == 3 * 3 * 64 * 4


def test_constants_and_what_follows_from_them_are_free():
    """ONNX Runtime folds them away."""
    net = Network()
    folded = net.add("Neg", net.constant(np.zeros((100, 100, 100))))
    net.add("Abs", folded)
    assert cost_of(net.model(net.add("Relu", "image"))).peak_bytes == 2 * 3 * 64 * 4


def test_a_tensor_that_nobody_reads_dies_at_once():
    """It counts when it is made, and no longer."""
    net = Network()
    net.add("Neg", "image")
    first = net.add("Relu", "image")
    assert cost_of(net.model(first)).peak_bytes == 2 * 3 * 64 * 4


def test_half_precision_takes_half():
    """The size of a value is its type's."""
    net = Network()
    half = net.add("Cast", "image", to=10)
    values = 3 * 64
    assert cost_of(net.model(net.add("Relu", net.add("Neg", half)))).peak_bytes == values * 4 + values * 2


def test_a_unet_of_256_and_base_16_holds_16_mib():
    """At the last level: 64 channels come together, 32 of them skip and up, of 256 x 256 floats."""
    model = load_from_string(models.unet_model(256, 16, 4, in_channels=1).data)
    assert cost_of(model, (1, 1, 256, 256)).peak_bytes == (32 + 32) * 256 * 256 * 4


@pytest.mark.oracle
def test_a_unet_costs_what_pytorch_counts():
    """Oracle: torch.utils.flop_counter, two floating-point operations for each multiply-add."""
    torch = pytest.importorskip("torch")
    counter = pytest.importorskip("torch.utils.flop_counter")
    functional = torch.nn.functional
    base, levels, side = 4, 3, 32

    def twice(x, width):
        for _ in range(2):
            x = functional.conv2d(x, torch.zeros(width, x.shape[1], 3, 3), padding=1)
        return x

    with counter.FlopCounterMode(display=False) as counted:
        x, skips = torch.zeros(1, 3, side, side), []
        for level in range(levels):
            x = twice(x, base << level)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = twice(x, base << levels)
        for level in reversed(range(levels)):
            x = functional.conv_transpose2d(x, torch.zeros(x.shape[1], base << level, 2, 2), stride=2)
            x = twice(torch.cat([skips[level], x], 1), base << level)
        functional.conv2d(x, torch.zeros(2, base, 1, 1))
    model = load_from_string(models.unet_model(None, base, levels, classes=2).data)
    assert cost_of(model, (1, 3, side, side)).multiply_adds == counted.get_total_flops() // 2
