"""Engines, precisions and ensembles in whole jobs: what the job file says is what the rows say."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import TinyModel, threshold_model
from onnx import helper, numpy_helper
from PIL import Image
from project_fixture import SIZE, last_json

from unet_batch.errors import ContractError, JobError, UnetBatchError
from unet_batch.planning.plan import place
from unet_batch.session.session import Device
from unet_batch.spec import ResourcesSpec
from unet_batch.worker.worker import Settings, build_infer

DAY, NAME = "2026/11/21", "2026-11-21"

openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")


def member(folder: Path, name: str, tiny: TinyModel | None = None, *, contract: bool = False) -> Path:
    """Another model of the project's kind, with a contract of its own or without."""
    tiny = tiny or threshold_model("nchw", 1, 2, size=SIZE)
    path = folder / name
    path.write_bytes(tiny.data)
    if contract:
        path.with_suffix(".yaml").write_text(tiny.contract_yaml)
    return path


def biased(shift: float) -> TinyModel:
    """The threshold model with a logit more or less for class 1."""
    tiny = threshold_model("nchw", 1, 2, size=SIZE)
    model = onnx.load_from_string(tiny.data)
    model.graph.initializer.append(helper.make_tensor("shift", onnx.TensorProto.FLOAT, [1, 2, 1, 1], [0.0, shift]))
    model.graph.node[-1].CopyFrom(helper.make_node("Add", ["head", "shift"], ["mask"]))
    model.graph.node.insert(0, model.graph.node.pop(0))
    return TinyModel(model.SerializeToString(), tiny.contract)


def ensemble(*paths: Path, combine: str = "probabilities") -> str:
    return f"model.ensemble={{members: [{', '.join(map(str, paths))}], combine: {combine}}}"


def settings(prepared) -> Settings:
    return Settings(
        prepared.job.model_dump_json(),
        prepared.model.to_json(),
        prepared.fingerprint,
        "run",
        members=tuple(m.to_json() for m in prepared.members),
    )


# Ensembles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["logits", "probabilities", "vote"])
def test_an_ensemble_scores_a_whole_job(project, combine: str) -> None:
    """Three members, one row per image, the same masks as one of them."""
    project.fill(DAY, 2)
    others = [member(project.folder, f"fold{n}.onnx", biased(0.1 * n)) for n in (1, 2)]
    how = ensemble(*others, combine=combine)
    summary = project.run(how)
    assert (summary.ok, summary.published) == (2, 1)
    assert {row["classes"][0]["area_px"] for row in project.rows(NAME)} == {8 * SIZE}
    [digest] = {row["model_digest"] for row in project.rows(NAME)}
    assert digest == project.prepared(how).model.sha256
    assert project.verify(how) == []


def test_two_members_outvote_the_first(project) -> None:
    """`model.path` has no privilege: two members that see class 1 everywhere win."""
    project.fill(DAY, 1)
    others = [member(project.folder, f"fold{n}.onnx", biased(1000.0 + n)) for n in (1, 2)]
    project.run(ensemble(*others, combine="vote"))
    [row] = project.rows(NAME)
    assert row["classes"][0]["area_px"] == SIZE * SIZE
    assert row["confidence"] == pytest.approx((8 + 2 / 3 * 24) / 32)


def test_every_change_of_an_ensemble_changes_the_fingerprint(project) -> None:
    """A member more, another order, another combination: other results, other marks."""
    a, b = (member(project.folder, f"{n}.onnx", biased(n)) for n in (1, 2))
    marks = [
        project.prepared(*how).fingerprint
        for how in ((), (ensemble(a),), (ensemble(a, b),), (ensemble(b, a),), (ensemble(a, b, combine="vote"),))
    ]
    assert len(set(marks)) == 5


def test_a_member_that_changed_since_the_plan_is_refused_by_name(project) -> None:
    """A worker compares every member's bytes with what was planned."""
    project.fill(DAY, 1)
    other = member(project.folder, "fold1.onnx", biased(1))
    travelled = settings(project.prepared(ensemble(other)))
    build_infer(travelled, Device(threads=1))
    member(project.folder, "fold1.onnx", biased(2))
    with pytest.raises(ContractError, match=r"fold1\.onnx has changed since the run was planned"):
        build_infer(travelled, Device(threads=1))


