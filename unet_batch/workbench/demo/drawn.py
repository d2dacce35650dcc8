"""The demo without a network: drawn pictures of bright cells, and a model of one convolution that finds what is bright.

It shows what jobs do, not what U-Nets can do. The same bytes each time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet_batch.imaging.encode import encode_png
from unet_batch.workbench.demo.published import put

DAYS = ("20", "21")
PER_DAY = 6
LEVEL = 0.3
"""Brightness from which a pixel is a cell; the ground is at 0.16, cells at 0.35 and above."""
SIDE = 256

CONTRACT = """\
# What bright.onnx expects and returns.
input: {color: gray, channels: 1, height: 256, width: 256, fit: tile, normalize: {kind: unit}}
output: {activation: logits, classes: [background, cell]}
"""


def lay_out(folder: Path) -> dict[str, str]:
    """Make `model/` and `archive/` in a folder; returns what each day holds."""
    put(folder / "model" / "bright.onnx", one_convolution())
    put(folder / "model" / "bright.yaml", CONTRACT.encode())
    rng = np.random.default_rng(1)
    month = folder / "archive" / "2026" / "11"
    for day in DAYS:
        for number in range(PER_DAY):
            put(month / day / f"plate-{number:02}.png", encode_png(cells(rng, 300 + 40 * number, 400)))
    put(month / DAYS[0] / "notes.png", b"Plate 7: medium changed at 18:30.\n")
    return {
        DAYS[0]: f"{PER_DAY} drawn PNG and 1 text file named .png",
        DAYS[1]: f"{PER_DAY} drawn PNG (last night)",
    }


def cells(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Bright discs on a dark, noisy ground, uint8 (H, W)."""
    rows, columns = np.mgrid[:height, :width]
    picture = rng.normal(40, 6, (height, width))
    for _ in range(height * width // 3000):
        row, column, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(6, 14)
        inside = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
        picture[inside] = rng.uniform(110, 200) + rng.normal(0, 8, int(inside.sum()))
    return np.asarray(picture.clip(0, 255), np.uint8)


def one_convolution() -> bytes:
    """An ONNX file whose second class wins where the mean of 3 x 3 pixels is above LEVEL."""
    from onnx import TensorProto, helper

    steep = 40.0
    weights = [0.0] * 9 + [steep / 9] * 9
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight", "bias"], ["logits"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        "bright",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, SIDE, SIDE])],
        [
            helper.make_tensor("weight", TensorProto.FLOAT, [2, 1, 3, 3], weights),
            helper.make_tensor("bias", TensorProto.FLOAT, [2], [0.0, -steep * LEVEL]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
