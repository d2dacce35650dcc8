"""Rows of one fingerprint, wherever they lie: the ones publication would take, read when asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unet_batch.errors import ImageError, Reason
from unet_batch.imaging.masks import rle
from unet_batch.imaging.postprocess import ClassArea, Prediction
from unet_batch.records import Source, Unit, unit_id
from unet_batch.review.agreement import OK
from unet_batch.review.scored import Containers, ScoredRows
from unet_batch.spec import LimitsSpec
from unet_batch.store.storage import Storage, canonical
from unet_batch.table.layout import Layout
from unet_batch.table.parts import write_part
from unet_batch.table.publish import Publication, publish
from unet_batch.table.rows import Provenance, prediction_row, rejection_row

MARK, OTHER = "ab" * 32, "cd" * 32
DAY = "date=2026-11-21"


class CountingStorage(Storage):
    """A store that counts how often each object is read whole."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def read_many(self, requests, *, max_bytes=None):
        self.reads.update(uri.rpartition("/")[2] for uri, _ in requests)
        return super().read_many(requests, max_bytes=max_bytes)


def prediction(area_px: int) -> Prediction:
    """A 4² mask whose first pixels are of class x."""
    mask = np.zeros((4, 4), bool)
    mask.flat[:area_px] = True
    area = ClassArea(1, "x", area_px, area_px / 16, 0.75, (0, 0, 4, 1), rle(mask))
    return Prediction(4, 4, "x", 0.75, (area,) if area_px else (), None, 0.5, 0.5)


class Output:
    """An output folder with parts and published rows that a test writes by hand."""

    def __init__(self, folder: Path) -> None:
        self.store = CountingStorage()
        self.layout = Layout(canonical(str(folder)))

    def stage(self, areas: dict[str, int | None], *, mark: str = MARK, salt: str = "") -> str:
        """A part with one image for each name: its class's area, None for a rejection."""
        sources = {name: Source(f"file:///archive/{name}", "v1") for name in areas}
        rows = [
            rejection_row(source, 0, 1, ImageError(Reason.DECODE_TIMEOUT, "too slow"), height=4, width=4)
            if areas[name] is None
            else prediction_row(source, 0, 1, prediction(areas[name]), None)
            for name, source in sources.items()
        ]
        unit = Unit(unit_id(mark + salt, sources.values()), DAY, "images", tuple(sources.values()))
        provenance = Provenance("m" * 64, mark, "run-1", "cpu", "fp32")
        return write_part(self.store, self.layout, unit, rows, provenance, compression="zstd")

    def publish(self, names: str, parts: list[str], *, mark: str = MARK) -> str:
        wanted = Publication(
            partition=DAY,
            sources=[Source(f"file:///archive/{name}", "v1") for name in names],
            fingerprint=mark,
            model_digest="m" * 64,
            run_id="run-1",
            base=None,
            parts=parts,
        )
        publish(self.store, self.layout, wanted, LimitsSpec(max_rejected=1.0))
        return self.layout.published(DAY)

    def rows(self, published: str | None, parts: list[str], mark: str | None = MARK) -> ScoredRows:
        self.store.reads.clear()
        return ScoredRows(self.store, [Containers(published, parts)], mark)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "out")


def verdicts(rows: ScoredRows) -> dict[str, int | str]:
    """By image: the area of its class, or the reason of its rejection."""
    taken = rows.take(list(rows.places.values()))
    return {
        key.rpartition("/")[2]: row.classes["x"].area_px if row.verdict == OK else row.verdict
        for (key, _), row in zip(rows.places, taken, strict=True)
    }


def test_a_row_comes_back_as_it_was_written(output):
    """Identity, size and the class with its runs; a rejection has a reason and no class."""
    rows = output.rows(None, [output.stage({"a": 5, "b": None})])
    a, b = rows.take([rows.places["file:///archive/a", "v1"], rows.places["file:///archive/b", "v1"]])

    assert (a.uri, a.member, a.page, a.verdict, a.source_px) == ("file:///archive/a", None, 0, OK, 16)
    assert (a.classes["x"].area_px, a.classes["x"].size_hw) == (5, (4, 4))
    assert a.classes["x"].counts == prediction(5).classes[0].rle
    assert (b.verdict, b.source_px, b.classes) == ("decode.timeout", 16, {})


