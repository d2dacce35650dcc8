"""The main job in one process: an archive becomes partitions in which every image has exactly one row."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import poison
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image
from project_fixture import SIZE, last_json, png

from unet_batch.errors import JobError, ModelRefused
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.verify import PartitionStatus
from unet_batch.workbench.diagnosis import diagnose_job

DAY = "2026/11/21"
NAME = "2026-11-21"


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return out.getvalue()


def test_every_image_of_a_day_gets_one_row_with_its_mask(project):
    """Three images, three rows, the bright rows found in each."""
    project.fill(DAY, 3)
    summary = project.run()
    assert (summary.planned, summary.ok, summary.rejected, summary.remaining, summary.published) == (3, 3, 0, 0, 1)
    rows = project.rows(NAME)
    assert [r["uri"].rpartition("/")[2] for r in rows] == ["000.png", "001.png", "002.png"]
    assert {r["classes"][0]["area_px"] for r in rows} == {8 * SIZE}
    assert {(r["status"], r["label"], r["date"], r["provider"]) for r in rows} == {("ok", "class_1", NAME, "cpu")}


def test_running_again_does_nothing(project):
    """A published partition of the same inventory and fingerprint is done."""
    project.fill(DAY, 2)
    project.run()
    before = project.data(NAME).read_bytes()
    again = project.run()
    assert (again.planned, again.published, again.exit_code) == (0, 0, 0)
    assert project.data(NAME).read_bytes() == before


def test_a_bad_image_costs_that_image(project):
    """A cut and a non-image file become rows with a reason, their neighbours predictions."""
    project.fill(DAY, 3)
    project.put(f"{DAY}/cut.png", png(1)[:-40])
    project.put(f"{DAY}/note.png", b"<html>not here</html>")
    summary = project.run()
    assert (summary.ok, summary.rejected) == (3, 2)
    reasons = {r["uri"].rpartition("/")[2]: r["reason"] for r in project.rows(NAME) if r["status"] == "rejected"}
    assert reasons == {"cut.png": "decode.truncated", "note.png": "decode.format_not_allowed"}
    assert project.verify() == []


def test_a_tiff_without_a_page_costs_that_image(project):
    """A header whose first page was never written; the partition is published as with any other broken file."""
    project.fill(DAY, 3)
    project.put(f"{DAY}/cut.tif", b"II*\0\0\0\0\0")
    summary = project.run()
    assert (summary.exit_code, summary.ok, summary.reasons) == (0, 3, {"decode.truncated": 1})
    assert project.verify() == []


def test_a_decoder_that_says_nothing_costs_that_image(project):
    """If it breaks, the other images of the unit are scored and published."""
    project.fill(DAY, 3)
    project.put(f"{DAY}/odd.png", png(7) + poison.SILENT)
    summary = project.run(executor=lambda settings: LocalExecutor(replace(settings, decoder=poison.NAME)))
    assert (summary.exit_code, summary.ok, summary.reasons) == (0, 3, {"decode.crashed": 1})
    assert project.verify() == []


def test_too_many_rejections_stop_publication_and_the_rows_stay_staged(project):
    """Exit code 5, as often as it is run; a higher limit publishes without scoring again."""
    project.fill(DAY, 1)
    project.put(f"{DAY}/bad1.png", b"x")
    project.put(f"{DAY}/bad2.png", b"y")
    summary = project.run()
    assert (summary.exit_code, summary.published) == (5, 0)
    assert "limits.max_rejected" in summary.problems[0]
    assert project.run().exit_code == 5
    again = project.run("limits.max_rejected=2")
    assert (again.planned, again.published, again.exit_code) == (0, 1, 0)


def test_a_late_image_is_scored_alone(project):
    """Published rows are taken over, and the unit's new name does not matter."""
    project.fill(DAY, 5)
    project.run()
    project.put(f"{DAY}/late.png", level=7)
    summary = project.run("limits.unit_images=2")
    assert (summary.planned, summary.published) == (1, 1)
    assert len(project.rows(NAME)) == 6
    assert project.verify() == []


def test_a_changed_image_is_scored_again_and_a_removed_one_leaves(project):
    """Work is found by key and version."""
    project.fill(DAY, 3)
    project.run()
    project.put(f"{DAY}/001.png", png(1, bright_rows=16))
    (project.folder / "archive" / DAY / "002.png").unlink()
    summary = project.run()
    assert summary.planned == 1
    assert [r["classes"][0]["area_px"] for r in project.rows(NAME)] == [8 * SIZE, 16 * SIZE]


