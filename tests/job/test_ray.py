"""The same stages as Ray actors: equal rows, and one poisonous image costs itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import poison
import pytest
from project_fixture import last_json, png

from unet_batch.errors import JobError
from unet_batch.records import Source, Unit
from unet_batch.worker.loaded import Entry, Loaded, Pack, from_arrow, pixels_of, to_arrow

SHAPES = pytest.mark.parametrize(
    "shape", [(), ("resources.load_actors=1",)], ids=["actors that load for themselves", "load actors"]
)
DAY = "2026/11/21"
NAME = "2026-11-21"


def score(project, executor: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the job with the noting decoder in a process of its own; the last line of stdout is the summary."""
    tests = Path(__file__).parents[1]
    return subprocess.run(
        [
            sys.executable,
            str(tests / "job" / "score_slowly.py"),
            executor,
            str(project.folder / "job.yaml"),
            *overrides,
        ],
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_a_loaded_unit_crosses_as_one_row_and_its_pixels_come_back_as_a_view():
    """8- and 16-bit pictures in one buffer, aligned, and never copied on the way out."""
    pack = Pack()
    pictures = [np.arange(15, dtype=np.uint8).reshape(5, 3, 1), np.arange(6, dtype=np.uint16).reshape(1, 2, 3)]
    depth = {"largest": 4095.0, "range_used": 0.25}
    entries = tuple(
        Entry(i, 0, 1, p.shape[0], p.shape[1], p.dtype.str, p.shape, pack.add(p), **depth)
        for i, p in enumerate(pictures)
    )
    unit = Unit("u", "all", "images", (Source("s3://a", "v"), Source("s3://b", "v")))
    buffer = pack.joined()
    table = to_arrow(Loaded(unit, entries, buffer))
    back = from_arrow(table)
    assert table.num_rows == 1
    assert (back.unit, back.entries) == (unit, entries)
    for entry, picture in zip(back.entries, pictures, strict=True):
        found = pixels_of(back, entry)
        assert np.shares_memory(found, buffer)
        np.testing.assert_array_equal(found, picture)


@pytest.mark.ray
@SHAPES
def test_ray_and_the_plain_loop_give_equal_rows(project, shape):
    """Row by row, but for the run that scored them."""
    project.fill(DAY, 40)
    project.put(f"{DAY}/bad.png", b"no image")
    project.run("limits.unit_images=4")
    plain = project.rows(NAME)
    project.data(NAME).unlink()
    for part in project.parts():
        part.unlink()
    summary = last_json(score(project, "ray", "limits.unit_images=4", *shape))
    assert [summary[k] for k in ("ok", "rejected", "published", "executor")] == [40, 1, 1, "ray"]
    rows = project.rows(NAME)
    assert [{**r, "run_id": None} for r in rows] == [{**r, "run_id": None} for r in plain]
    assert project.verify() == []


@pytest.mark.ray
@SHAPES
def test_a_crash_a_hang_and_a_surprise_cost_one_row_each(project, shape):
    """Neighbours in their units, and units in flight in the same processes, are all scored."""
    project.fill(DAY, 24)
    project.put(f"{DAY}/005.png", png(5) + poison.CRASH)
    project.put(f"{DAY}/013.png", png(13) + poison.HANG)
    project.put(f"{DAY}/020.png", png(20) + poison.RAISE)
    limits = ("limits.unit_images=4", "limits.unit_timeout_s=6", "limits.image_timeout_s=2")
    summary = last_json(score(project, "ray", *limits, *shape))
    reasons = {r["uri"][-7:-4]: r["reason"] for r in project.rows(NAME) if r["status"] != "ok"}
    # The surprise raises in its own process, or in the isolated one when a neighbour's crash took its unit along.
    assert reasons.pop("020") in {"model.failed", "decode.crashed"}
    assert reasons == {"005": "decode.crashed", "013": "decode.timeout"}
    assert [summary[k] for k in ("ok", "rejected", "remaining")] == [21, 3, 0]
    assert project.verify() == []


@pytest.mark.ray
def test_a_missing_provider_ends_the_run_with_its_own_error(project):
    """An actor that cannot start says why, and Ray does not try for ever."""
    project.fill(DAY, 2)
    result = score(project, "ray-on-cpus", "session.providers=[cuda]")
    assert result.returncode == 2
    assert "session.provider_missing" in result.stderr
    assert "CUDA" in result.stderr


@pytest.mark.ray
def test_an_embedded_run_does_not_join_a_cluster_that_happens_to_run(project):
    """Only --address joins; RAY_ADDRESS and a running head are not touched."""
    project.fill(DAY, 2)
    result = project.command("run", "job.yaml", env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"})
    assert result.returncode == 0, result.stderr


def test_an_address_where_no_cluster_answers_is_one_sentence(monkeypatch):
    """Exit code 2, at once where nobody listens; a wrong token is a ConnectionError of Ray's after a while."""
    import ray

    from unet_batch.on_ray import start as ray_start

    def refuse(**_):
        raise ConnectionError("ray client\n  says no")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(JobError, match=f"nobody answers at --address {address}"):
            ray_start.start(address)
        head.listen()
        with pytest.raises(JobError, match=f"no Ray cluster takes this run at --address {address}: ray client says no"):
            ray_start.start(address)
    with pytest.raises(JobError, match="at --address auto: ray client says no"):
        ray_start.start("auto")


@pytest.mark.ray
def test_the_command_line_on_ray_prints_one_json_line_and_no_noise(project):
    """stdout is for machines; stderr for people, without Ray's own messages."""
    project.fill(DAY, 6)
    result = subprocess.run(
        [sys.executable, "-m", "unet_batch", "run", "job.yaml", "--quiet"],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.splitlines() == [f"published date={NAME}"]
