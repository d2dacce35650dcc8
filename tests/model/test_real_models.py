"""Every `unet-batch model` verb on published models, as one types it, and the jobs that follow.

What is written here of the files (tensors, operator sets, parameters) was counted with other tools than ours.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from project_fixture import Project, last_json
from real_models import _wheel, real_contract, real_model

pytestmark = pytest.mark.real

DAY = "archive/2026/11/21"
EXTRA = {"nuclei": "", "clouds": ", precision: fp16", "text": ""}
WORDS = ["inventory", "partition", "archive", "nightly", "prediction", "window"]


@pytest.fixture
def project(tmp_path) -> Project:
    """An empty folder whose commands keep their ladders and verdicts inside it."""
    return Project(tmp_path)


@dataclass
class Published:
    """A published model in a folder, with a job over pictures that it finds something in."""

    project: Project

    def command(self, *arguments: str):
        return self.project.command(*arguments, env=_environment(self.project.folder))

    def succeeds(self, *arguments: str) -> dict:
        result = self.command(*arguments)
        assert result.returncode == 0, result.stderr
        return last_json(result)


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "160"}


def published(project: Project, name: str) -> Published:
    folder = project.folder
    (folder / "model.onnx").write_bytes(real_model(name))
    contract = real_contract(name).model_dump(mode="json")
    (folder / "model.yaml").write_text(json.dumps(contract))
    (folder / DAY).mkdir(parents=True)
    {"nuclei": micrographs, "clouds": skies, "text": pages}[name](folder / DAY)
    (folder / "job.yaml").write_text(
        f"""\
name: {name}
model: {{path: model.onnx{EXTRA[name]}}}
input: {{uri: "archive/{{date:%Y/%m/%d}}/"}}
output: {{uri: out}}
window: all
tiling: {{{"size: 320" if name == "text" else ""}}}
session: {{batch_max: 2}}
check: {{images: 2}}
"""
    )
    return Published(project)


def micrographs(folder: Path) -> None:
    """Two fields of the 16-bit micrograph that the nuclei model was published with."""
    czifile = pytest.importorskip("czifile")
    with zipfile.ZipFile(_wheel("nuclei")) as wheel:
        inside = next(n for n in wheel.namelist() if n.endswith("PGC_20X.czi"))
        picture = np.squeeze(czifile.imread(io.BytesIO(wheel.read(inside))))
    for n, (top, left) in enumerate([(8, 12), (1700, 2600)]):
        Image.fromarray(picture[top : top + 1024, left : left + 1024]).save(folder / f"{n}.png")


def skies(folder: Path) -> None:
    """Reflectance of four bands, float32 (256, 256, 4): bright clouds of all sizes over dark, patchy land; seed 3."""
    random = np.random.default_rng(3)
    land = np.array([0.06, 0.08, 0.08, 0.28])
    for n in range(3):
        share = np.clip(0.8 * smooth(random, 13) + 0.1, 0, 1)[..., None]
        patches = 1 + 0.25 * smooth(random, 7)[..., None]
        tops = 0.8 * (1 + 0.05 * smooth(random, 9)[..., None])
        np.save(folder / f"{n}.npy", (land * patches * (1 - share) + tops * share).astype(np.float32))


def smooth(random: np.random.Generator, width: float) -> np.ndarray:
    """Noise (256, 256) of mean 0 and deviation 1 without details below a width in pixels."""
    frequency = np.fft.fftfreq(256)
    kept = np.exp(-(frequency[:, None] ** 2 + frequency[None] ** 2) * width**2)
    noise = np.real(np.fft.ifft2(np.fft.fft2(random.normal(size=(256, 256))) * kept))
    return (noise - noise.mean()) / noise.std()


def pages(folder: Path) -> None:
    """Printed lines, RGB 320 x 320."""
    font = ImageFont.load_default(26)
    for n in range(6):
        page = Image.new("RGB", (320, 320), (245, 243, 238))
        for line in range(6):
            ImageDraw.Draw(page).text((20 + 7 * n, 12 + 50 * line), WORDS[(n + line) % 6], font=font, fill=(20, 20, 30))
        page.save(folder / f"{n}.jpg", quality=95)


@pytest.mark.parametrize(
    ("name", "taken", "returned", "opset", "parameters", "precision"),
    [
        ("nuclei", ["input:0", [None, 1024, 1024, 1]], "Identity:0", 12, 4_987_504, "fp32"),
        ("clouds", ["input", [None, 4, 256, 256]], "output", 17, 19_543_631, "fp16"),
        ("text", ["x", [None, 3, None, None]], "fetch_name_0", 11, 2_453_353, "fp32"),
    ],
)
def test_inspect_says_what_is_known_of_them(project, name, taken, returned, opset, parameters, precision):
    """Names, axes, operator sets and parameters; open axes have the names that their exporters gave them."""
    (project.folder / "model.onnx").write_bytes(real_model(name))
    seen = Published(project).succeeds("model", "inspect", "model.onnx")
    [tensor] = seen["inputs"]
    assert [tensor["name"], [size if isinstance(size, int) else None for size in tensor["shape"]]] == taken
    assert (seen["outputs"][0]["name"], seen["opset"], seen["precision"]) == (returned, opset, precision)
    assert seen["parameters"] == parameters
    assert seen["cpu_problem"] is None


@pytest.mark.parametrize(
    "name", ["text", *(pytest.param(name, marks=pytest.mark.more_models) for name in ("nuclei", "clouds"))]
)
def test_a_job_in_openvino_passes_the_gate_and_is_verified(project, name):
    """Checked against ONNX Runtime on its own images, run, and proven; the masks are not empty."""
    pytest.importorskip("openvino")
    model = published(project, name)
    engine = ("--set", "model.engine=openvino")
    if name == "clouds":  # its weights have half precision, and the fp32 file is not published
        refused = model.command("model", "check", "job.yaml", *engine)
        assert (refused.returncode, "in check.reference, or check.images: 0" in refused.stderr) == (2, True)
        engine = (*engine, "--set", "check.images=0")
    assert model.succeeds("model", "check", "job.yaml", *engine)["checked"] is (name != "clouds")
    summary = model.succeeds("run", "job.yaml", *engine, "--executor", "local")
    assert (summary["rejected"], summary["remaining"], summary["provider"]) == (0, 0, "openvino")
    assert model.succeeds("verify", "job.yaml", *engine)["disagreements"] == 0
    rows = project.rows("2026-11-21")
    assert max(entry["fraction"] for row in rows for entry in row["classes"]) > 0.05


@pytest.mark.parametrize("post", [pytest.param(False, marks=pytest.mark.more_models), True])
def test_a_packed_text_model_gives_the_same_masks(project, post):
    """RLE for RLE, on pictures of one tile; sigmoid, BGR and ImageNet's statistics are inside the graph."""
    model = published(project, "text")
    model.succeeds("run", "job.yaml", "--executor", "local")
    before = {row["image_key"]: [entry["rle"] for entry in row["classes"]] for row in project.rows("2026-11-21")}
    made = model.succeeds("model", "pack", "model.onnx", "--out", "packed.onnx", "--post" if post else "--no-post")
    assert made["bytes_after"] < made["bytes_before"] / 2
    assert json.loads((project.folder / "packed.pack.json").read_text())["sha256"] == made["sha256"]
    model.succeeds("run", "job.yaml", "--executor", "local", "--set", "model.path=packed.onnx")
    after = {row["image_key"]: [entry["rle"] for entry in row["classes"]] for row in project.rows("2026-11-21")}
    assert after == before
    assert len(before) == 6


