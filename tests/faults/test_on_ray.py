"""The same strikes under Ray: a worker's death costs the run one unit's work, a driver's death the units in flight."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from faulty import Faulty, Reader, digest
from poison import LOG_VARIABLE
from strikes import VARIABLE, Strike

pytestmark = pytest.mark.ray

DAY, NAME = "2026/11/21", "2026-11-21"
IMAGES, UNIT = 24, 3
LIMITS = (f"limits.unit_images={UNIT}",)
AT_ONCE = 2
"""Units that one actor works on; there is an actor for each core."""


def on_ray(faulty: Faulty, where: str, strike: Strike) -> tuple[int, dict]:
    """A struck run with embedded Ray in a process group of its own: exit code and summary."""
    tests, folder = Path(__file__).parents[1], faulty.project.folder
    told = folder / "told.json"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests / "faults")]),
        VARIABLE: json.dumps({"where": where, "strike": asdict(strike)}),
        LOG_VARIABLE: str(faulty.log),
    }
    command = [sys.executable, str(tests / "faults" / "strikes.py"), str(folder / "job.yaml"), str(told), *LIMITS]
    driver = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        code = driver.wait(timeout=150)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    return code, json.loads(told.read_text()) if told.exists() else {}


@pytest.mark.parametrize(
    ("point", "act"),
    [("before a part", "kill"), ("after a part", "kill"), ("a batch", "broken")],
    ids=["a worker killed before a part", "a worker killed after a part", "a device context lost"],
)
def test_a_worker_that_dies_is_replaced_and_its_units_are_redone_in_the_same_run(faulty, point, act):
    """Exit code 0: one process was struck, nothing is left open, and its units alone were decoded twice."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    token = project.folder / "struck"
    code, told = on_ray(faulty, "worker", Strike(point, 2, act, str(token)))
    assert code == 0
    assert token.exists()
    assert [told[k] for k in ("ok", "rejected", "remaining", "published", "problems")] == [IMAGES, 0, 0, 1, []]
    assert IMAGES <= faulty.decoded().total() <= IMAGES + 2 * AT_ONCE * UNIT
    assert len(faulty.parts()) == IMAGES // UNIT
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@pytest.mark.parametrize(("point", "nth"), [("a part has arrived", 3), ("the file is written", 1)])
def test_a_driver_that_is_killed_is_followed_by_a_run_that_completes(faulty, point, nth):
    """Another executor may go on; what was staged is not decoded again, and the lease of the dead blocks nobody."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    project.run("tiling.overlap=0.5")
    old = digest(project.data(NAME))
    cores = len(os.sched_getaffinity(0))
    with Reader(project.data(NAME)) as reader:
        code, _ = on_ray(faulty, "driver", Strike(point, nth))
        assert code == -signal.SIGKILL
        settled(faulty)
        staged, before = len(faulty.parts()), faulty.decoded()
        again = faulty.rerun(*LIMITS)
    assert staged >= nth
    assert before.total() - staged * UNIT <= cores * AT_ONCE * UNIT
    assert (again.planned, again.ok, again.published, again.exit_code) == (
        IMAGES - staged * UNIT, IMAGES - staged * UNIT, 1, 0
    )  # fmt: skip
    assert (faulty.decoded() - before).total() == IMAGES - staged * UNIT
    assert reader.seen <= {old, digest(project.data(NAME))}
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


def settled(faulty: Faulty) -> None:
    """Wait until the dead driver's workers have noticed: nothing was decoded or staged for a second."""
    before: tuple[int, int] | None = None
    for _ in range(60):
        now = (faulty.decoded().total(), len(faulty.parts()))
        if now == before:
            return
        before = now
        time.sleep(1.5)
