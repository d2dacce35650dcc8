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

IN_THE_MATRIX = [pytest.mark.ray, pytest.mark.matrix]
SCRIPT = Path(__file__).with_name("score_slowly.py")
DAY = "2026/11/21"
NAME = "2026-11-21"


def score(project, executor: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the job with the noting decoder in a process of its own; the last line of stdout is the summary."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    words = (SCRIPT, executor, project.folder / "job.yaml", *overrides)
    return forked.command(*words, environment=environment, timeout_s=300)


def plain_rows(project, *overrides: str) -> list[dict]:
    """Rows that the plain loop publishes; then they and its parts are gone again."""
    project.run(*overrides)
    rows = project.rows(NAME)
    project.data(NAME).unlink()
    for part in project.parts():
        part.unlink()
    return [{**row, "run_id": None} for row in rows]


@pytest.mark.parametrize(
    ("executor", "shape"),
    [
        pytest.param("processes", (), id="processes"),
        pytest.param("ray", (), id="actors that load for themselves", marks=IN_THE_MATRIX),
        pytest.param("ray", ("resources.load_actors=1",), id="load actors", marks=IN_THE_MATRIX),
    ],
)
def test_workers_and_the_plain_loop_give_equal_rows(project, executor, shape):
    """Row by row, but for the run that scored them. On Ray the next test compares them, too."""
    project.fill(DAY, 40)
    project.put(f"{DAY}/bad.png", b"no image")
    plain = plain_rows(project, "limits.unit_images=4")
    summary = last_json(score(project, executor, "limits.unit_images=4", *shape))
    assert [summary[k] for k in ("ok", "rejected", "published", "executor")] == [40, 1, 1, executor]
    assert [{**row, "run_id": None} for row in project.rows(NAME)] == plain
    assert project.verify() == []


@pytest.mark.parametrize(
    ("executor", "images", "shape"),
    [
        pytest.param("processes", 24, ("limits.unit_images=4",), id="processes"),
        pytest.param(
            "ray",
            24,
            ("limits.unit_images=4", "resources.load_actors=1", "resources.infer_actors=1"),
            id="load actors",
            marks=pytest.mark.ray,
        ),
        pytest.param(
            "ray",
            64,
            ("limits.unit_images=2", "resources.infer_actors=1"),
            id="tasks of two units",
            marks=pytest.mark.ray,
        ),
    ],
)
def test_a_crash_a_hang_and_a_surprise_cost_one_row_each(project, executor, images, shape):
    """Neighbours in their units and tasks, and units in flight in the same processes, have the plain loop's rows."""
    project.fill(DAY, images)
    project.put(f"{DAY}/bad.png", b"no image")
    limits = (*shape, "limits.unit_timeout_s=6", "limits.image_timeout_s=2")
    plain = plain_rows(project, *limits)
    ill = {"005": poison.CRASH, "013": poison.HANG, "020": poison.RAISE}
    for number, what in ill.items():
        project.put(f"{DAY}/{number}.png", png(int(number)) + what)
    summary = last_json(score(project, executor, *limits))
    rows = {row["uri"][-7:-4]: {**row, "run_id": None} for row in project.rows(NAME)}
    reasons = {name: rows.pop(name)["reason"] for name in ill}
    # The surprise raises in its own process, or in the isolated one when a neighbour's crash took its unit along.
    assert reasons.pop("020") in {"model.failed", "decode.crashed"}
    assert reasons == {"005": "decode.crashed", "013": "decode.timeout"}
    assert list(rows.values()) == [row for row in plain if row["uri"][-7:-4] not in ill]
    assert [summary[k] for k in ("ok", "rejected", "remaining", "executor")] == [images - 3, 4, 0, executor]
    assert project.verify() == []


@pytest.mark.ray
def test_a_missing_provider_ends_the_run_with_its_own_error(project):
    """An actor that cannot start says why, and Ray does not try for ever. On a cluster the matrix does the same."""
    project.fill(DAY, 2)
    result = score(project, "ray-on-cpus", "session.providers=[cuda]")
    assert result.returncode == 2
    assert "session.provider_missing" in result.stderr
    assert "CUDA" in result.stderr


@pytest.mark.parametrize("executor", ["auto", "processes", pytest.param("ray", marks=IN_THE_MATRIX)])
def test_the_command_line_prints_one_json_line_and_no_noise(project, executor):
    """stdout is for machines; stderr for people, without what workers print, nor Ray (see tests/on_ray/test_ray.py)."""
    project.fill(DAY, 6)
    result = project.command("run", "job.yaml", "--quiet", "--executor", executor)
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.splitlines() == [f"published date={NAME}"]
    assert last_json(result)["executor"] == executor.replace("auto", "processes")
