"""Publication of many rows: each container is opened and each row group read as often as its rows need, and no more."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from unet_batch.errors import ImageError, Reason, StorageError
from unet_batch.imaging.postprocess import Prediction
from unet_batch.records import Source, Unit, unit_id
from unet_batch.spec import LimitsSpec
from unet_batch.store.storage import Storage, canonical
from unet_batch.table import merge as merge_module
from unet_batch.table import parts as parts_module
from unet_batch.table import publish as publish_module
from unet_batch.table.output import Output
from unet_batch.table.parts import write_part
from unet_batch.table.publish import Publication, publish
from unet_batch.table.rows import Provenance, prediction_row, rejection_row

MARK, DAY = "f" * 64, "date=2026-11-21"
WHERE = Provenance("m" * 64, MARK, "run-1", "cpu", "fp32")


class CountingStorage(Storage):
    """Notes every object that is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: Counter[str] = Counter()

    def open(self, uri: str, *, version: str | None = None):
        self.opened[uri] += 1
        return super().open(uri, version=version)


class Written:
    """An output folder whose rows are rejections that name their image."""

    def __init__(self, folder: Path) -> None:
        self.store = CountingStorage()
        self.output = Output(self.store, canonical(str(folder)))

    def stage(self, found: list[Source]) -> str:
        unit = Unit(unit_id(MARK, found), DAY, "images", tuple(found))
        rows = [rejection_row(s, 0, 1, ImageError(Reason.DECODE_CORRUPT, f"about {s.uri}")) for s in found]
        return write_part(self.output, unit, rows, WHERE, compression="zstd")

    def publish(self, found: list[Source], parts: list[str], *, base: str | None = None) -> str:
        self.store.opened.clear()
        wanted = Publication(DAY, found, MARK, "m" * 64, "run-1", base, parts)
        return publish(self.output, wanted, LimitsSpec(max_rejected=10**9)).version

    def rows(self) -> list[tuple[str, str]]:
        table = pq.ParquetFile(self.output.published(DAY).removeprefix("file://")).read(["uri", "message"])
        return list(zip(*table.to_pydict().values(), strict=True))


@pytest.fixture
def output(tmp_path: Path) -> Written:
    return Written(tmp_path / "out")


def sources(count: int, *, ending: str = "", step: int = 1) -> list[Source]:
    return [Source(f"file:///archive/{i:04}{ending}", "v1") for i in range(0, count, step)]


def expected(found: list[Source]) -> list[tuple[str, str]]:
    return [(uri, f"about {uri}") for uri in sorted(s.uri for s in found)]


def test_rows_out_of_many_row_groups_stay_whole_and_in_key_order(output, monkeypatch):
    """Late rows go between rows that were published in several groups; each row keeps its own columns."""
    monkeypatch.setattr(publish_module, "ROWS_PER_GROUP", 7)
    early, late = sources(50), sources(50, ending="-late", step=3)
    base = output.publish(early, [output.stage(early[i : i + 4]) for i in range(0, 50, 4)])
    output.publish([*early, *late], [output.stage(late)], base=base)
    assert output.rows() == expected([*early, *late])


def test_a_row_group_finds_its_rows_where_more_containers_than_stay_open_hold_them(output, monkeypatch):
    """Each of twenty parts is opened once for a row group that needs them all, though two stay open at a time."""
    monkeypatch.setattr(merge_module, "OPEN_CONTAINERS", 2)
    monkeypatch.setattr(merge_module, "KEPT_BYTES", 1)
    found = sources(100)
    parts = [output.stage(found[i::20]) for i in range(20)]
    output.publish(found, parts)
    assert output.rows() == expected(found)
    assert {uri: output.store.opened[uri] for uri in parts} == dict.fromkeys(parts, 1)


