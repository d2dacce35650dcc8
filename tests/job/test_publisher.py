"""What a run leaves beside its rows: its record."""

from __future__ import annotations

import json

from unet_batch.job.local_executor import LocalExecutor

DAY, NAME = "2026/11/21", "date=2026-11-21"


def record(project, run: str) -> dict:
    return json.loads((project.folder / "out" / "_work" / "runs" / f"{run}.json").read_text())


def test_a_record_says_what_was_to_be_done_and_what_was(project):
    """The state before, the version that is replaced, and the summary."""
    project.fill(DAY, 3)
    first = project.run()
    found = record(project, first.run)
    assert found["partitions"] == {NAME: {"state": "missing", "images": 3, "open": 3, "retry": 0, "base": None}}
    assert (found["run"], found["did"]["ok"], found["conditional_writes"]) == (first.run, 3, "honoured")
    project.put(f"{DAY}/late.png", level=9)
    assert found["started"] < found["ended"]
    assert (found["did"]["workers"], found["did"]["loaders"], "pyarrow" in found["versions"]) == (1, 0, True)
    version = project.prepared().output.store.head(f"file://{project.data('2026-11-21')}").version
    again = record(project, project.run().run)
    assert again["partitions"] == {NAME: {"state": "stale", "images": 4, "open": 1, "retry": 0, "base": version}}


def test_a_record_is_there_before_anything_is_scored(project):
    """After a kill, the record holds the plan of the run and no results."""
    project.fill(DAY, 1)
    seen = []

    class Looks(LocalExecutor):
        def run(self, units):
            [path] = (project.folder / "out" / "_work" / "runs").iterdir()
            seen.append(json.loads(path.read_text()))
            yield from super().run(units)

    project.run(executor=Looks)
    [found] = seen
    assert (list(found["partitions"]), "did" in found) == ([NAME], False)


def test_a_run_that_has_nothing_to_do_leaves_no_record(project):
    """One record for each run that worked."""
    project.fill(DAY, 1)
    first = project.run()
    project.run()
    assert [path.stem for path in (project.folder / "out" / "_work" / "runs").iterdir()] == [first.run]


def test_a_record_holds_no_query_of_a_url(project):
    """Options are written down as they are given, but for what is a secret inside a URL."""
    project.fill(DAY, 1)
    options = "{endpoint_url: 'http://store.example/?me=hunter2', anon: true}"
    done = project.run(f"input.options={options}")
    found = record(project, done.run)
    assert "hunter2" not in json.dumps(found)
    assert found["job"]["input"]["options"] == {"endpoint_url": "http://store.example/?…", "anon": True}
