"""The NVIDIA GPU according to its driver, and TensorRT's libraries in their wheel.

Calls the CUDA driver directly, without an engine. Without a GPU or library the results say so; nothing is raised.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from pathlib import Path

TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
"""What the TensorRT provider of ONNX Runtime 1.31 links against."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first visible GPU."""

    name: str = "CUDA device"
    memory_bytes: int | None = None


def ask_driver(library: str = "libcuda.so.1") -> Gpu:
    """The first visible GPU (CUDA Driver API); of unknown size if the driver does not answer."""
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
        return Gpu()
    return Gpu() if failed else Gpu(f"{name.value.decode(errors='replace')} (CUDA {version.value})", total.value)


def free_memory(library: str = "libcuda.so.1") -> int | None:
    """Bytes of the first visible GPU that no process holds; None if the driver does not answer.

    Only a device context can tell: the process's own one, made for the question if there is none yet.
    """
    ordinal, free, total = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
    context, ended = ctypes.c_void_p(), ctypes.c_void_p()
    try:
        driver = ctypes.CDLL(library)
        if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(ordinal), 0):
            return None
        if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal):
            return None
        try:
            if driver.cuCtxPushCurrent_v2(context):
                return None
            failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
            driver.cuCtxPopCurrent_v2(ctypes.byref(ended))
        finally:
            driver.cuDevicePrimaryCtxRelease_v2(ordinal)
    except (OSError, AttributeError):
        return None
    return None if failed else free.value


def load_tensorrt() -> list[str]:
    """Load TensorRT into this process, from its wheel if installed; returns a line for each library that failed.

    ONNX Runtime's provider links against these names, and the wheel's folder is not on the search path.
    """
    found = importlib.util.find_spec("tensorrt_libs")
    folder = Path(found.origin).parent if found and found.origin else Path()
    failed = []
    for name in TENSORRT_LIBRARIES:
        try:
            ctypes.CDLL(str(folder / name) if found else name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            failed.append(str(error))
    return failed