def test_a_missing_member_is_named(project) -> None:
    """By its place in the job file."""
    with pytest.raises(JobError, match=r"model\.ensemble\.members\[1\]: there is no .*gone\.onnx"):
        project.prepared(ensemble(member(project.folder, "a.onnx"), project.folder / "gone.onnx"))


def test_a_member_with_another_digest_than_the_pinned_one_is_refused(project) -> None:
    """Every file of an ensemble can be pinned."""
    other = member(project.folder, "a.onnx", biased(1))
    right = hashlib.sha256(other.read_bytes()).hexdigest()
    project.prepared(f"model.ensemble={{members: [{other}], sha256: ['{right}']}}")
    with pytest.raises(ContractError, match=r"a\.onnx has the SHA-256"):
        project.prepared(f"model.ensemble={{members: [{other}], sha256: ['{'0' * 64}']}}")


def test_a_members_own_contract_wins_over_the_first_ones(project) -> None:
    """And members that then disagree are refused before the archive is touched."""
    other = member(project.folder, "rgb.onnx", threshold_model("nchw", 3, 2, size=SIZE), contract=True)
    with pytest.raises(ContractError, match=r"member 2 differs in input\.color"):
        project.prepared(ensemble(other))


def test_an_ensemble_on_the_command_line(project) -> None:
    """Paths relative to the folder one starts from, as for every URI."""
    project.fill(DAY, 1)
    member(project.folder, "b.onnx", biased(1))
    result = project.command("run", "job.yaml", "--executor", "local", "--set", "model.ensemble.members=[b.onnx]")
    assert (result.returncode, last_json(result)["ok"]) == (0, 1), result.stderr


# Engines and precisions -----------------------------------------------------------------------------------------------


@openvino
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_job_on_openvino_says_so_in_its_rows(project, precision: str) -> None:
    """The masks are those of ONNX Runtime; the rows name engine and precision; the fingerprint is another."""
    from unet_batch.workbench.doctor import machine

    if precision == "bf16" and not machine().bf16:
        pytest.skip("this processor has no bf16")
    project.fill(DAY, 2)
    how = ["model.engine=openvino", f"model.precision={precision}"]
    project.run(*how)
    rows = project.rows(NAME)
    assert {row["classes"][0]["area_px"] for row in rows} == {8 * SIZE}
    assert {(row["provider"], row["precision"]) for row in rows} == {("openvino", precision)}
    assert project.prepared(*how).fingerprint != project.prepared().fingerprint
    assert project.verify(*how) == []


@openvino
def test_an_ensemble_on_openvino(project) -> None:
    """Both at once."""
    project.fill(DAY, 1)
    other = member(project.folder, "fold1.onnx", biased(0.1))
    project.run("model.engine=openvino", ensemble(other))
    [row] = project.rows(NAME)
    assert (row["provider"], row["classes"][0]["area_px"]) == ("openvino", 8 * SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.precision=int8", "is a model in fp32, but model.precision says int8"),
        ("model.precision=bf16", "bf16 runs with openvino on cpu"),
        ("session.providers=[cuda, cpu]", None),
        ("session.custom_ops=[libgone.so]", "there is no library"),
    ],
)
def test_a_wrong_choice_stops_before_the_archive_is_touched(project, override: str, sentence: str | None) -> None:
    """Exit code 2 and one sentence from every command that reads the job; a fallback that is allowed is none."""
    project.fill(DAY, 1)
    result = project.command("plan", "job.yaml", "--set", override)
    assert result.returncode == (0 if sentence is None else 2), result.stderr
    assert (sentence or "") in result.stderr


