"""The same stages in worker processes and as Ray actors: equal rows, and one poisonous image costs itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import forked
import poison
import pytest
from project_fixture import last_json, png

pytestmark = pytest.mark.slow

WORKERS = pytest.mark.parametrize(
    ("executor", "shape"),
    [
        pytest.param("processes", (), id="processes"),
        pytest.param("ray", (), id="actors that load for themselves", marks=pytest.mark.ray),
        pytest.param("ray", ("resources.load_actors=1",), id="load actors", marks=pytest.mark.ray),
    ],
)
SCRIPT = Path(__file__).with_name("score_slowly.py")
DAY = "2026/11/21"
NAME = "2026-11-21"


def score(project, executor: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the job with the noting decoder in a process of its own; the last line of stdout is the summary."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    words = (SCRIPT, executor, project.folder / "job.yaml", *overrides)
    return forked.command(*words, environment=environment, timeout_s=240)


@WORKERS
def test_workers_and_the_plain_loop_give_equal_rows(project, executor, shape):
    """Row by row, but for the run that scored them."""
    project.fill(DAY, 40)
    project.put(f"{DAY}/bad.png", b"no image")
    project.run("limits.unit_images=4")
    plain = project.rows(NAME)
    project.data(NAME).unlink()
    for part in project.parts():
        part.unlink()
    summary = last_json(score(project, executor, "limits.unit_images=4", *shape))
    assert [summary[k] for k in ("ok", "rejected", "published", "executor")] == [40, 1, 1, executor]
    rows = project.rows(NAME)
    assert [{**r, "run_id": None} for r in rows] == [{**r, "run_id": None} for r in plain]
    assert project.verify() == []


@WORKERS
def test_a_crash_a_hang_and_a_surprise_cost_one_row_each(project, executor, shape):
    """Neighbours in their units, and units in flight in the same processes, are all scored."""
    project.fill(DAY, 24)
    project.put(f"{DAY}/005.png", png(5) + poison.CRASH)
    project.put(f"{DAY}/013.png", png(13) + poison.HANG)
    project.put(f"{DAY}/020.png", png(20) + poison.RAISE)
    limits = ("limits.unit_images=4", "limits.unit_timeout_s=6", "limits.image_timeout_s=2")
    summary = last_json(score(project, executor, *limits, *shape))
    reasons = {r["uri"][-7:-4]: r["reason"] for r in project.rows(NAME) if r["status"] != "ok"}
    # The surprise raises in its own process, or in the isolated one when a neighbour's crash took its unit along.
    assert reasons.pop("020") in {"model.failed", "decode.crashed"}
    assert reasons == {"005": "decode.crashed", "013": "decode.timeout"}
    assert [summary[k] for k in ("ok", "rejected", "remaining")] == [21, 3, 0]
    assert project.verify() == []


@pytest.mark.ray
def test_a_crash_in_a_task_of_several_units_costs_one_row(project):
    """A long pass has two units in a task: the neighbour of the image that crashed is scored in another pass."""
    images = 128
    project.fill(DAY, images)
    project.put(f"{DAY}/050.png", png(50) + poison.CRASH)
    summary = last_json(score(project, "ray", "limits.unit_images=1", "resources.infer_actors=2"))
    assert [summary[k] for k in ("ok", "rejected", "remaining", "published")] == [images - 1, 1, 0, 1]
    assert [row["uri"][-7:-4] for row in project.rows(NAME) if row["status"] != "ok"] == ["050"]
    assert project.verify() == []


@pytest.mark.ray
def test_a_missing_provider_ends_the_run_with_its_own_error(project):
    """An actor that cannot start says why, and Ray does not try for ever."""
    project.fill(DAY, 2)
    result = score(project, "ray-on-cpus", "session.providers=[cuda]")
    assert result.returncode == 2
    assert "session.provider_missing" in result.stderr
    assert "CUDA" in result.stderr


@pytest.mark.parametrize("executor", ["auto", "processes", pytest.param("ray", marks=pytest.mark.ray)])
def test_the_command_line_prints_one_json_line_and_no_noise(project, executor):
    """stdout is for machines; stderr for people, without what workers and Ray print."""
    project.fill(DAY, 6)
    result = project.command("run", "job.yaml", "--quiet", "--executor", executor)
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.splitlines() == [f"published date={NAME}"]
    assert last_json(result)["executor"] == executor.replace("auto", "processes")
