"""Captures a network with `torch.export` and converts it to an ONNX graph with named open axes.

Also removes the exporter's notes from the graph. `check` verifies the graph.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from unet_batch import extras
from unet_batch.errors import JobError, ModelRefused
from unet_batch.model.graph import attribute, opsets, refusals
from unet_batch.workbench.export.problems import capture_problem, conversion_problem, place_of

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]

INPUT_NAME = "image"
AXES = {0: "batch", 2: "height", 3: "width"}
MOST_TILES = 4096
"""Upper bound of the batch axis for PyTorch."""
OPSETS = range(16, 26)
"""Tested versions, 16 to 25. Below 14, Relu cannot be converted and the opset silently stays 18."""
_KEPT = "pkg.torch.onnx.name_scopes"
"""The exporter's only note on nodes that stays in the file; the others contain paths of the machine."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A network as an ONNX graph and as PyTorch's exported program."""

    model: ModelProto
    program: Any
    """`torch.export.ExportedProgram`: its nodes have the names of the graph's tensors. None for TorchScript."""
    notes: tuple[str, ...]


def capture(
    network: Any,
    images_nchw: Array,
    *,
    any_size: bool,
    same_size: bool,
    opset: int,
    output_name: str,
) -> Captured:
    """The network as an ONNX graph in one file with an open batch axis; with any_size also open height and width.

    images_nchw: at least two; their size is the fixed size. same_size: whether masks have the size of their images.
    Open axes are named batch, height and width. Batch normalisations are folded into convolutions if possible. Each
    node holds the name of its module.
    Raises JobError for an opset outside OPSETS; ModelRefused, with the place in the network, if it cannot be captured
    or converted, for a fixed axis, and for adaptive pooling that would be wrong at other sizes.
    """
    if opset not in OPSETS:
        raise JobError(f"opset {opset} is not supported: write one of {OPSETS.start} to {OPSETS.stop - 1}")
    with quiet():
        program = _program(network, images_nchw, any_size=any_size)
        _refuse_adaptive_pooling(program, any_size=any_size)
        model, program = _graph(program, images_nchw, opset, output_name)
    if opsets(model).get("") != opset:
        raise ModelRefused(
            f"the graph could not be converted to opset {opset}, and has {opsets(model).get('')}: export with this one"
        )
    if found := refusals(model):
        raise ModelRefused(f"the exported graph would be refused later: {'; '.join(found)}")
    name_axes(model, any_size=any_size, same_size=same_size)
    notes = _batch_norms(model)
    return Captured(model, program, tuple(notes))


def declared_shape(value: Any) -> tuple[int | str, ...]:
    """The declared axes of an input or output: numbers, and names of open axes."""
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def without_traces(model: ModelProto) -> None:
    """Remove the exporter's notes on nodes, except the module of each node."""
    for node in model.graph.node:
        kept = [(entry.key, entry.value) for entry in node.metadata_props if entry.key == _KEPT]
        del node.metadata_props[:]
        for key, value in kept:
            node.metadata_props.add(key=key, value=value)
    # Sizes inside the graph are PyTorch's formulas; readers infer their own.
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def _program(network: Any, images_nchw: Array, *, any_size: bool) -> Any:
    import torch

    axes = {number: name for number, name in AXES.items() if name == "batch" or any_size}
    # PyTorch infers the sides: U-Nets accept only multiples, which a named range cannot express.
    sizes = {
        number: torch.export.Dim("batch", min=1, max=MOST_TILES) if name == "batch" else torch.export.Dim.DYNAMIC
        for number, name in axes.items()
    }
    try:
        return torch.export.export(network, (torch.from_numpy(images_nchw),), dynamic_shapes=(sizes,), strict=False)
    except Exception as error:
        raise ModelRefused(capture_problem(error, axes)) from error


def _graph(program: Any, images_nchw: Array, opset: int, output_name: str) -> tuple[ModelProto, Any]:
    import torch

    try:
        exported = torch.onnx.export(
            program,
            (torch.from_numpy(images_nchw),),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[output_name],
            external_data=False,
            verbose=False,
        )
    except ImportError as error:
        raise JobError(f"exporting needs onnxscript ({error}): run {extras.command('export')}") from error
    except Exception as error:
        raise ModelRefused(conversion_problem(error)) from error
    model: ModelProto = exported.model_proto
    return model, exported.exported_program


def _refuse_adaptive_pooling(program: Any, *, any_size: bool) -> None:
    """Refuse adaptive pooling that PyTorch's exporter writes with a fixed size, or as thousands of nodes."""
    for node in program.graph.nodes:
        operator = str(node.target).split(".")[1:2]
        if operator not in (["adaptive_avg_pool2d"], ["adaptive_max_pool2d"]):
            continue
        wanted = [int(n) if isinstance(n, int) else 0 for n in node.args[1]]
        had = node.args[0].meta["val"].shape[-2:]
        if wanted == [1, 1]:
            continue
        asked = "x".join(map(str, wanted))
        place = place_of(node.meta)
        if any_size:
            raise ModelRefused(
                f"adaptive pooling to {asked} in {place} would be wrong at other sizes than the exported one: leave "
                "height and width fixed, or use a pooling with a fixed kernel, or interpolate"
            )
        if any(n and int(h) % n for n, h in zip(wanted, had, strict=True)):
            raise ModelRefused(
                f"adaptive pooling from {int(had[0])}x{int(had[1])} to {asked} in {place} would become thousands of "
                "nodes: choose an output that divides the input, or a pooling with a fixed kernel"
            )


def name_axes(model: ModelProto, *, any_size: bool, same_size: bool) -> None:
    """Name open axes batch, height and width. Raises ModelRefused if one of them is fixed."""
    source, target = model.graph.input[0].type.tensor_type.shape.dim, model.graph.output[0].type.tensor_type.shape.dim
    names: dict[str, str] = {}
    for number, name in AXES.items():
        wanted = name == "batch" or any_size
        symbol = source[number].dim_param
        if wanted and not symbol:
            raise ModelRefused(f"the graph's {name} axis is fixed at {source[number].dim_value}")
        if symbol:
            names[symbol] = name
            source[number].dim_param = name
    sides = dict(zip(range(len(target) - 2, len(target)), ("height", "width"), strict=True))
    for number, dim in enumerate(target):
        if dim.dim_param and same_size and number in sides:
            dim.dim_param = sides[number]  # replaces PyTorch's formula, which also covers sizes that are not allowed
        elif dim.dim_param:
            dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)
    if not target[0].dim_param:
        raise ModelRefused(f"the output's batch axis is fixed at {target[0].dim_value}")


def _batch_norms(model: ModelProto) -> list[str]:
    """Notes on batch normalisations that remain. Raises ModelRefused if one should have been folded."""
    uses: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    makers = {name: node for node in model.graph.node for name in node.output}
    kept = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    for node in kept:
        maker = makers.get(node.input[0])
        if attribute(node, "training_mode", 0):
            raise ModelRefused(f"batch normalisation {node.name} is in training mode")
        if maker is not None and maker.op_type in ("Conv", "ConvTranspose") and uses[node.input[0]] == 1:
            raise ModelRefused(
                f"batch normalisation {node.name} was not folded into {maker.name}: a fault of onnxscript"
            )
    return [f"{len(kept)} batch normalisation(s) follow no convolution and remain as nodes"] if kept else []


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress PyTorch's warnings: errors are raised, and the report has the notes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