def test_tensorrt_without_a_tile_size_stops_before_the_archive_is_touched(project) -> None:
    """The engine would be built again for every picture."""
    member(project.folder, "model.onnx", threshold_model("nchw", 1, 2), contract=True)
    with pytest.raises(JobError, match=r"write tiling\.size"):
        project.prepared("session.providers=[tensorrt]")
    project.prepared("session.providers=[tensorrt]", "tiling.size=32")


@pytest.mark.parametrize(
    ("providers", "gpus", "infer_gpus"),
    [
        (["tensorrt"], 1, 1.0),
        (["tensorrt", "cuda"], 1, 1.0),
        (["tensorrt", "cpu"], 0, 0.0),
        (["CoreMLExecutionProvider"], 1, 0.0),
    ],
)
def test_actors_get_a_gpu_where_their_provider_wants_one(providers: list[str], gpus: int, infer_gpus: float) -> None:
    """The table says who does; a provider that no row has gets none."""
    assert place(8, gpus, ResourcesSpec(), providers=providers, gpu_share=1.0).infer_gpus == infer_gpus


def test_two_providers_that_want_a_gpu_and_none_there_are_refused() -> None:
    """Neither is a permission to use the CPU."""
    with pytest.raises(JobError, match="is tensorrt, cuda, but the cluster has 0 GPUs"):
        place(8, 0, ResourcesSpec(), providers=["tensorrt", "cuda"], gpu_share=1.0)


def test_libraries_of_operators_travel_by_their_whole_path(project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers start in other folders."""
    monkeypatch.chdir(project.folder)
    with pytest.raises(
        JobError, match=r"there is no library ops/libfoo\.so in .*; relative paths are relative to the working"
    ):
        project.prepared("session.custom_ops=[ops/libfoo.so]")
    (project.folder / "ops").mkdir()
    (project.folder / "ops" / "libfoo.so").write_bytes(b"no library")
    with pytest.raises(UnetBatchError, match=re.escape(f"{os.path.realpath(project.folder)}/ops/libfoo.so")):
        project.prepared("session.custom_ops=[ops/libfoo.so]")


def test_options_that_nobody_can_judge_change_the_fingerprint(project) -> None:
    """Those of a provider without a row: they may choose another arithmetic."""
    name = "CoreMLExecutionProvider"
    plain = project.prepared(f"session.providers=[{name}]")
    other = project.prepared(f"session.providers=[{name}]", f"session.provider_options={{{name}: {{low: 1}}}}")
    assert plain.fingerprint == project.prepared().fingerprint
    assert other.fingerprint != plain.fingerprint


def picture(height: int, width: int) -> bytes:
    """A gray PNG whose right half is bright."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, width // 2 :] = 250
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_an_odd_picture_that_a_network_cannot_lay_back_costs_itself(project):
    """A stride of 2 gives 32x32 for 64x63: that picture is rejected, with the key to write; the others are scored."""
    weight = np.zeros((2, 1, 3, 3), np.float32)
    weight[1, 0, 1, 1] = 20
    net = helper.make_graph(
        [helper.make_node("Conv", ["image", "w", "b"], ["mask"], strides=[2, 2], pads=[1, 1, 1, 1])],
        "stride 2",
        [helper.make_tensor_value_info("image", 1, ["n", 1, "h", "w_"])],
        [helper.make_tensor_value_info("mask", 1, ["n", 2, "oh", "ow"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([0, -10], np.float32), "b")],
    )
    made = helper.make_model(net, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (project.folder / "model.onnx").write_bytes(made.SerializeToString())
    (project.folder / "model.yaml").write_text(
        "input: {color: gray, channels: 1}\noutput: {classes: [background, thing]}\n"
    )
    for name, width in (("a", 64), ("b", 63), ("c", 32)):
        project.put(f"{DAY}/{name}.png", picture(64, width))
    summary = project.run("limits.max_rejected=1")
    assert (summary.ok, summary.rejected, summary.exit_code) == (2, 1, 0)
    [row] = [row for row in project.rows(NAME) if row["status"] == "rejected"]
    assert (row["uri"].rpartition("/")[2], row["reason"]) == ("b.png", "model.output_out_of_range")
    assert "input.multiple" in row["message"]
