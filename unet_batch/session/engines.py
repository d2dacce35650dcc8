"""What can run a model: the one table of engines and providers, and the functions that read it.

Knows names, precisions and options, and what an ONNX file says about its own precision. Opens no session and knows no
engine's library; `onnx` is imported only to look into a file.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_batch.errors import ContractError, JobError, ModelRefused
from unet_batch.model import graph
from unet_batch.model.model import Model
from unet_batch.spec import Engine, ModelSpec, Precision, SessionSpec


@dataclass(frozen=True, slots=True)
class Provider:
    """One way to run a model: a row of the table."""

    engine: Engine
    name: str
    """As `session.providers` calls it."""
    execution_provider: str
    """As ONNX Runtime calls it; empty for another engine."""
    gpu: bool
    """Whether an actor needs a GPU for it."""
    precisions: tuple[Precision, ...]
    options: frozenset[str] | None
    """What `session.provider_options` may set; None: whatever ONNX Runtime accepts."""
    arena: str | None
    """ONNX Runtime's name of its memory arena; None where it has none that can be emptied."""
    needs: str
    """What must be there for it to run, and what to do about it."""

    @property
    def label(self) -> str:
        """As rows, records and ladders name what really ran."""
        return self.name if self.engine == "onnxruntime" else self.engine


_FILE_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

# Options that a job may set: names that the released parsers take, without those that this package decides (device,
# precision, memory, cuDNN's search), those that hold addresses, and CUDA graphs, which need fixed addresses and one
# thread.
TABLE = (
    Provider(
        engine="onnxruntime",
        name="cpu",
        execution_provider="CPUExecutionProvider",
        gpu=False,
        precisions=_FILE_PRECISIONS,
        options=frozenset(),
        arena="cpu:0",
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
        needs="it needs an NVIDIA driver for CUDA 13 and its libraries: run `pip install unet-batch[cuda]`, or write "
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
        needs="it needs an NVIDIA driver for CUDA 13, its libraries and TensorRT 10: run `pip install unet-batch[cuda] "
        "'tensorrt-cu13>=10,<11'`, or write session.providers: [cuda]",
    ),
    Provider(
        engine="openvino",
        name="cpu",
        execution_provider="",
        gpu=False,
        precisions=("fp32", "fp16", "bf16", "int8"),
        options=frozenset(),
        arena=None,
        needs="run `pip install unet-batch[openvino]`, or write model.engine: onnxruntime",
    ),
)
"""A new row needs its name in the `Literal`s of `spec.py` as well; nothing else lists engines or providers."""

_HELD_BY: dict[Precision, tuple[str, ...]] = {
    "fp32": ("fp32",),
    "tf32": ("fp32",),
    "bf16": ("fp32", "bf16"),
    "fp16": ("fp16",),
    "int8": ("int8",),
}
"""Which files a precision runs: tf32 and bf16 are arithmetic on fp32 weights, the others are what the file is."""


def find(engine: Engine, name: str) -> Provider:
    """The row of a provider. ONNX Runtime's own names are taken too, and one that no row has becomes a row here.

    Raises JobError where the engine has no such provider.
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
        needs=f"it needs an ONNX Runtime that was built with {name}, and what that one needs",
    )


def on_gpu(provider: str) -> bool:
    """Whether a provider, by its name in a job file or on a session, wants a GPU of its own."""
    return any(row.gpu for row in TABLE if provider in (row.name, row.execution_provider, row.label))


def on_cpu(provider: str) -> bool:
    """Whether it is the processor that runs. Of a provider that no row has, neither is known."""
    return any(not row.gpu for row in TABLE if provider in (row.name, row.execution_provider, row.label))


def check_choice(model: ModelSpec, session: SessionSpec) -> None:
    """Raises JobError, in one sentence, where engine, providers, precision and options do not go together."""
    for name in session.providers:
        row = find(model.engine, name)
        if model.precision not in row.precisions:
            able = [f"{r.engine} on {r.name}" for r in TABLE if model.precision in r.precisions]
            raise JobError(
                f"model.precision {model.precision} is not for {row.engine} on {row.name}, which takes "
                f"{', '.join(row.precisions)}; {model.precision} runs with {', '.join(able)}"
            )
        _check_options(row, session.provider_options.get(name, {}))
    if session.custom_ops and model.engine != "onnxruntime":
        raise JobError(f"session.custom_ops are ONNX Runtime's, and model.engine is {model.engine}: leave them out")


def check_model(row: Provider, model: Model) -> None:
    """Raises JobError where a provider cannot be told the sizes of this model's batches."""
    if row.name != "tensorrt":
        return
    if model.tile_hw is None:
        raise JobError("TensorRT builds its engine for one size of tile, and this model takes any: write tiling.size")
    if model.batch is None and set(model.input_name) & set(":,"):
        raise JobError(
            f"TensorRT's profiles cannot name the input {model.input_name}: rename it without a colon or comma, or "
            "write session.providers: [cuda]"
        )


def fingerprint_marks(session: SessionSpec) -> dict[str, object]:
    """What of a session may change results in ways that nobody here can know; empty for nearly every job.

    Raises JobError for a library of operators that cannot be read.
    """
    strangers = {
        name: options
        for name, options in sorted(session.provider_options.items())
        if options and find("onnxruntime", name).options is None
    }
    marks: dict[str, object] = {"provider_options": strangers} if strangers else {}
    if session.custom_ops:
        marks["custom_ops"] = [[path.rpartition("/")[2], _library_digest(path)] for path in session.custom_ops]
    return marks


def _library_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise JobError(f"session.custom_ops: {path} cannot be read: {error.strerror or error}") from error


def check_file(data: bytes, precision: Precision, uri: str) -> None:
    """Raises ContractError where an ONNX file is of another precision, keeps weights elsewhere, or cannot be read."""
    held = file_precision(data, uri)
    if held not in _HELD_BY[precision]:
        wanted = ", ".join(name for name, files in _HELD_BY.items() if held in files)
        raise ContractError(
            f"{uri} is a model in {held}, but model.precision says {precision}: "
            f"write model.precision: {wanted}, or take a file in {_HELD_BY[precision][0]}"
        )


def file_precision(data: bytes, uri: str = "the model") -> str:
    """fp32, fp16, bf16 or int8: what the nodes and weights of an ONNX file are (`graph.precision`).

    Raises ContractError where the bytes are no model, and where weights lie in another file (OpenVINO would read it,
    relative to the working directory).
    """
    try:
        model = graph.read(data, uri)
    except ModelRefused as error:
        raise ContractError(f"{uri} cannot be opened as an ONNX model: {error}") from error
    if outside := graph.external(model):
        raise ContractError(f"{uri} keeps {outside[0] or 'a tensor'} in another file: export it as one file")
    return graph.precision(model)


def _check_options(row: Provider, options: dict[str, Any]) -> None:
    """Raises JobError for an option that the row's provider does not take, naming the nearest."""
    for name in options if row.options is not None else ():
        if name in (row.options or ()):
            continue
        near = difflib.get_close_matches(name, row.options or (), n=1, cutoff=0.8)
        known = ", ".join(sorted(row.options or ())) or "none"
        hint = f"did you mean {near[0]}?" if near else f"a job may set: {known}"
        raise JobError(f"session.provider_options.{row.name}.{name} is not for a job to set; {hint}")
