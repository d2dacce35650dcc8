"""Converts a float graph to 8 or 16 bits with ONNX Runtime's quantiser.

The quantiser is imported when a graph is opened. `quantize` measures the results.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import ModelRefused
from unet_batch.model import graph
from unet_batch.session.machine import report_nothing
from unet_batch.session.plain_session import PlainSession
from unet_batch.table.scratch import scratch_folder
from unet_batch.workbench import graph_edit

if TYPE_CHECKING:
    from onnx import ModelProto

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that hold most of the weights and most of the work."""
OLDEST_OPSET = 13
"""QuantizeLinear has an axis, for scales per channel, since opset 13."""
NEWER_OPSET = 17
"""Older files are converted to this opset."""
REVERSIBLE = {"AddQDQPairToWeight": True, "QuantizeBias": False, "QDQKeepRemovableActivations": True}
"""The quantiser's options that only add QDQ pairs: it leaves weights, biases and Relu as they are."""
FP32_IN_HALF = ("InstanceNormalization", "LayerNormalization", "LRN", "ReduceMean", "ReduceSum", "Resize", "Softmax")
"""Operators that stay fp32 in an fp16 file: sums over many pixels overflow at 65504 or lose their last bits, and the
scales of a Resize must be float32."""


class FloatGraph:
    """A float model, optimised for quantisation, with its calibration. A context manager with a temporary folder."""

    def __init__(self, data: bytes, input_name: str, tiles: Sequence[NDArray[Any]], *, reduce_range: bool) -> None:
        """tiles: one batch each, in the model's layout. reduce_range: weights in 7 bits, for processors without VNNI.

        Raises ModelRefused if the file is not a float model.
        """
        model = graph.parse(data, "the model")
        if (found := graph.precision(model)) != "fp32":
            raise ModelRefused(f"the model is already in {found}: quantise the fp32 file that it was made from")
        self._folder = contextlib.ExitStack()
        self._root = self._folder.enter_context(scratch_folder())
        self._input, self._tiles, self._reduce = input_name, tiles, reduce_range
        try:
            self._model = _prepared(_newer(model), self._root)
            (self._root / "float.onnx").write_bytes(self._model.SerializeToString())
        except BaseException:
            self._folder.close()
            raise

    def __enter__(self) -> FloatGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.close()

    @property
    def data(self) -> bytes:
        """The optimised float model."""
        prepared: bytes = self._model.SerializeToString()
        return prepared

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the nodes with weights to quantise, in execution order."""
        stored = graph.constants(self._model)
        return tuple(
            node.name
            for node in self._model.graph.node
            if node.op_type in LAYERS and any(name in stored for name in node.input[1:2])
        )

    @property
    def tail(self) -> tuple[str, ...]:
        """Names of the nodes after the last layer, e.g. the final activation, which needs more than 8 bits."""
        layers, needed = set(self.layers), set[str]()
        before: set[str] = set()
        for node in reversed(self._model.graph.node):
            if node.name in layers or needed.intersection(node.output):
                before.add(node.name)
                needed.update(node.input)
        return tuple(node.name for node in self._model.graph.node if node.name not in before)

    def groups(self, most: int) -> list[tuple[str, ...]]:
        """The nodes up to the last layer in at most `most` consecutive groups with similar numbers of layers."""
        layers, tail = self.layers, set(self.tail)
        each = -(-len(layers) // most)
        starts = set(layers[::each])
        found: list[list[str]] = [[]]
        for node in self._model.graph.node:
            if node.name in starts and set(found[-1]).intersection(layers):
                found.append([])
            if node.name not in tail:
                found[-1].append(node.name)
        return [tuple(names) for names in found if names]

    def beyond(self, limit: float) -> tuple[str, ...]:
        """Names of the nodes with an input or output value above this magnitude, constant or on a calibration tile."""
        watched = graph.read(self.data, "the model")
        known = {value.name for value in watched.graph.output}
        for name in (name for node in watched.graph.node for name in node.output if name and name not in known):
            watched.graph.output.add().name = name
        large = {name for name, tensor in graph.constants(watched).items() if _peak(graph.array(tensor)) > limit}
        session = PlainSession(watched.SerializeToString(), optimise=False)
        for tile in self._tiles:
            large |= {name for name, values in session.run({self._input: tile}).items() if _peak(values) > limit}
        return tuple(node.name for node in self._model.graph.node if large.intersection((*node.input, *node.output)))

    def static(
        self,
        *,
        per_channel: bool,
        operators: Sequence[str] | None,
        keep: Collection[str] = (),
        only: Collection[str] | None = None,
        float_weights: bool = False,
    ) -> bytes:
        """The model with QDQ pairs: activations uint8, weights int8, ranges from the smallest and largest value.

        keep: nodes that stay fp32. only: the nodes to quantise; None: all possible nodes. float_weights: weights are
        stored in fp32 with a QDQ pair after each, and biases in fp32; without its pairs the file is `self.data`.
        Calibrates only at the first call.
        """
        report_nothing()
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        target = self._root / "quantised.onnx"
        names = None if only is None else sorted(only) or ["(none)"]
        # Ranges of all tensors of the float model are collected once; they do not depend on `keep`.
        cache = self._root / f"ranges-{'-'.join(operators or ('all',))}.json"
        with _quiet():
            quantize_static(
                self._root / "float.onnx",
                target,
                _Reader(self._input, self._tiles),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=None if operators is None else list(operators),
                per_channel=per_channel,
                reduce_range=self._reduce,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=names,
                nodes_to_exclude=sorted({*keep, *self.tail}),
                calibrate_method=CalibrationMethod.MinMax,
                calibration_cache_path=cache,
                extra_options=REVERSIBLE if float_weights else None,
            )
        return _without_pairs_before_relu(target.read_bytes()) if float_weights else target.read_bytes()

    def half(self, *, keep: Collection[str]) -> bytes:
        """The model in fp16 with float32 in and out; `keep`, norms, sums and Resize stay fp32."""
        report_nothing()
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

        model = graph.read(self.data, "the model")
        with _quiet():
            halved = convert_float_to_float16(
                model,
                keep_io_types=True,
                op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FP32_IN_HALF],
                node_block_list=sorted(keep),
            )
        _sort(halved)
        _join_casts(halved)
        data: bytes = halved.SerializeToString()
        return data


class _Reader:
    """Calibration tiles with the quantiser's interface: one feed per call, then None."""

    def __init__(self, name: str, tiles: Sequence[NDArray[Any]]) -> None:
        self._feeds = iter([{name: tile} for tile in tiles])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


