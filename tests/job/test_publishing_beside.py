"""Partitions published in processes beside the driver: the same rows, the same refusals, and nothing lost with them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from unet_batch.errors import ExitCode, Incomplete
from unet_batch.job.publishing import beside as beside_module
from unet_batch.job.publishing.beside import FEWEST_IMAGES, MOST, PARTITION_IMAGES, Beside, processes_for
from unet_batch.job.publishing.process import (
    answer_of,
    publication_of,
    published_of,
    refusal_of,
    request_of,
)
from unet_batch.records import Source
from unet_batch.table.guard import Others
from unet_batch.table.plausibility import Implausible
from unet_batch.table.publish import Commit, Publication, Published
from unet_batch.table.tally import Tally

DAYS = ("2026/11/20", "2026/11/21", "2026/11/22")
WANTED = Publication(
    partition="date=2026-11-21",
    sources=(Source("s3://b/1.jpg", "etag:1", size_bytes=7), Source("s3://b/2.tar", "etag:2", member="ü#", ordinal=1)),
    fingerprint="f" * 64,
    model_digest="m" * 64,
    run_id="run-1",
    base="etag:9",
    parts=("s3://b/_work/parts/1.part",),
    afresh=True,
    compression="snappy",
    single_writer=True,
    tried=frozenset({("s3://b/1.jpg", "etag:1")}),
    others=Others(3, 4),
    classes={1: "nucleus"},
    nights=(Tally(ok=5, empty=1),),
)


@pytest.fixture
def everything_beside(monkeypatch: pytest.MonkeyPatch) -> list[Beside]:
    """Any partition is large, and two are many; returns the processes of each run."""
    made: list[Beside] = []
    inner = beside_module.Beside.__init__

    def noted(self: Beside, *arguments: object) -> None:
        made.append(self)
        inner(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(beside_module.Beside, "__init__", noted)
    for module in ("unet_batch.job.publishing.beside", "unet_batch.job.publisher"):
        monkeypatch.setattr(f"{module}.PARTITION_IMAGES", 1)
    monkeypatch.setattr(beside_module, "FEWEST_IMAGES", 1)
    return made


def published(project) -> Iterator[tuple[dict, list[dict]]]:
    """Footer and rows of every day, without the run's name."""
    for day in DAYS:
        file = pq.ParquetFile(project.data(day.replace("/", "-")))
        footer = {key: text for key, text in (file.metadata.metadata or {}).items() if key != b"unet_batch.commit"}
        yield footer, file.read().drop_columns(["run_id"]).to_pylist()


def test_rows_and_tallies_do_not_depend_on_who_publishes(project, everything_beside, monkeypatch):
    """Rejections, several pages and late images included; row by row, and the counts in the footers."""
    for day in DAYS:
        project.fill(day, 5)
    project.put(f"{DAYS[1]}/bad.png", b"no image")
    with monkeypatch.context() as patch:
        patch.setattr(beside_module, "processes_for", lambda *_: 0)
        assert project.run().exit_code == 0
    assert everything_beside == []
    expected = list(published(project))
    for path in (project.folder / "out").rglob("*.parquet"):
        path.unlink()
    summary = project.run()
    assert (summary.exit_code, summary.published, len(everything_beside)) == (0, 3, 1)
    assert list(published(project)) == expected
    assert project.verify() == []
    project.put(f"{DAYS[0]}/late.png", level=9)
    project.put(f"{DAYS[2]}/late.png", level=9)
    assert project.run().published == 2
    assert project.verify() == []


def test_a_refusal_is_the_same_beside_the_driver(project, everything_beside):
    """Too many rejections: exit 5 with the same sentence, and the other days are published."""
    for day in DAYS:
        project.fill(day, 2)
    for name in ("a", "b", "c"):
        project.put(f"{DAYS[1]}/{name}.png", b"no image")
    summary = project.run()
    assert (summary.exit_code, summary.published) == (ExitCode.NEEDS_ACTION, 2)
    [problem] = summary.problems
    assert problem.startswith("date=2026-11-21: 3 of 5 images were rejected (3 × decode.unrecognized)")
    assert len(everything_beside) == 1


