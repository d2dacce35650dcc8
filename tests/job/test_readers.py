"""The published table in the hands of engines that know nothing of us: the acceptance test of its schema.

Each engine gets the same two days and reads them as its own manual says, without options that only we would know of.
"""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image
from project_fixture import SIZE, png

from unet_batch.errors import JobError

DAYS = ("2026-11-20", "2026-11-21")
COUNTS = {
    ("2026-11-20", "ok"): 3,
    ("2026-11-20", "rejected"): 1,
    ("2026-11-21", "ok"): 3,
    ("2026-11-21", "rejected"): 1,
}
BRIGHT_ROWS = 8
MASK = np.zeros((SIZE, SIZE), np.uint8)
MASK[:BRIGHT_ROWS] = 1


@pytest.fixture
def folder(project) -> Path:
    """Two published days of three pictures and one rejection each, with both kinds of masks."""
    for day in DAYS:
        project.fill(day.replace("-", "/"), 3)
        project.put(f"{day.replace('-', '/')}/bad.png", b"no image")
    summary = project.run("output.masks=[rle,png]")
    assert (summary.ok, summary.rejected, summary.published) == (6, 2, 2)
    return project.folder / "out" / "predictions"


@pytest.fixture
def glob(folder: Path) -> str:
    """As the documentation gives it to readers."""
    return f"{folder}/*/*.parquet"


def test_duckdb_counts_by_day_and_status(glob):
    """`date` comes from the path, where DuckDB makes a DATE of it, and from the file, where it is a text."""
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT date::VARCHAR, status, count(*) FROM '{glob}' GROUP BY ALL"
    assert {(day, status): n for day, status, n in duckdb.sql(query).fetchall()} == COUNTS
    query = f"SELECT count(*) FROM '{glob}' WHERE date = DATE '2026-11-21' AND reason = 'decode.unrecognized'"
    assert duckdb.sql(query).fetchall() == [(1,)]
    query = f"SELECT DISTINCT date FROM read_parquet('{glob}', hive_partitioning = false) ORDER BY ALL"
    assert [day for (day,) in duckdb.sql(query).fetchall()] == list(DAYS)


def test_duckdb_reads_nothing_of_staging_below_predictions(folder):
    """`**` enters folders that begin with an underscore, so staged rows must lie elsewhere or under other names."""
    duckdb = pytest.importorskip("duckdb")
    assert list((folder.parent / "_work").rglob("*.part"))
    for pattern in (f"{folder}/**/data.parquet", f"{folder.parent}/**/*.parquet"):
        assert duckdb.sql(f"SELECT count(*) FROM '{pattern}'").fetchall() == [(8,)]


def test_duckdb_unnests_the_classes(glob):
    """One row per predicted class, its fields by name."""
    duckdb = pytest.importorskip("duckdb")
    rows = duckdb.sql(
        f"""SELECT c.id, c.name, c.area_px, c.fraction, c.bbox, c.rle.size
            FROM (SELECT unnest(classes) AS c FROM '{glob}' WHERE status = 'ok')"""
    ).fetchall()
    assert rows == [(1, "class_1", BRIGHT_ROWS * SIZE, 0.25, [0, 0, SIZE, BRIGHT_ROWS], [SIZE, SIZE])] * 6
    assert duckdb.sql(f"SELECT count(*) FROM '{glob}' WHERE status = 'rejected' AND classes IS NULL").fetchall() == [
        (2,)
    ]


def test_pandas_reads_the_folder_and_one_day(folder):
    """Days of a folder can be filtered; prediction columns of rejections are missing, never 0."""
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(folder)
    assert Counter(zip(table["date"].astype(str), table["status"].astype(str), strict=True)) == COUNTS
    assert len(pandas.read_parquet(folder, filters=[("date", "=", DAYS[0])])) == 4
    one_day = pandas.read_parquet(folder / f"date={DAYS[1]}" / "data.parquet")
    assert set(one_day["date"]) == {DAYS[1]}
    assert (
        one_day.loc[one_day["status"] == "rejected", ["score", "label", "confidence", "height"]].isna().all(axis=None)
    )


def test_polars_scans_lazily(folder, glob):
    """A glob and a folder, categoricals compared with text, classes unnested."""
    polars = pytest.importorskip("polars")
    for where in (glob, folder):
        lazy = polars.scan_parquet(where)
        counts = lazy.group_by(polars.col("date", "status").cast(polars.String)).len().collect().rows()
        assert {(day, status): n for day, status, n in counts} == COUNTS
        assert lazy.filter(polars.col("date") == DAYS[0], polars.col("status") == "ok").collect().height == 3
    areas = polars.scan_parquet(glob).filter(polars.col("status") == "ok").explode("classes").unnest("classes")
    assert areas.select("name", "area_px").collect().rows() == [("class_1", BRIGHT_ROWS * SIZE)] * 6