def test_another_unit_size_between_two_attempts_scores_nothing_twice(project):
    """Parts of an interrupted run are found by what they hold, not by their names."""
    project.fill(DAY, 10)

    class Stops(LocalExecutor):
        def run(self, units):
            for count, receipt in enumerate(super().run(units)):
                yield receipt
                if count == 2:
                    raise KeyboardInterrupt

    first = project.run("limits.unit_images=2", executor=Stops)
    assert (first.exit_code, first.ok, first.remaining, first.published) == (3, 6, 4, 0)
    project.put(f"{DAY}/000a.png", level=3)
    second = project.run("limits.unit_images=3")
    assert (second.planned, second.published) == (5, 1)
    assert len(project.rows(NAME)) == 11


def test_a_run_that_died_between_staging_and_publishing_only_publishes(project):
    """All parts are there: nothing is planned, and the partition appears."""
    project.fill(DAY, 3)
    project.run()
    project.data(NAME).unlink()
    summary = project.run()
    assert (summary.planned, summary.published) == (0, 1)


def test_a_new_model_republishes_the_partition_whole(project):
    """Another fingerprint shares no rows with the old one, and going back needs no scoring."""
    project.fill(DAY, 3)
    project.run()
    assert project.status("tiling.overlap=0.5")[0].state == "stale"
    assert project.run("tiling.overlap=0.5").planned == 3
    assert len({r["fingerprint"] for r in project.rows(NAME)}) == 1
    assert project.run().planned == 0
    assert project.verify() == []


def test_backfill_missing_leaves_published_days_alone(project):
    """`missing` takes days without rows; a second `missing` plans nothing."""
    for day in ("2026/11/19", "2026/11/20", DAY):
        project.fill(day, 2)
    project.run(window="last")
    assert [s.state for s in project.status()] == ["missing", "missing", "published"]
    summary = project.run(window="2026-11-19..2026-11-21", select="missing")
    assert (summary.planned, summary.published) == (4, 2)
    assert project.run(window="2026-11-19..2026-11-21", select="missing").planned == 0


def test_only_the_days_of_the_window_are_touched(project):
    """Discovery lists the prefixes of the window."""
    project.fill("2026/11/20", 2)
    project.fill(DAY, 2)
    project.run(window="2026-11-20")
    assert [s.state for s in project.status()] == ["published", "missing"]


