"""Faults on the wire between a job and an S3-protocol server: the SDK's own errors, and requests that are counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from project_fixture import Project, png
from unruly_proxy import UnrulyProxy, unruly

from unet_batch.job.summary import Summary
from unet_batch.store.storage import Storage

pytestmark = pytest.mark.s3

DAY, NAME = "2026/11/21", "2026-11-21"
IMAGES, UNIT = 6, 2
LIMITS = f"limits.unit_images={UNIT}"
FAULTS = ["503", "500", "slow", "reset", "cut"]


@dataclass
class Remote:
    """A project whose archive and output lie behind the proxy."""

    project: Project
    proxy: UnrulyProxy
    bucket: str
    direct: Storage

    @property
    def overrides(self) -> tuple[str, ...]:
        options = f"{{endpoint_url: '{self.proxy.url}', config_kwargs: {{read_timeout: 3}}}}"
        return (
            f"input.uri={self.bucket}/archive/{{date:%Y/%m/%d}}/", f"output.uri={self.bucket}/out",
            f"input.options={options}", f"output.options={options}", LIMITS,
        )  # fmt: skip

    def run(self) -> Summary:
        self.proxy.calls.clear()
        return self.project.run(*self.overrides)

    def parts(self) -> int:
        return len(list(self.direct.list(f"{self.bucket}/out/_work/parts")))


@pytest.fixture
def remote(
    project: Project, s3_endpoint: str, s3_options: dict[str, object], new_bucket: Callable[[], str]
) -> Iterator[Remote]:
    with unruly(s3_endpoint) as proxy:
        made = Remote(project, proxy, new_bucket(), Storage(s3_options))
        for i in range(IMAGES):
            made.direct.put(f"{made.bucket}/archive/{DAY}/{i:03}.png", png(i))
        yield made


def test_every_fault_of_a_read_costs_one_more_request(remote):
    """SlowDown, 500, a time-out, a reset and a truncated body: five images with two requests each, one with one."""
    remote.proxy.schedule = [("GET", f"{i:03}.png", fault) for i, fault in enumerate(FAULTS)]
    summary = remote.run()
    assert (summary.ok, summary.rejected, summary.published, summary.problems) == (IMAGES, 0, 1, [])
    assert [remote.proxy.calls[f"GET {i:03}.png"] for i in range(IMAGES)] == [2] * 5 + [1]
    assert remote.proxy.schedule == []
    assert remote.project.verify(*remote.overrides) == []


@pytest.mark.parametrize("fault", ["503", "500", "slow", "reset", "landed"])
def test_a_part_whose_put_is_unsure_is_there_once(remote, fault):
    """One request more, whether the first one took effect or not."""
    remote.proxy.schedule = [("PUT", ".part", fault)]
    summary = remote.run()
    assert (summary.ok, summary.published, summary.problems) == (IMAGES, 1, [])
    assert sum(n for name, n in remote.proxy.calls.items() if name.startswith("PUT") and ".part" in name) == 4
    assert remote.parts() == IMAGES // UNIT
    assert remote.project.verify(*remote.overrides) == []


@pytest.mark.parametrize(
    ("faults", "puts", "exit_codes"),
    [
        (["503"], range(2, 3), {0}),
        (["landed"], range(1, 3), {0}),
        (["reset"] * 20, range(1, 11), {3}),
        (["slow"], range(1, 2), {0, 3}),
    ],
    ids=["503", "landed without an answer", "lost", "slow"],
)
def test_a_publication_whose_put_is_unsure_is_read_back(remote, faults, puts, exit_codes):
    """Our generation is there: success. Nothing is there: exit code 3, and the next run only publishes.

    aiohttp sends a put again by itself when a kept connection breaks, and the SDK tells a reset as "no connection",
    which is tried again: whoever sent it first, the condition holds. A slow put is given up before it lands; whether
    reading back finds it is for the store to say.
    """
    remote.proxy.schedule = [("PUT", "data.parquet", fault) for fault in faults]
    summary = remote.run()
    assert summary.ok == IMAGES
    assert remote.proxy.calls["PUT data.parquet"] in puts
    assert summary.exit_code in exit_codes
    assert summary.published == (0 if summary.exit_code else 1)
    remote.proxy.schedule.clear()
    again = remote.run()
    assert (again.planned, again.exit_code) == (0, 0)
    assert remote.project.verify(*remote.overrides) == []


@pytest.mark.parametrize("fault", ["reset", "landed"])
def test_the_probes_first_put_may_lose_its_answer(remote, fault):
    """Whether it landed or not: the store is asked again, and the run is as any other."""
    remote.proxy.schedule = [("PUT", "", fault)]
    summary = remote.run()
    assert (summary.ok, summary.published, summary.exit_code, summary.problems) == (IMAGES, 1, 0, [])
    assert remote.proxy.schedule == []
    assert list(remote.direct.list(f"{remote.bucket}/out/_work/probe")) == []
    assert remote.project.verify(*remote.overrides) == []


def test_a_store_that_resets_every_put_is_one_sentence_on_the_command_line(remote):
    """Exit code 3, one line on stderr, nothing in the output; the same command completes when it is back."""
    remote.proxy.schedule = [("PUT", "", "reset")] * 100
    words = [word for override in remote.overrides for word in ("--set", override)]
    result = remote.project.command("run", "job.yaml", "--window", "all", "--executor", "local", *words)
    assert result.returncode == 3
    assert json.loads(result.stdout) == {
        "error": "run.incomplete",
        "message": result.stderr.strip().partition(": ")[2],
        "exit_code": 3,
        "exit": "unfinished",
    }
    [line] = result.stderr.strip().splitlines()
    assert line.startswith(f"error [run.incomplete]: nothing was scored: {remote.bucket}/out/_work/probe/")
    assert list(remote.direct.list(f"{remote.bucket}/out")) == []
    remote.proxy.schedule.clear()
    assert remote.run().exit_code == 0


def test_a_run_record_that_cannot_be_finished_leaves_the_rows_published(remote):
    """On the wire: every try of the last put is reset; exit code 3 and one sentence."""
    puts = 0

    def fault(method: str, path: str) -> str:
        nonlocal puts
        puts += method == "PUT" and "/_work/runs/" in path
        return "reset" if puts > 1 and method == "PUT" and "/_work/runs/" in path else ""

    remote.proxy.fault = fault
    summary = remote.run()
    assert (summary.ok, summary.published, summary.exit_code) == (IMAGES, 1, 3)
    [problem] = summary.problems
    assert problem.startswith("the run's record could not be finished, and nothing else is missing: ")
    del remote.proxy.fault
    again = remote.run()
    assert (again.planned, again.published, again.exit_code) == (0, 0, 0)
    assert remote.project.verify(*remote.overrides) == []


def test_a_store_that_stays_away_leaves_everything_staged_where_it_was(remote):
    """The publication's put is refused five times; nothing is scored again by the next run."""
    remote.proxy.schedule = [("PUT", "data.parquet", "503")] * 5
    summary = remote.run()
    assert (summary.exit_code, summary.ok, summary.published) == (3, IMAGES, 0)
    assert remote.proxy.calls["PUT data.parquet"] == 5
    again = remote.run()
    assert (again.planned, again.published, again.exit_code) == (0, 1, 0)
    assert remote.project.verify(*remote.overrides) == []