@pytest.mark.more_models
def test_the_text_model_in_int8_keeps_its_masks_where_it_may_give_layers_back(project):
    """Dice of 0.99 and a file that a job takes as it is, with the contract inside."""
    model = published(project, "text")
    tolerance = ("--set", "check.min_dice=0.99", "--set", "check.max_flipped=0.004")
    made = model.succeeds("model", "quantize", "job.yaml", "--out", "int8.onnx", "--images", "6", *tolerance)
    assert made["attempts"][-1]["parity"]["dice"]["text"] >= 0.99
    assert 2 <= len(made["kept"]) < made["layers"] == 85
    assert made["file_bytes"] < made["source_bytes"]
    int8 = ("--set", "model.path=int8.onnx", "--set", "model.precision=int8", "--set", "check.reference=model.onnx")
    loose = ("--set", "check.min_dice=0.97", "--set", "check.max_flipped=0.01")
    assert model.succeeds("model", "check", "job.yaml", *int8, *loose)["checked"] is True


def test_a_model_with_half_precision_weights_is_not_quantised(project):
    """Its fp32 original would be; the sentence says so."""
    result = published(project, "clouds").command(
        "model", "quantize", "job.yaml", "--out", "int8.onnx", "--images", "3"
    )
    assert result.returncode == 2
    assert "is already in fp16: quantise the fp32 file that it was made from" in result.stderr


@pytest.mark.parametrize(
    ("name", "precision"), [pytest.param("clouds", "fp16", marks=pytest.mark.more_models), ("text", "fp32")]
)
def test_tuning_measures_a_file_in_its_own_precision(project, name, precision):
    """A point for each engine and number of threads, with its peak of memory."""
    model = published(project, name)
    few = ("--batch-max", "1", "--rounds", "1")
    profile = model.succeeds("model", "tune", "model.onnx", *few)
    assert profile["precision"] == precision
    assert all(point["peak_bytes"] > 50e6 for point in profile["points"])
    assert profile["remembered"] >= 1
