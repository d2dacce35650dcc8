"""Kill anything, lose nothing: after kill -9 the same command finishes, and scores again only what was in flight."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import poison
import pytest
from forked import Forked, wait_for_session
from project_fixture import png

pytestmark = pytest.mark.slow

DAY = "2026/11/21"
NAME = "2026-11-21"
IMAGES = 60
UNIT = 4


def start(project, executor: str, *, delay_s: float) -> Forked:
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tests),
        poison.LOG_VARIABLE: str(project.folder / "decoded.txt"),
        poison.DELAY_VARIABLE: str(delay_s),
    }
    words = (tests / "job" / "score_slowly.py", executor, project.folder / "job.yaml", f"limits.unit_images={UNIT}")
    return Forked(*words, environment=environment, new_session=True)


def decoded(project) -> Counter[str]:
    log = project.folder / "decoded.txt"
    return Counter(log.read_text().split()) if log.exists() else Counter()


def wait_for_parts(project, driver: Forked, count: int) -> None:
    deadline = time.monotonic() + 90
    while len(project.parts()) < count:
        assert driver.poll() is None, "the driver ended before it could be killed"
        assert time.monotonic() < deadline, "no parts appeared"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("executor", "in_flight"),
    [
        pytest.param("local", UNIT, id="local"),
        # two processes with two units each
        pytest.param("processes", 4 * UNIT, id="processes"),
        # two Load actors with two units each, and what was decoded and waits for two session actors
        pytest.param("ray", 16 * UNIT, id="ray", marks=[pytest.mark.ray, pytest.mark.matrix]),
    ],
)
def test_a_driver_killed_mid_run_and_a_rerun_end_in_a_complete_partition(project, executor, in_flight):
    """No image is decoded twice beyond the units in flight, and verify agrees."""
    project.fill(DAY, IMAGES)
    driver = start(project, executor, delay_s=0.05)
    wait_for_parts(project, driver, 3)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not project.data(NAME).exists()
    wait_for_session(driver.pid, timeout_s=30) if executor != "ray" else time.sleep(3)  # workers notice it, too
    staged = len(project.parts())
    before = decoded(project)

    assert start(project, executor, delay_s=0).wait(timeout_s=120) == 0
    again = decoded(project) - before
    assert sum(again.values()) <= IMAGES - staged * 1  # nothing staged in a whole unit is read again
    assert sum(decoded(project).values()) <= IMAGES + in_flight
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []


def test_an_image_that_killed_the_process_is_isolated_by_the_next_run(project):
    """The local loop leaves a marker at a unit's start; the next run decodes that unit in a child process."""
    project.fill(DAY, 5)
    project.put(f"{DAY}/003.png", png(3) + poison.CRASH)
    assert start(project, "local", delay_s=0).wait(timeout_s=60) == 1
    assert start(project, "local", delay_s=0).wait(timeout_s=60) == 0
    reasons = [r["reason"] for r in project.rows(NAME)]
    assert reasons == [None, None, None, "decode.crashed", None]
    assert project.verify() == []


@pytest.mark.parametrize(("executor", "in_flight"), [("local", UNIT), ("processes", 4 * UNIT)])
def test_ctrl_c_ends_cleanly_and_the_next_run_resumes(project, executor, in_flight):
    """The run record is finished, exit code 3, and staged parts are used."""
    project.fill(DAY, IMAGES)
    driver = start(project, executor, delay_s=0.05)
    wait_for_parts(project, driver, 3)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout_s=30) == 3
    before = sum(decoded(project).values())
    assert start(project, executor, delay_s=0).wait(timeout_s=60) == 0
    assert sum(decoded(project).values()) <= IMAGES + in_flight
    assert before < IMAGES
    assert project.verify() == []
