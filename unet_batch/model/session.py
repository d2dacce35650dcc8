"""ONNX Runtime sessions that run where they were asked to run, or say why not.

Knows ONNX Runtime (and is the only module that does), providers, and how their failures read. Knows nothing of
images, units, batch sizes or storage. Importing this module imports no ONNX Runtime.

Arrays: N tiles, C channels, K classes, H and W pixels.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
import logging
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from unet_batch.errors import ContractError, OutOfMemory, ProviderMissing, ShapeMismatch, UnetBatchError
from unet_batch.model.failures import cannot_open, cannot_run, no_memory

if TYPE_CHECKING:
    from unet_batch.model.contract import Model
    from unet_batch.spec import SessionSpec

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Provider = Literal["cpu", "cuda"]

EXECUTION_PROVIDERS: dict[Provider, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# Operators that cost time per pixel. Shape arithmetic (Shape, Gather, Concat) belongs on the CPU and is not listed.
HEAVY = frozenset(
    """
    Conv ConvTranspose FusedConv ConvInteger QLinearConv MatMul Gemm MaxPool AveragePool Resize Upsample DepthToSpace
    BatchNormalization InstanceNormalization GroupNormalization LayerNormalization Relu Sigmoid Softmax ArgMax
    """.split()  # noqa: SIM905 - a column of 19 quoted names reads worse
)


@dataclass(frozen=True, slots=True)
class Device:
    """What an actor was given to run a session on."""

    threads: int
    """Threads of a session on the CPU, at least 1."""
    gpu_memory_bytes: int | None = None
    """This actor's part of the GPU's memory; None on the CPU, and where only the share is known."""
    gpu_share: float | None = None
    """This actor's share of the GPU, for actors that do not know its memory: the driver is asked. None: no limit."""


class Session(Protocol):
    """Runs one model. The fake and the real one pass the same suite, `tests/contracts/session_suite.py`."""

    @property
    def provider(self) -> str:
        """What really runs: `cpu` or `cuda`."""

    @property
    def device_name(self) -> str:
        """The processor or GPU, as its maker calls it."""

    @property
    def model(self) -> Model:
        """The model that runs."""

    def run(self, tiles: Array) -> Array:
        """Scores (N, H, W, C) tiles of the contract's dtype; safe to call from several threads.

        Returns float32 (N, K, h, w), contiguous and owned by the caller; label maps are (N, 1, h, w). h and w differ
        from H and W where the model returns smaller masks.
        Raises ShapeMismatch, OutOfMemory, SessionBroken, or UnetBatchError where the model itself fails.
        """


def open_session(data: bytes, model: Model, spec: SessionSpec, device: Device) -> Session:
    """The session of the first provider in `spec.providers` that works.

    data: the ONNX file, never a path: from bytes ONNX Runtime refuses every reference to external data.
    Raises ProviderMissing where none works; OutOfMemory, SessionBroken; ContractError where the file cannot be opened.
    """
    check_installation()
    reasons: list[str] = []
    for provider in spec.providers:
        try:
            session = _OrtSession(data, model, spec, device=device, provider=provider)
        except ProviderMissing as error:
            reasons.append(str(error))
            continue
        if reasons:
            log.warning("the session runs on %s, because %s", provider, "; ".join(reasons))
        return session
    raise ProviderMissing("; ".join(reasons))


def warm(session: Session, tile_hw: tuple[int, int], batches: Iterable[int]) -> None:
    """Runs each batch size once on zeros, because the first run of a shape is slow and must not be timed."""
    spec = session.model.contract.input
    for size in batches:
        session.run(np.zeros((size, *tile_hw, spec.channels), spec.dtype))


def check_tiles(model: Model, tiles: Array) -> None:
    """Raises ShapeMismatch where an array is not a batch that this model takes; a batch of 0 is none."""
    spec = model.contract.input
    if tiles.ndim != 4 or tiles.dtype != np.dtype(spec.dtype) or tiles.shape[3] != spec.channels or not len(tiles):
        raise ShapeMismatch(
            f"the model takes {spec.dtype} tiles of shape (N, H, W, {spec.channels}) with N ≥ 1, "
            f"not {tiles.dtype} of shape {tiles.shape}"
        )
    height, width = tiles.shape[1:3]
    if model.tile_hw not in (None, (height, width)):
        raise ShapeMismatch(f"every tile of this model is {model.tile_hw[0]}x{model.tile_hw[1]}, not {height}x{width}")
    if model.tile_hw is None and (height % spec.multiple or width % spec.multiple):
        raise ShapeMismatch(f"tiles must be a multiple of {spec.multiple} on each side, not {height}x{width}: pad them")
    if model.batch not in (None, len(tiles)):
        raise ShapeMismatch(f"the model's batch axis is fixed at {model.batch}, but {len(tiles)} tiles were sent")


