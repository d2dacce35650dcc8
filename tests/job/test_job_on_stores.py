"""Whole jobs whose archive and output lie in S3, Cloud Storage or Blob Storage, published without `single_writer`."""

from __future__ import annotations

from functools import partial

import pytest
from project_fixture import Project, last_json, png
from remote_project import DAY, Remote, meanwhile

from unet_batch.store.storage import Storage

BUCKETS = {"s3": "new_bucket", "gcs": "new_gcs_bucket", "azure": "new_container"}
"""By store, which is a marker too: the fixture that makes an empty bucket."""


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in BUCKETS])
def remote(request: pytest.FixtureRequest, project: Project, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """A project in a fresh bucket or container; its options come from the environment, as keys do."""
    options: dict[str, str] = request.getfixturevalue(f"{request.param}_options")
    top = request.getfixturevalue(BUCKETS[request.param])()
    for name, value in options.items():
        monkeypatch.setenv(f"STORE_{name.upper()}", value)
    referred = ", ".join(f"{name}: {{env: STORE_{name.upper()}}}" for name in options)
    overrides = (
        f"input.uri={top}/archive/{{date:%Y/%m/%d}}/",
        f"output.uri={top}/out",
        f"input.options={{{referred}}}",
        f"output.options={{{referred}}}",
    )
    return Remote(project, top, Storage(options), overrides)


def test_a_day_is_scored_published_and_verified(remote):
    """The store was seen to honour conditional writes; a second run has nothing to do and changes nothing."""
    remote.fill(3)
    remote.put(f"{DAY}/bad.png", b"no image")
    summary = remote.run()
    assert (summary.ok, summary.rejected, summary.published, summary.exit_code) == (3, 1, 1, 0)
    assert remote.rows()[0]["uri"] == f"{remote.bucket}/archive/{DAY}/000.png"
    record = remote.objects("out/_work/runs")[f"{remote.bucket}/out/_work/runs/{summary.run}.json"]
    assert b'"conditional_writes": "honoured"' in record
    before = remote.objects("out")
    again = remote.run()
    assert (again.planned, again.published, again.exit_code) == (0, 0, 0)
    assert remote.objects("out") == before
    assert remote.findings() == []
    assert [(s.state, s.rows, s.rejected) for s in remote.project.status(*remote.overrides)] == [("published", 4, 1)]


def test_a_late_and_a_changed_image_are_scored_alone(remote):
    """An image that was put again with other bytes is another version, in every store."""
    remote.fill(5)
    remote.run()
    remote.put(f"{DAY}/late.png", png(7))
    remote.put(f"{DAY}/001.png", png(1, bright_rows=16))
    summary = remote.run()
    assert (summary.planned, summary.published) == (2, 1)
    assert sorted(row["classes"][0]["area_px"] for row in remote.rows()) == [256] * 5 + [512]
    assert remote.findings() == []


def test_an_object_replaced_while_scoring_is_not_overwritten(remote):
    """Exit code 4, and the other's rows stay; running again takes them into account."""
    remote.fill(3)
    other = remote.run("tiling.overlap=0.5")
    theirs = remote.store.read(remote.published)
    remote.put(f"{DAY}/late.png", png(9))
    remote.run("tiling.overlap=0.5")
    newer = remote.store.read(remote.published)
    assert newer != theirs
    remote.store.put(remote.published, theirs)
    held = remote.run(executor=meanwhile(partial(remote.store.put, remote.published, newer)))
    assert (held.exit_code, held.published, held.ok) == (4, 0, 4)
    assert "its rows stay" in held.problems[0]
    assert remote.store.read(remote.published) == newer
    assert {row["fingerprint"] for row in remote.rows()} == {other.fingerprint}
    again = remote.run()
    assert (again.planned, again.published, again.exit_code) == (0, 1, 0)
    assert remote.findings() == []


def test_a_first_publication_does_not_overwrite_a_rivals(remote):
    """Create-only: nothing was there when the run began."""
    remote.fill(2)
    remote.run("tiling.overlap=0.5")
    theirs = remote.store.read(remote.published)
    remote.store.delete(remote.published)
    held = remote.run(executor=meanwhile(partial(remote.store.put, remote.published, theirs)))
    assert (held.exit_code, held.published) == (4, 0)
    assert remote.store.read(remote.published) == theirs


def test_the_command_line_runs_such_a_job(remote):
    """A process of its own ends by itself, says nothing but its results, and a second one has nothing to do."""
    remote.fill(2)
    words = [word for override in remote.overrides for word in ("--set", override)]
    command = partial(remote.project.command, "run", "job.yaml", "--window", "all", "--executor", "local", *words)
    first, second = command(), command()
    assert [(r.returncode, last_json(r)["published"]) for r in (first, second)] == [(0, 1), (0, 0)]
    assert "unclosed" not in (first.stderr + second.stderr).lower()
