"""Three architectures: sizes as in their papers, wiring as in an independent graph, gates that open and close."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from models import unet_model

from unet_batch.errors import JobError

torch = pytest.importorskip("torch")
architectures = pytest.importorskip("unet_batch.architectures")

pytestmark = pytest.mark.oracle

NAMES = ["unet", "unet_plus_plus", "attention_unet"]
UPS = ["transposed", "bilinear"]


def made(name: str, **args: Any) -> Any:
    return getattr(architectures, name)(**args).eval()


def output(network: Any, image: Any) -> Any:
    with torch.no_grad():
        return network(image)


def changed(network: Any, image: Any, *, name: str, value: float) -> Any:
    """The output after one parameter became a constant."""
    with torch.no_grad():
        dict(network.named_parameters())[name].fill_(value)
    return output(network, image)


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("name", NAMES)
def test_a_mask_has_its_image_s_size_and_a_channel_per_class(name: str, up: str) -> None:
    """Any multiple of 2^depth, not square; several channels in."""
    network = made(name, in_channels=2, classes=5, base=4, depth=2, up=up)
    assert output(network, torch.zeros(3, 2, 16, 24)).shape == (3, 5, 16, 24)


@pytest.mark.parametrize("name", NAMES)
def test_one_grey_channel_and_three_classes_are_the_default(name: str) -> None:
    """Four halvings."""
    assert output(made(name), torch.zeros(1, 1, 256, 256)).shape == (1, 3, 256, 256)


@pytest.mark.parametrize(("name", "millions"), [("unet", 7.76), ("unet_plus_plus", 9.04)])
def test_the_number_of_parameters_is_the_paper_s(name: str, millions: float) -> None:
    """Zhou et al. 2018 counted them: U-Net 7.76 M, U-Net++ 9.04 M, both with 32 channels at the first level."""
    network = made(name, in_channels=3, classes=1)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_unet_is_wired_as_a_graph_that_was_written_by_hand() -> None:
    """The same weights in tests/models.py's ONNX U-Net, which has no normalisation, give the same logits."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    data = unet_model(32, base=4, levels=2, in_channels=1, classes=3).data
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}
    network = made("unet", base=4, depth=2)
    state = network.state_dict()
    places = {"up0": "up.0", "up1": "up.1", "last": "head"}
    for level in range(3):
        places |= {f"down{level}{'ab'[i]}": f"encoder.levels.{level}.{3 * i}" for i in range(2)}
    for level in range(2):
        places |= {f"up{level}{'ab'[i]}": f"decoder.{level}.{3 * i}" for i in range(2)}
    for ours, theirs in places.items():
        state[f"{theirs}.weight"] = torch.from_numpy(weights[f"{ours}_w"].copy())
    state |= {name: torch.zeros_like(state[name]) for name in ("up.0.bias", "up.1.bias", "head.bias")}
    network.load_state_dict(state)
    image = np.random.default_rng(0).random((2, 1, 32, 32), np.float32)
    wanted = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
    # A fresh batch normalisation divides by sqrt(1 + 1e-5): half a thousandth of a percent per convolution.
    np.testing.assert_allclose(output(network, torch.from_numpy(image)), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_goes_from_one_network_to_another(name: str) -> None:
    """Two networks with other random weights give the same logits after it."""
    image = torch.rand(1, 1, 16, 16)
    one, other = made(name, base=4, depth=2), made(name, base=4, depth=2)
    assert not torch.equal(output(one, image), output(other, image))
    other.load_state_dict(one.state_dict())
    assert torch.equal(output(one, image), output(other, image))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_part_in_the_logits(name: str) -> None:
    """No layer is built and then forgotten: each parameter gets a gradient."""
    network = getattr(architectures, name)(base=4, depth=3)
    network(torch.rand(2, 1, 32, 32)).square().sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_closed_gate_keeps_its_skip_out() -> None:
    """With a gate's logits at minus infinity the finest encoder level no longer reaches the mask through its skip."""
    image = torch.rand(1, 1, 16, 16)
    network = made("attention_unet", base=4, depth=1)
    open_ = changed(network, image, name="gates.0.weight.bias", value=100.0)
    plain = made("unet", base=4, depth=1)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("gates")})
    torch.testing.assert_close(open_, output(plain, image))
    closed = changed(network, image, name="gates.0.weight.bias", value=-100.0)
    with torch.no_grad():
        plain.decoder[0][0].weight[:, :4] = 0  # the skip comes first in the concatenation
    torch.testing.assert_close(closed, output(plain, image))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("args", [{"base": 0}, {"depth": 0}, {"classes": 0}, {"in_channels": -1}, {"up": "nearest"}])
def test_wrong_arguments_are_a_sentence(name: str, args: dict[str, Any]) -> None:
    """It names the argument."""
    with pytest.raises(JobError, match=next(iter(args))):
        made(name, **args)


def test_without_pytorch_the_import_says_what_to_install() -> None:
    """One sentence with the extra, in a process where torch cannot be imported."""
    code = "import sys; sys.modules['torch'] = None; import unet_batch.architectures"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: unet_batch.architectures needs PyTorch: run `pip install -e '.[export]'`")
