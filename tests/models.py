"""Tiny ONNX models for tests and scripts: deterministic, built in memory, each with its contract.

The threshold model's answer is known without running it, the U-Net costs what a real one costs, the free model costs
nothing (so that a benchmark sees everything else), and the NaN model is ill for bright pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import yaml
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from unet_batch.contract import Contract

Axes = list[int | str | None]

STEEPNESS = 20.0
"""Logits per unit of mean brightness: probabilities far from the threshold are nearly 0 or 1."""


@dataclass(frozen=True, slots=True)
class TinyModel:
    """An ONNX file and the contract that describes it."""

    data: bytes
    contract: Contract

    @property
    def contract_yaml(self) -> str:
        """The contract as it lies beside a model."""
        return yaml.safe_dump(self.contract.model_dump(mode="json", exclude_none=True), sort_keys=False)


def threshold_model(
    layout: str = "nchw",
    channels: int = 3,
    classes: int = 2,
    *,
    size: int | None = None,
    batch: int | None = None,
    activation: str = "logits",
    dtype: str = "float32",
    half_size: bool = False,
    two_outputs: bool = False,
    lying_symbols: bool = False,
    unnamed_axes: bool = False,
) -> TinyModel:
    """A model whose label is the brightness: class k covers channel means in (k / classes, (k + 1) / classes].

    Two classes: 1 where the mean is above 0.5. One class, or sigmoid: class k where the mean is above
    (k + 0.5) / classes. uint8 inputs are divided by 255 inside; float ones are expected in [0, 1].
    half_size: 2x2 means, and a mask of half the size. two_outputs: the pixels come back as `features`, declared first.
    lying_symbols: the output's height carries the batch's symbol. unnamed_axes: open axes have no symbol.
    nhwc: names and symbols as tf2onnx writes them (`input:0`, another batch symbol in the output).
    """
    source, target = ("input:0", "Identity:0") if layout == "nhwc" else ("image", "mask")
    nodes: list[NodeProto] = []
    pixels = source
    if dtype != "float32":
        nodes += [
            helper.make_node("Cast", [pixels], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["cast", "unit"], ["scaled"]),
        ]
        pixels = "scaled"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [pixels], ["nchw"], perm=[0, 3, 1, 2]))
        pixels = "nchw"
    if half_size:
        nodes.append(helper.make_node("AveragePool", [pixels], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]))
        pixels = "pooled"
    nodes.append(helper.make_node("Conv", [pixels, "weight", "bias"], ["logits"]))
    nodes += _head(activation)
    labels = activation == "labels"
    if layout == "nhwc" and not labels:
        nodes.append(helper.make_node("Transpose", ["head"], [target], perm=[0, 2, 3, 1]))
    else:
        nodes.append(helper.make_node("Identity", ["head"], [target]))
    if two_outputs:
        nodes.append(helper.make_node("Identity", [source], ["features"]))

    centres = (np.arange(classes, dtype=np.float32) + 0.5) / classes
    if classes == 1 or activation == "sigmoid":
        slope, bias = np.full(classes, STEEPNESS), -STEEPNESS * centres
    else:
        slope, bias = 2 * STEEPNESS * centres, -STEEPNESS * centres**2  # the nearest centre has the largest logit
    weight = np.repeat(slope[:, None] / channels, channels, axis=1)[:, :, None, None]
    constants = {"weight": weight, "bias": bias, "unit": np.asarray(1 / 255)}

    symbol = None if unnamed_axes else "unk__1" if layout == "nhwc" else "batch_size"
    in_first: int | str | None = batch or symbol
    out_first: int | str | None = batch or ("unk__2" if layout == "nhwc" else symbol)
    height: int | str | None = size or (None if unnamed_axes else "height")
    width: int | str | None = size or (None if unnamed_axes else "width")
    out_side = size // 2 if size and half_size else size
    out_height, out_width = ("batch_size", "Convoutput_dim_3") if lying_symbols else (out_side, out_side)
    in_axes = _ordered(layout, in_first, channels, height, width)
    out_axes: Axes = (
        [out_first, out_height, out_width] if labels else _ordered(layout, out_first, classes, out_height, out_width)
    )
    kind = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}[dtype]
    outputs = [helper.make_tensor_value_info(target, TensorProto.UINT8 if labels else TensorProto.FLOAT, out_axes)]
    if two_outputs:
        outputs.insert(0, helper.make_tensor_value_info("features", kind, in_axes))
    graph = helper.make_graph(
        nodes,
        "threshold",
        [helper.make_tensor_value_info(source, kind, in_axes)],
        outputs,
        [_constant(name, value) for name, value in constants.items() if name != "unit" or dtype != "float32"],
    )
    return TinyModel(
        _bytes(graph),
        _contract(
            layout=layout,
            channels=channels,
            dtype=dtype,
            classes=classes,
            activation=activation,
            multiple=2 if half_size else 1,
            output_name=target if two_outputs else None,
        ),
    )


def unet_model(
    size: int | None = 256,
    base: int = 16,
    levels: int = 4,
    *,
    in_channels: int = 3,
    classes: int = 3,
    seed: int = 0,
    batch: int | None = None,
) -> TinyModel:
    """A U-Net with random weights: two 3x3 convolutions per level, max pooling, transposed convolutions, skips.

    Base 16 and 4 levels make 1.9 M parameters. size None: any multiple of 2^levels.
    """
    random = np.random.default_rng(seed)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []

    def conv(source: str, name: str, channels: tuple[int, int], *, kernel: int = 3, relu: bool = True) -> str:
        inside, outside = channels
        spread = np.sqrt(2 / (inside * kernel**2))  # He et al. 2015: keeps activations at the size of the input
        weights.append(_constant(f"{name}_w", random.normal(0, spread, (outside, inside, kernel, kernel))))
        weights.append(_constant(f"{name}_b", np.zeros(outside)))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [source, f"{name}_w", f"{name}_b"], [name], pads=pads))
        if not relu:
            return name
        nodes.append(helper.make_node("Relu", [name], [f"{name}_relu"]))
        return f"{name}_relu"

    widths = [base << level for level in range(levels + 1)]
    here, inside, skips = "image", in_channels, []
    for level, width in enumerate(widths):
        here = conv(here, f"down{level}a", (inside, width))
        here = conv(here, f"down{level}b", (width, width))
        inside = width
        if level < levels:
            skips.append(here)
            nodes.append(helper.make_node("MaxPool", [here], [f"pool{level}"], kernel_shape=[2, 2], strides=[2, 2]))
            here = f"pool{level}"
    for level in reversed(range(levels)):
        width = widths[level]
        weights.append(_constant(f"up{level}_w", random.normal(0, np.sqrt(1 / inside), (inside, width, 2, 2))))
        nodes.append(
            helper.make_node(
                "ConvTranspose", [here, f"up{level}_w"], [f"up{level}"], kernel_shape=[2, 2], strides=[2, 2]
            )
        )
        nodes.append(helper.make_node("Concat", [skips[level], f"up{level}"], [f"cat{level}"], axis=1))
        here = conv(f"cat{level}", f"up{level}a", (2 * width, width))
        here = conv(here, f"up{level}b", (width, width))
        inside = width
    nodes.append(helper.make_node("Identity", [conv(here, "last", (inside, classes), kernel=1, relu=False)], ["mask"]))
    first, side = batch or "batch", size or None
    graph = helper.make_graph(
        nodes,
        "unet",
        [_float("image", [first, in_channels, side or "height", side or "width"])],
        [_float("mask", [first, classes, side, side])],
        weights,
    )
    return TinyModel(_bytes(graph), _contract(channels=in_channels, classes=classes, multiple=1 << levels))


def free_model(channels: int = 3, classes: int = 2, *, size: int | None = None) -> TinyModel:
    """The first channels as logits: a model that costs no more than a copy. classes ≤ channels."""
    if classes > channels:
        raise ValueError(f"the free model has at most as many classes ({classes}) as channels ({channels})")
    graph = helper.make_graph(
        [helper.make_node("Slice", ["image", "start", "end", "axis"], ["mask"])],
        "free",
        [_float("image", ["batch", channels, size or "height", size or "width"])],
        [_float("mask", ["batch", classes, size, size])],
        [numpy_helper.from_array(np.array([v], np.int64), n) for n, v in (("start", 0), ("end", classes), ("axis", 1))],
    )
    return TinyModel(_bytes(graph), _contract(channels=channels, classes=classes))


def nan_model(channels: int = 3, classes: int = 2) -> TinyModel:
    """Logits of class k are log((0.5 - mean) · (k + 1)): NaN in every class where a pixel's mean is above 0.5."""
    factors = np.arange(1, classes + 1, dtype=np.float32)
    weight = np.repeat(-factors[:, None] / channels, channels, axis=1)[:, :, None, None]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weight", "bias"], ["distance"]),
            helper.make_node("Log", ["distance"], ["mask"]),
        ],
        "nan",
        [_float("image", ["batch", channels, "height", "width"])],
        [_float("mask", ["batch", classes, None, None])],
        [_constant("weight", weight), _constant("bias", 0.5 * factors)],
    )
    return TinyModel(_bytes(graph), _contract(channels=channels, classes=classes))


