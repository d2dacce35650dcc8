"""The sweep: nothing that a reader or the next run needs is ever removed."""

from __future__ import annotations

from pathlib import Path

from project_fixture import last_json

from unet_batch.job.lease import Leases
from unet_batch.job.survey import window_of
from unet_batch.job.sweep import sweep

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
    """Attempts and probes of the dead; nothing while somebody holds a lease."""
    project.fill(DAY, 1)
    project.run()
    prepared = project.prepared()
    work = project.folder / "out" / "_work"
    for name in ("attempts/abc", "probe/probe-1"):
        Path(work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(b"")
    with Leases(prepared.output, prepared.layout, "alive", 60) as leases:
        leases.take(f"date={NAME}")
        assert swept(project) == []
    assert swept(project) == ["attempt", "part", "probe"]


def test_the_command_counts_what_it_removed(project):
    """One JSON line."""
    project.fill(DAY, 1)
    project.run()
    assert last_json(project.command("sweep", "job.yaml", "--dry-run"))["found"] == {"part": 1}
    assert last_json(project.command("sweep", "job.yaml"))["removed"] == 1
