"""The table of engines and providers, and functions that read it.

Names, precisions and options, and the precision of an ONNX file. Opens no session and imports no engine; `onnx` is
imported only to read a file.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_batch import extras
from unet_batch.errors import ContractError, JobError, ModelRefused
from unet_batch.model import graph
from unet_batch.model.model import Model
from unet_batch.spec import Engine, ModelSpec, Precision, SessionSpec


@dataclass(frozen=True, slots=True)
class Provider:
    """One way to run a model: a row of the table."""

    engine: Engine
    name: str
    """Name in `session.providers`."""
    execution_provider: str
    """Name in ONNX Runtime; empty for other engines."""
    gpu: bool
    """Whether an actor with this provider needs a GPU."""
    precisions: tuple[Precision, ...]
    options: frozenset[str] | None
    """Keys allowed in `session.provider_options`; None: all that ONNX Runtime accepts."""
    arena: str | None
    """ONNX Runtime's name of the memory arena; None if there is none that can be shrunk."""
    session: str
    """Module and class of its sessions, `module:Class`; imported when a session is opened."""
    onednn: bool
    """Whether oneDNN multiplies 8-bit numbers: with its own environment variable, and perhaps with saturation."""
    needs: str
    """Requirements, and what to do if they are missing."""

    @property
    def label(self) -> str:
        """The name of the provider in rows, records and ladders."""
        return self.name if self.engine == "onnxruntime" else self.engine


_ONNXRUNTIME = "unet_batch.session.onnxruntime_session:OnnxRuntimeSession"
_FILE_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

# Options that a job may set: names that the released parsers accept, without those that this package sets (device,
# precision, memory, cuDNN's search), those with addresses, and CUDA graphs, which need fixed addresses and one thread.
TABLE = (
    Provider(
        engine="onnxruntime",
        name="cpu",
        execution_provider="CPUExecutionProvider",
        gpu=False,
        precisions=_FILE_PRECISIONS,
        options=frozenset(),
        arena="cpu:0",
        session=_ONNXRUNTIME,
        onednn=False,
        needs="it is part of ONNX Runtime: install unet-batch again",
    ),
    Provider(
        engine="onnxruntime",
        name="cuda",
        execution_provider="CUDAExecutionProvider",
        gpu=True,
        precisions=("fp32", "tf32", "fp16", "int8"),
        options=frozenset(
            """
            arena_extend_strategy cudnn_conv1d_pad_to_nc1d cudnn_conv_use_max_workspace do_copy_in_default_stream
            fuse_conv_bias prefer_nhwc use_ep_level_unified_stream
            """.split()  # noqa: SIM905 - a column of quoted names reads worse
        ),
        arena="gpu:0",
        session=_ONNXRUNTIME,
        onednn=False,
        needs=f"it needs an NVIDIA driver for CUDA 13 and its libraries: run {extras.command('cuda')}, or write "
        "session.providers: [cpu]",
    ),
    Provider(
        engine="onnxruntime",
        name="tensorrt",
        execution_provider="TensorrtExecutionProvider",
        gpu=True,
        precisions=("fp32", "fp16"),
        options=frozenset(
            """
            trt_builder_optimization_level trt_engine_cache_path trt_engine_cache_prefix trt_max_workspace_size
            trt_timing_cache_path
            """.split()  # noqa: SIM905
        ),
        arena="gpu:0",
        session=_ONNXRUNTIME,
        onednn=False,
        needs=f"it needs an NVIDIA driver for CUDA 13, its libraries and TensorRT 10: run {extras.command('cuda')} and "
        "`pip install 'tensorrt-cu13>=10,<11'`, or write session.providers: [cuda]",
    ),
    Provider(
        engine="openvino",
        name="cpu",
        execution_provider="",
        gpu=False,
        precisions=("fp32", "fp16", "bf16", "int8"),
        options=frozenset(),
        arena=None,
        session="unet_batch.session.openvino_session:OpenVinoSession",
        onednn=True,
        needs=f"run {extras.command('openvino')}, or write model.engine: onnxruntime",
    ),
)
"""A new row also needs its name in the `Literal`s of `spec.py`."""

_HELD_BY: dict[Precision, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "tf32": ("fp32",),
    "bf16": ("fp32", "bf16"),
    "fp16": ("fp16",),
    "int8": ("int8",),
}
"""Precision → precisions of the file: tf32 and bf16 are arithmetic on fp32 weights, the others describe the file."""


