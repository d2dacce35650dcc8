"""The U-Net as published, small, with seeded weights: as a PyTorch network and as an ONNX graph built from its weights.

Its convolutions are unpadded, so its output lacks a margin on each side. Building the graph is faster than an export.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import yaml
from networks import Network
from onnx import TensorProto, helper

CLASSES = ("background", "cell", "border")


def network(depth: int = 2, *, base: int = 4, channels: int = 1) -> Any:
    """`original_unet` with weights that give every class some pixels of noise."""
    import torch

    from unet_batch.architectures import original_unet

    torch.manual_seed(5)
    made = original_unet(channels, len(CLASSES), base=base, depth=depth).eval().requires_grad_(requires_grad=False)
    for module in made.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    side = smallest_side(depth) + 5 * 2**depth
    found = made(torch.rand(1, channels, side, side))
    made.head.bias -= found.mean(dim=(0, 2, 3))
    return made


def scores(made: Any, image_hwc: np.ndarray) -> np.ndarray:
    """PyTorch's scores of a picture (H, W, C) in float32: (K, h, w)."""
    import torch

    batch = torch.from_numpy(np.ascontiguousarray(image_hwc.transpose(2, 0, 1)[None], dtype=np.float32))
    with torch.no_grad():
        return made(batch)[0].numpy()


def as_onnx(made: Any, *, size: int | None = None, declared: bool = True) -> bytes:
    """The network as an ONNX file. size: of a fixed tile. declared: whether the output's size is in the file."""
    graph = Network()
    depth, channels = len(made.decoder), made.down[0][0].in_channels
    taken: list[tuple[str, int]] = []
    name = "image"

    def two(block: Any, name: str) -> str:
        for layer in (block[0], block[2]):
            weights = [graph.constant(tensor.detach().numpy()) for tensor in (layer.weight, layer.bias)]
            name = graph.add("Relu", graph.add("Conv", name, *weights, kernel_shape=[3, 3]))
        return name

    for level in range(depth + 1):
        if level:
            name = graph.pool(name)
        name = two(made.down[level], name)
        taken.append((name, level))
    sizes = _sizes(smallest_side(depth), depth)  # crops are the same for every valid size
    side = sizes[-1]
    for level in reversed(range(depth)):
        up = made.up[level]
        name = graph.add(
            "ConvTranspose",
            name,
            graph.constant(up.weight.detach().numpy()),
            graph.constant(up.bias.detach().numpy()),
            strides=[2, 2],
        )
        side *= 2
        cut = (sizes[level] - side) // 2
        pads = graph.constant([0, 0, -cut, -cut, 0, 0, -cut, -cut], np.int64)
        name = graph.add("Concat", graph.add("Pad", taken[level][0], pads), name, axis=1)
        name = two(made.decoder[level], name)
        side -= 4
    head = [graph.constant(tensor.detach().numpy()) for tensor in (made.head.weight, made.head.bias)]
    model = graph.model(graph.add("Conv", name, *head), channels=channels)
    if size is not None:
        for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
            axis.dim_value = size
    sides = [size - 2 * margin(depth)] * 2 if size is not None and declared else ["oh", "ow"]
    axes = ["n", len(CLASSES), *sides]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("mask", TensorProto.FLOAT, axes))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def smallest_side(depth: int) -> int:
    """The smallest side with an output: 188 for depth 4."""
    return next(side for side in range(1, 1000) if min(_sizes(side, depth)) > 0 and _output(side, depth) > 0)


def margin(depth: int) -> int:
    """Pixels without output on each side of a tile: 92 for depth 4."""
    side = smallest_side(depth)
    return (side - _output(side, depth)) // 2


def _sizes(side: int, depth: int) -> list[int]:
    """Rows that every level of the encoder has; [0] if a level would lose a row."""
    found = []
    for level in range(depth + 1):
        if level and side % 2:
            return [0]
        side = (side // 2 if level else side) - 4
        found.append(side)
    return found


def _output(side: int, depth: int) -> int:
    here = _sizes(side, depth)[-1]
    for _ in range(depth):
        here = 2 * here - 4
    return here


def contract(depth: int = 2, **taken: Any) -> str:
    """The contract of the network as YAML text."""
    multiple = 2**depth
    tree = {
        "input": {
            "name": "image",
            "color": "gray",
            "channels": 1,
            "multiple": multiple,
            "remainder": smallest_side(depth) % multiple,
            "normalize": {"kind": "unit"},
            **taken,
        },
        "output": {"name": "mask", "classes": list(CLASSES), "margin": margin(depth)},
    }
    return yaml.safe_dump(tree, sort_keys=False)
