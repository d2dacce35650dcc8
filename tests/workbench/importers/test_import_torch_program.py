"""Files that hold a whole network: TorchScript and torch.export. Their meaning is given by the user."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_models import differing_share, label_maps, pictures

from unet_batch.errors import JobError, ModelRefused
from unet_batch.workbench.importers.imported import Options
from unet_batch.workbench.importers.sources import read_source
from unet_batch.workbench.importers.write import ImportReport, write

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]

GIVEN = Options(
    input_chw=(3, 64, 64),
    normalize="imagenet",
    classes=("background", "a", "b"),
    activation="logits",
    trusted=True,
)
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class Network(torch.nn.Module):
    """Two levels, at any size."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.low = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = torch.nn.Conv2d(16, 3, 1)

    def forward(self, image):
        fine = torch.relu(self.norm(self.fine(image)))
        low = torch.nn.functional.interpolate(torch.relu(self.low(fine)), size=fine.shape[2:], mode="bilinear")
        return self.head(torch.cat([fine, low], 1))


class Flattens(Network):
    """Writes the batch of the example into the program."""

    def forward(self, image):
        return super().forward(image).reshape(image.shape[0], 3, 64, 64)


class Pair(Network):
    def forward(self, image):
        mask = super().forward(image)
        return mask, mask.mean((2, 3))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(3)
    return Network().eval()


