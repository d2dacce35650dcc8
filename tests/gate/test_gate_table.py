"""The gate as a table: what is wrong with a file × the way in which it would score × a second try.

Every cell is a refusal with exit code 2 before anything is staged. What passed once is asked again where anything
changed that a verdict depends on.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from models import threshold_model
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from project_fixture import SIZE, Project

from unet_batch.errors import UnetBatchError
from unet_batch.planning.survey import window_of
from unet_batch.session import machine
from unet_batch.session.model_files import model_at
from unet_batch.spec import TilingSpec
from unet_batch.workbench.diagnosis import check_job
from unet_batch.workbench.packing.pack import PackSpec, pack

DAY = "2026/11/21"
NOT_JUDGED = "cannot judge"

pytestmark = pytest.mark.usefixtures("cache")


class Files:
    """A good file in `good.onnx`, and what a test makes of it in `model.onnx`, each with a contract beside it."""

    def __init__(self, project: Project) -> None:
        self.project = project
        tiny = threshold_model("nchw", 1, 2, size=SIZE)
        self.model = onnx.load_from_string(tiny.data)
        self.contract = yaml.safe_load(tiny.contract_yaml)
        self.good_model, self.good_contract = onnx.load_from_string(tiny.data), yaml.safe_load(tiny.contract_yaml)
        self.overrides: list[str] = ["check.reference={folder}/good.onnx"]

    def append(self, operator: str, *constants: float, **settings) -> None:
        """A node more at the end."""
        append(self.model, operator, *constants, **settings)

    def written(self) -> list[str]:
        """Overrides of a job that scores the changed file."""
        folder = self.project.folder
        write(folder / "good.onnx", self.good_model, self.good_contract)
        write(folder / "model.onnx", self.model, self.contract)
        return [text.format(folder=folder) for text in self.overrides]


def append(model: onnx.ModelProto, operator: str, *constants: float, **settings) -> None:
    number, last = len(model.graph.node), model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = f"before{number}"
    names = [f"constant{number}_{n}" for n in range(len(constants))]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.float32(value), name) for value, name in zip(constants, names, strict=True)
    )
    model.graph.node.append(helper.make_node(operator, [f"before{number}", *names], [last], **settings))


def write(path: Path, model: onnx.ModelProto, contract: dict) -> None:
    path.write_bytes(model.SerializeToString())
    path.with_suffix(".yaml").write_text(yaml.safe_dump(contract))


def classes_about(files: Files) -> None:
    files.append("Neg")


def a_blank_mask(files: Files) -> None:
    files.append("Min", -1e9)


def an_overflow(files: Files) -> None:
    for _ in range(2):
        files.append("Mul", 1e30)


def swapped_names(files: Files) -> None:
    files.contract["output"]["classes"].reverse()


def another_normalisation(files: Files) -> None:
    files.contract["input"]["normalize"] = {"kind": "mean_std", "mean": [0.5], "std": [0.25]}


def another_background(files: Files) -> None:
    files.contract["output"]["background"] = 1


def in_half(model: onnx.ModelProto) -> None:
    """Weights in fp16, as converters write them."""
    for number, tensor in enumerate(list(model.graph.initializer)):
        half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}_half")
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(half)
        model.graph.node.insert(number, helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))


def in_int8(model: onnx.ModelProto) -> None:
    """One pair of quantisation nodes makes an int8 file."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "scale"))
    append(model, "QuantizeLinear")
    model.graph.node[-1].input.append("scale")
    append(model, "DequantizeLinear")
    model.graph.node[-1].input.append("scale")


def fp16_alone(files: Files) -> None:
    in_half(files.model)
    files.overrides = ["model.precision=fp16"]


def int8_alone(files: Files) -> None:
    in_int8(files.model)
    files.overrides = ["model.precision=int8"]


def int8_by_itself(files: Files) -> None:
    in_int8(files.model)
    in_int8(files.good_model)
    files.overrides.append("model.precision=int8")


def constant_by_a_constant(files: Files) -> None:
    """Both say nothing at all, and agree."""
    files.append("Min", -1e9)
    append(files.good_model, "Min", -1e9)


def a_sigmoid_called_logits(files: Files) -> None:
    files.append("Sigmoid")


