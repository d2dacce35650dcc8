"""Two jobs with one output: none replaces the other's rows without a word from the user."""

from __future__ import annotations

import shutil

import pytest
from project_fixture import last_json, project

from unet_batch.errors import ExitCode
from unet_batch.planning.owners import job_of
from unet_batch.planning.prepare import new_run_id

__all__ = ["project"]

DAY, NAME = "2026/11/21", "2026-11-21"
OTHER = ("name=trial", "tiling.overlap=0.5")
"""Another job with another fingerprint."""


@pytest.fixture
def published(project):
    """Rows of the job `test`."""
    project.fill(DAY, 2)
    project.run()
    return project


def owners(project) -> set[str | None]:
    """The jobs that the published rows are of."""
    return {job_of(row["run_id"]) for row in project.rows(NAME)}


def test_an_ordinary_run_leaves_the_rows_of_another_job(published):
    """Exit code 5, and one sentence with both jobs and both ways out."""
    before = published.data(NAME).read_bytes()
    found = published.run(*OTHER)
    [problem] = found.problems
    [run] = {row["run_id"] for row in published.rows(NAME)}
    assert problem == (
        f"date={NAME}: its 2 rows were published by the job test (run {run}), and this job, trial, has another "
        "model or other settings; the rows stay: write another output.uri, or, if trial takes over, run "
        "`unet-batch backfill` with --select changed once"
    )
    assert (found.exit_code, found.planned, found.published) == (ExitCode.NEEDS_ACTION, 0, 0)
    assert published.data(NAME).read_bytes() == before


def test_plan_and_status_say_it_before_a_run(published):
    [line] = published.status(*OTHER)
    assert "published by the job test" in str(line.refused)


@pytest.mark.parametrize("asked", [{"select": "changed"}, {"select": "all"}, {"rescore": True}])
def test_rows_of_another_job_are_replaced_where_the_user_asks_for_it(published, asked):
    """A backfill is as before, and the rows are this job's afterwards."""
    found = published.run(*OTHER, **asked)
    assert (found.exit_code, found.problems, owners(published)) == (ExitCode.COMPLETE, [], {"trial"})
    assert published.run(OTHER[1], "name=trial").exit_code == ExitCode.COMPLETE


def test_a_changed_model_of_the_same_job_is_scored_again_by_an_ordinary_run(published):
    """As docs/how-to/rollback.md has it."""
    found = published.run("tiling.overlap=0.5")
    assert (found.exit_code, found.planned, found.published) == (ExitCode.COMPLETE, 2, 1)


def test_two_jobs_share_an_output_where_each_has_its_own_days(published):
    """A nightly job and a backfill of the years before, as in jobs/."""
    published.fill("2026/11/20", 1)
    found = published.run(*OTHER, select="missing")
    assert (found.exit_code, found.published, owners(published)) == (ExitCode.COMPLETE, 1, {"test"})


def test_another_job_with_the_same_results_adds_late_images(published):
    """The fingerprint is the same, so no row is another one's: a renamed job goes on."""
    published.put(f"{DAY}/late.png", level=7)
    found = published.run("name=renamed")
    assert (found.exit_code, found.planned, len(published.rows(NAME))) == (ExitCode.COMPLETE, 1, 3)


def test_another_jobs_images_are_not_replaced_although_the_model_is_the_same(published):
    """The same days of another archive: as many rows, of other images."""
    shutil.copytree(published.folder / "archive", published.folder / "elsewhere")
    uri = f"input.uri={published.folder}/elsewhere/{{date:%Y/%m/%d}}/"
    found = published.run("name=trial", uri)
    assert "published by the job test" in found.problems[0]
    assert "trial, has other images" in found.problems[0]
    assert (found.exit_code, owners(published)) == (ExitCode.NEEDS_ACTION, {"test"})


def test_the_name_of_a_job_is_read_from_its_runs(project):
    job = project.job("name=a-b.c_2026")
    assert job_of(new_run_id(job)) == "a-b.c_2026"
    assert job_of("run-1") is None


@pytest.mark.slow
def test_the_command_says_it(published):
    """A plan ends with the exit code of its run."""
    options = [word for override in OTHER for word in ("--set", override)]
    for words in (("plan",), ("run", "--executor", "local")):
        said = published.command(words[0], "job.yaml", "--window", "all", *words[1:], *options)
        assert "problem: date=2026-11-21: its 2 rows were published by the job test" in said.stderr
        assert last_json(said)["exit_code"] == said.returncode == ExitCode.NEEDS_ACTION
