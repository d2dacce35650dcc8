"""Days that were deleted from the archive on purpose: the one way to remove published rows, and what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from project_fixture import last_json

from unet_batch.errors import Conflict, Incomplete, JobError
from unet_batch.job.vanished import Vanished, remove, vanished
from unet_batch.planning.survey import window_of
from unet_batch.table.lease import Leases

OLD, NEW = "2026-11-20", "2026-11-21"


def found_in(project, days: str = OLD, *overrides: str) -> list[Vanished]:
    return vanished(project.prepared(*overrides), window_of(days))


def is_published(project, day: str) -> bool:
    return project.data(day).exists()


@pytest.fixture
def thinned(project):
    """Two published days; the first one was deleted from the archive."""
    for day in ("2026/11/20", "2026/11/21"):
        project.fill(day, 2)
    project.run()
    shutil.rmtree(project.folder / "archive/2026/11/20")
    return project


@pytest.mark.slow
def test_days_are_shown_first_and_removed_with_yes(project):
    """Rows, parts and mask files go; the other day stays byte for byte, and nothing is wrong any more."""
    masks = ("--set", "output.mask_files=[png]")
    for day in ("2026/11/20", "2026/11/21"):
        project.fill(day, 2)
    assert (
        project.command("run", "job.yaml", "--executor", "local", "--quiet", "--window", "all", *masks).returncode == 0
    )
    shutil.rmtree(project.folder / "archive/2026/11/20")
    assert project.command("verify", "job.yaml", "--window", "all").returncode == 3
    before = project.data(NEW).read_bytes()
    asked = ("sweep", "job.yaml", "--vanished", f"{OLD}..{NEW}")
    shown = project.command(*asked)
    assert shown.returncode == 0
    assert f"would remove date={OLD}: 2 rows of 2 images" in shown.stderr
    assert "nothing was removed" in shown.stderr
    assert last_json(shown)["removed"] == 0
    assert is_published(project, OLD)
    assert project.command(*asked, "--yes", "--dry-run").returncode == 0
    assert is_published(project, OLD)
    done = last_json(project.command(*asked, "--yes"))
    assert done["vanished"] == [{"partition": f"date={OLD}", "images": 2, "rows": 2}]
    left = [path for path in (project.folder / "out").rglob("*") if path.is_file() and OLD in str(path)]
    assert left == []
    assert project.data(NEW).read_bytes() == before
    assert len(list((project.folder / "out/masks").rglob("*.png"))) == 2
    assert project.command("verify", "job.yaml", "--window", "all", *masks).returncode == 0
    again = project.command(*asked, "--yes")
    assert (again.returncode, last_json(again)["vanished"]) == (0, [])


@pytest.mark.slow
def test_only_days_are_taken_and_yes_alone_means_nothing(thinned):
    """`all` would remove the rows of every day that a mistake in the job file hides."""
    for wrong in (("--vanished", "all"), ("--vanished", "last"), ("--yes",)):
        assert thinned.command("sweep", "job.yaml", *wrong).returncode == 2, wrong
    assert is_published(thinned, OLD)


def test_a_day_with_images_is_never_removed(thinned):
    assert found_in(thinned, NEW) == []
    assert [some.partition for some in found_in(thinned, f"{OLD}..{NEW}")] == [f"date={OLD}"]


def test_a_lost_mount_is_no_deletion(thinned):
    """The archive shows no image at all."""
    shutil.rmtree(thinned.folder / "archive/2026")
    with pytest.raises(Incomplete, match="look for a lost mount"):
        found_in(thinned)


def test_files_that_are_passed_over_are_no_deletion(thinned):
    """The pattern may be wrong."""
    thinned.fill("2026/11/20", 2)
    with pytest.raises(JobError, match="still holds files of these days"):
        found_in(thinned, OLD, "input.pattern=**/*.tif")


def test_rows_of_another_job_stay(thinned):
    """Jobs may share an output, and this archive is not that job's."""
    [found] = found_in(thinned, OLD, "name=another")
    assert found.owner == thinned.job().name
    assert "give that job's file" in found.kept


def test_a_day_that_a_run_holds_stays(thinned):
    output = thinned.prepared().output
    with Leases(output, "a-run", 60.0) as leases:
        leases.take(f"date={OLD}")
        [found] = found_in(thinned)
    assert "wait for that run" in found.kept


def test_rows_that_were_published_after_they_were_shown_stay(thinned):
    """Only the version that was shown is removed."""
    [found] = found_in(thinned)
    with pytest.raises(Conflict, match="its rows stay"):
        remove(thinned.prepared().output, replace(found, version="another"))
    assert is_published(thinned, OLD)


def test_a_removal_that_was_killed_is_repeated(thinned, monkeypatch):
    """The rows go last, so the day is still found."""
    output, [found] = thinned.prepared().output, found_in(thinned)

    removed, delete = [], output.store.delete

    def die(uri, *, version=None):
        removed.append(uri)
        delete(uri, version=version)
        raise KeyboardInterrupt

    monkeypatch.setattr(output.store, "delete", die)
    with pytest.raises(KeyboardInterrupt):
        remove(output, found)
    monkeypatch.undo()
    assert removed[0].endswith(".part")
    assert found_in(thinned) == [found]
    assert remove(output, found) == 1  # its one part has gone already
    assert found_in(thinned) == []
    assert thinned.run().exit_code == 0