def scores_called_probabilities(files: Files) -> None:
    """The graph does not say what a Relu's numbers are, so they are measured."""
    for model, contract in ((files.model, files.contract), (files.good_model, files.good_contract)):
        append(model, "Relu")
        contract["output"]["activation"] = "softmax"


BROKEN = [
    (classes_about, "labels flipped"),
    (a_blank_mask, "the mask is the same in every pixel"),
    (an_overflow, "infinite"),
    (swapped_names, r"output\.classes"),
    (another_normalisation, r"input\.normalize"),
    (another_background, r"output\.background"),
    (fp16_alone, r"cannot be its own reference: write .* in check\.reference"),
    (int8_alone, r"cannot be its own reference: write .* in check\.reference"),
    (int8_by_itself, "is a model in int8 and cannot be a reference"),
    (constant_by_a_constant, NOT_JUDGED),
    (a_sigmoid_called_logits, "ends in Sigmoid"),
    (scores_called_probabilities, "perhaps they are logits"),
]
Way = Callable[[Project, list[str]], object]


def by_run(project: Project, overrides: list[str]) -> object:
    return project.run(*overrides)


def by_check(project: Project, overrides: list[str]) -> object:
    return check_job(project.job(*overrides), window_of("all"))


def by_ensemble(project: Project, overrides: list[str]) -> object:
    """Two such files are one session."""
    for name in ("model", "good"):
        for suffix in (".onnx", ".yaml"):
            (project.folder / f"{name}2{suffix}").write_bytes((project.folder / f"{name}{suffix}").read_bytes())
    folder = project.folder
    trusted = f"check.references=[{folder}/good.onnx, {folder}/good2.onnx]"
    several = [trusted if text.startswith("check.reference=") else text for text in overrides]
    return project.run(*several, f"model.ensemble.members=[{folder}/model2.onnx]")


def by_packed_file(project: Project, overrides: list[str]) -> object:
    """Packing proves that a file says what it said before, not that this was right."""
    data, model = model_at(str(project.folder / "model.onnx"), None, TilingSpec())
    (project.folder / "packed.onnx").write_bytes(pack(data, model, PackSpec()).data)
    return project.run(*overrides, f"model.path={project.folder}/packed.onnx")


def by_openvino(project: Project, overrides: list[str]) -> object:
    return project.run(*overrides, "model.engine=openvino")


OPENVINO = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
WAYS = [
    pytest.param(by_run),
    pytest.param(by_check, marks=pytest.mark.slow),
    pytest.param(by_ensemble, marks=pytest.mark.slow),
    pytest.param(by_packed_file, marks=pytest.mark.slow),
    pytest.param(by_openvino, marks=[pytest.mark.slow, OPENVINO]),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("breaks", "said"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_file_that_is_wrong_never_scores(project, breaks, said, way):
    """Nor at a second try: only agreement is kept."""
    project.fill(DAY, 3)
    files = Files(project)
    breaks(files)
    overrides = files.written()
    for _ in range(2):
        with pytest.raises(UnetBatchError) as refused:
            way(project, overrides)
        assert refused.value.exit_code == 2
        assert project.parts() == []
    if way is not by_packed_file:  # where the packer may be the first to refuse
        refused.match(said)


# What is asked again --------------------------------------------------------------------------------------------------


def picture(bright: int) -> bytes:
    image = np.full((SIZE, SIZE), 20, np.uint8)
    image[:9] = bright
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def reports(project: Project) -> int:
    return len(list((project.folder / "out" / "reports").glob("check-*.json")))


def test_the_same_images_are_asked_about_once(project, cache):
    """On one machine, in every process."""
    project.fill(DAY, 3)
    overrides = Files(project).written()
    for _ in range(2):
        by_check(project, overrides)
    assert (reports(project), len(list(cache.iterdir()))) == (1, 1)


def test_another_archive_asks_again(project):
    """A file that is right in dark pictures only passes on an archive of those, and not on the next one."""

    files = Files(project)
    graph = files.model.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(0.9), "limit"))
    files.append("Identity")
    graph.node[-1].op_type = "Where"
    del graph.node[-1].input[:]
    scores = graph.node[-2].output[0]
    graph.node.insert(0, helper.make_node("Greater", [graph.input[0].name, "limit"], ["bright"]))
    graph.node.insert(len(graph.node) - 1, helper.make_node("Neg", [scores], ["turned"]))
    graph.node[-1].input.extend(["bright", "turned", scores])
    overrides = files.written()
    project.put(f"{DAY}/a.png", picture(200))
    assert project.run(*overrides).ok == 1
    project.put("2026/11/22/a.png", picture(250))
    with pytest.raises(UnetBatchError, match="labels flipped"):
        project.run(*overrides)
    project.put(f"{DAY}/a.png", picture(250))  # the same name, another version
    with pytest.raises(UnetBatchError, match="labels flipped"):
        by_check(project, [*overrides, "window=2026-11-21"])


