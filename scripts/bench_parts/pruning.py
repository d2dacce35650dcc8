"""What removing channels without training does to masks: the measurement behind docs/pruning.md.

In every convolution of a trained file the output channels with the least L1 norm (Li et al., arXiv:1608.08710) are
set to zero, bias and the depthwise convolution behind them included, which says what a file without them would say.
What it could cost at best is counted: multiply-adds of the convolutions that are left, with fewer channels in and out.

scripts/bench_parts/pruning.py               the U-Net of `scripts/bench model`, and the nuclei model of scripts/demo
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "bench_parts")]

import model_figures  # noqa: E402

from unet_batch.job.prepare import model_at  # noqa: E402
from unet_batch.model import graph  # noqa: E402
from unet_batch.model.contract import Model  # noqa: E402
from unet_batch.model.parity import Parity  # noqa: E402
from unet_batch.model.plain_session import PlainSession  # noqa: E402
from unet_batch.model.quantize import batch_of_one  # noqa: E402
from unet_batch.model.session import as_nkhw  # noqa: E402
from unet_batch.model.shapes import shapes  # noqa: E402
from unet_batch.spec import TilingSpec  # noqa: E402

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
BENCH, DEMO = ROOT / ".bench", ROOT / ".demo"


def main() -> None:
    result: dict[str, Any] = {}
    for name, path, tiles in subjects():
        data, model = model_at(str(path), None, TilingSpec())
        expected = outputs(data, model, tiles)
        print(f"\n{name}, {len(tiles)} tiles\n{'removed':>8} {'multiply-adds':>14} {'at best':>8} {'flipped':>9}  Dice")
        result[name] = []
        for share in SHARES:
            pruned, left = without(graph.read(data, str(path)), share, batch_of_one(model, tiles[0]).shape)
            parity = Parity.of(expected, outputs(pruned, model, tiles), model.contract.output)
            dice = dict(zip(parity.classes, (round(d, 4) for d in parity.dice), strict=True))
            print(f"{share:8.0%} {left:14.0%} {1 / left:7.2f}x {parity.flipped_share:9.3%}  {dice}", flush=True)
            figures = {"removed": share, "multiply_adds": round(left, 3), "flipped": round(parity.flipped_share, 5)}
            result[name].append(figures | {"dice": dice})
    print(json.dumps(result))


def subjects() -> Iterator[tuple[str, Path, npt.NDArray[Any]]]:
    """Name, file and tiles of the models whose masks mean something."""
    photos = BENCH / "photos-2000"
    path = model_figures.shapes_model(BENCH, photos)
    yield (
        "shapes in photographs",
        path,
        model_figures.shape_tiles(photos, model_at(str(path), None, TilingSpec())[1], 12),
    )
    nuclei = DEMO / "model" / "nuclei.onnx"
    if nuclei.exists():
        yield "nuclei", nuclei, model_figures.archive(nuclei, f"{DEMO}/archive/{{date:%Y/%m/%d}}/", 4)


def without(model: ModelProto, share: float, shape: tuple[int, ...]) -> tuple[bytes, float]:
    """The file with this share of each convolution's output channels set to zero, and the multiply-adds that are left.

    First layers keep their inputs, the last layer its outputs, and what gates whole channels (squeeze and excitation)
    all of it.
    """
    from onnx import numpy_helper

    stored = dict(graph.constants(model))
    made = {name: node for node in model.graph.node for name in node.output}
    sizes = shapes(model, {graph.inputs(model)[0][0]: shape})
    layers = [
        node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in stored
    ]
    gates = {node.name for node in layers if math.prod((sizes[node.output[0]].known or (0,))[2:]) == 1}
    removed: dict[str, npt.NDArray[np.int64]] = {}
    arrays = {name: np.array(graph.array(stored[name])) for node in layers for name in node.input[1:]}
    total = left = 0.0
    for place, node in enumerate(layers):
        weights = arrays[node.input[1]]
        axis = 1 if node.op_type == "ConvTranspose" else 0
        depthwise = graph.attribute(node, "group", 1) > 1
        if depthwise:
            channels = removed.get(origin(node.input[0], made), np.empty(0, np.int64))
        elif place == len(layers) - 1 or node.name in gates:
            channels = np.empty(0, np.int64)
        else:
            norms = abs(weights).sum(axis=tuple(n for n in range(weights.ndim) if n != axis))
            channels = np.argsort(norms)[: round(share * len(norms))]
        removed[node.output[0]] = channels
        weights[(slice(None),) * axis + (channels,)] = 0
        if len(node.input) > 2:
            arrays[node.input[2]][channels] = 0
        work = multiply_adds(node, weights, sizes)
        total += work
        inside = 1.0 if place == 0 or depthwise or node.name in gates else 1 - share
        left += work * inside * (1 - len(channels) / weights.shape[axis])
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    data: bytes = model.SerializeToString()
    return data, left / total


def origin(name: str, made: Mapping[str, NodeProto]) -> str:
    """The convolution's output that a tensor is, behind activations of one channel each."""
    while name in made and made[name].op_type in ("Relu", "Sigmoid", "Mul", "BatchNormalization", "Identity", "Pad"):
        name = made[name].input[0]
    return name


def multiply_adds(node: NodeProto, weights: npt.NDArray[Any], sizes: Mapping[str, Any]) -> int:
    """Of one convolution."""
    dims = sizes[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]].known
    return math.prod(dims) * math.prod(weights.shape[1:])


def outputs(data: bytes, model: Model, tiles: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """What a file says to tiles one by one: (N, K, H, W)."""
    session = PlainSession(data, threads=2)
    feeds = [{model.input_name: batch_of_one(model, tile)} for tile in tiles]
    found = [session.run(feed, [model.output_name])[model.output_name] for feed in feeds]
    return np.concatenate([as_nkhw(model, one, len(one)) for one in found])


if __name__ == "__main__":
    main()
