"""--rescore: every image is scored again, also published ones, with the same guarantees as in other runs."""

from __future__ import annotations

import json

import pytest
from project_fixture import last_json, png

DAY = "2026/11/21"
NAME = "2026-11-21"
UNIT = "limits.unit_images=2"


class _Stops:
    """An executor that is stopped after its first unit."""

    def __init__(self, settings) -> None:
        from unet_batch.job.local_executor import LocalExecutor

        self._inner = LocalExecutor(settings)
        self.name, self.workers, self.loaders = "local", 1, 0

    def run(self, units):
        yield next(iter(self._inner.run(units)))
        raise KeyboardInterrupt

    def close(self):
        self._inner.close()


def runs_of(project) -> set[str]:
    return {row["run_id"] for row in project.rows(NAME)}


def test_rows_that_are_up_to_date_are_scored_and_published_again(project):
    """All of them, by this run; an ordinary run before and after it has nothing to do."""
    project.fill(DAY, 5)
    first = project.run(UNIT)
    again = project.run(UNIT, rescore=True)
    assert (again.planned, again.ok, again.published, again.exit_code) == (5, 5, 1, 0)
    assert runs_of(project) == {again.run} != {first.run}
    assert project.run(UNIT).planned == 0
    assert project.verify() == []


def test_what_was_published_and_staged_before_does_not_count(project):
    """Elsewhere the first ok row of an image stays; here all rows are new, and say the same of the same pictures."""
    project.fill(DAY, 3)
    project.run(UNIT)
    old = [row["label"] for row in project.rows(NAME)]
    path = project.data(NAME)
    published, staged = path.read_bytes(), [part.read_bytes() for part in project.parts()]
    project.run(UNIT, rescore=True)
    assert [row["label"] for row in project.rows(NAME)] == old
    assert path.read_bytes() != published
    assert {part.read_bytes() for part in project.parts()} > set(staged)  # what was staged is left alone


def test_a_rescoring_that_was_stopped_goes_on_where_it_was(project):
    """The old rows stay until the last unit has come back; the same command scores the rest alone."""
    project.fill(DAY, 6)
    first = project.run(UNIT)
    stopped = project.run(UNIT, rescore=True, executor=_Stops)
    assert (stopped.exit_code, stopped.ok, stopped.published) == (3, 2, 0)
    assert runs_of(project) == {first.run}
    again = project.run(UNIT, rescore=True)
    assert (again.planned, again.published, again.exit_code) == (4, 1, 0)
    assert runs_of(project) == {stopped.run, again.run}
    assert project.run(UNIT, rescore=True).planned == 6  # that was another rescoring, of other rows


def test_a_rescoring_above_the_limit_leaves_the_old_rows(project):
    """What was scored once is not lost to a bad day."""
    project.fill(DAY, 1)
    project.put(f"{DAY}/bad.png", b"x")
    project.run("limits.max_rejected=1")
    before = project.data(NAME).read_bytes()
    summary = project.run("limits.max_rejected=0", rescore=True)
    assert (summary.exit_code, summary.published) == (5, 0)
    assert project.data(NAME).read_bytes() == before


def test_days_of_which_nothing_is_published_are_scored_too(project):
    """The window decides, not what is there."""
    project.fill(DAY, 2)
    project.run(UNIT)
    project.fill("2026/11/22", 2)
    summary = project.run(UNIT, rescore=True)
    assert (summary.planned, summary.published) == (4, 2)
    assert project.run(UNIT, rescore=True, window="2026-11-22").planned == 2


@pytest.mark.slow
def test_the_command_line_rescores_and_says_what_it_would(project):
    """With the window alone; another selection beside it is a mistake."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/more.png", png(9))
    project.run()
    words = ["backfill", "job.yaml", "--window", NAME, "--executor", "local", "--rescore"]
    assert last_json(project.command(*words, "--dry-run"))["images"] == 3
    done = last_json(project.command(*words))
    assert (done["planned"], done["published"]) == (3, 1)
    [record] = [
        found
        for path in (project.folder / "out/_work/runs").glob("*.json")
        if (found := json.loads(path.read_text()))["run"] == done["run"]
    ]
    assert record["select"] == "rescore"
    wrong = project.command(*words, "--select", "failed")
    assert (wrong.returncode, "remove --select failed" in wrong.stderr) == (2, True)


def test_a_rejection_that_a_rescoring_does_not_repeat_is_replaced(project, monkeypatch):
    """Also where both runs had a doubt about the image, and asked for it again by itself."""
    from unet_batch.worker.load import Load

    left, decoded, sick = [2], Load._pages, png(1)

    def pages(self, data, *how):
        if data == sick and left[0]:
            left[0] -= 1
            raise MemoryError
        yield from decoded(self, data, *how)

    monkeypatch.setattr(Load, "_pages", pages)
    project.fill(DAY, 3)
    first = project.run("limits.max_rejected=1.0")
    assert first.reasons == {"decode.out_of_memory": 1}
    left[0] = 1
    again = project.run("limits.max_rejected=1.0", rescore=True)
    assert (again.ok, again.rejected, runs_of(project)) == (3, 0, {again.run})
    assert [row["status"] for row in project.rows(NAME)] == ["ok"] * 3
