"""Backfill: which partitions, in which order, until when; and that each is published by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import poison
import pytest
from project_fixture import last_json, png

from unet_batch.cli.command import parse_deadline
from unet_batch.errors import JobError
from unet_batch.job import run as run_module
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.planning.survey import selected, window_of

DAYS = ("2026-11-19", "2026-11-20", "2026-11-21")
LIMITS = ("limits.image_timeout_s=2", "limits.max_rejected=0.9")


def fill(project, *days: str, count: int = 3) -> None:
    for day in days or DAYS:
        project.fill(day.replace("-", "/"), count)


def states(project) -> list[str]:
    return [s.state for s in project.status()]


def with_poison(settings):
    """The loop, with a decoder that crashes on marked images."""
    return LocalExecutor(replace(settings, decoder=poison.NAME))


def test_missing_leaves_published_days_alone(project):
    """A second `missing` plans nothing, also if the published days changed since."""
    fill(project, DAYS[0])
    project.run()
    before = project.data(DAYS[0]).read_bytes()
    fill(project, *DAYS[1:])
    project.put("2026/11/19/late.png", level=9)
    summary = project.run(select="missing")
    assert (summary.planned, sorted(summary.partitions)) == (6, [f"date={d}" for d in DAYS[1:]])
    assert project.data(DAYS[0]).read_bytes() == before
    assert project.run(select="missing").planned == 0


def test_changed_takes_days_with_other_images_or_another_fingerprint(project):
    """And neither the missing nor those that are up to date."""
    fill(project, *DAYS[:2])
    project.run()
    project.put("2026/11/19/late.png", level=9)
    fill(project, DAYS[2])
    summary = project.run(select="changed")
    assert (summary.planned, summary.partitions) == (1, [f"date={DAYS[0]}"])
    summary = project.run("output.confidence=false", select="changed")
    assert (summary.planned, len(summary.partitions)) == (7, 2)


@pytest.mark.slow
def test_failed_scores_rejections_that_may_have_passed_and_nothing_else(project):
    """The broken file stays a rejection, the one that hung becomes a prediction, and the rest is not read."""
    fill(project, DAYS[0])
    project.put("2026/11/19/crash.png", png(7) + poison.HANG)
    project.put("2026/11/19/broken.png", b"no image")
    # The noting decoder hangs in isolation; the real one takes the trailing bytes as harmless.
    hanging = project.run("limits.unit_images=1", *LIMITS, executor=_isolating(project))
    assert hanging.reasons == {"decode.timeout": 1, "decode.unrecognized": 1}
    summary = project.run(*LIMITS, select="failed")
    assert (summary.planned, summary.ok, summary.rejected, summary.published) == (1, 1, 0, 1)
    assert {r["uri"].rpartition("/")[2]: r["status"] for r in project.rows(DAYS[0])} == {
        **{f"{i:03}.png": "ok" for i in range(3)},
        "crash.png": "ok",
        "broken.png": "rejected",
    }
    assert project.verify(*LIMITS) == []
    assert project.run(*LIMITS, select="failed").planned == 0


def _isolating(project):
    """An executor that decodes every unit in isolation, where a hang costs one image."""

    def make(settings):
        executor = with_poison(settings)
        inner = executor.run
        executor.run = lambda units: inner([replace(u, isolate=True) for u in units])
        return executor

    return make


@pytest.mark.slow
def test_a_damaged_day_is_named_when_its_rejections_are_tried_again(project):
    """Its footer is whole, so it counts as published; the other day is scored again all the same."""
    fill(project, *DAYS[:2], count=2)
    for day in ("2026/11/19", "2026/11/20"):
        project.put(f"{day}/hang.png", png(7) + poison.HANG)
    project.run(*LIMITS, executor=_isolating(project))
    data = bytearray(project.data(DAYS[0]).read_bytes())
    data[8:40] = bytes(32)
    project.data(DAYS[0]).write_bytes(data)

    summary = project.run(*LIMITS, select="failed")

    assert (summary.partitions, summary.exit_code) == ([f"date={DAYS[1]}"], 5)
    assert [p for p in summary.problems if f"date={DAYS[0]}" in p and "damaged" in p and "move it away" in p]


@pytest.mark.slow
def test_a_failing_try_again_leaves_the_rows_as_they_are(project):
    """Nothing gets worse, and the partition stays published."""
    fill(project, DAYS[0])
    project.put("2026/11/19/crash.png", png(7) + poison.HANG)
    project.run("limits.unit_images=1", *LIMITS, executor=_isolating(project))
    again = project.run("limits.unit_images=1", *LIMITS, select="failed", executor=_isolating(project))
    assert (again.planned, again.rejected) == (1, 1)
    assert states(project) == ["published"]
    assert len(project.rows(DAYS[0])) == 4


@pytest.mark.slow
def test_a_better_row_that_a_killed_run_staged_is_published_without_scoring(project, monkeypatch):
    """`failed` again publishes it; nothing is decoded twice."""
    fill(project, DAYS[0])
    project.put("2026/11/19/crash.png", png(7) + poison.HANG)
    project.run("limits.unit_images=1", *LIMITS, executor=_isolating(project))
    with monkeypatch.context() as patch:
        patch.setattr("unet_batch.job.publisher.publish", lambda *_: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception):
            project.run(*LIMITS, select="failed")
    summary = project.run(*LIMITS, select="failed")
    assert (summary.planned, summary.published) == (0, 1)
    assert all(r["status"] == "ok" for r in project.rows(DAYS[0]))


def test_newest_first_publishes_the_latest_day_first(project):
    """And the default is the oldest."""
    fill(project)
    assert project.run(newest_first=True).partitions == [f"date={d}" for d in reversed(DAYS)]
    for day in DAYS:
        project.data(day).unlink()
    assert project.run().partitions == [f"date={d}" for d in DAYS]


def test_one_pool_of_sessions_serves_all_days(project, monkeypatch):
    """A model is loaded once per actor, not once per day; max_active holds fewer days at a time, and all are scored."""
    fill(project)
    opened = []
    make = lambda settings: opened.append(1) or LocalExecutor(settings)  # noqa: E731
    assert project.run(executor=make).published == 3
    assert opened == [1]
    for day in DAYS:
        project.data(day).unlink()
    held: list[int] = []
    monkeypatch.setattr(
        run_module.Leases, "take", _counting(run_module.Leases.take, held, lambda s: len(s._held)), raising=True
    )
    assert project.run(max_active=1).published == 3
    assert max(held) == 1


def _counting(method, into, figure):
    def wrapped(self, partition):
        method(self, partition)
        into.append(figure(self))

    return wrapped


def test_a_day_that_cannot_be_published_does_not_stop_the_others(project):
    """Too many rejections hold back their day alone; the exit code says that a person must look."""
    fill(project)
    for i in range(9):
        project.put(f"2026/11/20/bad{i}.png", b"no image")
    summary = project.run()
    assert (summary.published, summary.exit_code) == (2, 5)
    assert states(project) == ["published", "partial", "published"]


def test_after_the_deadline_no_unit_begins_and_complete_days_are_published(project, monkeypatch):
    """What is left is said, with exit code 3; the next run does only that."""
    fill(project)
    now = [run_module.time.time()]
    monkeypatch.setattr("unet_batch.worker.infer.time.time", lambda: now[0])

    def make(settings):
        executor = LocalExecutor(settings)
        inner = executor.run

        def run(units):
            for number, receipt in enumerate(inner(units)):
                if number == 0:
                    now[0] += 7200  # the first day took until after the deadline
                yield receipt

        executor.run = run
        return executor

    summary = project.run(executor=make, deadline=datetime.now(UTC) + timedelta(hours=1))
    assert (summary.partitions, summary.remaining, summary.exit_code) == ([f"date={DAYS[0]}"], 6, 3)
    assert any("deadline" in problem for problem in summary.problems)
    monkeypatch.undo()
    assert project.run().planned == 6


def test_a_deadline_that_has_passed_is_refused(project):
    """Nothing is scored."""
    fill(project)
    with pytest.raises(JobError, match="has passed"):
        project.run(deadline=datetime.now(UTC) - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("06:00", "2026-11-23T06:00:00+01:00"),
        ("23:30", "2026-11-22T23:30:00+01:00"),
        ("2026-11-25T06:00", "2026-11-25T06:00:00+01:00"),
        ("2026-11-25T06:00Z", "2026-11-25T06:00:00+00:00"),
    ],
)
def test_a_deadline_is_the_next_such_time_in_local_time(text, meant):
    """As one writes it into a crontab."""
    now = datetime.fromisoformat("2026-11-22T22:00:00+01:00")
    assert parse_deadline(text, now) == datetime.fromisoformat(meant)


@pytest.mark.parametrize("text", ["six", "25:00", "2026-13-01", ""])
def test_a_deadline_that_is_no_time_is_one_sentence(text):
    """Exit code 2."""
    with pytest.raises(JobError, match="is not a time"):
        parse_deadline(text, datetime.now(UTC))


def test_a_dry_run_says_what_would_be_scored_and_changes_nothing(project):
    """Images, partitions and bytes of the same selection; no lease, no record, no part."""
    fill(project)
    result = project.command("backfill", "job.yaml", "--select", "missing", "--dry-run", "--executor", "local")
    assert (result.returncode, last_json(result)["images"], last_json(result)["partitions"]) == (0, 9, 3)
    assert not (project.folder / "out").exists()


def test_selected_tells_what_a_run_will_do(project):
    """The plan and the run agree for every selection."""
    fill(project, *DAYS[:2])
    project.run()
    project.put("2026/11/19/late.png", level=9)
    fill(project, DAYS[2])
    for select in ("missing", "changed", "failed", "due", "all"):
        planned = sum(len(p.open) for p in selected(project.prepared(), window_of("all"), select))
        assert planned == {"missing": 3, "changed": 1, "failed": 0, "due": 4, "all": 4}[select]


def test_the_record_names_the_selection_and_every_partition(project):
    """Also where they were worked on in groups."""
    fill(project)
    summary = project.run(select="missing", max_active=2)
    record = json.loads((project.folder / "out/_work/runs" / f"{summary.run}.json").read_text())
    assert (record["select"], sorted(record["partitions"])) == ("missing", [f"date={d}" for d in DAYS])
    assert record["did"]["published"] == 3
