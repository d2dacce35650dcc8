"""Figures over published rows: by hand where they are few, and by another engine where they are many."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unet_batch.errors import ImageError, Reason
from unet_batch.imaging.postprocess import ClassArea, Prediction
from unet_batch.records import Source
from unet_batch.review.census import BINS, Census, Counts, rows_at
from unet_batch.table.rows import Provenance, prediction_row, rejection_row, to_table

PARTITION = "date=2026-11-21"


def ok(name: str, confidence: float | None, *fractions: float) -> dict:
    """A row with so much of class 1, 2 and so on."""
    classes = tuple(
        ClassArea(id_, f"class {id_}", int(fraction * 100), fraction, None, (0, 0, 1, 1), None)
        for id_, fraction in enumerate(fractions, start=1)
        if fraction
    )
    label = classes[0].name if classes else None
    prediction = Prediction(10, 10, label, None, classes, None, confidence, 0.5)
    return prediction_row(Source(f"file:///a/{name}", "v"), 0, 1, prediction, None)


def rejected(name: str, reason: Reason = Reason.DECODE_CORRUPT) -> dict:
    return rejection_row(Source(f"file:///a/{name}", "v"), 0, 1, ImageError(reason, f"{name} is bad"))


def written(rows: list[dict], path, *, run: str = "mine", group: int = 3) -> pq.ParquetFile:
    table = to_table(rows, PARTITION, Provenance("m", "f", run, "cpu", "fp32"))
    pq.write_table(table, path, row_group_size=group)
    return pq.ParquetFile(path)


def census(**options) -> Census:
    return Census("mine", **{"queue": 3, "sample": 2, **options})


def names(candidates) -> list[str]:
    return [candidate.image_key.rpartition("/")[2] for candidate in candidates]


def test_rows_by_hand(tmp_path):
    """Counts, reasons, areas and the least confident images, over row groups that cut through all of them."""
    rows = [ok("a", 0.9, 0.25), ok("b", 0.6, 0.75, 0.1), rejected("c"), ok("d", 0.99), ok("e", 0.97, 0.5)]
    found = census()
    assert found.add(PARTITION, written(rows, tmp_path / "x.parquet", group=2)) == Counts(5, 4, 1, 5)
    figures = found.figures()
    assert [(r.reason, r.images, r.examples) for r in figures.rejected] == [
        ("decode.corrupt", 1, (("file:///a/c", "c is bad"),))
    ]
    first, second = figures.classes
    assert (first.name, first.images, first.share, first.mean) == ("class 1", 3, 0.75, 0.5)
    assert first.quantiles == pytest.approx((0.275, 0.5, 0.725))
    assert (second.images, second.mean, second.histogram.edges[-1]) == (1, 0.1, 0.1)
    assert names(figures.queue) == ["b", "a", "e"]
    assert [candidate.row for candidate in figures.queue] == [1, 0, 4]
    assert (figures.empty, figures.empty_examples) == (1, ("file:///a/d",))


def test_two_partitions_are_counted_together(tmp_path):
    """Each line has its own counts; a run's rows are told from those that were there before."""
    found = census()
    found.add("date=2026-11-20", written([ok("a", 0.5, 0.1)], tmp_path / "x.parquet", run="another"))
    assert found.add(PARTITION, written([ok("b", 0.4, 0.1)], tmp_path / "y.parquet")) == Counts(1, 1, 0, 1)
    figures = found.figures()
    assert figures.counts == Counts(2, 2, 0, 1)
    assert [c.partition for c in figures.queue] == [PARTITION, "date=2026-11-20"]


def test_equal_confidences_are_queued_by_key(tmp_path):
    """The queue is the same for every order of partitions and row groups."""
    found = census(queue=2)
    found.add(PARTITION, written([ok(name, 0.5) for name in "dcba"], tmp_path / "x.parquet", group=1))
    assert names(found.figures().queue) == ["a", "b"]


def test_the_sample_follows_the_keys_alone(tmp_path):
    """Another model and another order of rows: the same images are looked at."""
    one, two = census(), census()
    one.add(PARTITION, written([ok(name, 0.5, 0.1) for name in "abcdef"], tmp_path / "x.parquet"))
    two.add(PARTITION, written([ok(name, 0.9) for name in "fedcba"], tmp_path / "y.parquet"))
    assert names(one.figures().sample) == names(two.figures().sample)
    assert len(one.figures().sample) == 2


def test_empty_masks_are_only_named_where_most_images_have_none(tmp_path):
    """Where most masks are empty, an empty one is no news."""
    found = census()
    found.add(PARTITION, written([ok("a", 0.5), ok("b", 0.5), ok("c", 0.5, 0.1)], tmp_path / "x.parquet"))
    assert (found.figures().empty, found.figures().empty_examples) == (2, ())


