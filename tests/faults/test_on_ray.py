"""The same strikes and the same weather under Ray: what a worker's or a driver's death, or a bad store, costs there."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from faulty import Faulty, Reader, digest
from models import threshold_model
from PIL import Image
from poison import LOG_VARIABLE
from strikes import VARIABLE, Strike

pytestmark = pytest.mark.ray

DAY, NAME = "2026/11/21", "2026-11-21"
IMAGES, UNIT = 24, 3
LIMITS = (f"limits.unit_images={UNIT}",)
AT_ONCE = 2
"""Units that one actor works on; there is an actor for each core."""


def on_ray(
    faulty: Faulty, where: str, strike: Strike | None = None, overrides: tuple[str, ...] = (), **weather: object
) -> tuple[int, dict]:
    """A run with embedded Ray in a process group of its own: exit code and summary.

    where: `driver`, `worker` or `driver and worker`: what is struck, or lives under some weather.
    """
    tests, folder = Path(__file__).parents[1], faulty.project.folder
    told = folder / "told.json"
    wanted = {"where": where, "weather": weather, **({"strike": asdict(strike)} if strike else {})}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests / "faults")]),
        VARIABLE: json.dumps(wanted),
        LOG_VARIABLE: str(faulty.log),
    }
    command = [sys.executable, str(tests / "faults" / "strikes.py"), str(folder / "job.yaml"), str(told), *LIMITS]
    command += overrides
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


@pytest.mark.parametrize("weather", [{"slow": 0.3}, {"flaky": "2026"}], ids=["slow", "reset once for each object"])
def test_a_store_that_is_slow_or_breaks_off_costs_time_and_nothing_else(faulty, weather):
    """In the driver and in every worker: each image is decoded once, and nothing is reported."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    code, told = on_ray(faulty, "driver and worker", **weather)
    assert code == 0
    assert [told[k] for k in ("ok", "rejected", "remaining", "published", "problems")] == [IMAGES, 0, 0, 1, []]
    assert set(faulty.decoded().values()) == {1}
    assert len(faulty.parts()) == IMAGES // UNIT
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


def test_parts_that_no_listing_shows_are_redone_and_count_once(faulty):
    """After a driver's death, with a listing that lags: parts are met again by name, none is rewritten."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    on_ray(faulty, "driver", Strike("a part has arrived", 3))
    settled(faulty)
    written = faulty.parts()
    assert len(written) >= 3
    code, told = on_ray(faulty, "driver", blind="/_work/parts/")
    assert (code, told["planned"], told["ok"], told["problems"]) == (0, IMAGES, IMAGES, [])
    assert {path: at for path, at in faulty.parts().items() if path in written} == written
    assert len(faulty.parts()) == IMAGES // UNIT
    assert [row["uri"][-7:] for row in project.rows(NAME)] == [f"{i:03}.png" for i in range(IMAGES)]
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


def test_rows_and_images_that_a_listing_shows_late_are_scored_once(faulty):
    """An image that the listing hides is added by the next run, which finds the published rows by their name."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    code, told = on_ray(faulty, "driver", blind="/004.png")
    assert (code, told["ok"], len(project.rows(NAME))) == (0, IMAGES - 1, IMAGES - 1)
    for part in faulty.parts():
        part.unlink()
    code, told = on_ray(faulty, "driver", blind="/predictions/")
    assert (code, told["planned"], told["ok"], told["published"]) == (0, 1, 1, 1)
    assert set(faulty.decoded().values()) == {1}
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []


APART = ("resources.load_actors=1", "resources.infer_actors=1")
"""Pixels cross the object store, as they do where sessions run on GPUs."""
STORE_MIB, GIANT_PX = 80, 9300
"""An object store just above Ray's minimum, and the side of a gray picture that does not fit into it."""


def test_an_image_that_a_full_disk_keeps_from_its_session_is_left_open_and_not_rejected(faulty):
    """What fits into the store is scored; what would be spilled waits, and the reason is told."""
    project, limits = faulty.project, ("limits.max_image_pixels=100000000", *LIMITS)
    model = threshold_model("nchw", 1, 2, size=1024)
    (project.folder / "model.onnx").write_bytes(model.data)
    project.fill(DAY, 6)
    giant = io.BytesIO()
    Image.new("L", (GIANT_PX, GIANT_PX), 255).save(giant, "PNG")
    project.put(f"{DAY}/giant.png", giant.getvalue())
    code, told = on_ray(faulty, "driver", overrides=(*APART, *limits), no_spill=STORE_MIB)
    assert [code] + [told[k] for k in ("ok", "rejected", "remaining", "published")] == [3, 6, 0, 1, 0]
    assert told["problems"][0].startswith("run.handover: the object store is full, and so is the disk that Ray spills")
    assert faulty.decoded().total() <= 6 + 2 * UNIT + 3
    again = faulty.rerun(*limits)
    assert (again.planned, again.ok, again.published, again.exit_code) == (1, 1, 1, 0)
    assert len(project.rows(NAME)) == 7
    assert project.verify(*limits) == []


@pytest.fixture
def small_disk() -> Iterator[str]:
    """A folder with a disk of 32 MiB of its own; Ray's sockets lie in it, so its name is short."""
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root can make a disk of its own")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_without_a_free_byte_ends_the_run_soon_and_keeps_the_old_rows(faulty, small_disk):
    """Ray's processes die at their start and are started again without an end; the run looks, and says why.

    Ray's native part in the driver may die of such a disk, too (seen: SIGSEGV, once in ten runs).
    """
    project = faulty.project
    project.fill(DAY, 1)
    project.run()
    old = digest(project.data(NAME))
    project.fill(DAY, IMAGES)
    code, told = on_ray(faulty, "driver", full_disk=small_disk)
    assert code == 3 or code < 0
    if code == 3:
        assert [told[k] for k in ("ok", "rejected", "published")] == [0, 0, 0]
        assert told["problems"][0].startswith(f"the disk of Ray's folder {small_disk}")
    assert digest(project.data(NAME)) == old
    again = faulty.rerun(*LIMITS)
    assert (again.ok, again.published, again.exit_code) == (IMAGES, 1, 0)
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
