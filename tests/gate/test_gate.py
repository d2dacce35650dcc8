"""The gate: a session that would give other masks never scores an archive, and the sentence says why."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnx
import pytest
from models import threshold_model
from onnx import helper, numpy_helper
from PIL import Image
from project_fixture import SIZE, png

from unet_batch.errors import ModelRefused
from unet_batch.worker.load import Load

DAY, NAME = "2026/11/21", "2026-11-21"

pytestmark = pytest.mark.usefixtures("cache")


def changed(project, change) -> tuple[str, str]:
    """The project's model becomes another one; overrides that name the untouched one as the reference."""
    tiny = threshold_model("nchw", 1, 2, size=SIZE)
    good = project.folder / "good.onnx"
    good.write_bytes(tiny.data)
    good.with_suffix(".yaml").write_text(tiny.contract_yaml)
    model = onnx.load_from_string(tiny.data)
    change(model)
    (project.folder / "model.onnx").write_bytes(model.SerializeToString())
    return f"check.reference={good}", "limits.max_rejected=1"


def followed_by(operator: str, *constants: float):
    """A node more at the end of the graph."""

    def change(model: onnx.ModelProto) -> None:
        last = model.graph.node[-1]
        last.output[0] = "before"
        names = []
        for number, value in enumerate(constants):
            names.append(f"constant{number}")
            model.graph.initializer.append(numpy_helper.from_array(np.float32(value), names[-1]))
        model.graph.node.append(helper.make_node(operator, ["before", *names], ["mask"]))

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (followed_by("Mul", 1e30), "infinite"),  # squared below: what an overflow of fp16 leaves behind
        (followed_by("Min", -1e9), "the mask is the same in every pixel"),
        (followed_by("Neg"), "labels flipped"),
    ],
    ids=["an overflow", "a blank mask", "classes changed about"],
)
def test_a_model_that_gives_other_masks_is_refused(project, change, said):
    """Exit code 2, before the first unit; the worst image is named and pictured, and nothing is staged."""
    if said == "infinite":
        first = change

        def change(model):
            first(model)
            model.graph.node[-1].output[0] = "large"
            model.graph.node.append(helper.make_node("Mul", ["large", "large"], ["mask"]))

    project.fill(DAY, 3)
    overrides = changed(project, change)
    with pytest.raises(ModelRefused, match=said) as refused:
        project.run(*overrides)
    assert (refused.value.exit_code, project.parts()) == (2, [])
    assert ".png" in str(refused.value)
    [picture] = (project.folder / "out" / "reports").glob("check-*.png")
    assert Image.open(picture).size == (4 * SIZE, SIZE)
    [report] = (project.folder / "out" / "reports").glob("check-*.json")
    assert json.loads(report.read_text())["breaches"]


def test_an_8_bit_model_whose_calibration_went_wrong_is_refused(project):
    """Calibrated on pictures that are all dark, it has no numbers for bright ones."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Dark(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = 3

        def get_next(self):
            self._left -= 1
            return {"image": np.full((1, 1, SIZE, SIZE), 0.001, np.float32)} if self._left >= 0 else None

    project.fill(DAY, 3)
    overrides = changed(project, lambda _: None)
    source, path = project.folder / "good.onnx", project.folder / "model.onnx"
    name = onnx.load(source).graph.input[0].name
    Dark.get_next = _renamed(Dark.get_next, name)
    quantize_static(
        source,
        path,
        Dark(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    with pytest.raises(ModelRefused, match=r"labels flipped|the same in every pixel"):
        project.run(*overrides, "model.precision=int8")


def _renamed(get_next, name):
    def wrapped(self):
        found = get_next(self)
        return None if found is None else {name: next(iter(found.values()))}

    return wrapped


@pytest.mark.slow
def test_a_model_that_agrees_scores_and_is_not_asked_twice(project, cache):
    """The verdict is kept for these images, this model, machine, arithmetic and tolerance; other ones ask again."""
    project.fill(DAY, 3)
    overrides = changed(project, followed_by("Mul", 2.0))
    assert project.run(*overrides).ok == 3
    assert len(list(cache.iterdir())) == 1
    assert project.run(*overrides, "output.masks=[png]").ok == 3
    assert len(list((project.folder / "out" / "reports").glob("check-*.json"))) == 1
    project.fill("2026/11/20", 3)
    assert project.run(*overrides).ok == 3
    assert len(list(cache.iterdir())) == 2
    project.fill("2026/11/19", 3)
    with pytest.raises(ModelRefused, match="largest error of a value"):
        project.run(*overrides, "check.max_abs_error=0.001")


def test_the_trusted_session_has_nothing_to_be_checked_against(project, cache):
    """fp32 in ONNX Runtime on the CPU costs nothing."""
    project.fill(DAY, 1)
    project.run()
    assert not cache.exists()


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_another_engine_is_checked_against_the_same_file(project, cache):
    """Without a word in the job file."""
    project.fill(DAY, 2)
    assert project.run("model.engine=openvino").ok == 2
    assert len(list(cache.iterdir())) == 1


def test_images_that_cannot_be_read_leave_the_gate_to_the_others(project):
    """The first three of the day are broken; the fourth tells."""
    for n in range(3):
        project.put(f"{DAY}/{n:03}.png", b"no image")
    project.put(f"{DAY}/003.png", level=3)
    with pytest.raises(ModelRefused, match=r"on 1 images of the archive.*003\.png"):
        project.run(*changed(project, followed_by("Neg")))


@pytest.mark.parametrize(("bright_rows", "read"), [(8, 1), (0, 2)], ids=["the first suffices", "it has one label"])
def test_no_more_images_are_read_than_the_gate_needs(project, monkeypatch, bright_rows, read):
    """It gets four times as many, because some may be broken, and those of an archive may be large."""
    project.put(f"{DAY}/000.png", png(0, bright_rows=bright_rows))
    for n in range(1, 8):
        project.put(f"{DAY}/{n:03}.png")
    units = []
    load = Load.__call__
    monkeypatch.setattr(Load, "__call__", lambda self, unit: units.append(unit) or load(self, unit))
    overrides = changed(project, followed_by("Mul", 2.0))
    assert project.run(*overrides, "check.images=1").ok == 8
    compared = [source.key for unit in units if unit.isolate for source in unit.sources]
    assert len(compared) == read


def test_zero_images_open_the_gate(project):
    """For those who know better."""
    project.fill(DAY, 1)
    assert project.run(*changed(project, followed_by("Neg")), "check.images=0").ok == 1


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.matrix])])
def test_the_gate_holds_in_the_workers_too(project, executor):
    """One sentence and exit code 2."""
    project.fill(DAY, 3)
    overrides = changed(project, followed_by("Neg"))
    settings = [argument for override in overrides for argument in ("--set", override)]
    result = project.command("run", "job.yaml", "--quiet", "--executor", executor, *settings)
    assert result.returncode == 2, result.stderr
    assert "model.refused" in result.stderr
    assert project.parts() == []
    assert result.stdout == ""