def test_loose_images_and_a_tar_in_one_day(project):
    """A tar among loose images is a shard; repeated names and odd names are images too."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/shard.tar", tar_of({"a.png": png(1), "../b.png": png(2), "a.txt": b"no image"}))
    project.run()
    assert [(r["member"] or r["uri"].rpartition("/")[2]) for r in project.rows(NAME)] == [
        "000.png",
        "001.png",
        "../b.png",
        "a.png",
    ]
    assert project.verify() == []


def test_a_cut_tar_stops_publication_unless_the_job_allows_it(project):
    """Its intact members are scored; the lost rest is one row."""
    whole = tar_of({f"{i}.png": png(i) for i in range(6)})
    project.put(f"{DAY}/shard.tar", whole[: len(whole) // 2])
    summary = project.run()
    assert (summary.exit_code, summary.published) == (5, 0)
    assert "truncated or corrupt" in summary.problems[0]
    assert project.run("limits.broken_shards=publish").published == 1
    assert [r["reason"] for r in project.rows(NAME) if r["status"] == "rejected"] == ["shard.truncated"]


def test_each_page_of_a_tiff_is_a_row(project):
    """Three pages, three rows, counted as they are found."""
    pages = [Image.fromarray(np.full((SIZE, SIZE), 40 * i, np.uint8)) for i in range(3)]
    out = io.BytesIO()
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    project.put(f"{DAY}/stack.tif", out.getvalue())
    summary = project.run()
    assert (summary.planned, summary.ok, summary.remaining) == (3, 3, 0)
    assert [(r["page"], r["pages"]) for r in project.rows(NAME)] == [(0, 3), (1, 3), (2, 3)]


def test_a_parquet_archive_gives_a_row_for_every_cell(project):
    """Null and empty cells are rejections; the archive is one partition because it has no dates."""
    table = pa.table({"image": pa.array([png(1), None, b"", png(2)], pa.binary())})
    pq.write_table(table, project.folder / "images.parquet")
    summary = project.run(f"input.uri={project.folder}/images.parquet", "input.format=parquet")
    assert (summary.ok, summary.rejected, summary.partitions) == (2, 2, ["all"])
    rows = pq.ParquetFile(project.folder / "out/predictions/all/data.parquet").read().to_pylist()
    assert [(r["member"], r["reason"]) for r in rows] == [
        ("0", None),
        ("1", "cell.null"),
        ("2", "cell.empty"),
        ("3", None),
    ]
    assert "date" not in rows[0]


def test_a_manifest_with_a_partition_column(project):
    """Each value is a partition; what is missing or not allowed is a rejection."""
    a, b = project.put("a.png"), project.put("b.png")
    (project.folder / "list.csv").write_text(f"uri,date\n{a},2026-11-20\n{b},2026-11-21\n/etc/passwd,2026-11-21\n")
    job = [
        f"input.uri={project.folder}/list.csv",
        "input.format=manifest",
        "input.partition_column=date",
        f"input.roots=[{project.folder}]",
    ]
    summary = project.run(*job)
    assert summary.partitions == ["date=2026-11-20", "date=2026-11-21"]
    assert [r["reason"] for r in project.rows(NAME)] == ["read.denied", None]
    assert project.verify(*job) == []


def test_an_image_in_two_partitions_of_a_manifest_has_a_row_in_each(project):
    """Its two units hold the same images, and one run scores both."""
    a = project.put("a.png")
    (project.folder / "list.csv").write_text(f"uri,date\n{a},2026-11-20\n{a},2026-11-21\n")
    job = [
        f"input.uri={project.folder}/list.csv",
        "input.format=manifest",
        "input.partition_column=date",
        f"input.roots=[{project.folder}]",
    ]
    assert project.run(*job).partitions == ["date=2026-11-20", "date=2026-11-21"]
    assert project.verify(*job) == []
    assert project.run(*job, rescore=True).partitions == ["date=2026-11-20", "date=2026-11-21"]


def test_a_partition_in_buckets_is_several_objects(project):
    """Each bucket is published by itself, and a glob reads them all."""
    project.fill(DAY, 12)
    summary = project.run("output.buckets=3")
    assert summary.published == 3
    rows = [
        r
        for p in project.folder.glob("out/predictions/date=*/bucket=*/data.parquet")
        for r in pq.ParquetFile(p).read().to_pylist()
    ]
    assert len({r["image_key"] for r in rows}) == len(rows) == 12
    assert {r["date"] for r in rows} == {NAME}


def test_an_unknown_store_scheme_or_missing_model_is_said_before_the_archive_is_touched(project):
    """Exit code 2 with a sentence."""
    with pytest.raises(JobError, match="there is no"):
        project.prepared("model.path=/nowhere/model.onnx")


def test_the_run_record_says_what_was_planned_and_what_was_done(project):
    """One JSON per run, with the job, the fingerprint, and what each partition was based on."""
    project.fill(DAY, 2)
    summary = project.run()
    record = json.loads((project.folder / "out/_work/runs" / f"{summary.run}.json").read_text())
    assert record["partitions"][f"date={NAME}"] == {
        "state": "missing",
        "images": 2,
        "open": 2,
        "retry": 0,
        "base": None,
    }
    assert (record["did"]["ok"], record["did"]["published"], record["fingerprint"]) == (2, 1, summary.fingerprint)


# verify has to be seen to fail ------------------------------------------------------------------------------------


def kinds(project) -> list[str]:
    return [finding.kind for finding in project.verify()]


def rewrite(path: Path, change) -> None:
    """Rewrite a published object with its footer, as a user with a Parquet library could."""
    table = pq.ParquetFile(path).read()
    metadata = pq.read_metadata(path).metadata
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata({**(changed.schema.metadata or {}), **metadata}), path)


def test_verify_fails_on_a_deleted_object(project):
    """A day without its object has no rows."""
    project.fill(DAY, 3)
    project.run()
    project.data(NAME).unlink()
    assert kinds(project) == ["not published; 3 images have no row"]


def test_verify_fails_on_a_deleted_row(project):
    """The inventory names the image."""
    project.fill(DAY, 3)
    project.run()
    rewrite(project.data(NAME), lambda t: t.slice(0, 2))
    [missing, count] = project.verify()
    assert (missing.kind, missing.count) == ("images without a row", 1)
    assert "002.png" in missing.example
    assert count.kind.startswith("the commit record counts 3 rows")


def test_verify_fails_on_a_duplicated_row_with_an_unchanged_total(project):
    """A total is no proof: one row twice, another gone."""
    project.fill(DAY, 3)
    project.run()
    rewrite(project.data(NAME), lambda t: pa.concat_tables([t.slice(0, 2), t.slice(0, 1)]))
    assert kinds(project) == ["images without a row", "images with more than one row"]


def test_verify_fails_on_a_copied_object_beside_ours(project):
    """A reader's glob would count its rows twice."""
    project.fill(DAY, 2)
    project.run()
    shutil.copy(project.data(NAME), project.data(NAME).with_name("copy.parquet"))
    assert "no run published" in kinds(project)[0]