def test_pyarrow_reads_the_folder_as_a_table_and_as_a_dataset(folder):
    """`pq.read_table` finds the column both in the paths and in the files, and they are of one type."""
    table = pq.read_table(folder)
    assert Counter(zip(table["date"].to_pylist(), table["status"].to_pylist(), strict=True)) == COUNTS
    assert pq.read_table(folder, filters=[("date", "=", DAYS[0]), ("status", "=", "rejected")]).num_rows == 1
    wanted = (ds.field("date") == DAYS[0]) & (ds.field("status") == "rejected")
    hive = ds.HivePartitioning.discover(infer_dictionary=True)
    for partitioning in (None, hive):
        dataset = ds.dataset(folder, format="parquet", partitioning=partitioning)
        assert dataset.count_rows() == 8
        assert dataset.to_table(filter=wanted).column("reason").to_pylist() == ["decode.unrecognized"]


def test_buckets_are_read_by_the_same_engines(project):
    """`bucket=` is a folder and no column of ours; engines that read folders may make one of it."""
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    project.fill("2026/11/21", 12)
    assert project.run("output.buckets=3").published == 3
    folder = project.folder / "out" / "predictions"
    assert pq.read_table(folder, filters=[("date", "=", DAYS[1])]).num_rows == 12
    assert duckdb.sql(f"SELECT count(DISTINCT image_key) FROM '{folder}/**/data.parquet'").fetchall() == [(12,)]
    assert polars.scan_parquet(folder / "**" / "*.parquet").collect().height == 12


@pytest.mark.parametrize("site", ["north", "7"])
def test_pyarrow_reads_partitions_that_a_manifest_names(project, site):
    """A column of the partition's own name, in the file; a site that looks like a number stays text.

    `pq.read_table(folder)` would read the path's `site=7` as a number, which disagrees with the file: it must be told
    to take columns from files only.
    """
    image = project.put("a.png")
    (project.folder / "list.csv").write_text(f"uri,site\n{image},{site}\n")
    project.run(
        f"input.uri={project.folder}/list.csv",
        "input.format=manifest",
        "input.partition_column=site",
        f"input.roots=[{project.folder}]",
    )
    table = pq.read_table(project.folder / "out" / "predictions", partitioning=None)
    assert table.column("site").to_pylist() == [site]


@pytest.mark.parametrize("name", ["label", "status", "bucket"])
def test_a_partition_column_cannot_take_the_name_of_another_column(project, name):
    """Two columns of one name, or a prediction replaced by a partition's value, are refused before anything is read."""
    with pytest.raises(JobError, match="rename it in the manifest"):
        project.prepared("input.format=manifest", f"input.partition_column={name}")


def test_hugging_face_datasets_decodes_the_masks(glob, tmp_path, monkeypatch):
    """`mask` has the layout of its Image feature: cast, it decodes; null stays null."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.load_dataset("parquet", data_files=glob, split="train", cache_dir=str(tmp_path / "hf"))
    rows = rows.cast_column("mask", datasets.Image())
    assert Counter((row["date"], row["status"]) for row in rows) == COUNTS
    for row in rows:
        if row["status"] == "ok":
            assert np.array_equal(np.asarray(row["mask"]), MASK)
        else:
            assert row["mask"] is None


def test_pycocotools_decodes_the_runs_to_the_known_mask(folder):
    """Mask, area and box, as COCO's own code sees them; the PNG holds the same label map."""
    coco = pytest.importorskip("pycocotools.mask")
    rows = [row for row in pq.read_table(folder).to_pylist() if row["status"] == "ok"]
    assert len(rows) == 6
    for row in rows:
        [area] = row["classes"]
        assert np.array_equal(coco.decode(area["rle"]), MASK)
        assert int(coco.area(area["rle"])) == area["area_px"] == MASK.sum()
        assert coco.toBbox(area["rle"]).tolist() == area["bbox"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"]))), MASK)


def test_pycocotools_decodes_an_empty_and_a_full_mask(project):
    """The ends of the scale: no class at all, and every pixel."""
    coco = pytest.importorskip("pycocotools.mask")
    for rows in (0, SIZE):
        project.put(f"2026/11/21/{rows:02}.png", png(0, bright_rows=rows))
    project.run()
    empty, full = project.rows("2026-11-21")
    assert (empty["classes"], empty["label"]) == ([], None)
    assert coco.decode(full["classes"][0]["rle"]).all()
