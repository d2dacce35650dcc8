"""How ONNX Runtime's texts become our errors; the texts are from its sources and from measured failures."""

import pytest

from unet_batch.errors import ContractError, ModelFailed, OutOfMemory, ProviderMissing, SessionBroken, ShapeMismatch
from unet_batch.session.failures import cannot_open, cannot_run

NO_MEMORY = [
    "Failed to allocate memory for requested buffer of size 33554432",
    "std::bad_alloc",
    "Available memory of 0 is smaller than requested bytes of 33554432",
    "BFCArena::AllocateRawInternal(size_t) Failed to allocate memory for requested buffer",
    "CUDA failure 2: out of memory ; GPU=0",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
]
BROKEN = [
    "CUDA failure 700: an illegal memory access was encountered",
    "CUDA failure 719: unspecified launch failure",
    "CUDA failure 999: unknown error; a previous call was out of memory",
]


DOUBTFUL = [
    "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0",
    "CUDNN failure 5003: CUDNN_STATUS_EXECUTION_FAILED_CUDART",
    "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED",
]


@pytest.mark.parametrize("text", DOUBTFUL)
def test_a_failed_kernel_may_be_lack_of_memory_or_a_lost_device(text: str) -> None:
    """A smaller batch tells."""
    error = cannot_run(RuntimeError(text), "batch of 8")
    assert isinstance(error, OutOfMemory)
    assert error.doubtful


@pytest.mark.parametrize("text", NO_MEMORY)
def test_lack_of_memory_leaves_no_doubt(text: str) -> None:
    """However small the batch is that fails next, the session is not broken."""
    error = cannot_run(RuntimeError(text), "batch of 8")
    assert isinstance(error, OutOfMemory)
    assert not error.doubtful


@pytest.mark.parametrize("text", NO_MEMORY)
def test_lack_of_memory_is_recognised_in_a_run(text: str) -> None:
    """Each known text makes the batch smaller instead of failing the unit."""
    assert type(cannot_run(RuntimeError(text), "batch of 8")) is OutOfMemory


@pytest.mark.parametrize("text", NO_MEMORY)
def test_lack_of_memory_is_recognised_when_opening(text: str) -> None:
    """Weights that do not fit are no missing provider."""
    assert type(cannot_open(RuntimeError(text), "cuda")) is OutOfMemory


@pytest.mark.parametrize("text", BROKEN)
def test_a_lost_device_breaks_the_session(text: str) -> None:
    """A smaller batch would not help, even where the text mentions memory."""
    assert type(cannot_run(RuntimeError(text), "batch of 8")) is SessionBroken


def test_numpys_lack_of_memory_counts_too() -> None:
    """A MemoryError has no text of its own."""
    assert type(cannot_run(MemoryError(), "batch of 8")) is OutOfMemory


def test_refused_dimensions_are_a_shape_mismatch() -> None:
    """The message carries the batch and ONNX Runtime's words."""
    error = cannot_run(ValueError("INVALID_ARGUMENT : Got: 2 Expected: 1"), "batch of 2")
    assert type(error) is ShapeMismatch
    assert "batch of 2: ValueError: INVALID_ARGUMENT : Got: 2 Expected: 1" in str(error)


def test_any_other_failure_is_ours_and_nothing_more() -> None:
    """An unknown text is no out-of-memory error: nothing is guessed."""
    assert type(cannot_run(RuntimeError("Non-zero status code returned"), "batch of 2")) is ModelFailed


def test_a_failed_opening_depends_on_the_provider() -> None:
    """On the CPU the file is to blame; on CUDA, the installation, and the hint is part of the message."""
    assert type(cannot_open(RuntimeError("bad graph"), "cpu")) is ContractError
    error = cannot_open(RuntimeError("no device"), "cuda", hint="Failed to load libcublas.so.13")
    assert type(error) is ProviderMissing
    assert "Failed to load libcublas.so.13" in str(error)
