"""A network captured by PyTorch and written as an ONNX graph that other programs can trust.

Knows `torch.export`, PyTorch's exporter and what its graphs need afterwards: named open axes, no leftovers. Knows no
contract and no file. Verifying the graph is another module's work.
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

from unet_batch.errors import JobError, ModelRefused
from unet_batch.model.graph import attribute, opsets, refusals
from unet_batch.workbench.export.problems import capture_problem, conversion_problem, place_of

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]

INPUT_NAME = "image"
AXES = {0: "batch", 2: "height", 3: "width"}
MOST_TILES = 4096
"""Largest batch that PyTorch has to reason about."""
OPSETS = range(16, 26)
"""Below 14 Relu cannot be converted and the opset stays 18 in silence; 16 has been tried. 25 is the last that has."""
_KEPT = "pkg.torch.onnx.name_scopes"
"""The exporter's note on a node that stays in the file; the others hold paths of the machine it was made on."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A network as a graph, and PyTorch's own view of the same."""

    model: ModelProto
    program: Any
    """`torch.export.ExportedProgram`: its nodes are named as the graph's tensors are."""
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
    """The network as an ONNX graph in one piece, its batch axis open, and height and width where any_size says so.

    images_nchw: at least two, at the size that stays where sides are fixed. same_size: whether a mask has its
    image's. The graph names its open axes batch, height and width, has no batch normalisation that a convolution could
    have absorbed, and says of each node which module it was.
    Raises JobError for an opset outside OPSETS; ModelRefused, with the place in the network, for what cannot be
    captured or written, for a frozen axis, and for adaptive pooling that would be wrong at other sizes.
    """
    if opset not in OPSETS:
        raise JobError(f"opset {opset} is not supported: write one of {OPSETS.start} to {OPSETS.stop - 1}")
    with _quiet():
        program = _program(network, images_nchw, any_size=any_size)
        _refuse_adaptive_pooling(program, any_size=any_size)
        model, program = _graph(program, images_nchw, opset, output_name)
    if opsets(model).get("") != opset:
        raise ModelRefused(
            f"the graph could not be converted to opset {opset}, and has {opsets(model).get('')}: export with that one"
        )
    if found := refusals(model):
        raise ModelRefused(f"the exported graph would be refused later: {'; '.join(found)}")
    _name_axes(model, any_size=any_size, same_size=same_size)
    notes = _batch_norms(model)
    return Captured(model, program, tuple(notes))


def without_traces(model: ModelProto) -> None:
    """Removes what the exporter noted on nodes, except the module each one was."""
    for node in model.graph.node:
        kept = [(entry.key, entry.value) for entry in node.metadata_props if entry.key == _KEPT]
        del node.metadata_props[:]
        for key, value in kept:
            node.metadata_props.add(key=key, value=value)
    # Sizes inside the graph are PyTorch's formulas; every reader infers its own.
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def _program(network: Any, images_nchw: Array, *, any_size: bool) -> Any:
    import torch

    axes = {number: name for number, name in AXES.items() if name == "batch" or any_size}
    # Sides are left to PyTorch: U-Nets accept multiples only, which a named range cannot say.
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
        raise JobError(f"exporting needs onnxscript: run `pip install unet-batch[export]` ({error})") from error
    except Exception as error:
        raise ModelRefused(conversion_problem(error)) from error
    model: ModelProto = exported.model_proto
    return model, exported.exported_program


def _refuse_adaptive_pooling(program: Any, *, any_size: bool) -> None:
    """Refuses what PyTorch's exporter writes wrongly (a size that is baked in) or as thousands of nodes."""
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


def _name_axes(model: ModelProto, *, any_size: bool, same_size: bool) -> None:
    """Calls open axes batch, height and width. Raises ModelRefused where one of them is not open after all."""
    source, target = model.graph.input[0].type.tensor_type.shape.dim, model.graph.output[0].type.tensor_type.shape.dim
    names: dict[str, str] = {}
    for number, name in AXES.items():
        wanted = name == "batch" or any_size
        symbol = source[number].dim_param
        if wanted and not symbol:
            raise ModelRefused(f"the graph's {name} axis is frozen at {source[number].dim_value}")
        if symbol:
            names[symbol] = name
            source[number].dim_param = name
    sides = dict(zip(range(len(target) - 2, len(target)), ("height", "width"), strict=True))
    for number, dim in enumerate(target):
        if dim.dim_param and same_size and number in sides:
            dim.dim_param = sides[number]  # PyTorch's formula also says what happens at sizes that do not fit
        elif dim.dim_param:
            dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)
    if not target[0].dim_param:
        raise ModelRefused(f"the output's batch axis is frozen at {target[0].dim_value}")


def _batch_norms(model: ModelProto) -> list[str]:
    """Notes on batch normalisations that stay. Raises ModelRefused where one should not."""
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
    return [f"{len(kept)} batch normalisation(s) follow no convolution, and stay nodes of their own"] if kept else []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps PyTorch's own remarks to itself: what matters is raised, or is in the report."""
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