def test_no_process_outlives_its_run(project, everything_beside):
    for day in DAYS:
        project.fill(day, 2)
    project.run()
    [beside] = everything_beside
    assert beside._all
    assert [process._child.process.poll() is None for process in beside._all] == [False] * len(beside._all)


def test_a_process_that_dies_costs_its_publication_and_the_next_run_makes_up_for_it(
    project, everything_beside, monkeypatch
):
    """Killed in the middle: exit 3 names the day; the rows are staged, so nothing is scored again."""
    for day in DAYS:
        project.fill(day, 2)
    inner = beside_module._Process.ask
    asked: list[int] = []

    def ask(self, request):
        asked.append(1)
        if len(asked) == 1:
            os.kill(self._child.process.pid, signal.SIGKILL)
        return inner(self, request)

    monkeypatch.setattr(beside_module._Process, "ask", ask)
    summary = project.run()
    assert (summary.exit_code, summary.published, len(summary.problems)) == (ExitCode.UNFINISHED, 2, 1)
    assert "died (signal SIGKILL); its rows stay staged" in summary.problems[0]
    again = project.run()
    assert (again.exit_code, again.published, again.ok) == (0, 1, 0)
    assert project.verify() == []


def test_a_process_ends_when_its_driver_is_gone(project):
    """A closed pipe is all that a driver that was killed leaves behind."""
    process = beside_module._Process(project.job().model_dump_json().encode())
    process._child.pipe.close()
    until = time.monotonic() + 20
    while process._child.process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert process._child.process.poll() == 0


def test_a_closed_pool_starts_no_process(project):
    """A run that was stopped must not begin another publication."""
    beside = Beside(project.job(), 1)
    beside.close()
    with pytest.raises((Incomplete, RuntimeError)):
        beside.publish(WANTED).result()


def test_a_publication_arrives_as_it_was_sent():
    assert publication_of(request_of(WANTED)) == WANTED
    plain = replace(WANTED, base=None, tried=frozenset(), nights=(), classes={})
    assert publication_of(request_of(plain)) == plain


def test_an_answer_arrives_as_it_was_sent():
    commit = Commit("g", "all", "f", "m", "i", "run-1", 2, 2, 1, "pyarrow", 1, {"k": 2})
    warning = Implausible("all", "empty", 1.0, "all: empty")
    found = Published("etag:1", commit, Tally(ok=1), (warning,))
    assert published_of(answer_of(found)) == found
    assert published_of(answer_of(replace(found, tally=None))) == replace(found, tally=None)


def test_an_error_arrives_as_the_same_error():
    with pytest.raises(Incomplete, match=r"^3 images have no row$"):
        published_of(refusal_of(Incomplete("3 images have no row")))
    with pytest.raises(Exception, match="ZeroDivisionError: by zero"):
        published_of(refusal_of(ZeroDivisionError("by zero")))


GIB = 1 << 30


@pytest.mark.parametrize(
    ("sizes", "cores", "memory", "expected"),
    [
        ([10**6], 16, 64 * GIB, 0),  # nothing to do beside it
        ([PARTITION_IMAGES - 1] * 1000, 16, 64 * GIB, 0),  # half a second each
        ([FEWEST_IMAGES // 2 - 1] * 2, 16, 64 * GIB, 0),
        ([FEWEST_IMAGES // 2] * 2, 16, 64 * GIB, 2),
        ([FEWEST_IMAGES] * 400, 8, 64 * GIB, 8),
        ([FEWEST_IMAGES] * 400, 64, 1024 * GIB, MOST),
        ([10**6] * 400, 16, 32 * GIB, 5),  # each may take a part of the memory
        ([10**7] * 400, 16, 32 * GIB, 0),  # none fits: the driver publishes, one at a time
        ([FEWEST_IMAGES] * 400, 16, None, 16),
    ],
)
def test_processes_are_as_many_as_pay_and_fit(sizes, cores, memory, expected):
    assert processes_for(sizes, cores, memory) == expected


def test_paths_with_relative_entries_reach_the_process(project, everything_beside, monkeypatch, tmp_path: Path):
    """The process is started elsewhere than the modules may lie: relative paths become absolute."""
    for day in DAYS:
        project.fill(day, 1)
    monkeypatch.syspath_prepend(".")
    assert project.run().published == 3
