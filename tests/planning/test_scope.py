"""What a window means: `last` is a day of the archive, and what was not surveyed is left alone."""

from __future__ import annotations

from datetime import date

import pytest

from unet_batch.archive.window import Window, parse_window
from unet_batch.job.sweep import sweep
from unet_batch.planning.scope import Scope, resolved, window_of
from unet_batch.spec import load_job

TODAY = date(2026, 11, 21)
FOUND = ["date=2026-11-21/bucket=0", "date=2026-11-21/bucket=1"]


@pytest.mark.parametrize(
    ("text", "partition", "inside"),
    [
        ("last", "date=2026-11-21", True),
        ("last", "date=2026-11-21/bucket=1", True),
        ("last", "date=2026-11-20", False),
        ("last", "all", False),
        ("today", "date=2026-11-21", True),
        ("today", "date=2026-11-20", False),
        ("yesterday", "date=2026-11-20/bucket=3", True),
        ("yesterday", "date=2026-11-21", False),
        ("2026-11-20", "date=2026-11-20", True),
        ("2026-11-20", "date=2026-11-21", False),
        ("2026-11", "date=2026-11-30", True),
        ("2026-11", "date=2026-12-01", False),
        ("2026-11-01..2026-11-20", "day=2026-11-20", True),
        ("2026-11-01..2026-11-20", "date=2026-11-21", False),
        ("2026-11-01..2026-11-20", "site=north", False),
        ("2026-11-01..2026-11-20", "all", False),
        ("all", "site=north", True),
        ("all", "all", True),
    ],
)
def test_a_resolved_window_holds_its_partitions_and_no_other(text, partition, inside):
    """For every way to write a window. `last` was resolved to what a listing found."""
    assert resolved(parse_window(text, TODAY), FOUND).holds(partition) is inside


def test_last_without_a_listing_holds_nothing():
    """An unresolved window is not the same as every partition."""
    assert not Scope(Window(None, None, "last")).holds("date=2026-11-21")


def test_last_of_an_archive_without_dates_is_its_one_partition():
    """As a run takes it."""
    assert resolved(window_of("last"), ["all"]).holds("all")


@pytest.fixture
def two_days(project):
    """Two days, the older one with parts that are not published yet beside its published rows."""
    project.fill("2026/11/20", 2)
    project.fill("2026/11/21", 2)
    project.run()
    project.put("2026/11/20/bad.png", b"no image")
    project.run("limits.max_rejected=0")
    return project


@pytest.mark.parametrize("window", ["last", "2026-11-21", "2026-11-21..2026-11-22"])
def test_verify_and_status_of_one_day_say_nothing_of_another(two_days, window):
    """The older day is not `no longer in the archive`."""
    assert two_days.verify(window=window) == []
    assert [s.partition for s in two_days.status(window=window)] == ["date=2026-11-21"]


@pytest.mark.parametrize("window", ["last", "2026-11-21"])
def test_sweep_deletes_no_part_of_a_day_that_it_did_not_survey(two_days, window):
    """A staged row that is not published yet waits for its day."""
    older = [path for path in two_days.parts() if "2026-11-20" in str(path)]
    sweep(two_days.prepared(), window_of(window), keep_other_models=False, dry_run=False)
    assert two_days.parts() == older


def test_sweep_of_an_archive_that_is_not_there_deletes_no_part(two_days):
    """A lost mount is an empty folder: its staged rows are all that is left."""
    before = two_days.parts()
    (two_days.folder / "archive").rename(two_days.folder / "unmounted")
    (two_days.folder / "archive").mkdir()
    sweep(two_days.prepared(), window_of("all"), keep_other_models=False, dry_run=False)
    assert two_days.parts() == before


@pytest.mark.parametrize("text", ["2026-11-21", "2026-11", "2026-11-20..2026-11-21", "last"])
def test_a_window_needs_no_quotes_in_a_job_file(project, text):
    """YAML reads 2026-11-21 as a date."""
    job = project.folder / "job.yaml"
    job.write_text(job.read_text() + f"window: {text}\n")
    assert load_job(job).window == text
    assert load_job(job, ("window=2026-10-01",)).window == "2026-10-01"