def check_installation(folder: Path | None = None) -> None:
    """Raises ProviderMissing unless exactly one distribution owns the `onnxruntime` folder.

    All onnxruntime wheels install the same folder: with two, the last one wins in silence, and removing either breaks
    the other. folder: site-packages to look into; left out, the one that `import onnxruntime` would use.
    """
    if folder is None:
        found = importlib.util.find_spec("onnxruntime")
        folder = Path(found.origin).parent.parent if found and found.origin else Path()
    owners = sorted(
        dist.name
        for dist in distributions(path=[str(folder)])
        if re.fullmatch(r"onnxruntime([-_.].*)?", dist.name, re.IGNORECASE)
        and any(file.parts[:2] == ("onnxruntime", "capi") for file in dist.files or ())
    )
    if len(owners) != 1:
        names = " ".join(owners) or "onnxruntime onnxruntime-gpu"
        raise ProviderMissing(
            f"exactly one distribution must own {folder / 'onnxruntime'}, but {len(owners)} do ({', '.join(owners)}): "
            f"run `pip uninstall -y {names}`, then install unet-batch again"
        )


RawTensor = tuple[str, str, tuple[int | str | None, ...]]


def describe(data: bytes, uri: str) -> tuple[list[RawTensor], list[RawTensor], dict[str, str]]:
    """Inputs, outputs and metadata of an ONNX file, opened on one CPU thread and not optimised.

    A tensor is its name, ONNX's type such as `tensor(float)`, and its shape; () where none is declared.
    Raises ContractError where the bytes are no model, or point to external data.
    """
    import onnxruntime as ort

    check_installation()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no class below Exception
        if no_memory(error):
            raise OutOfMemory(f"{uri} does not fit into memory: {error}") from error
        raise ContractError(f"{uri} cannot be opened as an ONNX model (one file, no external data): {error}") from error
    inputs = [(t.name, t.type, tuple(t.shape)) for t in session.get_inputs()]
    outputs = [(t.name, t.type, tuple(t.shape)) for t in session.get_outputs()]
    return inputs, outputs, dict(session.get_modelmeta().custom_metadata_map)


class _OrtSession:
    def __init__(self, data: bytes, model: Model, spec: SessionSpec, *, device: Device, provider: Provider) -> None:
        self.model = model
        self.provider: str = provider
        self._ort = _open(data, spec, device, provider=provider)
        self.device_name = _ask_driver().name if provider == "cuda" else _cpu_name()

    def run(self, tiles: Array) -> Array:
        check_tiles(self.model, tiles)
        try:
            return self._attempt(tiles)
        except OutOfMemory as error:
            log.info("trying once more with an emptied arena: %s", error)
        # The arena keeps what a failed run took, and a run that shrinks it gives that back even when it raises too:
        # without a second attempt, smaller batches would fail for the memory that this one holds.
        return self._attempt(tiles, shrink=True)

    def _attempt(self, tiles: Array, *, shrink: bool = False) -> Array:
        import onnxruntime as ort

        options = ort.RunOptions()
        if shrink:  # costs a quarter of a run's speed, so never in steady state
            where = "gpu:0" if self.provider == "cuda" else "cpu:0"
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", where)
        try:
            pixels = tiles if self.model.contract.input.layout == "nhwc" else tiles.transpose(0, 3, 1, 2)
            feed = {self.model.input_name: np.ascontiguousarray(pixels)}
            output = self._ort.run([self.model.output_name], feed, options)[0]
            return _as_nkhw(self.model, output, len(tiles))
        except UnetBatchError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no class below Exception
            what = f"batch of {len(tiles)} tiles of {tiles.shape[1]}x{tiles.shape[2]}"
            raise cannot_run(error, what) from error


