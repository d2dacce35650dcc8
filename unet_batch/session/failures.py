"""Maps the error texts of the engines to our errors.

ONNX Runtime and OpenVINO have no exception classes for out of memory, a lost device or wrong shapes, only texts.
"""

from __future__ import annotations

import re

from unet_batch.errors import (
    ContractError,
    ModelFailed,
    OutOfMemory,
    ProviderMissing,
    SessionBroken,
    ShapeMismatch,
    UnetBatchError,
)
from unet_batch.session.engines import find

_BROKEN = re.compile(
    r"CUDA failure (?:700|716|719|999)\b|illegal memory access|unspecified launch failure|misaligned address",
    re.IGNORECASE,
)
_DOUBTFUL = re.compile(r"(?:CUDNN|CUBLAS)_STATUS_EXECUTION_FAILED", re.IGNORECASE)
"""A kernel failed: often for lack of memory (microsoft/onnxruntime#10894), sometimes because the device is lost."""
_NO_MEMORY = re.compile(
    r"failed to allocate memory|std::bad_alloc|available memory of \d+ is smaller than requested|out of memory"
    r"|OutOfMemory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|failed to allocate \d+ bytes|can't alloc",
    re.IGNORECASE,
)
_MISFIT = re.compile(
    r"INVALID_ARGUMENT|dimensions must match|mismatched dimensions|shape inference input shapes|are incompatible",
    re.IGNORECASE,
)


def no_memory(error: Exception) -> bool:
    """Whether an error text means out of memory, on the host or the device."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def cannot_open(error: Exception, provider: str, *, hint: str = "") -> UnetBatchError:
    """Our error for an error in opening a session of ONNX Runtime.

    provider: its name in the table of engines. hint: error texts from loading the provider's libraries.
    """
    text = f"{type(error).__name__}: {' '.join(f'{error} {hint}'.split())}"
    if no_memory(error):
        return OutOfMemory(f"the model does not fit into memory on {provider}: {text}")
    if provider == "cpu":
        return ContractError(f"the model cannot be opened on the CPU: {text}")
    row = find("onnxruntime", provider)
    return ProviderMissing(f"{row.execution_provider} cannot run here ({text}); {row.needs}")


def cannot_run(error: Exception, what: str) -> UnetBatchError:
    """Our error for an error in running a batch. what: the batch, for the message."""
    text = f"{what}: {type(error).__name__}: {error}"
    if _BROKEN.search(text):  # first, because a lost device context may mention memory too
        return SessionBroken(f"the device's context is lost, and only a new process can continue: {text}")
    if no_memory(error):
        return OutOfMemory(f"does not fit into memory: {text}")
    if _DOUBTFUL.search(text):
        perhaps = OutOfMemory(f"perhaps does not fit into memory: {text}")
        perhaps.doubtful = True
        return perhaps
    if _MISFIT.search(text):
        return ShapeMismatch(f"the model refuses these tiles; check input.multiple and the contract's sizes: {text}")
    return ModelFailed(f"the model failed: {text}")
