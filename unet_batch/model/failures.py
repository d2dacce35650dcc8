"""How ONNX Runtime's errors read, and which of ours each one is.

Knows texts only. ONNX Runtime has no exception class for lack of memory or for a lost device: the text is all there is.
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

_BROKEN = re.compile(
    r"CUDA failure (?:700|716|719|999)\b|illegal memory access|unspecified launch failure|misaligned address"
    r"|CUDNN_STATUS_EXECUTION_FAILED",
    re.IGNORECASE,
)
_NO_MEMORY = re.compile(
    r"failed to allocate memory|std::bad_alloc|available memory of \d+ is smaller than requested|out of memory"
    r"|OutOfMemory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_MISFIT = re.compile(r"INVALID_ARGUMENT|dimensions must match|mismatched dimensions", re.IGNORECASE)


def no_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, in host or device."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def cannot_open(error: Exception, provider: str, *, hint: str = "") -> UnetBatchError:
    """Our error for one that opening a session raised. hint: what loading the provider's libraries said."""
    text = f"{type(error).__name__}: {' '.join(f'{error} {hint}'.split())}"
    if no_memory(error):
        return OutOfMemory(f"the model does not fit into memory on {provider}: {text}")
    if provider == "cpu":
        return ContractError(f"the model cannot be opened on the CPU: {text}")
    return ProviderMissing(
        f"the CUDA provider cannot run here ({text}); it needs an NVIDIA driver for CUDA 13 and its libraries: "
        "run `pip install unet-batch[cuda]`, or write session.providers: [cpu]"
    )


def cannot_run(error: Exception, what: str) -> UnetBatchError:
    """Our error for one that running a batch raised. what: the batch, for the message."""
    text = f"{what}: {type(error).__name__}: {error}"
    if _BROKEN.search(text):  # first, because a lost device context may mention memory too
        return SessionBroken(f"the device's context is lost, and only a new process can go on: {text}")
    if no_memory(error):
        return OutOfMemory(f"does not fit into memory: {text}")
    if _MISFIT.search(text):
        return ShapeMismatch(f"the model refuses these tiles; check input.multiple and the contract's sizes: {text}")
    return ModelFailed(f"the model failed: {text}")