def test_a_published_object_is_opened_a_few_times_however_many_groups_it_has(output, monkeypatch):
    """Republishing reads its row groups one after the other out of one open file."""
    monkeypatch.setattr(publish_module, "ROWS_PER_GROUP", 5)
    early, late = sources(200), sources(200, ending="-late", step=10)
    base = output.publish(early, [output.stage(early)])
    output.publish([*early, *late], [output.stage(late)], base=base)
    assert output.rows() == expected([*early, *late])
    assert output.store.opened[output.output.published(DAY)] == 3  # its footer, its keys, its rows


class CountedFile:
    """A Parquet file that counts how often its footer is asked about a row group."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        self.metadata = self
        self.num_row_groups = file.metadata.num_row_groups
        self.read_row_group = file.read_row_group
        self.asked = 0

    def row_group(self, number: int):
        self.asked += 1
        return self._file.metadata.row_group(number)


def test_finding_a_row_does_not_walk_the_row_groups_before_it(output, monkeypatch):
    """The footer is asked about each of forty groups once, not once more for every row behind it."""
    monkeypatch.setattr(publish_module, "ROWS_PER_GROUP", 5)
    early = sources(200)
    output.publish(early, [output.stage(early)])
    file = CountedFile(merge_module.open_stream(output.store.open(output.output.published(DAY))))
    monkeypatch.setattr(merge_module, "open_stream", lambda _: file)
    containers = merge_module.RowReader(output.store, [output.output.published(DAY)])
    places = [containers._place(0, row) for row in range(200)]
    assert places == [divmod(row, 5) for row in range(200)]
    assert file.asked == 40


def test_the_row_groups_that_are_kept_are_bounded_in_bytes(output):
    """The last one always stays, the oldest go first, and what is left fits."""
    found = sources(12)
    containers = merge_module.RowReader(output.store, [output.stage([source]) for source in found])
    one = containers._group((0, 0)).nbytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_module, "KEPT_BYTES", 3 * one)
        for container in range(12):
            containers._group((container, 0))
            assert containers._groups_bytes == sum(table.nbytes for table in containers._groups.values()) <= 3 * one
    assert [container for container, _ in containers._groups] == [9, 10, 11]


def test_a_container_that_became_shorter_is_named(output):
    """Rows that were there a moment ago are never replaced by others."""
    containers = merge_module.RowReader(output.store, [output.stage(sources(3))])
    with pytest.raises(StorageError, match="fewer rows than before"):
        containers._place(0, 3)


def test_few_large_rows_are_written_and_rewritten_a_few_at_a_time(output, monkeypatch):
    """Row groups are bounded by bytes, in parts and in what is published, so that no step holds them all."""
    heavy = 200_000

    def large(found):
        empty = Prediction(4, 4, None, None, (), None, 0.5, 0.5)
        rows = [prediction_row(source, 0, 1, empty, os.urandom(heavy)) for source in found]
        unit = Unit(unit_id(MARK, found), DAY, "images", tuple(found))
        return write_part(
            output.output,
            unit,
            rows,
            Provenance("m" * 64, MARK, "run-1", "cpu", "fp32"),
            compression="zstd",
        )

    monkeypatch.setattr(parts_module, "GROUP_BYTES", 1 << 20)
    monkeypatch.setattr(merge_module, "GROUP_BYTES", 1 << 20)
    found = sources(40)
    first = output.publish(found[:30], [large(found[:30])])
    second = output.publish(found, [large(found[30:])], base=first)
    for uri in (output.output.published(DAY), *(o.uri for o in output.store.list(output.output.staged))):
        with output.store.open(uri) as stream:
            metadata = parts_module.open_stream(stream).metadata
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        assert max(sizes) <= 1.5 * (1 << 20), uri
        assert metadata.num_rows in (10, 30, 40)
    taken = []
    real = merge_module.RowReader.take
    monkeypatch.setattr(
        merge_module.RowReader, "take", lambda self, rows, own: (taken.append(len(rows)), real(self, rows, own))[1]
    )
    output.publish(found[:39], [], base=second)
    assert max(taken) <= 6
    assert sum(taken) == 39
