"""Leases: two runs do not do the same work, and nothing that is right rests on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest
from project_fixture import last_json

from unet_batch.errors import Held
from unet_batch.store.storage import Storage
from unet_batch.table import lease as lease_module
from unet_batch.table.lease import Lease, Leases, read_lease
from unet_batch.table.output import Output

DAY, NAME = "2026/11/21", "date=2026-11-21"


@pytest.fixture
def store() -> Storage:
    return Storage()


@pytest.fixture
def output(store, tmp_path) -> Output:
    return Output(store, f"file://{tmp_path}/out")


def test_the_second_run_is_told_who_holds_the_partition(output):
    """Run, process, host and expiry are in the sentence."""
    with Leases(output, "first", 60) as first:
        first.take(NAME)
        second = Leases(output, "second", 60)
        with pytest.raises(Held, match=rf"run first \(process {os.getpid()} on "):
            second.take(NAME)
    with Leases(output, "second", 60) as second:
        second.take(NAME)  # given back at the end of the first


def test_an_expired_lease_is_taken_over(output):
    """By the clock of the one who takes over; the attempt counts the owners."""
    now = [1000.0]
    Leases(output, "first", 60, clock=lambda: now[0]).take(NAME)
    second = Leases(output, "second", 60, clock=lambda: now[0])
    now[0] += 59
    with pytest.raises(Held):
        second.take(NAME)
    now[0] += 2
    second.take(NAME)
    lease = read_lease(output, NAME)
    assert (lease.run, lease.attempt) == ("second", 2)


def test_the_lease_of_a_process_that_is_gone_blocks_nobody_on_its_machine(output, tmp_path):
    """A killed run is resumed at once, not after minutes."""
    code = (
        "import sys;from unet_batch.store.storage import Storage;from unet_batch.table.lease import Leases;"
        "from unet_batch.table.output import Output;"
        "Leases(Output(Storage(), sys.argv[1]), 'dead', 3600).take(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, output.uri, NAME], check=True)
    Leases(output, "next", 60).take(NAME)
    assert read_lease(output, NAME).attempt == 2


def test_a_process_with_the_pid_of_a_dead_owner_is_not_the_owner(output):
    """PIDs come round again; the time at which a process began does not."""
    first = Leases(output, "first", 3600)
    first.take(NAME)
    lease = read_lease(output, NAME)
    output.store.put(output.lease(NAME), json.dumps(asdict(replace(lease, started="1"))).encode())
    Leases(output, "second", 60).take(NAME)


def test_on_another_machine_only_the_expiry_counts(output):
    """Its processes cannot be looked for."""
    Leases(output, "first", 3600).take(NAME)
    lease = read_lease(output, NAME)
    output.store.put(
        output.lease(NAME), json.dumps(asdict(replace(lease, host="elsewhere", pid=2, started="1"))).encode()
    )
    with pytest.raises(Held, match="on elsewhere"):
        Leases(output, "second", 60).take(NAME)


def test_renewal_puts_off_the_expiry(output):
    """As long as the owner lives."""
    now = [1000.0]
    first = Leases(output, "first", 60, clock=lambda: now[0])
    first.take(NAME)
    now[0] += 40
    first.renew()
    assert read_lease(output, NAME).expires_s == 1100.0


def test_a_zombie_neither_renews_nor_removes_the_lease_of_its_successor(output):
    """It goes on with its work, and the conditional put decides."""
    now = [1000.0]
    zombie = Leases(output, "zombie", 60, clock=lambda: now[0])
    zombie.take(NAME)
    now[0] += 100
    Leases(output, "successor", 60, clock=lambda: now[0]).take(NAME)
    zombie.renew()
    zombie.release(NAME)
    assert read_lease(output, NAME).run == "successor"


def test_an_unreadable_lease_does_not_block(output):
    """It is replaced."""
    output.store.put(output.lease(NAME), b"{")
    assert read_lease(output, NAME) is None
    Leases(output, "first", 60).take(NAME)
    assert read_lease(output, NAME).run == "first"


def elsewhere(output, *, ends_in_s: float) -> Lease:
    """A lease of a process that cannot be looked for."""
    lease = Lease(NAME, "theirs", "elsewhere", 2, "1", 1, time.time() + ends_in_s)
    output.store.put(output.lease(NAME), json.dumps(asdict(lease)).encode())
    return lease


def refused(output) -> Leases:
    """The leases of a run that was refused."""
    mine = Leases(output, "mine", 60)
    with pytest.raises(Held):
        mine.take(NAME)
    return mine


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(lease_module, "LOOK_EVERY_S", 0.02)


def test_a_lease_that_nobody_renews_is_waited_for_until_it_expires(output):
    """And no longer; then it can be taken."""
    lease = elsewhere(output, ends_in_s=0.4)
    mine = refused(output)
    mine.wait(NAME, time.time() + 60)
    assert 0 <= time.time() - lease.expires_s < 5
    mine.take(NAME)
    assert read_lease(output, NAME).attempt == 2


def test_a_lease_that_is_given_back_is_waited_for_no_longer(output):
    """Minutes before it would have expired."""
    elsewhere(output, ends_in_s=600)
    mine = refused(output)
    threading.Timer(0.1, output.store.delete, [output.lease(NAME)]).start()
    mine.wait(NAME, time.time() + 60)
    mine.take(NAME)


@pytest.mark.parametrize("by", ["theirs", "another's"])
def test_a_lease_that_is_renewed_or_taken_over_meanwhile_is_not_waited_for(output, by):
    """The run that renews it is alive: the other run ends at once and names it."""
    lease = elsewhere(output, ends_in_s=600)
    mine = refused(output)
    newer = replace(lease, run=by, expires_s=lease.expires_s + 1)
    threading.Timer(0.1, output.store.put, [output.lease(NAME), json.dumps(asdict(newer)).encode()]).start()
    begun = time.monotonic()
    with pytest.raises(Held, match=rf"run {by} \(process 2 on elsewhere.*renewed its lease meanwhile"):
        mine.wait(NAME, time.time() + 60)
    assert time.monotonic() - begun < 5


def test_waiting_ends_when_its_time_is_over(output):
    """With the sentence that not waiting has."""
    elsewhere(output, ends_in_s=600)
    mine = refused(output)
    with pytest.raises(Held, match=r"run theirs .* the lease of a run that died ends by itself"):
        mine.wait(NAME, time.time() + 0.2)


@pytest.mark.slow
def test_a_run_waits_for_a_dead_holder_when_the_free_days_are_done(project):
    """Exit code 0, and everything is published by one command."""
    project.fill(DAY, 2)
    project.fill("2026/11/20", 2)
    prepared = project.prepared()
    elsewhere(prepared.output, ends_in_s=3)
    held = project.run()
    assert (held.exit_code, held.partitions) == (4, ["date=2026-11-20"])
    project.data("2026-11-20").unlink()
    lease = elsewhere(prepared.output, ends_in_s=3)
    summary = project.run(wait_s=60)
    assert (summary.exit_code, summary.problems) == (0, [])
    assert summary.partitions == ["date=2026-11-20", NAME]
    assert time.time() >= lease.expires_s
    assert project.verify() == []


def test_a_run_does_not_wait_for_a_holder_that_lives(project):
    """Its free days are published; exit code 4 names the holder as soon as its lease was renewed."""
    project.fill(DAY, 2)
    project.fill("2026/11/20", 2)
    prepared = project.prepared()
    with Leases(prepared.output, "somebody", 1.5) as leases:
        leases.take(NAME)
        begun = time.monotonic()
        summary = project.run(wait_s=300)
    assert time.monotonic() - begun < 30
    assert (summary.exit_code, summary.partitions) == (4, ["date=2026-11-20"])
    assert "run somebody" in summary.problems[0]
    assert project.run().partitions == [NAME]


@pytest.mark.slow
def test_a_run_waits_no_longer_than_its_deadline(project):
    """What cannot be begun in time is not waited for."""
    project.fill(DAY, 1)
    prepared = project.prepared()
    elsewhere(prepared.output, ends_in_s=600)
    begun = time.monotonic()
    summary = project.run(wait_s=300, deadline=datetime.now(UTC) + timedelta(seconds=2))
    assert time.monotonic() - begun < 30
    assert summary.exit_code == 4


@pytest.mark.slow
def test_a_held_partition_ends_a_run_with_exit_code_4_and_the_holder_in_status(project):
    """The command line says who; the other days of the window are scored all the same."""
    project.fill(DAY, 2)
    project.fill("2026/11/20", 2)
    prepared = project.prepared()
    with Leases(prepared.output, "somebody", 60) as leases:
        leases.take(NAME)
        result = project.command("run", "job.yaml", "--window", "all", "--executor", "local")
        assert (result.returncode, last_json(result)["published"]) == (4, 1)
        assert "run somebody" in result.stderr
        assert [(s.state, s.holder is not None) for s in project.status()] == [("published", False), ("held", True)]
    assert project.run().partitions == [NAME]
    assert read_lease(prepared.output, NAME) is None


@pytest.mark.slow
def test_the_command_waits_where_it_is_told_to(project):
    """Without --wait it leaves at once, with exit code 4."""
    project.fill(DAY, 1)
    prepared = project.prepared()
    words = ("run", "job.yaml", "--window", "all", "--executor", "local")
    elsewhere(prepared.output, ends_in_s=600)
    assert project.command(*words).returncode == 4
    elsewhere(prepared.output, ends_in_s=6)
    result = project.command(*words, "--wait", "60")
    assert (result.returncode, last_json(result)["published"]) == (0, 1)
    assert "waiting for the leases of 1 partition(s), such as date=2026-11-21, to end" in result.stderr


def test_a_lease_that_is_taken_over_between_look_and_removal_stays(output, monkeypatch):
    """The old owner looked, saw its own name, and was overtaken before it removed the object."""
    now = [time.time()]
    old = Leases(output, "old", 60, clock=lambda: now[0])
    new = Leases(output, "new", 60, clock=lambda: now[0] + 3600)
    old.take(NAME)
    real = lease_module._read

    def overtaken(*given):
        found = real(*given)
        monkeypatch.setattr(lease_module, "_read", real)
        new.take(NAME)
        return found

    monkeypatch.setattr(lease_module, "_read", overtaken)
    old.release(NAME)
    assert read_lease(output, NAME).run == "new"
