"""Logits of several classes: one class per pixel is a guess, and an activation follows them where the user says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import Network
from onnx import TensorProto, helper
from PIL import Image

from unet_batch.errors import JobError
from unet_batch.workbench.draft.contact_sheet import contact_sheet
from unet_batch.workbench.draft.explore import Explored, explore
from unet_batch.workbench.draft.known import Draft, Known, with_background
from unet_batch.workbench.draft.source import ModelRequest
from unet_batch.workbench.draft.write import files_of, write_job

SAID = {"normalize": "unit", "color": "rgb", "fit": "tile"}


def network(*, proven: bool = True) -> bytes:
    """Three classes, above 0 where a channel is bright. proven: whether the last operators show that it is logits."""
    graph = Network()
    weight, below = graph.constant(20 * np.eye(3)[:, :, None, None]), graph.constant(-10 * np.ones((1, 3, 1, 1)))
    result = graph.add("Add", graph.add("Conv", "image", weight), below)
    model = graph.model(result if proven else graph.add("Mul", graph.add("Abs", result), graph.add("Sign", result)))
    shape = ["n", 3, "h", "w"]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("mask", TensorProto.FLOAT, shape))
    return model.SerializeToString()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two pictures with red and green halves that overlap in yellow."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    for number in range(2):
        pixels = np.zeros((32, 48, 3), np.uint8)
        pixels[:, :30, 0], pixels[:, 20:, 1] = 220, 210
        Image.fromarray(pixels).save(tmp_path / "pics" / f"{number}.png")
    return tmp_path


def drafted(data: bytes, **said) -> Explored:
    Path("m.onnx").write_bytes(data)
    return explore(ModelRequest("m.onnx", Path("job"), **SAID, **said), "pics")


def outputs(path: str | Path) -> np.ndarray:
    image = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    return onnxruntime.InferenceSession(path).run(None, {"image": image})[0]


def test_logits_of_several_classes_are_tried_as_both(folder):
    """One class per pixel is the usual meaning: it is taken and marked, and the sheet shows the other one."""
    found = drafted(network())
    known = found.draft.fields["output.activation"]
    assert (known.value, known.origin) == ("logits", "guessed")
    assert "--activation sigmoid" in known.comment
    (answer,) = found.answers
    exclusive, overlapping = answer.tried
    assert set(np.unique(exclusive.scored[0].labels_hw)) == {0, 1}
    assert overlapping.draft.value("output.classes") == ["class_0", "class_1", "class_2"]
    assert set(np.unique(overlapping.scored[0].labels_hw)) == {1, 2}
    assert contact_sheet(found)


def test_one_class_and_what_the_user_says_are_no_question(folder):
    assert drafted(network(), activation="logits").answers == ()


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_an_activation_that_the_user_gives_follows_the_logits(folder, proven, activation):
    """The job's file returns probabilities; the user's own file stays as it is."""
    data = network(proven=proven)
    found = drafted(data, activation=activation)
    assert Path("m.onnx").read_bytes() == data
    path = Path(f"job/m-{activation}.onnx")
    assert (found.source_model.path, found.job["model"]["path"]) == (str(path), str(path))
    logits = outputs("m.onnx").astype(np.float64)
    wanted = 1 / (1 + np.exp(-logits))
    if activation == "softmax":
        wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs(path), wanted, atol=1e-6)
    assert found.draft.contract().output.activation == activation
    assert any("returns logits" in note for note in found.notes)
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_who_chooses_overlapping_classes_gets_a_file_that_returns_them(folder):
    request = ModelRequest("m.onnx", Path("job"))
    found = drafted(network()).with_choice("output.activation", "sigmoid").with_head(request)
    job = write_job(found, files_of(found, Path("job")), output="job/results", providers=("cpu",), force=False)
    assert job.model.path == "job/m-sigmoid.onnx"
    assert Path("job/m-sigmoid.yaml").is_file()
    assert found.draft.value("output.classes") == ["class_0", "class_1", "class_2"]


def test_a_file_of_that_name_is_not_overwritten(folder):
    Path("job").mkdir()
    Path("job/m-sigmoid.onnx").write_bytes(b"mine")
    with pytest.raises(JobError, match="nothing is overwritten"):
        drafted(network(), activation="sigmoid")


@pytest.mark.parametrize(
    ("names", "origin", "activation", "value", "said"),
    [
        (["background", "cell"], "guessed", "logits", 0, "guessed"),
        (["cell", "edge"], "given", "logits", 0, "guessed"),
        (["cell", "Background"], "read", "logits", 1, "read"),
        (["cell", "edge"], "given", "sigmoid", 0, "default"),
        (["cell"], "given", "logits", 0, "default"),
    ],
)
def test_the_background_is_a_guess_unless_a_class_has_its_name(names, origin, activation, value, said):
    """Where classes may overlap, or with one class, it has no effect."""
    fields = {
        "output.classes": Known(names, origin),
        "output.activation": Known(activation, "read"),
        "output.background": Known(0, "guessed"),
    }
    known = with_background(Draft(fields)).fields["output.background"]
    assert (known.value, known.origin) == (value, said)


def test_the_background_of_an_importer_stays_as_it_is():
    """It may be none: a Hugging Face model that counts every class."""
    known = Known(None, "guessed", "config.json: the name of the first class")
    fields = {
        "output.classes": Known(["background", "cell"], "given"),
        "output.activation": Known("logits", "read"),
        "output.background": known,
    }
    assert with_background(Draft(fields)).fields["output.background"] == known
