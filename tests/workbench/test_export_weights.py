"""Weights files: every wrapping that people save in, and a sentence for every one that does not fit."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
from models import unet_model

from unet_batch.errors import JobError, ModelRefused, UnetBatchError
from unet_batch.workbench.export.weights import load_weights

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle


def network() -> Any:
    """Six tensors and a batch counter."""
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).eval()


def refused(path: Path, kind: type[UnetBatchError] = ModelRefused) -> str:
    with pytest.raises(kind) as caught:
        load_weights(network(), path)
    return str(caught.value)


@pytest.fixture
def trained() -> Any:
    return network().state_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.pt"


def prefixed(state: Any, prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"network_weights": prefixed(state, "_orig_mod."), "init_args": {"a": 1}},
        lambda state: prefixed(state, "module."),
        lambda state: {"state_dict": prefixed(state, "model.module.")},
        lambda state: {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")},
    ],
    ids=["plain", "checkpoint", "model", "nested", "compiled", "parallel", "lightning", "no batch counter"],
)
def test_a_state_dict_is_found_in_every_usual_wrapping(path: Path, trained: Any, wrapped: Any) -> None:
    """Under other keys, with other prefixes, from before batch counters: the same tensors arrive."""
    torch.save(wrapped(trained), path)
    fresh = network()
    weights = load_weights(fresh, path)
    torch.testing.assert_close(fresh.state_dict(), trained)
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.notes == ()


def test_safetensors_are_read_where_the_package_is(tmp_path: Path, trained: Any) -> None:
    """By the file's ending."""
    save = pytest.importorskip("safetensors.torch").save_file
    save(trained, tmp_path / "net.safetensors")
    fresh = network()
    load_weights(fresh, tmp_path / "net.safetensors")
    torch.testing.assert_close(fresh.state_dict(), trained)


def test_a_broken_safetensors_file_is_a_sentence(tmp_path: Path) -> None:
    """Never an error of its library."""
    pytest.importorskip("safetensors")
    (tmp_path / "net.safetensors").write_bytes(b"junk")
    assert "not a safetensors file, or damaged" in refused(tmp_path / "net.safetensors")


def test_without_safetensors_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is an error, never a guess."""
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    (tmp_path / "net.safetensors").write_bytes(b"junk")
    assert "pip install safetensors" in refused(tmp_path / "net.safetensors", JobError)


def test_half_precision_weights_become_float32_and_it_is_said(path: Path, trained: Any) -> None:
    """What is exported is float32."""
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in trained.items()}, path)
    fresh = network()
    assert load_weights(fresh, path).notes == ("weights of float16 became float32",)
    assert fresh[0].weight.dtype == torch.float32


def test_tensors_that_were_left_alone_are_said(path: Path, trained: Any) -> None:
    """A checkpoint with a moving average: the person may have meant that one."""
    torch.save({"state_dict": trained, "ema": trained}, path)
    assert load_weights(network(), path).notes == ("of net.pt, state_dict was used, and not ema",)


def test_missing_foreign_and_misshapen_tensors_are_named(path: Path, trained: Any) -> None:
    """All three at once, each by name, and a hint at the usual cause."""
    del trained["0.bias"]
    torch.save({**trained, "head.weight": torch.zeros(1), "0.weight": torch.zeros(2, 1, 5, 5)}, path)
    message = refused(path)
    assert "1 tensor(s) that the network needs are missing: 0.bias;" in message
    assert "1 tensor(s) in the file are not in the network: head.weight;" in message
    assert "1 tensor(s) have another shape: 0.weight is 2x1x5x5, not 2x1x3x3" in message
    assert "factory's arguments" in message


def test_many_wrong_tensors_are_counted(path: Path) -> None:
    """Three names and a number."""
    torch.save({f"layer{n}": torch.zeros(1) for n in range(9)}, path)
    assert "9 tensor(s) in the file are not in the network: layer0, layer1, layer2 and 6 more" in refused(path)


def test_a_misfit_leaves_the_network_as_it_was(path: Path, trained: Any) -> None:
    """Nothing is loaded by halves."""
    fresh = network()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    del trained["0.bias"]
    torch.save(trained, path)
    with pytest.raises(ModelRefused):
        load_weights(fresh, path)
    torch.testing.assert_close(fresh.state_dict(), before)


def test_nan_in_weights_is_refused(path: Path, trained: Any) -> None:
    """By the tensor's name: the training diverged."""
    trained["1.running_var"][0] = float("nan")
    torch.save(trained, path)
    assert "NaN or infinity in 1.running_var" in refused(path)


class Malicious:
    """What a pickle may hold."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_a_file_that_needs_code_is_refused_and_its_code_never_runs(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names what it wanted and how to save tensors alone."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, path)
    message = refused(path)
    assert "can only be read by running code of the file" in message
    assert "torch.save(network.state_dict(), path)" in message
    assert not (tmp_path / "executed").exists()


def test_a_whole_network_is_refused_by_its_class(path: Path) -> None:
    """torch.save(network) pickles a class."""
    torch.save(network(), path)
    assert "running code of the file (torch.nn.modules.container.Sequential)" in refused(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused(path: Path) -> None:
    """It holds code; the message says how to get its tensors."""
    torch.jit.trace(network(), torch.zeros(1, 1, 8, 8)).save(str(path))
    assert "are a TorchScript archive" in refused(path)


@pytest.mark.parametrize(
    "data", [b"", b"junk", pickle.dumps({"a": 1})[:-3], unet_model(16, 4, 1).data], ids=["empty", "junk", "cut", "onnx"]
)
def test_what_is_no_weights_file_is_a_sentence(path: Path, data: bytes) -> None:
    """Never an error of torch or pickle."""
    path.write_bytes(data)
    assert refused(path).startswith(f"weights {path} are not a file of torch.save, or it is damaged: ")


@pytest.mark.parametrize("tree", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"a": 1}}])
def test_a_file_without_tensors_is_a_sentence(path: Path, tree: Any) -> None:
    """What it holds instead, and where a state dict is looked for."""
    torch.save(tree, path)
    assert "hold no state dict, but a" in refused(path)


def test_a_missing_file_is_a_sentence(path: Path) -> None:
    """The path, and why."""
    assert refused(path, JobError) == f"weights {path} cannot be read: No such file or directory"