def test_an_upgraded_engine_or_another_processor_is_asked_again(project, tmp_path, monkeypatch):
    """What it computes may have changed, and the name of the device has not."""
    import onnxruntime

    project.fill(DAY, 3)
    overrides = Files(project).written()
    by_check(project, overrides)
    with monkeypatch.context() as upgraded:
        upgraded.setattr(onnxruntime, "__version__", "99.0")
        by_check(project, overrides)
    assert reports(project) == 2
    other = tmp_path / "cpuinfo"
    text = machine.CPUINFO.read_text()
    other.write_text(text.replace("flags\t\t:", "flags\t\t: not_there_before"))
    monkeypatch.setattr(machine, "CPUINFO", other)
    by_check(project, overrides)
    assert reports(project) == 3


def test_another_contract_of_the_reference_is_read_again(project):
    """It lies in a file of its own, and may be corrected while both models stay."""
    project.fill(DAY, 3)
    files = Files(project)
    overrides = files.written()
    by_check(project, overrides)
    files.good_contract["output"]["classes"].reverse()
    with pytest.raises(UnetBatchError, match=r"output\.classes"):
        by_check(project, files.written())


# What passes ----------------------------------------------------------------------------------------------------------


def test_an_explicit_zero_opens_the_gate_for_a_reduced_file(project):
    """For those who know better, and said so."""
    project.fill(DAY, 2)
    files = Files(project)
    fp16_alone(files)
    assert project.run(*files.written(), "check.images=0").ok == 2


def test_a_reduced_file_with_its_reference_scores(project):
    """As it is meant."""
    project.fill(DAY, 2)
    files = Files(project)
    in_half(files.model)
    assert project.run(*files.written(), "model.precision=fp16").ok == 2


def test_empty_pictures_are_judged_by_their_scores(project):
    """Nothing is to be found in this archive, and the scores follow the trusted ones all the same."""
    rng = np.random.default_rng(0)
    for n in range(3):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 90, (SIZE, SIZE), np.uint8)).save(out, "PNG")
        project.put(f"{DAY}/{n}.png", out.getvalue())
    files = Files(project)
    files.append("Mul", 1.01)
    assert project.run(*files.written()).ok == 3


@OPENVINO
def test_an_ensemble_in_another_engine_passes_as_one_session(project, cache):
    """Held against the same files in fp32 in ONNX Runtime on the CPU."""
    project.fill(DAY, 2)
    Files(project).written()
    members = f"model.ensemble.members=[{project.folder}/good.onnx]"
    assert project.run(members, "model.engine=openvino").ok == 2
    assert (reports(project), len(list(cache.iterdir()))) == (1, 1)


def test_a_file_and_a_reference_each_are_needed(project):
    """One reference says nothing about the second member."""
    project.fill(DAY, 1)
    overrides = Files(project).written()
    with pytest.raises(UnetBatchError, match=r"check has 1 reference\(s\) for 2 model\(s\)"):
        project.run(*overrides, f"model.ensemble.members=[{project.folder}/good.onnx]")


def test_one_picture_out_of_range_costs_itself(project):
    """The others are as the contract says, so the contract is right; one row says what was found."""
    for n in range(6):
        project.put(f"{DAY}/{n}.png", picture(255 if n == 2 else 200))
    files = Files(project)
    files.append("Relu")
    files.append("Mul", 1 / 15)
    files.contract["output"]["activation"] = "sigmoid"
    files.overrides = []
    project.run(*files.written())
    reasons = [row["reason"] for row in project.rows("2026-11-21")]
    assert reasons == [None, None, "model.output_out_of_range", None, None, None]