def _open(data: bytes, spec: SessionSpec, device: Device, *, provider: Provider) -> Any:
    """An `onnxruntime.InferenceSession` that runs on the provider and on nothing else."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    # The default count follows the host's cores and ignores containers; a GPU session has nothing to spread.
    options.intra_op_num_threads = 1 if provider == "cuda" else device.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Several actors share a machine: a barrier that spins for a core it does not have halves everybody's speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    preloaded = ""
    try:
        if provider == "cuda":
            preloaded = _preload()
            # `providers=[...]` would fall back to the CPU in silence; add_provider raises.
            options.add_provider(EXECUTION_PROVIDERS["cuda"], _cuda_options(spec, device))
        session = ort.InferenceSession(data, options, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no class below Exception
        raise cannot_open(error, provider, hint=preloaded) from error
    running = session.get_providers()[0]
    if running != EXECUTION_PROVIDERS[provider]:
        raise ProviderMissing(f"{EXECUTION_PROVIDERS[provider]} was asked for, but ONNX Runtime chose {running}")
    problems = _placement_problems(session) if provider != "cpu" else []
    if problems:
        left = ", ".join(problems)
        raise ProviderMissing(f"{running} leaves {left} to the CPU: export the model with another opset")
    return session


def _as_nkhw(model: Model, output: Array, tiles: int) -> Array:
    """float32 (N, K, h, w), contiguous, from an output in the model's own layout. Raises ShapeMismatch."""
    rank = 3 if model.output_layout == "nhw" else 4
    planes = model.planes
    if output.ndim == rank:
        output = {"nchw": lambda a: a, "nhwc": lambda a: a.transpose(0, 3, 1, 2), "nhw": lambda a: a[:, None]}[
            model.output_layout
        ](output)
    if output.ndim != 4 or output.shape[:2] != (tiles, planes):
        raise ShapeMismatch(
            f"output {model.output_name} should be {model.output_layout} with {tiles} tiles and {planes} channel(s), "
            f"but has shape {output.shape}: correct output.layout or output.classes in the contract"
        )
    return np.ascontiguousarray(output, dtype=np.float32)


# What only a GPU can do ------------------------------------------------------------------------------------------


def _cuda_options(spec: SessionSpec, device: Device) -> dict[str, str]:
    """Options of the CUDA provider. Only names that its parser takes: it raises on any other."""
    options: Mapping[str, object] = {
        "device_id": 0,  # Ray shows an actor its own GPU only
        "cudnn_conv_algo_search": spec.cudnn_search,  # DEFAULT is the slow fallback list since ONNX Runtime 1.20
        "cudnn_conv_use_max_workspace": 1,
        "arena_extend_strategy": "kSameAsRequested",  # the other strategy doubles, and never gives back
        "do_copy_in_default_stream": 1,  # 0 is documented as racy
        "prefer_nhwc": 1,
        "use_tf32": int(spec.precision == "tf32"),
        "enable_cuda_graph": 0,  # needs fixed addresses and one thread
    }
    chosen = {name: str(value) for name, value in options.items()}
    memory = device.gpu_memory_bytes
    if memory is None and device.gpu_share is not None:
        total = _ask_driver().memory_bytes
        memory = int(device.gpu_share * total) if total else None
    if memory is not None:
        chosen["gpu_mem_limit"] = str(int(spec.gpu_memory_share * memory))
    return chosen


def _placement_problems(session: Any) -> list[str]:
    """Heavy operators that the CPU provider took, with their counts, e.g. `Conv x3`."""
    on_cpu = Counter(
        node.op_type
        for graph in session.get_provider_graph_assignment_info()
        if graph.ep_name == EXECUTION_PROVIDERS["cpu"]
        for node in graph.get_nodes()
    )
    return [f"{name} x{count}" for name, count in sorted(on_cpu.items()) if name in HEAVY]


@functools.cache
def _preload() -> str:
    """Loads CUDA's libraries from their wheels, once per process; returns what failed (ONNX Runtime only prints it)."""
    import onnxruntime as ort

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # stdout belongs to the command's one JSON line
        ort.preload_dlls()
    return printed.getvalue()


@dataclass(frozen=True, slots=True)
class _Gpu:
    name: str = "CUDA device"
    memory_bytes: int | None = None


def _ask_driver(library: str = "libcuda.so.1") -> _Gpu:
    """The first visible GPU, as the driver knows it (CUDA Driver API); a GPU of no known size where it is silent."""
    name, ordinal, version, total = ctypes.create_string_buffer(128), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    try:
        driver = ctypes.CDLL(library)
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(ordinal), 0)
            or driver.cuDeviceGetName(name, 128, ordinal)
            or driver.cuDriverGetVersion(ctypes.byref(version))
            or driver.cuDeviceTotalMem_v2(ctypes.byref(total), ordinal)
        )
    except (OSError, AttributeError):
        return _Gpu()
    return _Gpu() if failed else _Gpu(f"{name.value.decode(errors='replace')} (CUDA {version.value})", total.value)


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
