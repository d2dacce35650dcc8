"""What can fail on Ray and nowhere else: a node, a session on one node of several, Ray itself, its disk."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import digest, until
from models import threshold_model
from PIL import Image
from small_cluster import LARGE, command_lines, one_node_without_sessions
from strikes import Strike

pytestmark = pytest.mark.ray

DAY, NAME = "2026/11/21", "2026-11-21"
IMAGES, UNIT = 24, 3
LIMITS = (f"limits.unit_images={UNIT}",)
AT_ONCE = 2
"""Units that one actor works on; there is an actor for each core."""


@pytest.mark.parametrize(
    "point",
    [
        "inside the put of a part",
        pytest.param("before a part", marks=pytest.mark.matrix),
        pytest.param("after a part", marks=pytest.mark.matrix),
    ],
)
@pytest.mark.cluster
def test_a_node_that_is_lost_costs_the_units_in_flight_on_it(faulty, three_ray_nodes, point):
    """A raylet dies at a moment of one of its workers, and with it the node: the run ends by itself, complete."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    token, (cluster, environment) = project.folder / "struck", three_ray_nodes
    how = {"address": cluster.head, "environment": environment}
    try:
        code, told = faulty.on_workers("worker", Strike(point, 1, "node", str(token)), overrides=LIMITS, **how)
    finally:
        lost = cluster.mend()
    assert len(lost) == 1
    assert code == 0
    assert [told[k] for k in ("ok", "rejected", "remaining", "published", "problems")] == [IMAGES, 0, 0, 1, []]
    assert IMAGES <= faulty.decoded().total() <= IMAGES + LARGE * AT_ONCE * UNIT
    assert len(faulty.parts()) == IMAGES // UNIT
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@pytest.mark.cluster
def test_a_node_on_which_no_session_starts_costs_no_unit_a_try(faulty, three_ray_nodes):
    """Its actor is always free, and would take every unit: it waits, and the other nodes score."""
    project, (cluster, environment) = faulty.project, three_ray_nodes
    project.fill(DAY, IMAGES)
    cluster.add("bad", cpus=1, STRIKE_NO_SESSION="1")
    try:
        code, told = faulty.on_workers("", overrides=LIMITS, address=cluster.head, environment=environment)
    finally:
        cluster.kill("bad")
    assert [code] + [told[k] for k in ("ok", "rejected", "remaining", "problems")] == [0, IMAGES, 0, 0, []]
    assert set(faulty.decoded().values()) == {1}


@pytest.mark.matrix
@pytest.mark.cluster
def test_a_cluster_on_which_no_session_starts_ends_the_run(faulty):
    """With the error of the first node."""
    faulty.project.fill(DAY, IMAGES)
    with one_node_without_sessions() as (cluster, environment):
        code, told = faulty.on_workers("", overrides=LIMITS, address=cluster.head, environment=environment)
    assert (code, told["code"]) == (2, "session.provider_missing")
    assert "no session could start on any node" in told["error"]
    assert "no driver on this node" in told["error"]


@pytest.mark.parametrize("program", ["raylet", pytest.param("gcs_server", marks=pytest.mark.matrix)])
def test_a_ray_that_is_lost_is_one_sentence_and_the_next_run_goes_on(faulty, program):
    """Its native part would end the driver with exit code 1 and without a word, after 15 and after 60 seconds."""
    project = faulty.project
    project.fill(DAY, 60)
    told: list[tuple[int, dict]] = []
    running = threading.Thread(
        target=lambda: told.append(
            faulty.on_workers("driver and worker", slow=0.4, overrides=("limits.unit_images=1",))
        )
    )
    running.start()
    until(lambda: len(faulty.parts()) >= 2, "two parts", timeout_s=150)
    killed = [pid for pid, words in command_lines().items() if _is_of(faulty.driver_pid, pid, words, program)]
    assert len(killed) == 1
    os.kill(killed[0], signal.SIGKILL)
    started = time.monotonic()
    running.join(100)
    ((code, summary),) = told
    assert time.monotonic() - started < 60
    assert (code, summary["exit_code"], summary["published"], summary["rejected"]) == (3, 3, 0, 0)
    (lost,) = [text for text in summary["problems"] if text.startswith("Ray was lost: ")]
    assert "run the same command again" in lost
    staged = len(faulty.parts())
    again = faulty.rerun("limits.unit_images=1")
    assert (again.planned, again.ok, again.published, again.exit_code) == (60 - staged, 60 - staged, 1, 0)
    assert project.verify() == []


def _is_of(driver_pid: int, pid: int, words: str, program: str) -> bool:
    """Whether a process is a program of the Ray that a driver has embedded."""
    if not words.partition(" ")[0].endswith(f"/{program}"):
        return False
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == driver_pid


APART = ("resources.load_actors=1", "resources.infer_actors=1")
"""Pixels cross the object store, as they do where sessions run on GPUs."""
STORE_MIB, GIANT_PX = 80, 6600
"""An object store just above Ray's minimum, and the side of a gray picture with 16 bits that does not fit into it."""


def test_an_image_that_a_full_disk_keeps_from_its_session_is_left_open_and_not_rejected(faulty):
    """What fits into the store is scored; what would be spilled waits, and the reason is told."""
    project, limits = faulty.project, ("limits.max_image_pixels=100000000", *LIMITS)
    model = threshold_model("nchw", 1, 2, size=1024)
    (project.folder / "model.onnx").write_bytes(model.data)
    project.fill(DAY, 6)
    giant = io.BytesIO()
    Image.new("I;16", (GIANT_PX, GIANT_PX), 65535).save(giant, "PNG")
    project.put(f"{DAY}/giant.png", giant.getvalue())
    code, told = faulty.on_workers("driver", overrides=(*APART, *limits), no_spill=STORE_MIB)
    assert [code] + [told[k] for k in ("ok", "rejected", "remaining", "published")] == [3, 6, 0, 1, 0]
    assert told["problems"][0].startswith("run.handover: the object store and the disk that Ray spills")
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


@pytest.mark.alone
def test_a_disk_without_a_free_byte_ends_the_run_soon_and_keeps_the_old_rows(faulty, small_disk):
    """Ray's processes die at their start and are started again without an end; the run looks, and says why.

    Ray's native part in the driver may die of such a disk, too (seen: SIGSEGV, once in ten runs).
    """
    project = faulty.project
    project.fill(DAY, 1)
    project.run()
    old = digest(project.data(NAME))
    project.fill(DAY, IMAGES)
    code, told = faulty.on_workers("driver", full_disk=small_disk, overrides=LIMITS)
    assert code == 3 or code < 0, faulty.driver_log.read_text()
    if code == 3:
        assert [told[k] for k in ("ok", "rejected", "published")] == [0, 0, 0]
        assert told["problems"][0].startswith(f"the disk of Ray's folder {small_disk}")
    assert digest(project.data(NAME)) == old
    again = faulty.rerun(*LIMITS)
    assert (again.ok, again.published, again.exit_code) == (IMAGES, 1, 0)
    assert project.verify() == []
    assert faulty.left_after_sweep() == []
