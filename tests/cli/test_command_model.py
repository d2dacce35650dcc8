"""The model commands as one types them: a file in, a file or a table out, one line of JSON."""

from __future__ import annotations

import pytest
from project_fixture import SIZE, last_json


def test_inspect_counts_what_a_file_costs(project):
    """Inputs, parameters and multiply-adds as JSON; a table for people on stderr."""
    result = project.command("model", "inspect", "model.onnx")
    assert result.returncode == 0, result.stderr
    assert last_json(result)["sha256"]
    assert "multiply-adds" in result.stderr


def test_a_packed_model_scores_the_same_job(project):
    """uint8 in, labels out, and the same areas in the rows."""
    project.fill("2026/11/21", 2)
    project.run()
    [before] = {row["classes"][0]["area_px"] for row in project.rows("2026-11-21")}
    result = project.command("model", "pack", "model.onnx", "--out", "packed.onnx")
    assert result.returncode == 0, result.stderr
    assert last_json(result)["bytes_after"] < last_json(result)["bytes_before"] / 4
    summary = project.run(f"model.path={project.folder}/packed.onnx")
    assert (summary.ok, summary.published) == (2, 1)
    assert {row["classes"][0]["area_px"] for row in project.rows("2026-11-21")} == {before} == {8 * SIZE}


@pytest.mark.slow
def test_check_says_when_there_is_nothing_to_check(project):
    """The trusted session is not compared with itself; with a reference, it is compared with that."""
    project.fill("2026/11/21", 2)
    result = project.command("model", "check", "job.yaml")
    assert (result.returncode, last_json(result)["checked"]) == (0, False), result.stderr
    other = project.command("model", "check", "job.yaml", "--set", f"check.reference={project.folder}/model.onnx")
    assert (other.returncode, last_json(other)["checked"]) == (0, True), other.stderr


def test_a_model_with_nothing_to_quantise_is_refused(project):
    """Its one layer is the first and the last; a file that is fp32 must not be called int8."""
    project.fill("2026/11/21", 6)
    result = project.command("model", "quantize", "job.yaml", "--out", "int8.onnx", "--images", "6")
    assert (result.returncode, (project.folder / "int8.onnx").exists()) == (2, False), result.stderr
    assert "no layer of" in result.stderr


@pytest.mark.parametrize("command", ["quantize", "optimize"])
@pytest.mark.parametrize("place", ["folder", "model.onnx/file.onnx"], ids=["a folder", "below a file"])
def test_a_file_that_cannot_be_written_is_said_before_minutes_of_work(project, command, place):
    """Nothing is read: the archive does not exist. No draft is left."""
    (project.folder / "folder").mkdir()
    result = project.command("model", command, "job.yaml", "--out", place)
    assert (result.returncode, "cannot be written" in result.stderr) == (2, True)
    assert not list(project.folder.rglob("*.draft"))


@pytest.mark.slow
def test_wrong_arguments_are_one_sentence_and_exit_code_2(project):
    """Sizes, axes and files that are not there."""
    for arguments in (
        ("inspect", "model.onnx", "--size", "big"),
        ("inspect", "gone.onnx"),
        ("export", "nowhere:Net", "--out", "x.onnx", "--input", "1x32x32", "--classes", "2", "--dynamic", "height"),
    ):
        result = project.command("model", *arguments)
        assert (result.returncode != 0, "Traceback" in result.stderr) == (True, False), result.stderr


@pytest.mark.slow
def test_doctor_tries_what_a_job_needs(project):
    """Model, session, archive and output are in order; a job without its model is not."""
    project.fill("2026/11/21", 1)
    good = project.command("doctor", "job.yaml")
    assert good.returncode == 0, good.stderr
    subjects = {f["subject"]: f["runs"] for f in last_json(good)["findings"]}
    assert [subjects[f"job {name}"] for name in ("model", "session", "archive", "output")] == [True] * 4
    assert project.command("doctor", "job.yaml", "--set", "model.path=/gone.onnx").returncode == 2