def test_rows_come_in_the_order_asked_for(output):
    """Whatever containers they lie in."""
    published = output.publish("ab", [output.stage({"a": 1, "b": 2})])
    rows = output.rows(published, [output.stage({"c": 3, "d": 4})])
    names = [(f"file:///archive/{name}", "v1") for name in "dacb"]

    assert [row.classes["x"].area_px for row in rows.take([rows.places[name] for name in names])] == [4, 1, 3, 2]
    assert rows.published == 2


def test_a_prediction_counts_before_a_rejection_and_published_rows_before_staged_ones(output):
    """As publication chooses: another try may have ended better, and doubles are the same row."""
    published = output.publish("abc", [output.stage({"a": 1, "b": None, "c": None})])
    again = output.stage({"a": 7, "b": 2}, salt="another try")

    assert verdicts(output.rows(published, [again])) == {"a": 1, "b": 2, "c": "decode.timeout"}


def test_rows_of_another_fingerprint_do_not_count(output):
    """Unless whatever is published is asked for; a fingerprint may be known by its first digits."""
    published = output.publish("a", [output.stage({"a": 1}, mark=OTHER)], mark=OTHER)

    assert verdicts(output.rows(published, [])) == {}
    assert verdicts(output.rows(published, [], None)) == {"a": 1}
    assert verdicts(output.rows(published, [], OTHER[:32])) == {"a": 1}
    assert output.rows(published, [], None).fingerprints == {OTHER}


def test_a_damaged_part_is_left_out_and_named(output):
    """Cut, emptied, or with a bit turned over in a page of masks; its neighbours count."""
    sound, cut, turned = (output.stage({name: 1}) for name in "abc")
    path = Path(cut.removeprefix("file://"))
    path.write_bytes(path.read_bytes()[:-40])
    turn_a_bit_of_the_masks(Path(turned.removeprefix("file://")))
    rows = output.rows(None, [sound, cut, turned])

    assert verdicts(rows) == {"a": 1}
    assert rows.damaged == [cut, turned]


def test_a_damaged_page_of_a_published_object_costs_its_rows(output):
    """They are None, not an error: keys can be read, masks cannot."""
    published = output.publish("ab", [output.stage({"a": 1, "b": 2})])
    turn_a_bit_of_the_masks(Path(published.removeprefix("file://")))
    rows = output.rows(published, [output.stage({"c": 3})])

    assert [row and row.classes["x"].area_px for row in rows.take(list(rows.places.values()))] == [None, None, 3]
    assert rows.damaged == [published]


@pytest.mark.parametrize("content", [b"", b"PAR1 no", "foreign"])
def test_a_published_object_that_is_none_of_ours_is_left_out(output, content):
    """A Parquet file of somebody else has no keys."""
    path = Path(output.layout.published(DAY).removeprefix("file://"))
    path.parent.mkdir(parents=True)
    if content == "foreign":
        pq.write_table(pa.table({"fingerprint": pa.array([None, MARK]), "x": [1, 2]}), path)
    else:
        path.write_bytes(content)
    rows = output.rows(f"file://{path}", [])

    assert (rows.places, rows.damaged) == ({}, [f"file://{path}"])


def test_what_is_gone_since_it_was_listed_is_not_damaged(output):
    """Another run may sweep parts meanwhile."""
    rows = output.rows(output.layout.published(DAY), [f"{output.layout.parts(MARK, DAY)}/gone.part"])

    assert (rows.places, rows.damaged) == ({}, [])


def test_rows_that_are_read_together_open_each_part_once(output):
    """Once for keys, and once for all of its rows, in whatever order they are asked for."""
    parts = [output.stage({f"{n}{i}": 1 for i in range(3)}) for n in "abc"]
    rows = output.rows(None, parts)
    rows.take([rows.places[f"file:///archive/{n}{i}", "v1"] for i in range(3) for n in "cab"])

    assert sorted(output.store.reads.values()) == [2, 2, 2]


def turn_a_bit_of_the_masks(path: Path) -> None:
    """One bit in the page of COCO counts."""
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    counts = next(c for c in columns if c.path_in_schema.endswith("rle.counts"))
    data = bytearray(path.read_bytes())
    data[counts.data_page_offset + counts.total_compressed_size - 2] ^= 1
    path.write_bytes(data)
