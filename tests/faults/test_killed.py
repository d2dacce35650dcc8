"""kill -9 at every named point of a run: one rerun completes it, and redoes only the unit that was under way."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from faulty import Reader, digest, ended
from strikes import Strike

pytestmark = pytest.mark.slow

DAY, NAME = "2026/11/21", "2026-11-21"
IMAGES, UNIT = 12, 3
LIMITS = (f"limits.unit_images={UNIT}",)
OLD = "tiling.overlap=0.5"
"""Another fingerprint: the rows that readers see before."""


@pytest.mark.parametrize(
    ("point", "nth", "parts", "decoded"),
    [
        ("the probe is under way", 1, 0, 0),
        ("before the lease", 1, 0, 0),
        ("after the lease", 1, 0, 0),
        ("after the record", 1, 0, 0),
        ("a unit begins", 1, 0, 0),
        ("a unit begins", 3, 2, 6),
        ("before a part", 1, 0, 3),
        ("before a part", 4, 3, 12),
        ("inside the put of a part", 2, 1, 6),
        ("after a part", 1, 1, 3),
        ("after a part", 4, 4, 12),
        ("between parts", 1, 1, 3),
        ("between parts", 3, 3, 9),
        ("rows are chosen", 1, 4, 12),
        ("the file is written", 1, 4, 12),
        ("inside the put of the rows", 1, 4, 12),
    ],
)
def test_a_run_killed_before_it_published_is_completed_by_one_rerun(faulty, point, nth, parts, decoded):
    """The old rows stay until the new ones are whole; staged parts are used as they lie; one unit at most is redone."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    project.run(OLD)
    old = digest(project.data(NAME))
    with Reader(project.data(NAME)) as reader:
        faulty.killed(point, nth, overrides=LIMITS)
        staged = faulty.parts()
        assert (len(staged), faulty.decoded().total()) == (parts, decoded)
        assert reader.seen == {old}
        again = faulty.rerun(*LIMITS)
    assert (again.planned, again.ok, again.published, again.exit_code, again.problems) == (
        IMAGES - parts * UNIT, IMAGES - parts * UNIT, 1, 0, []
    )  # fmt: skip
    assert reader.seen <= {old, digest(project.data(NAME))}
    assert {path: written for path, written in faulty.parts().items() if path in staged} == staged
    assert len(faulty.parts()) == IMAGES // UNIT
    assert faulty.decoded().total() - IMAGES == decoded - parts * UNIT <= UNIT
    assert [row["uri"][-7:] for row in project.rows(NAME)] == [f"{i:03}.png" for i in range(IMAGES)]
    assert {row["fingerprint"] for row in project.rows(NAME)} == {again.fingerprint}
    assert project.verify() == []
    assert faulty.left_after_sweep() == []
    assert project.verify() == []


@pytest.mark.parametrize("point", ["after the put of the rows", "before the lease ends", "before the record ends"])
def test_a_run_killed_after_it_published_has_nothing_left_to_do(faulty, point):
    """The put was the commit; later steps are bookkeeping."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    project.run(OLD)
    old = digest(project.data(NAME))
    with Reader(project.data(NAME)) as reader:
        faulty.killed(point, overrides=LIMITS)
        new = digest(project.data(NAME))
        again = faulty.rerun(*LIMITS)
    assert (again.planned, again.published, again.exit_code, again.problems) == (0, 0, 0, [])
    assert new not in (old, "absent")
    assert digest(project.data(NAME)) == new
    assert reader.seen <= {old, new}
    assert faulty.decoded().total() == IMAGES
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


def test_a_run_killed_again_and_again_makes_progress_every_time(faulty):
    """Four runs are killed after one part each; the fifth only publishes."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    for done in range(1, 5):
        faulty.killed("after a part", overrides=LIMITS)
        assert len(faulty.parts()) == done
    again = faulty.rerun(*LIMITS)
    assert (again.planned, again.published, again.exit_code) == (0, 1, 0)
    assert faulty.decoded().total() == IMAGES
    assert set(faulty.decoded().values()) == {1}
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


def test_rejections_survive_a_kill_as_rows_do(faulty):
    """Rows and rejections together are the inventory."""
    project = faulty.project
    project.fill(DAY, 10)
    project.put(f"{DAY}/000-bad.png", b"no image")
    project.put(f"{DAY}/011-bad.png", b"no image either")
    faulty.killed("after a part", 2, overrides=LIMITS)
    again = faulty.rerun(*LIMITS)
    assert (again.ok, again.rejected, again.published) == (5, 1, 1)
    statuses = [row["status"] for row in project.rows(NAME)]
    assert (statuses.count("ok"), statuses.count("rejected")) == (10, 2)
    assert project.verify() == []


def test_days_published_before_the_kill_stay_published(faulty):
    """Partitions are published one by one: the rerun works on what is left alone."""
    project = faulty.project
    for day in ("19", "20", "21"):
        project.fill(f"2026/11/{day}", 3)
    faulty.killed("before a part", 2, overrides=LIMITS)
    first = digest(project.data("2026-11-19"))
    assert [project.data(f"2026-11-{day}").exists() for day in ("19", "20", "21")] == [True, False, False]
    again = faulty.rerun(*LIMITS)
    assert (again.planned, again.partitions) == (6, ["date=2026-11-20", "date=2026-11-21"])
    assert digest(project.data("2026-11-19")) == first
    assert project.verify() == []


def test_a_dead_owner_that_nobody_reaped_does_not_block(faulty):
    """In a container without an init, a killed process stays in the table as a zombie: it holds nothing any more."""
    project = faulty.project
    project.fill(DAY, 3)
    owner = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        faulty.killed("after the lease")
        lease = project.folder / "out" / "_work" / "leases" / f"date={NAME}.json"
        started = Path(f"/proc/{owner}/stat").read_text().rpartition(")")[2].split()[19]
        text = lease.read_text()
        known = json.loads(text)
        lease.write_text(text.replace(f'"pid": {known["pid"]}', f'"pid": {owner}').replace(known["started"], started))
        assert faulty.rerun().exit_code == 4
        os.kill(owner, signal.SIGKILL)
        os.waitid(os.P_PID, owner, os.WEXITED | os.WNOWAIT)
        assert faulty.rerun().exit_code == 0
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)


def test_a_run_is_struck_at_all(faulty):
    """The suite's own control: without a strike the same process ends by itself."""
    project = faulty.project
    project.fill(DAY, 3)
    child = faulty.start(Strike("before a part", nth=99))
    assert ended(child) == 0
    assert faulty.told(child)["published"] == 1