def own_labels(network: Network, archive: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, image in archive.items():
        ready = (image.astype(np.float32) / 255 - MEAN) / STD
        with torch.no_grad():
            found[name] = network(torch.from_numpy(ready.transpose(2, 0, 1)[None])).argmax(1)[0].numpy()
    return found


def imported(source: Path, out: Path, options: Options = GIVEN) -> ImportReport:
    row, found = read_source(source, options)
    assert row.name == "torch_program"
    return write(row.name, found, out)


def program(network: Any, path: Path, *, batch: int = 2, **settings: Any) -> Path:
    torch.export.save(torch.export.export(network, (torch.randn(batch, 3, 64, 64),), **settings), path)
    return path


@pytest.mark.parametrize("how", ["traced", "scripted", "frozen"])
def test_torchscript_gives_its_labels_in_a_job(network, tmp_path, how):
    """At the size of the trace and at odd ones."""
    script = torch.jit.trace(network, torch.randn(1, 3, 64, 64)) if how == "traced" else torch.jit.script(network)
    (torch.jit.freeze(script) if how == "frozen" else script).save(tmp_path / "net.pt")
    report = imported(tmp_path / "net.pt", tmp_path / "net.onnx")
    archive = pictures(tmp_path / "archive")
    found = label_maps(tmp_path / "net.onnx", tmp_path / "archive", tmp_path / "out")
    assert differing_share(found, own_labels(network, archive)) <= 1e-4
    assert report.exported.input_shape == ("batch", 3, "height", "width")
    assert report.exported.provenance["exporter"] == "torch.onnx.export(dynamo=False)"


def test_a_program_with_open_axes_gives_its_labels_in_a_job(network, tmp_path):
    """As torch.export.save wrote it."""
    axes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    imported(program(network, tmp_path / "net.pt2", dynamic_shapes=(axes,)), tmp_path / "net.onnx")
    archive = pictures(tmp_path / "archive")
    found = label_maps(tmp_path / "net.onnx", tmp_path / "archive", tmp_path / "out")
    assert differing_share(found, own_labels(network, archive)) <= 1e-4


def test_a_program_of_one_size_becomes_a_file_of_that_size(network, tmp_path):
    """Its batch is fixed too, but does not matter: other batches give the same, so the file's batch is open."""
    _, found = read_source(program(network, tmp_path / "net.pt2", batch=1), GIVEN)
    assert (found.contract.input.height, found.contract.input.width, found.any_size) == (64, 64, False)
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(found.networks[0](images), network(images))


def test_a_program_that_needs_its_batch_is_refused(tmp_path):
    """And says how to export it."""
    with pytest.raises(ModelRefused, match=r"batches of 2 only.*Dim\.DYNAMIC"):
        read_source(program(Flattens().eval(), tmp_path / "net.pt2"), GIVEN)


def test_a_network_that_runs_at_one_size_becomes_a_file_of_that_size(tmp_path):
    """TorchScript does not say it: the export finds out. Some vision transformers are such."""
    torch.jit.trace(Flattens().eval(), torch.randn(2, 3, 64, 64)).save(tmp_path / "net.pt")
    report = imported(tmp_path / "net.pt", tmp_path / "net.onnx")
    assert report.exported.input_shape == ("batch", 3, 64, 64)
    assert "the network runs at 64x64 only" in report.notes


def test_one_of_several_outputs_is_chosen(tmp_path):
    """By its position."""
    torch.jit.trace(Pair().eval(), torch.randn(1, 3, 64, 64)).save(tmp_path / "net.pt")
    with pytest.raises(ModelRefused, match="choose the mask with --output"):
        imported(tmp_path / "net.pt", tmp_path / "net.onnx")
    report = imported(tmp_path / "net.pt", tmp_path / "net.onnx", replace(GIVEN, output="0"))
    assert report.exported.output_shape == ("batch", 3, "height", "width")


class Plant:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def hostile(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("kind", ["torch.export", "TorchScript"])
def test_a_file_that_is_not_trusted_is_not_loaded(tmp_path, kind):
    """torch.export.load reads a file that is no plain tensor again, as a pickle that may call anything."""
    data = io.BytesIO()
    torch.save(Plant(tmp_path / "planted"), data)
    names = {
        "torch.export": {"net/models/model.json": b"{}", "net/data/weights/model.pt": data.getvalue()},
        "TorchScript": {"net/code/a.py": b"", "net/constants.pkl": b"", "net/data.pkl": data.getvalue()},
    }[kind]
    with pytest.raises(ModelRefused, match=rf"is a program \({kind}\).*--trusted"):
        read_source(hostile(tmp_path / "net.pt", names), replace(GIVEN, trusted=False))
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("kind", ["models/model.json", "constants.pkl"])
def test_a_damaged_file_is_one_sentence(tmp_path, kind):
    """Trusted, but not readable."""
    with pytest.raises(ModelRefused, match="cannot be loaded"):
        read_source(hostile(tmp_path / "net.pt", {f"net/{kind}": b"?", "net/code/a.py": b"?"}), GIVEN)


def test_everything_that_is_missing_is_named_at_once(network, tmp_path):
    """A program says nothing about the meaning of its input and output."""
    torch.jit.script(network).save(tmp_path / "net.pt")
    with pytest.raises(JobError, match=r"--input CxHxW, --normalize .*, --classes, --activation"):
        read_source(tmp_path / "net.pt", Options(trusted=True))


def test_another_input_than_the_program_s_is_refused(network, tmp_path):
    """A fixed size is not changed."""
    with pytest.raises(JobError, match="takes 3x64x64, but --input says 3x128x128"):
        read_source(program(network, tmp_path / "net.pt2"), replace(GIVEN, input_chw=(3, 128, 128)))


def test_weights_alone_are_told_from_a_network(network, tmp_path):
    """With the command that takes them."""
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelRefused, match=r"holds weights and no network: `unet-batch model export MODULE:FACTORY"):
        read_source(tmp_path / "w.pth", GIVEN)


def test_a_file_or_folder_that_is_no_model_names_what_is(tmp_path):
    """And a name of a model hub is no folder."""
    (tmp_path / "notes.txt").write_text("no model")
    for source in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ModelRefused, match=r"is no model that can be imported.*huggingface"):
            read_source(source, Options())
    with pytest.raises(JobError, match="download a model of a hub to a folder first"):
        read_source(Path("nvidia/segformer-b0"), Options())
