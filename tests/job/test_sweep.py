"""The sweep: nothing that a reader or the next run needs is ever removed."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from project_fixture import last_json, png

from unet_batch.job.sweep import sweep
from unet_batch.planning.survey import window_of
from unet_batch.store import unfinished
from unet_batch.table.lease import Leases

DAY, NAME = "2026/11/21", "2026-11-21"


def swept(project, *overrides: str, keep_other_models: bool = False, dry_run: bool = False) -> list[str]:
    found = sweep(project.prepared(*overrides), window_of("all"), keep_other_models=keep_other_models, dry_run=dry_run)
    return sorted(litter.kind for litter in found)


def test_parts_whose_rows_are_published_go(project):
    """And the published rows stay as they are."""
    project.fill(DAY, 4)
    project.run("limits.unit_images=1")
    before = project.data(NAME).read_bytes()
    assert swept(project, dry_run=True) == ["part"] * 4
    assert len(project.parts()) == 4
    assert swept(project) == ["part"] * 4
    assert (project.parts(), swept(project)) == ([], [])
    assert project.data(NAME).read_bytes() == before
    assert project.run().planned == 0


def test_parts_that_wait_for_their_partition_stay(project):
    """A day that is held back for its rejections keeps what was scored."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/bad.png", b"no image")
    assert project.run("limits.max_rejected=0").published == 0
    assert swept(project) == []
    assert project.run("limits.max_rejected=1").planned == 0
    assert len(project.rows(NAME)) == 3


def test_a_staged_row_of_a_late_image_stays(project):
    """Published rows and late staged ones share a folder; only the former may go."""
    project.fill(DAY, 2)
    project.run("limits.unit_images=1")
    project.put(f"{DAY}/bad.png", b"no image")
    project.run("limits.unit_images=1", "limits.max_rejected=0")
    assert swept(project) == ["part"] * 2
    assert len(project.parts()) == 1


def test_other_models_parts_go_unless_they_are_wanted_for_a_rollback(project):
    """A rollback from kept parts scores nothing."""
    project.fill(DAY, 2)
    project.run()
    project.run("output.confidence=false")
    assert swept(project, "output.confidence=false", keep_other_models=True) == ["part"]
    assert project.run().planned == 0  # back to the first settings, from its parts
    assert swept(project) == ["part"]
    assert project.parts() == []


def test_what_a_killed_run_left_goes_and_a_live_run_is_left_alone(project):
    """Attempts and probes of dead runs; nothing while a run holds a lease."""
    project.fill(DAY, 1)
    project.run()
    prepared = project.prepared()
    work = project.folder / "out" / "_work"
    for name in ("attempts/abc", "probe/probe-1"):
        Path(work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(b"")
    with Leases(prepared.output, "alive", 60) as leases:
        leases.take(f"date={NAME}")
        assert swept(project) == []
    assert swept(project) == ["attempt", "part", "probe"]


PUT_SLOWLY = """
import sys, time
from unet_batch.store import local
from unet_batch.store.storage import Storage
write = local._write
def slowly(path, body):
    write(path, body)
    print("half", flush=True)
    time.sleep(600)
local._write = slowly
Storage().put(sys.argv[1], b"half of an object")
"""


def hidden(project) -> list[Path]:
    return sorted(path for path in (project.folder / "out").rglob(".*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictions/date=2026-11-21/data.parquet", "_work/parts/f/date=2026-11-21/u.part"])
def test_the_file_of_a_put_goes_when_its_process_is_dead_and_not_before(project, name):
    """kill -9 in the middle of a put leaves a hidden file beside the name that it was to have."""
    project.fill(DAY, 1)
    project.run()
    command = [sys.executable, "-c", PUT_SLOWLY, f"file://{project.folder}/out/{name}"]
    putting = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert putting.stdout.readline() == b"half\n"
        [file] = hidden(project)
        assert swept(project) == ["part"]
        assert hidden(project) == [file]
    finally:
        putting.send_signal(signal.SIGKILL)
        putting.wait()
    assert (swept(project, dry_run=True), hidden(project)) == (["put"], [file])
    assert (swept(project), hidden(project), swept(project)) == (["put"], [], [])


def test_the_file_of_another_machines_put_goes_when_nothing_was_written_for_long(project, monkeypatch):
    """Its process cannot be looked for."""
    project.fill(DAY, 1)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(unfinished, "host", lambda: "elsewhere")
        temporary = Path(unfinished.temporary_beside(str(project.folder / "out" / "_work" / "runs" / "r.json")))
    temporary.parent.mkdir(parents=True)
    temporary.write_bytes(b"{")
    assert swept(project) == []
    long_ago = time.time() - unfinished.FOREIGN_PUT_S - 5
    os.utime(temporary, (long_ago, long_ago))
    assert (swept(project), hidden(project)) == (["put"], [])


def test_a_lock_that_a_killed_put_left_goes_and_one_that_is_held_stays(project):
    """No process waits for a lock whose holder is dead."""
    project.fill(DAY, 1)
    lock = project.folder / "out" / "predictions" / f".put-{'0' * 16}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert (swept(project), hidden(project)) == ([], [lock])
    assert (swept(project), hidden(project)) == (["put"], [])


def test_hidden_files_of_others_stay(project):
    """Only names that this package gives are its own."""
    project.fill(DAY, 1)
    work = project.folder / "out" / "_work"
    work.mkdir(parents=True)
    for name in (".put-notes.txt", ".put-my.lock", ".hidden"):
        (work / name).write_bytes(b"mine")
        os.utime(work / name, (0, 0))
    assert (swept(project), len(hidden(project))) == ([], 3)


@pytest.mark.slow
def test_the_command_counts_what_it_removed(project):
    """One JSON line."""
    project.fill(DAY, 1)
    project.run()
    assert last_json(project.command("sweep", "job.yaml", "--dry-run"))["found"] == {"part": 1}
    assert last_json(project.command("sweep", "job.yaml"))["removed"] == 1


def test_the_index_of_a_tar_goes_with_the_tar(project):
    """A replaced or removed tar leaves an unused member list; a narrower window keeps it."""
    tar = project.put(f"{DAY}/shard.tar", tar_of("a.png", "b.png"))
    project.put("2026/11/20/shard.tar", tar_of("c.png"))
    project.run()
    assert swept(project, dry_run=True) == ["part"] * 2
    tar.write_bytes(tar_of("a.png", "b.png", "d.png"))
    project.run()
    few = sweep(project.prepared(), window_of("2026-11-20"), keep_other_models=False, dry_run=False)
    assert [litter.kind for litter in few] == ["part"]
    assert swept(project).count("index") == 1
    assert len(list((project.folder / "out" / "_work" / "index").iterdir())) == 2
    assert (project.run().planned, project.verify()) == (0, [])
    tar.unlink()
    assert swept(project) == ["index"]


def tar_of(*names: str) -> bytes:
    """A tar with these pictures."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for level, name in enumerate(names):
            body = png(level)
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return out.getvalue()
