"""Options of ONNX Runtime's providers, as pure functions: names and values that the released parsers accept.

From the job's session section and the model's sizes, without importing ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path

from unet_batch.model.model import Model
from unet_batch.session import gpu
from unet_batch.session.engines import Provider, find
from unet_batch.session.session import Device
from unet_batch.spec import Precision, SessionSpec


def provider_options(
    model: Model, spec: SessionSpec, *, device: Device, provider: Provider, precision: Precision, engines: Path
) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers in order, each with its options.

    engines: folder of TensorRT's built engines. The list is empty for the CPU. After TensorRT comes CUDA, for casts and
    shapes; heavy operators must not run there.
    """
    asked = spec.provider_options.get(provider.name) or spec.provider_options.get(provider.execution_provider) or {}
    chosen = {name: _text(value) for name, value in asked.items()}
    if provider.name == "cpu":
        return []
    if provider.name == "cuda":
        return [(provider.execution_provider, cuda_options(spec, device, precision=precision) | chosen)]
    if provider.name == "tensorrt":
        cuda = cuda_options(spec, device, precision="fp32")
        ours = tensorrt_options(
            model, spec, precision=precision, memory_bytes=_arena_bytes(spec, device), engines=engines
        )
        return [
            (provider.execution_provider, ours | chosen),
            (find("onnxruntime", "cuda").execution_provider, cuda),
        ]
    return [(provider.execution_provider, chosen)]


def tensorrt_options(
    model: Model, spec: SessionSpec, *, precision: Precision, memory_bytes: int | None, engines: Path
) -> dict[str, str]:
    """Options of the TensorRT provider: one profile for all batch sizes, and a cache of built engines.

    Without a profile, every new batch size rebuilds the engine, which takes minutes. memory_bytes: of the workspace.
    engines: folder for engines and timings. The model has passed `engines.check_model`.
    """
    options = {
        "device_id": "0",  # Ray shows an actor its own GPU only
        "trt_fp16_enable": _text(precision == "fp16"),
        "trt_engine_cache_enable": _text(True),
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": _text(True),
        "trt_timing_cache_path": str(engines),
    }
    if memory_bytes is not None:
        options["trt_max_workspace_size"] = str(memory_bytes)
    if model.batch is None and model.tile_hw is not None:  # a file that fixes its batch axis needs no profile
        layout, channels = model.contract.input.layout, model.contract.input.channels
        for which, batch in (("min", 1), ("opt", spec.batch_max), ("max", spec.batch_max)):
            sides = (channels, *model.tile_hw) if layout == "nchw" else (*model.tile_hw, channels)
            shape = "x".join(str(n) for n in (batch, *sides))
            options[f"trt_profile_{which}_shapes"] = f"{model.input_name}:{shape}"
    return options


def cuda_options(spec: SessionSpec, device: Device, *, precision: Precision) -> dict[str, str]:
    """Options of the CUDA provider. Its parser raises on unknown names."""
    chosen = {
        "device_id": "0",  # Ray shows an actor its own GPU only
        "cudnn_conv_algo_search": spec.cudnn_search,  # DEFAULT is the slow fallback list since ONNX Runtime 1.20
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",  # the other strategy doubles, and never frees memory
        "do_copy_in_default_stream": "1",  # 0 is documented as racy
        "prefer_nhwc": "1",
        "use_tf32": str(int(precision == "tf32")),
        "enable_cuda_graph": "0",  # needs fixed addresses and one thread
    }
    memory = _arena_bytes(spec, device)
    return chosen if memory is None else {**chosen, "gpu_mem_limit": str(memory)}


def _arena_bytes(spec: SessionSpec, device: Device) -> int | None:
    """Bytes of GPU memory that a session may use; None if the size of the memory is unknown.

    Of a share of the GPU, only what is free: other processes may hold the rest of the card, and a limit above that
    would never be met.
    """
    memory = device.gpu_memory_bytes
    if memory is None and device.gpu_share is not None:
        total = gpu.ask_driver().memory_bytes
        memory = int(device.gpu_share * total) if total else None
        free = gpu.free_memory() if memory is not None else None
        if memory is not None and free is not None:
            memory = min(memory, free)
    return None if memory is None else int(spec.gpu_memory_share * memory)


def _text(value: object) -> str:
    """An option as text. True and False are written as words: TensorRT's parser does not accept 1 and 0."""
    return str(value)
