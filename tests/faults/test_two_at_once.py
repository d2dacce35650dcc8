"""Two runs at one partition: leases save work, conditions keep rows; a sleeper that wakes up late changes nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import Faulty, Reader, digest, ended, stopped, until
from strikes import Strike

from unet_batch.table.lease import Leases

pytestmark = pytest.mark.slow

DAY, NAME = "2026/11/21", "2026-11-21"
IMAGES, UNIT = 9, 3
LIMITS = (f"limits.unit_images={UNIT}",)
SHORT = (*LIMITS, "limits.lease_s=5")
OTHER = "tiling.overlap=0.5"
OLDEST = "tiling.overlap=0.125"


def waits(faulty: Faulty, point: str) -> tuple[Strike, Callable[[], None]]:
    """A strike that holds a run at a point, and what lets it go on."""
    token = faulty.project.folder / f"reached-{len(faulty.children)}"
    return Strike(point, 1, "wait", str(token)), Path(f"{token}.go").touch


def holder(faulty: Faulty) -> dict:
    return json.loads((faulty.project.folder / "out" / "_work" / "leases" / f"date={NAME}.json").read_text())


def test_the_second_run_leaves_a_held_partition_alone_and_names_the_holder(faulty):
    """Exit code 4 at once, with run and process; the first one is not affected."""
    faulty.project.fill(DAY, IMAGES)
    strike, go = waits(faulty, "before a part")
    first = faulty.start(strike, overrides=LIMITS)
    until(Path(strike.token).exists, "the first run reaches its first part")
    second = faulty.rerun(*LIMITS)
    assert (second.exit_code, second.planned, second.published) == (4, 0, 0)
    owner = holder(faulty)
    assert owner["pid"] == first.pid
    assert f"is being worked on by run {owner['run']} (process {first.pid} on " in second.problems[0]
    go()
    assert ended(first) == 0
    assert set(faulty.decoded().values()) == {1}
    assert len(faulty.project.rows(NAME)) == IMAGES
    assert faulty.project.verify() == []
    assert faulty.left_after_sweep() == []


def test_the_second_run_works_on_the_days_that_nobody_holds(faulty):
    """A held day costs its own day."""
    faulty.project.fill(DAY, IMAGES)
    strike, go = waits(faulty, "before a part")
    first = faulty.start(strike, overrides=LIMITS)
    until(Path(strike.token).exists, "the first run reaches its first part")
    faulty.project.fill("2026/11/22", 2)
    second = faulty.rerun(*LIMITS)
    assert (second.exit_code, second.ok, second.partitions) == (4, 2, ["date=2026-11-22"])
    go()
    assert ended(first) == 0
    assert faulty.project.verify() == []


@pytest.mark.parametrize(
    ("point", "model", "exit_code"),
    [
        ("before a part", LIMITS, 0),
        ("the file is written", LIMITS, 0),
        ("before a part", (*LIMITS, OTHER), 4),
        ("the file is written", (*LIMITS, OTHER), 4),
    ],
    ids=["same model, scoring", "same model, publishing", "other model, scoring", "other model, publishing"],
)
def test_without_leases_the_slower_run_still_changes_nothing(faulty, monkeypatch, point, model, exit_code):
    """Both score; the first put is what readers see. The same generation is success, another one a conflict."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    strike, go = waits(faulty, point)
    slow = faulty.start(strike, overrides=LIMITS, leases=False)
    until(Path(strike.token).exists, f"the slow run is at: {point}")
    with monkeypatch.context() as patched:
        patched.setattr(Leases, "take", lambda self, partition: None)
        quick = faulty.rerun(*model)
    assert (quick.exit_code, quick.published) == (0, 1)
    new = digest(project.data(NAME))
    go()
    assert ended(slow) == exit_code
    assert digest(project.data(NAME)) == new
    assert [row["uri"][-7:] for row in project.rows(NAME)] == [f"{i:03}.png" for i in range(IMAGES)]
    assert {row["fingerprint"] for row in project.rows(NAME)} == {quick.fingerprint}
    assert project.verify(*model) == []
    if exit_code:
        assert f"was changed by run {quick.run}" in faulty.told(slow)["problems"][0]


def test_four_runs_without_leases_end_in_one_complete_partition(faulty):
    """In any order: all succeed, and there is one row for each image."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    runs = [faulty.start(overrides=LIMITS, leases=False) for _ in range(4)]
    assert [ended(run) for run in runs] == [0] * 4
    assert sum(faulty.told(run)["published"] for run in runs) >= 1
    assert len(faulty.parts()) == IMAGES // UNIT
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []


@pytest.mark.parametrize("point", ["before a part", "inside the put of the rows"])
def test_a_run_that_sleeps_past_its_lease_cannot_overwrite_newer_rows(faulty, point):
    """SIGSTOP, another model publishes, SIGCONT: exit code 4, and the newer rows stay byte for byte."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    project.run(OLDEST)
    old = digest(project.data(NAME))
    with Reader(project.data(NAME)) as reader:
        sleeper = faulty.start(Strike(point, act="stop"), overrides=SHORT)
        until(lambda: stopped(sleeper), f"the sleeper stops: {point}")
        assert faulty.rerun(*SHORT, OTHER).exit_code == 4
        time.sleep(max(0.0, holder(faulty)["expires_s"] - time.time()))
        quick = faulty.rerun(*SHORT, OTHER)
        assert (quick.exit_code, quick.published, quick.ok) == (0, 1, IMAGES)
        new = digest(project.data(NAME))
        os.kill(sleeper.pid, signal.SIGCONT)
        assert ended(sleeper) == 4
    assert reader.seen <= {old, new}
    assert digest(project.data(NAME)) == new
    assert f"was changed by run {quick.run}" in faulty.told(sleeper)["problems"][0]
    assert project.verify(OTHER) == []
    assert faulty.left_after_sweep(OTHER) == []


def test_a_sleeper_that_wakes_up_beside_its_successor_costs_nothing(faulty):
    """Its lease is the successor's by then and stays so; both end well in the same rows."""
    project = faulty.project
    project.fill(DAY, IMAGES)
    sleeper = faulty.start(Strike("before a part", 2, "stop"), overrides=SHORT)
    until(lambda: stopped(sleeper), "the sleeper stops before its second part")
    time.sleep(max(0.0, holder(faulty)["expires_s"] - time.time()))
    strike, go = waits(faulty, "before a part")
    successor = faulty.start(strike, overrides=SHORT)
    until(Path(strike.token).exists, "the successor reaches a part")
    assert (holder(faulty)["pid"], holder(faulty)["attempt"]) == (successor.pid, 2)
    os.kill(sleeper.pid, signal.SIGCONT)
    assert ended(sleeper) == 0
    published = digest(project.data(NAME))
    assert holder(faulty)["pid"] == successor.pid
    go()
    assert ended(successor) == 0
    assert digest(project.data(NAME)) == published
    assert faulty.told(successor)["problems"] == []
    assert faulty.decoded().total() == IMAGES + (IMAGES - UNIT)
    assert project.verify() == []
    assert faulty.left_after_sweep() == []