def find(engine: Engine, name: str) -> Provider:
    """The row of a provider; also by ONNX Runtime's name, for which a row is made if the table has none.

    Raises JobError if the engine has no such provider.
    """
    rows = [row for row in TABLE if row.engine == engine]
    for row in rows:
        if name in (row.name, row.execution_provider):
            return row
    if engine != "onnxruntime":
        known = ", ".join(row.name for row in rows)
        raise JobError(f"model.engine {engine} does not run on {name}: write session.providers: [{known}]")
    return Provider(
        engine="onnxruntime",
        name=name,
        execution_provider=name,
        gpu=False,
        precisions=_FILE_PRECISIONS,
        options=None,
        arena=None,
        session=_ONNXRUNTIME,
        onednn=False,
        needs=f"it needs an ONNX Runtime built with {name}, and that provider's libraries",
    )


def on_gpu(provider: str) -> bool:
    """Whether a provider, by its name in a job file or of a session, needs a GPU."""
    return any(row.gpu for row in TABLE if provider in (row.name, row.execution_provider, row.label))


def on_cpu(provider: str) -> bool:
    """Whether the provider runs on the CPU. Of a provider without a row it is not known: both are False."""
    return any(not row.gpu for row in TABLE if provider in (row.name, row.execution_provider, row.label))


def check_choice(model: ModelSpec, session: SessionSpec) -> None:
    """Raise JobError if engine, providers, precision and options do not match each other."""
    for name in session.providers:
        row = find(model.resolved_engine, name)
        if model.precision not in row.precisions:
            able = [f"{r.engine} on {r.name}" for r in TABLE if model.precision in r.precisions]
            raise JobError(
                f"{row.engine} on {row.name} does not support model.precision {model.precision}, only "
                f"{', '.join(row.precisions)}; {model.precision} runs with {', '.join(able)}"
            )
        _check_options(row, session.provider_options.get(name, {}))
    if session.custom_ops and model.resolved_engine != "onnxruntime":
        raise JobError(f"session.custom_ops work only in ONNX Runtime, not in model.engine {model.engine}: remove them")


def check_model(row: Provider, model: Model) -> None:
    """Raise JobError if a provider cannot be configured for the sizes of this model."""
    if row.name != "tensorrt":
        return
    if model.tile_hw is None:
        raise JobError("TensorRT builds its engine for one tile size, and this model takes any: write tiling.size")
    if model.batch is None and set(model.input_name) & set(":,"):
        raise JobError(
            f"TensorRT's profiles do not allow the input name {model.input_name}: remove its colon or comma, or "
            "write session.providers: [cuda]"
        )


def fingerprint_marks(session: SessionSpec) -> dict[str, object]:
    """Session settings that may change results in unknown ways, for the fingerprint; empty for most jobs.

    Raises JobError if a library of operators cannot be read.
    """
    foreign = {
        name: options
        for name, options in sorted(session.provider_options.items())
        if options and find("onnxruntime", name).options is None
    }
    marks: dict[str, object] = {"provider_options": foreign} if foreign else {}
    if session.custom_ops:
        marks["custom_ops"] = [[path.rpartition("/")[2], _library_digest(path)] for path in session.custom_ops]
    return marks


def _library_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise JobError(f"session.custom_ops: {path} cannot be read: {error.strerror or error}") from error


def check_file(data: bytes, precision: Precision, uri: str) -> None:
    """Raise ContractError if an ONNX file has another precision, has external weights, or cannot be read."""
    held = file_precision(data, uri)
    if held not in _HELD_BY[precision]:
        wanted = ", ".join(name for name, files in _HELD_BY.items() if held in files)
        raise ContractError(
            f"{uri} is a model in {held}, but model.precision says {precision}: "
            f"write model.precision: {wanted}, or use a file in {_HELD_BY[precision][0]}"
        )


def file_precision(data: bytes, uri: str = "the model") -> str:
    """fp32, fp16, bf16 or int8: the precision of an ONNX file (`graph.precision`).

    Raises ContractError if the bytes are not a model, or if weights are in another file (OpenVINO would read it,
    relative to the working directory).
    """
    try:
        model = graph.read(data, uri)
    except ModelRefused as error:
        raise ContractError(f"{uri} cannot be opened as an ONNX model: {error}") from error
    if outside := graph.external(model):
        raise ContractError(f"{uri} stores {outside[0] or 'a tensor'} in another file: export it as one file")
    return graph.precision(model)


def _check_options(row: Provider, options: dict[str, Any]) -> None:
    """Raise JobError for an option that the provider does not take; the message names the nearest."""
    for name in options if row.options is not None else ():
        if name in (row.options or ()):
            continue
        near = difflib.get_close_matches(name, row.options or (), n=1, cutoff=0.8)
        known = ", ".join(sorted(row.options or ())) or "none"
        hint = f"did you mean {near[0]}?" if near else f"a job may set: {known}"
        raise JobError(f"session.provider_options.{row.name}.{name} cannot be set by a job; {hint}")