def _head(activation: str) -> list[NodeProto]:
    """Nodes from `logits` to `head`, NCHW; labels are NHW."""
    if activation == "labels":
        return [
            helper.make_node("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
            helper.make_node("Cast", ["index"], ["head"], to=TensorProto.UINT8),
        ]
    if activation == "softmax":
        return [helper.make_node("Softmax", ["logits"], ["head"], axis=1)]
    return [helper.make_node({"logits": "Identity", "sigmoid": "Sigmoid"}[activation], ["logits"], ["head"])]


def _contract(
    *,
    layout: str = "nchw",
    channels: int,
    dtype: str = "float32",
    classes: int,
    activation: str = "logits",
    multiple: int = 1,
    output_name: str | None = None,
) -> Contract:
    return Contract.model_validate(
        {
            "input": {
                "layout": layout,
                "dtype": dtype,
                "color": {1: "gray", 3: "rgb"}.get(channels, "bands"),
                "channels": channels,
                "multiple": multiple,
                "normalize": {"kind": "unit" if dtype == "float32" else "none"},
            },
            "output": {
                "name": output_name,
                "activation": activation,
                "classes": ["foreground"]
                if classes == 1
                else ["background", *(f"class_{k}" for k in range(1, classes))],
            },
        }
    )


def _ordered(
    layout: str, batch: int | str | None, channels: int, height: int | str | None, width: int | str | None
) -> Axes:
    return [batch, channels, height, width] if layout == "nchw" else [batch, height, width, channels]


def _float(name: str, axes: Axes) -> object:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)


def _constant(name: str, values: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=np.float32), name)


def _bytes(graph: object) -> bytes:
    # IR 8 and opset 17 are what exporters of 2022-2024 wrote; every ONNX Runtime of today reads them.
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()