class _quiet:  # noqa: N801 - reads as the statement it is
    """Suppresses the quantiser's advice on the root logger, which it writes at every call."""

    def __enter__(self) -> None:
        self._level = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *raised: object) -> None:
        logging.root.setLevel(self._level)


def _without_pairs_before_relu(data: bytes) -> bytes:
    """The file without QDQ pairs between an operator and its Relu or Clip, which engines run as one."""
    model = graph.read(data, "the quantised model")
    made = {node.output[0]: node for node in model.graph.node}
    uses = Counter(name for node in model.graph.node for name in node.input)
    removed = set[str]()
    for node in model.graph.node:
        after = made.get(node.input[0]) if node.op_type in ("Relu", "Clip") else None
        before = made.get(after.input[0]) if after is not None and after.op_type == "DequantizeLinear" else None
        if after is None or before is None or uses[after.output[0]] != 1 or uses[before.output[0]] != 1:
            continue
        node.input[0] = before.input[0]
        removed |= {after.output[0], before.output[0]}
    kept = [node for node in model.graph.node if node.output[0] not in removed]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    graph_edit.prune(model)
    written: bytes = model.SerializeToString()
    return written


def _sort(model: ModelProto) -> None:
    """Sort nodes topologically: the converter appends its casts at the end."""
    waiting = list(model.graph.node)
    made = {name for node in waiting for name in node.output}
    ordered, known = [], set[str]()
    while waiting:
        later = []
        for node in waiting:
            if all(name in known or name not in made for name in node.input):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ModelRefused("the graph of the converted model has a cycle: it cannot be converted")
        waiting = later
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def _join_casts(model: ModelProto) -> None:
    """Remove casts to fp16 and back between two fp32 nodes: they only round or overflow."""
    from onnx import TensorProto

    to_half = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast" and graph.attribute(node, "to", 0) == TensorProto.FLOAT16
    }
    for node in model.graph.node:
        back = node.op_type == "Cast" and graph.attribute(node, "to", 0) == TensorProto.FLOAT
        if back and node.input[0] in to_half:
            node.op_type, node.input[0] = "Identity", to_half[node.input[0]]
            del node.attribute[:]
    graph_edit.prune(model)


def _peak(values: NDArray[Any]) -> float:
    return float(np.abs(values).max(initial=0)) if values.dtype == np.float32 else 0.0


def _newer(model: ModelProto) -> ModelProto:
    """The model in an opset with scales per channel. Raises ModelRefused if it cannot be converted."""
    from onnx import version_converter

    if graph.opsets(model).get("", 0) >= OLDEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, NEWER_OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own class
        raise ModelRefused(
            f"the model is of opset {graph.opsets(model).get('', 0)} and cannot be converted to {NEWER_OPSET}: "
            f"export it again with opset {NEWER_OPSET} or later ({' '.join(str(error).split())})"
        ) from error


def _prepared(model: ModelProto, folder: Path) -> ModelProto:
    """The model with inferred shapes, folded batch norms, and unique node names."""
    report_nothing()
    from onnxruntime.quantization import quant_pre_process

    source, target = folder / "source.onnx", folder / "prepared.onnx"
    source.write_bytes(model.SerializeToString())
    try:
        with _quiet():
            quant_pre_process(source, target, skip_symbolic_shape=True)
    except Exception as error:  # its passes may raise anything
        raise ModelRefused(f"the model cannot be prepared for quantisation: {' '.join(str(error).split())}") from error
    prepared = graph.read(target.read_bytes(), "the model")
    names = Counter(node.name for node in prepared.graph.node)
    for number, node in enumerate(prepared.graph.node):
        if not node.name or names[node.name] > 1:
            node.name = f"{node.op_type}/{number}"
    return prepared
