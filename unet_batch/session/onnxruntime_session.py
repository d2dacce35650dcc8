"""ONNX Runtime sessions on exactly the requested provider.

The owner of ONNX Runtime: its options, providers, libraries and installation. Importing this module does not import
ONNX Runtime.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import io
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from unet_batch.errors import ContractError, JobError, OutOfMemory, ProviderMissing, UnetBatchError
from unet_batch.model.model import Model
from unet_batch.model.packed import FINITE
from unet_batch.session import gpu
from unet_batch.session.engines import Provider
from unet_batch.session.failures import cannot_open, cannot_run, no_memory
from unet_batch.session.machine import cache_folder, processor_name, report_nothing
from unet_batch.session.onnxruntime_options import provider_options
from unet_batch.session.session import (
    Array,
    Device,
    as_nkhw,
    batch_name,
    check_tiles,
    in_model_layout,
    mask_nonfinite_tiles,
)
from unet_batch.spec import Precision, SessionSpec

log = logging.getLogger(__name__)

# Operators whose time grows with the pixels. Shape arithmetic (Shape, Gather, Concat) may run on the CPU.
HEAVY = frozenset(
    """
    Conv ConvTranspose FusedConv ConvInteger QLinearConv MatMul Gemm MaxPool AveragePool Resize Upsample DepthToSpace
    BatchNormalization InstanceNormalization GroupNormalization LayerNormalization Relu Sigmoid Softmax ArgMax
    """.split()  # noqa: SIM905 - a column of 19 quoted names reads worse
)

RawTensor = tuple[str, str, tuple[int | str | None, ...]]


class OnnxRuntimeSession:
    """A session of ONNX Runtime."""

    def __init__(
        self,
        data: bytes,
        model: Model,
        spec: SessionSpec,
        *,
        device: Device,
        provider: Provider,
        precision: Precision = "fp32",
    ) -> None:
        """Raises ProviderMissing, ContractError, JobError, OutOfMemory."""
        check_installation()
        self.model = model
        self.provider: str = provider.label
        self._arena = provider.arena
        # A GPU runs one batch at a time, or two would hold its memory; other threads lay theirs out meanwhile.
        self._turn: contextlib.AbstractContextManager[object] = (
            threading.Lock() if provider.gpu else contextlib.nullcontext()
        )
        self._ort = _open(data, model, spec, device=device, provider=provider, precision=precision)
        self._wanted = [model.output_name]
        if model.contract.output.decided and FINITE in {output.name for output in self._ort.get_outputs()}:
            self._wanted.append(FINITE)
        self.device_name = gpu.ask_driver().name if provider.gpu else processor_name()

    def run(self, tiles: Array) -> Array:
        check_tiles(self.model, tiles)
        try:
            return self._attempt(tiles)
        except OutOfMemory as error:
            if self._arena is None:
                raise
            log.info("trying once more with an emptied arena: %s", error)
        # The arena keeps the memory of a failed run. A second run that shrinks the arena frees it, even if it fails
        # too; otherwise smaller batches would fail as well.
        return self._attempt(tiles, shrink=True)

    def _attempt(self, tiles: Array, *, shrink: bool = False) -> Array:
        import onnxruntime as ort

        options = ort.RunOptions()
        if shrink:  # makes a run 25 % slower, so only after a failure
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", self._arena)
        try:
            feed = {self.model.input_name: in_model_layout(self.model, tiles)}
            with self._turn:
                output, *finite = self._ort.run(self._wanted, feed, options)
            result = as_nkhw(self.model, output, len(tiles))
            return mask_nonfinite_tiles(result, finite[0]) if finite else result
        except UnetBatchError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no class below Exception
            raise cannot_run(error, batch_name(tiles)) from error


def describe(
    data: bytes, uri: str, custom_ops: Sequence[str] = ()
) -> tuple[list[RawTensor], list[RawTensor], dict[str, str]]:
    """Inputs, outputs and metadata of an ONNX file, opened on one CPU thread and not optimised.

    A tensor is its name, ONNX's type such as `tensor(float)`, and its shape; () if none is declared.
    custom_ops: libraries with operators of the file.
    Raises ContractError if the bytes are not a model or refer to external data.
    """
    report_nothing()
    import onnxruntime as ort

    check_installation()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    _add_custom_ops(options, custom_ops)
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no class below Exception
        if no_memory(error):
            raise OutOfMemory(f"{uri} does not fit into memory: {error}") from error
        raise ContractError(f"{uri} cannot be opened as an ONNX model (one file, no external data): {error}") from error
    inputs = [(t.name, t.type, tuple(t.shape)) for t in session.get_inputs()]
    outputs = [(t.name, t.type, tuple(t.shape)) for t in session.get_outputs()]
    return inputs, outputs, dict(session.get_modelmeta().custom_metadata_map)


def check_installation(folder: Path | None = None) -> None:
    """Raise ProviderMissing unless exactly one distribution owns the `onnxruntime` folder.

    All onnxruntime wheels install the same folder: of two, the last one is used silently, and removing one breaks the
    other. folder: site-packages to check; default: the one that `import onnxruntime` would use.
    """
    if folder is None:
        found = importlib.util.find_spec("onnxruntime")
        folder = Path(found.origin).parent.parent if found and found.origin else Path()
    # By folder names: reading the names of all distributions takes 0.1 s in every actor.
    own = [path for path in folder.glob("*-info") if path.name.lower().startswith("onnxruntime")]
    owners = sorted(
        dist.name
        for dist in map(Distribution.at, own)
        if re.fullmatch(r"onnxruntime([-_.].*)?", dist.name, re.IGNORECASE)
        and any(file.parts[:2] == ("onnxruntime", "capi") for file in dist.files or ())
    )
    if len(owners) != 1:
        names = " ".join(owners) or "onnxruntime onnxruntime-gpu"
        raise ProviderMissing(
            f"exactly one distribution must own {folder / 'onnxruntime'}, but {len(owners)} do ({', '.join(owners)}): "
            f"run `pip uninstall -y {names}`, then install unet-batch again"
        )


def _open(
    data: bytes, model: Model, spec: SessionSpec, *, device: Device, provider: Provider, precision: Precision
) -> Any:
    """An `onnxruntime.InferenceSession` that runs only on the provider."""
    report_nothing()
    import onnxruntime as ort

    options = ort.SessionOptions()
    # The default number of threads is that of the host's cores and ignores containers; a GPU session needs one.
    options.intra_op_num_threads = 1 if provider.gpu else device.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Several actors share a machine: threads that spin while they wait for a core halve the speed of all actors.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    _add_custom_ops(options, spec.custom_ops)
    hint = ""
    try:
        with contextlib.ExitStack() as building:
            building.enter_context(_quiet())
            if provider.gpu:
                if provider.name == "tensorrt":
                    # Without this variable TensorRT computes fp32 in TF32. It is read once per process.
                    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
                hint = _preload(tensorrt=provider.name == "tensorrt")
            for name, chosen in provider_options(
                model,
                spec,
                device=device,
                provider=provider,
                precision=precision,
                engines=engine_cache(model, precision),
            ):
                if "trt_engine_cache_path" in chosen:
                    building.enter_context(_one_builder(Path(chosen["trt_engine_cache_path"])))
                # `providers=[...]` would silently fall back to the CPU; add_provider raises.
                options.add_provider(name, chosen)
            session = ort.InferenceSession(data, options, enable_fallback=0)
    except UnetBatchError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no class below Exception
        raise cannot_open(error, provider.label, hint=hint) from error
    running = session.get_providers()[0]
    if running != provider.execution_provider:
        raise ProviderMissing(f"{provider.execution_provider} was requested, but ONNX Runtime chose {running}")
    others = elsewhere(session, provider.execution_provider)
    heavy = {name: count for name, count in others.items() if name in HEAVY}
    if heavy:
        raise ProviderMissing(f"{running} does not run {_counted(heavy)}: export the model with another opset")
    if others and provider.gpu:
        log.warning("%s does not run %s: tensors are copied to and from another provider", running, _counted(others))
    return session


def elsewhere(session: Any, execution_provider: str) -> Counter[str]:
    """Operators that run on another provider. With a GPU, each of them needs copies between host and device."""
    return Counter(
        node.op_type
        for graph in session.get_provider_graph_assignment_info()
        if graph.ep_name != execution_provider
        for node in graph.get_nodes()
    )


def _counted(operators: Mapping[str, int]) -> str:
    """`Conv x3, Resize x1`."""
    return ", ".join(f"{name} x{count}" for name, count in sorted(operators.items()))


def engine_cache(model: Model, precision: Precision) -> Path:
    """The folder of a model's built engines: `$XDG_CACHE_HOME/unet-batch/tensorrt/…`, by model, precision and version
    of ONNX Runtime (files for other GPUs and TensorRT versions have other names)."""
    return cache_folder("tensorrt") / f"{model.sha256[:32]}-{precision}-{version()}"


def version() -> str:
    """The version of ONNX Runtime; built engines and verdicts depend on it."""
    report_nothing()
    import onnxruntime as ort

    return str(ort.__version__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress ONNX Runtime's output on stderr while a provider loads: our error has the reason."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)  # the default; the current value cannot be read


@contextlib.contextmanager
def _one_builder(folder: Path) -> Iterator[None]:
    """A lock: one process per machine builds an engine, the others wait and use it. Raises JobError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "building.lock").open("w")
    except OSError as error:
        raise JobError(f"TensorRT's engines cannot be stored in {folder}: {error.strerror or error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def _preload(*, tensorrt: bool) -> str:
    """Load the libraries of a provider, once per process; returns the error texts."""
    import onnxruntime as ort

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # stdout is reserved for the command's JSON line
        ort.preload_dlls()  # it prints errors
    return " ".join([printed.getvalue(), *(gpu.load_tensorrt() if tensorrt else [])]).strip()


def _add_custom_ops(options: Any, libraries: Sequence[str]) -> None:
    """Register libraries of operators. Raises JobError for a library that is missing or cannot be loaded."""
    for library in libraries:
        path = os.path.abspath(library)
        if not os.path.isfile(path):
            raise JobError(f"session.custom_ops: there is no library {path} on this machine")
        try:
            options.register_custom_ops_library(path)
        except Exception as error:  # ONNX Runtime's errors share no class below Exception
            reason = " ".join(str(error).split())
            raise JobError(
                f"session.custom_ops: {path} is not a library of operators for ONNX Runtime: {reason}"
            ) from error
