"""Archives whose keys or rows are too many for one step: packed inventories, groups of days, and rows in buckets."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from unet_batch.archive.packed import PackedSources
from unet_batch.errors import ExitCode
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.planning import holdings as holdings_module
from unet_batch.planning.holdings import archive_partitions
from unet_batch.planning.survey import window_of

DAYS = [f"2026/11/{number}" for number in range(20, 25)]


@pytest.fixture
def five_days(project):
    for day in DAYS:
        project.fill(day, 3)
    return project


def test_partitions_beyond_the_held_images_are_packed_and_equal(five_days):
    """Six images are held, in the order of the days; the rest is packed, and no name or count differs."""
    prepared, window = five_days.prepared(), window_of("all")
    whole = archive_partitions(prepared, window, keep=False)
    few = archive_partitions(prepared, window, keep=False, held=6)
    assert [isinstance(sources, PackedSources) for sources in few.partitions.values()] == [False] * 2 + [True] * 3
    assert {name: list(found) for name, found in few.partitions.items()} == dict(whole.partitions)
    assert (few.images, few.passed, few.scope) == (whole.images, whole.passed, whole.scope)


@pytest.mark.parametrize("buckets", [1, 2])
def test_a_run_over_packed_partitions_publishes_the_same(five_days, monkeypatch, buckets):
    """Run, status, verify and a resumed run, with and without buckets."""
    monkeypatch.setattr(holdings_module, "HELD_IMAGES", 0)
    options = f"output.buckets={buckets}"
    prepared = five_days.prepared(options)
    found = archive_partitions(prepared, window_of("all"), keep=False).partitions.values()
    assert all(isinstance(sources, PackedSources) for sources in found)
    summary = five_days.run(options)
    assert (summary.exit_code, summary.ok, summary.published) == (0, 15, 5 * buckets)
    assert five_days.verify(options) == []
    five_days.put(f"{DAYS[2]}/late.png", level=9)
    assert (five_days.run(options).ok, five_days.run(options).ok) == (1, 0)
    assert {line.state for line in five_days.status(options)} == {"published"}


def test_a_group_is_published_before_the_next_one_is_planned(five_days, monkeypatch):
    """Six images at a time: two days are scored and published, then the next two."""
    monkeypatch.setattr("unet_batch.planning.groups.images_at_once", lambda _: 6)
    seen: list[tuple[set[str], int]] = []

    class Looks(LocalExecutor):
        def run(self, units):
            done = len(list((five_days.folder / "out" / "predictions").rglob("*.parquet")))
            seen.append(({unit.partition for unit in units}, done))
            yield from super().run(units)

    assert five_days.run(executor=Looks).published == 5
    assert [(len(partitions), done) for partitions, done in seen] == [(2, 0), (2, 2), (1, 4)]
    assert five_days.verify() == []


# Rows beyond the size of one object -------------------------------------------------------------------------------


@pytest.fixture
def small_objects(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Objects hold at most 4 KB, which the rows of a few images exceed."""
    monkeypatch.setattr("unet_batch.table.publish.MAX_OBJECT_BYTES", 4 << 10)
    return monkeypatch


def test_rows_beyond_one_object_are_refused_and_then_published_in_buckets_without_scoring(project, small_objects):
    """Exit 5 says how many buckets; with them, the staged rows are published, and no image is scored again."""
    project.fill("2026/11/21", 40)
    refused = project.run()
    assert (refused.exit_code, refused.ok, refused.published) == (ExitCode.NEEDS_ACTION, 40, 0)
    [problem] = refused.problems
    assert "one object holds at most 4096: set output.buckets to" in problem
    buckets = int(problem.partition("set output.buckets to ")[2].split()[0])
    small_objects.undo()
    options = f"output.buckets={buckets}"
    done = project.run(options)
    assert (done.exit_code, done.ok, done.planned, done.published) == (0, 0, 0, buckets)
    assert project.verify(options) == []
    found = sorted((project.folder / "out" / "predictions").rglob("*.parquet"))
    keys = [key for path in found for key in pq.read_table(path, columns=["image_key"]).column(0).to_pylist()]
    assert (len(found), len(keys), len(set(keys))) == (buckets, 40, 40)


def test_a_part_that_is_damaged_after_the_split_costs_its_own_images(project, small_objects):
    """Its images are scored again, each in its bucket; the rest is not."""
    project.fill("2026/11/21", 40)
    project.run()
    small_objects.undo()
    [first, *rest] = project.parts()
    lost = pq.ParquetFile(first).metadata.num_rows
    first.write_bytes(first.read_bytes()[:-20])
    assert rest
    summary = project.run("output.buckets=2")
    assert (summary.exit_code, summary.ok) == (0, lost)
    assert project.verify("output.buckets=2") == []


def test_rows_in_row_groups_of_bounded_bytes_never_meet_arrows_limit(project, monkeypatch):
    """A text column of Arrow holds 2 GiB; what is read, merged and written at a time holds far less."""
    taken: list[int] = []
    from unet_batch.table.merge import RowReader

    inner = RowReader.take

    def noted(self, rows, wanted):
        table = inner(self, rows, wanted)
        taken.append(table.nbytes)
        return table

    monkeypatch.setattr(RowReader, "take", noted)
    monkeypatch.setattr("unet_batch.table.merge.GROUP_BYTES", 4 << 10)
    monkeypatch.setattr("unet_batch.table.parts.GROUP_BYTES", 4 << 10)
    project.fill("2026/11/21", 40)
    assert project.run().published == 1
    assert len(taken) > 3
    assert max(taken) < 4 * (4 << 10)
