"""Loads weights files into a network without running code from the file.

Supports `torch.save` files, safetensors, and the checkpoints of training tools. A file that needs code to be read (a
pickled network) is refused: it could run any code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_batch.errors import JobError, ModelRefused

_NESTED = ("state_dict", "model_state_dict", "model", "net", "network_weights")
"""Keys of the state dict in checkpoints: Lightning and MMEngine, plain scripts, nnU-Net."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Prefixes of keys added by wrappers: DataParallel, torch.compile, Lightning and others."""


class _Dtype:
    """Takes the place of a NumPy dtype in a checkpoint; holds nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _no_number(*_: object) -> None:
    """Takes the place of a NumPy number in a checkpoint."""


_NUMPY_NUMBERS: list[Any] = [
    (_no_number, "numpy._core.multiarray.scalar"),
    (_no_number, "numpy.core.multiarray.scalar"),
    (_Dtype, "numpy.dtype"),
]
"""Checkpoints of nnU-Net hold scores as NumPy numbers, which no weights need: they are read as None, and no code of
NumPy runs. Both spellings: NumPy 2's and 1's."""
_SHOWN = 3
"""Most keys in a message; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A loaded weights file."""

    sha256: str
    notes: tuple[str, ...]
    """Remarks for the user, a sentence each."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A weights file as it was read."""

    path: Path
    sha256: str
    tree: Any
    """Tensors, containers and plain values."""


def load_weights(module: Any, path: Path) -> Weights:
    """Load a weights file into a `torch.nn.Module`; all tensors of both must match.

    Reads `.safetensors`, and `torch.save` files of a state dict or of a checkpoint that contains one.
    Raises JobError if the file does not exist or safetensors is not installed; ModelRefused if the file needs code to
    be read, is not a weights file, holds NaN or infinity, or does not match the network (with the first keys).
    """
    return place_weights(module, read_weights(path))


def read_weights(path: Path) -> WeightsFile:
    """The content of a weights file, without running code from it. Raises as `load_weights` does."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JobError(f"weights {path} cannot be read: {error.strerror or error}") from error
    tree = _read_safetensors(data, path) if path.suffix == ".safetensors" else _read_torch(data, path)
    return WeightsFile(path, hashlib.sha256(data).hexdigest(), tree)


def place_weights(module: Any, file: WeightsFile) -> Weights:
    """Put the weights of a file into a network. Raises ModelRefused as `load_weights` does."""
    path = file.path
    found, notes = _state_dict(file.tree, path)
    expected: Mapping[str, Any] = module.state_dict()
    found = _without_prefixes(found, expected)
    _refuse_misfit(found, expected, path)
    if ill := nonfinite(found):
        raise ModelRefused(f"weights {path} hold NaN or infinity in {_some(ill)}: the training diverged")
    narrow = sorted(
        {str(t.dtype).removeprefix("torch.") for t in found.values() if t.is_floating_point()} - {"float32"}
    )
    if narrow:
        notes.append(f"weights of {' and '.join(narrow)} became float32")
    module.load_state_dict(found, strict=False)  # checked above: old files lack batch counters
    return Weights(file.sha256, tuple(notes))


def nonfinite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def _read_torch(data: bytes, path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats that are refused below, or supported
            with torch.serialization.safe_globals(_NUMPY_NUMBERS):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # for a broken file, torch may raise anything from EOFError to RuntimeError
        needs = re.search(r"GLOBAL (\S+)|unrecognized (?:function|class|storage type) (\S+)", str(error))
        if "TorchScript" in str(error):
            raise ModelRefused(
                f"weights {path} are a TorchScript archive: save only the tensors with "
                "torch.save(torch.jit.load(path).state_dict(), path)"
            ) from error
        if isinstance(error, pickle.UnpicklingError) and needs:
            raise ModelRefused(
                f"weights {path} can only be read by running code of the file ({needs[1] or needs[2]}): save only the "
                "tensors with torch.save(network.state_dict(), path) where the file was made"
            ) from error
        raise ModelRefused(
            f"weights {path} are not a file of torch.save, or it is damaged: {_first_line(error)}"
        ) from error


def _read_safetensors(data: bytes, path: Path) -> Any:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise JobError(f"weights {path} need the safetensors package: run `pip install safetensors`") from error
    try:
        return load(data)
    except Exception as error:
        raise ModelRefused(f"weights {path} are not a safetensors file, or damaged: {_first_line(error)}") from error


def _state_dict(tree: Any, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The tensors by key, and notes on tensors that were not used."""
    notes: list[str] = []
    while isinstance(tree, Mapping):
        inner = next((name for name in _NESTED if isinstance(tree.get(name), Mapping)), None)
        if inner is None:
            break
        others = [str(name) for name, value in tree.items() if name != inner and _tensors(value)]
        if others:
            notes.append(f"of {path.name}, {inner} was used, and not {', '.join(others)}")
        tree = tree[inner]
    found = _tensors(tree)
    if not found:
        held = f"a {type(tree).__name__}" + (f" with the keys {_some(tree)}" if isinstance(tree, Mapping) else "")
        raise ModelRefused(
            f"weights {path} hold no state dict, but {held}: expected at the top or under {', '.join(_NESTED)}"
        )
    return found, notes


def _tensors(value: Any) -> dict[str, Any]:
    """A state dict's entries; empty if the value is not a state dict."""
    import torch

    if not isinstance(value, Mapping) or not all(isinstance(t, torch.Tensor) for t in value.values()):
        return {}
    return {str(name): tensor for name, tensor in value.items()}


def _without_prefixes(found: dict[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    while not found.keys() & expected.keys():
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _refuse_misfit(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    foreign = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {'x'.join(map(str, found[name].shape))}, not {'x'.join(map(str, tensor.shape))}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} tensor(s) {what}: {_some(names)}"
        for what, names in (
            ("that the network needs are missing", missing),
            ("in the file are not in the network", foreign),
            ("have another shape", shapes),
        )
        if names
    ]
    if problems:
        raise ModelRefused(
            f"weights {path} do not match the network: {'; '.join(problems)}. Were the factory's arguments different "
            "in training?"
        )


def _some(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