def test_verify_fails_on_stale_rows(project):
    """An image that changed after it was scored, and an image that left."""
    project.fill(DAY, 3)
    project.run()
    project.put(f"{DAY}/001.png", png(1, bright_rows=20))
    (project.folder / "archive" / DAY / "002.png").unlink()
    assert [k.split(":")[0] for k in kinds(project)] == [
        "rows of images that are not in the archive",
        "stale rows",
        "stale",
    ]


def test_verify_fails_on_rows_of_another_model(project):
    """Rows of another fingerprint are not this job's rows."""
    project.fill(DAY, 2)
    project.run()
    assert [f.kind.split(":")[0] for f in project.verify("tiling.overlap=0.5")] == ["stale"]


@pytest.mark.parametrize("cut", [0, 1, 8, 100, 2000])
def test_verify_fails_on_a_truncated_object(project, cut):
    """For any number of bytes missing at its end."""
    project.fill(DAY, 3)
    project.run()
    data = project.data(NAME).read_bytes()
    project.data(NAME).write_bytes(data[: max(0, len(data) - cut)] if cut else b"")
    assert "truncated or damaged" in kinds(project)[0]


def test_verify_fails_on_a_flipped_bit(project):
    """Page checksums are verified."""
    project.fill(DAY, 3)
    project.run()
    column = pq.ParquetFile(project.data(NAME)).metadata.row_group(0).column(0)
    data = bytearray(project.data(NAME).read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    project.data(NAME).write_bytes(bytes(data))
    assert "truncated or damaged" in kinds(project)[0]


def test_verify_fails_on_a_truncated_part(project):
    """Staged rows are the next run's input."""
    project.fill(DAY, 3)
    project.run()
    part = project.parts()[0]
    part.write_bytes(part.read_bytes()[:-20])
    assert kinds(project) == ["staged parts that are truncated or damaged"]


def test_status_says_where_every_partition_stands(project):
    """Published, partial, missing, and published but gone from the archive."""
    for day in ("2026/11/18", "2026/11/19", "2026/11/20", DAY):
        project.fill(day, 2)
    project.run(window="2026-11-18..2026-11-19")
    shutil.rmtree(project.folder / "archive/2026/11/18")
    project.put("2026/11/20/bad.png", b"x")
    project.run("limits.max_rejected=0", window="2026-11-20")
    found: list[PartitionStatus] = project.status()
    assert [(s.partition[-2:], s.state, s.images, s.rows, s.staged) for s in found] == [
        ("18", "orphaned", 0, 2, 0),
        ("19", "published", 2, 2, 0),
        ("20", "partial", 3, 0, 3),
        ("21", "missing", 2, 0, 0),
    ]


# The command line -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_from_plan_to_verify(project):
    """The last line of stdout is one JSON object; people read stderr."""
    project.fill(DAY, 3)
    plan = project.command("plan", "job.yaml")
    assert {k: last_json(plan)[k] for k in ("images", "units", "partitions")} == {
        "images": 3,
        "units": 1,
        "partitions": 1,
    }
    assert last_json(plan)["bytes"] == sum(p.stat().st_size for p in (project.folder / "archive" / DAY).iterdir())
    assert not (project.folder / "out").exists()
    run = project.command("run", "job.yaml", "--executor", "local")
    assert (run.returncode, last_json(run)["ok"], last_json(run)["published"]) == (0, 3, 1)
    status = project.command("status", "job.yaml")
    [line] = last_json(status)["partitions"]
    assert (line["partition"], line["state"], line["rows"], line["rejected"]) == (f"date={NAME}", "published", 3, 0)
    verify = project.command("verify", "job.yaml")
    assert (verify.returncode, last_json(verify)["partitions"], last_json(verify)["disagreements"]) == (0, 1, 0)
    project.data(NAME).unlink()
    broken = project.command("verify", "job.yaml")
    assert (broken.returncode, last_json(broken)["disagreements"]) == (3, 1)
    assert "no row" in broken.stderr


@pytest.mark.slow
def test_reduced_jpegs_are_another_fingerprint_and_plan_and_doctor_say_so(project):
    """Pixels change, so rows of before do not count."""
    project.fill(DAY, 1)
    before, contract = project.prepared().fingerprint, project.folder / "model.yaml"
    stretched = contract.read_text().replace("fit: tile", "fit: stretch").replace("reduced_jpeg: false", "")
    contract.write_text(stretched.replace("input:\n", "input:\n  reduced_jpeg: true\n  height: 32\n  width: 32\n"))
    plan = project.command("plan", "job.yaml")
    assert "input.reduced_jpeg: JPEGs of at least twice" in plan.stderr
    assert last_json(plan)["fingerprint"] != before
    assert "input.reduced_jpeg" in next(iter(diagnose_job(project.job()))).reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nowhere.yaml"], "cannot read the job file"),
        (["run", "job.yaml", "--set", "limits.max_rejectd=1"], "did you mean max_rejected?"),
        (["run", "job.yaml", "--window", "2026-11-21..2026-11-01"], "window"),
        (["plan", "job.yaml", "--set", "model.path=none.onnx"], "there is no"),
        (["run", "job.yaml", "--executor", "local", "--address", "x"], "--executor ray"),
        (["run", "job.yaml", "--executor", "local", "--set", "session.providers=[cuda]"], "CUDA"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(project, arguments, sentence):
    """Nothing is scored and no stack trace is shown."""
    project.fill(DAY, 1)
    result = project.command(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert not (project.folder / "out" / "predictions").exists()


def test_an_output_inside_the_archive_is_refused(project):
    """The next run would take this one's rows for images, and never be done."""
    project.fill("2026/11/21", 1)
    inside = [f"input.uri={project.folder}/archive", f"output.uri={project.folder}/archive/out"]
    with pytest.raises(JobError, match="is inside the archive"):
        project.prepared(*inside)
    assert project.run(*inside, "input.pattern=**/*.png").ok == 1
    assert project.run(*inside, "input.pattern=**/*.png").planned == 0


def test_a_window_without_images_is_told_from_one_that_is_published(project):
    """An archive that comes late must not look like a night that is done."""
    project.fill("2026/11/21", 1)
    project.run()
    assert project.run().problems == []
    summary = project.run(window="2026-11-22")
    assert (summary.planned, summary.exit_code) == (0, 3)
    assert "nothing was found" in summary.problems[0]


def test_a_run_that_its_model_ends_is_in_its_record(project):
    """The record says how the run ended; the error is raised too."""
    project.fill(DAY, 2)

    class Refusing(LocalExecutor):
        def run(self, units):
            raise ModelRefused("the masks of this session are wrong")

    with pytest.raises(ModelRefused):
        project.run(executor=Refusing)
    (record,) = (project.folder / "out" / "_work" / "runs").glob("*.json")
    did = json.loads(record.read_text())["did"]
    assert (did["exit_code"], did["remaining"]) == (2, 2)
    assert "the masks of this session are wrong" in did["problems"]


def tiff16(values: np.ndarray, dtype: str = "uint16") -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values.astype(dtype), photometric="minisblack")
    return out.getvalue()


def rows_of(level: int, dtype: str = "uint16") -> bytes:
    """A picture whose upper half has this value, as `png` makes them."""
    values = np.zeros((SIZE, SIZE), dtype)
    values[:8] = level
    return tiff16(values, dtype)


def test_eight_bits_in_a_sixteen_bit_file_are_hinted_at(project):
    """255 of 65535 is almost black for the model: the rows are there, and the run says what to write."""
    for name in ("a", "b", "c"):
        project.put(f"{DAY}/{name}.tif", rows_of(255))
    summary = project.run()
    assert (summary.ok, summary.dim_images, summary.exit_code) == (3, 3, 0)
    assert len(summary.hints) == 1
    assert "3 of 3 images" in summary.hints[0]
    assert "input.normalize.max" in summary.hints[0]
    assert project.rows(NAME)[0]["classes"] == []


def test_an_archive_that_uses_its_range_gives_no_hint(project):
    """Dark and black images among bright ones are no news."""
    project.put(f"{DAY}/bright.tif", rows_of(65000))
    project.put(f"{DAY}/bright2.tif", rows_of(60000))
    project.put(f"{DAY}/dim.tif", rows_of(200))
    project.put(f"{DAY}/black.tif", rows_of(0))
    summary = project.run()
    assert (summary.dim_images, summary.hints) == (1, [])


def test_signed_integers_are_rejected_where_a_largest_value_is_needed(project):
    """`unit` has nothing to divide int16 by; the sentence names the key."""
    project.put(f"{DAY}/ct.tif", rows_of(1000, "int16"))
    project.put(f"{DAY}/a.png", png(1))
    project.run("limits.max_rejected=1")
    rejected = [row for row in project.rows(NAME) if row["status"] == "rejected"]
    assert [row["reason"] for row in rejected] == ["image.mode_not_supported"]
    assert "normalize.max" in rejected[0]["message"]