def test_rows_without_a_confidence_have_no_queue(tmp_path):
    """`output.confidence: false` and finished masks: nothing is ranked, nothing is invented."""
    found = census()
    found.add(PARTITION, written([ok("a", None, 0.1)], tmp_path / "x.parquet"))
    figures = found.figures()
    assert (figures.confidence, figures.mean_confidence, figures.queue) == (None, None, ())


def test_a_class_that_no_image_has_is_a_line_of_its_own(tmp_path):
    """A class that disappeared over night is shown."""
    found = census(classes={1: "class 1", 7: "rare"})
    found.add(PARTITION, written([ok("a", 0.5, 0.1)], tmp_path / "x.parquet"))
    assert [(c.name, c.images, c.mean, c.histogram) for c in found.figures().classes][1] == ("rare", 0, None, None)


@pytest.mark.parametrize("rows", [[], [rejected("a"), rejected("b", Reason.READ_CHANGED)]])
def test_no_scored_image_is_no_mistake(tmp_path, rows):
    """No rows at all, or rejections only."""
    found = census(classes={1: "class 1"})
    found.add(PARTITION, written(rows, tmp_path / "x.parquet"))
    figures = found.figures()
    assert (figures.counts.ok, figures.counts.rejected, figures.sample) == (0, len(rows), ())


def test_a_damaged_object_counts_nothing(tmp_path):
    """Not even the row groups before the damage: a partition is in the figures, or it is not."""
    path = tmp_path / "x.parquet"
    file = written([ok("a", 0.5, 0.1), ok("b", 0.6, 0.1)], path, group=1)
    page = file.metadata.row_group(1).column(0).data_page_offset
    damaged = bytearray(path.read_bytes())
    damaged[page : page + 24] = b"\xff" * 24
    found = census()
    with pytest.raises((pa.ArrowException, OSError)):
        found.add(PARTITION, pq.ParquetFile(pa.BufferReader(bytes(damaged))))
    assert found.figures().counts == Counts()


def test_rows_are_read_back_where_they_were_counted(tmp_path):
    """In the order asked for, twice the same one too."""
    file = written([ok(name, 0.5) for name in "abcdefg"], tmp_path / "x.parquet")
    assert [row["image_key"][-1] for row in rows_at(file, [6, 0, 3, 0], ["image_key"])] == ["g", "a", "d", "a"]


def test_another_engine_finds_the_same_figures(tmp_path):
    """500 rows of chance, counted again by DuckDB: counts, reasons, means, quantiles, histograms, queue."""
    chance = np.random.default_rng(20261121)
    rows = [
        rejected(f"{n:03}", Reason.DECODE_CORRUPT if n % 3 else Reason.READ_CHANGED)
        if chance.random() < 0.1
        else ok(
            f"{n:03}", float(np.float32(chance.uniform(0.5, 1))), *(chance.random(3) * (chance.random(3) < 0.6) / 3)
        )
        for n in range(500)
    ]
    path = tmp_path / "x.parquet"
    found = census(queue=20)
    found.add(PARTITION, written(rows, path, group=64))
    figures = found.figures()

    def asked(query: str) -> list[tuple]:
        return duckdb.sql(query.replace("ROWS", f"read_parquet('{path}', hive_partitioning=false)")).fetchall()

    [(total, scored, refused)] = asked(
        "SELECT count(*), count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'rejected') FROM ROWS"
    )
    assert (figures.counts.rows, figures.counts.ok, figures.counts.rejected) == (total, scored, refused)
    reasons = asked("SELECT reason, count(*) FROM ROWS WHERE status = 'rejected' GROUP BY 1 ORDER BY 2 DESC")
    assert [(line.reason, line.images) for line in figures.rejected] == reasons
    areas = asked(
        "SELECT c.id, c.name, count(*), avg(c.fraction), quantile_cont(c.fraction, [0.05, 0.5, 0.95]) "
        "FROM (SELECT unnest(classes) AS c FROM ROWS WHERE status = 'ok') GROUP BY 1, 2 ORDER BY 1"
    )
    for line, (id_, name, images, mean, quantiles) in zip(figures.classes, areas, strict=True):
        assert (line.id, line.name, line.images, line.share) == (id_, name, images, images / scored)
        assert (line.mean, line.quantiles) == (pytest.approx(mean), pytest.approx(tuple(quantiles)))
    queue = asked("SELECT image_key FROM ROWS WHERE status = 'ok' ORDER BY confidence, image_key LIMIT 20")
    assert [candidate.image_key for candidate in figures.queue] == [key for (key,) in queue]
    low, high = figures.confidence.edges[0], figures.confidence.edges[-1]
    bins = asked(
        f"SELECT least(floor((confidence::DOUBLE - {low}) / {(high - low) / BINS})::INT, {BINS - 1}), count(*) "
        "FROM ROWS WHERE status = 'ok' GROUP BY 1 ORDER BY 1"
    )
    assert {n: count for n, count in enumerate(figures.confidence.counts) if count} == dict(bins)
    [(empty,)] = asked("SELECT count(*) FROM ROWS WHERE status = 'ok' AND len(classes) = 0")
    assert figures.empty == empty
