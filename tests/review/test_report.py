"""The facts of a run: what its record says of the work, and what published rows say of the images."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import threshold_model
from PIL import Image
from project_fixture import SIZE, Project, last_json, png

from unet_batch.cli import report as command_report
from unet_batch.errors import JobError
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.planning.survey import window_of
from unet_batch.review import report
from unet_batch.review.page import queries, render, run_state
from unet_batch.review.pictures import draw
from unet_batch.review.report import RunReport, gather
from unet_batch.review.run_records import newest_record, read_record

DAY, PARTITION = "2026/11/21", "date=2026-11-21"
AMBER = (255, 196, 0)


def gathered(project: Project, *overrides: str, run: str | None = None, window: str = "all", pictures=4) -> RunReport:
    prepared = project.prepared(*overrides)
    record = newest_record(prepared, window_of(window)) if run is None else read_record(prepared.output, run)
    return gather(prepared, record, pictures=pictures)


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def has_outline(jpeg: bytes) -> bool:
    """Whether some pixels have the first class's colour, as far as JPEG keeps it."""
    return bool((np.abs(pixels(jpeg).astype(int) - AMBER).sum(axis=2) < 60).any())


class Dies(LocalExecutor):
    """A process that is killed after its first unit: no finally, no end of the record."""

    def run(self, units):
        yield next(super().run(units))
        raise SystemExit


def killed(project: Project, *overrides: str) -> str:
    """The name of a run that wrote no end into its record."""
    with pytest.raises(SystemExit):
        project.run("limits.unit_images=1", *overrides, executor=Dies)
    [path] = (project.folder / "out" / "_work" / "runs").iterdir()
    tree = json.loads(path.read_text())
    del tree["did"], tree["ended"]
    path.write_text(json.dumps(tree))
    return path.stem


# What happened ----------------------------------------------------------------------------------------------------


def test_a_complete_run(project):
    """Everything is published: state before, counts, speed, provenance, a queue and a sample."""
    project.fill(DAY, 5)
    project.put(f"{DAY}/notes.png", b"no image")
    run = project.run()
    found = gathered(project)
    assert (found.run, found.exit_code, found.problems, found.published) == (run.run, 0, (), 1)
    [line] = found.partitions
    assert (line.partition, line.before, line.images, line.open, line.notes) == (PARTITION, "missing", 6, 6, ())
    assert (line.counts.rows, line.counts.ok, line.counts.rejected, line.counts.of_this_run) == (6, 5, 1, 6)
    [reason] = found.rejected
    assert (reason.reason, reason.images, reason.can_help) == ("decode.unrecognized", 1, False)
    assert found.shown(reason.examples[0][0]) == "2026/11/21/notes.png"
    assert (found.speed.workers, found.speed.images_per_s, len(found.speed.stages)) == (1, run.images_per_s, 4)
    facts = dict(found.facts)
    assert (facts["provider"], facts["precision"], facts["fingerprint"]) == ("cpu", "fp32", run.fingerprint)
    assert {"python", "pyarrow", "unet-batch"} <= facts.keys()
    assert (run_state(found).state, len(found.queue), len(found.sample)) == ("complete", 4, 4)


def test_a_partition_above_its_limit_says_why_and_shows_its_rejections(project):
    """Nothing is published, so the reasons come from staged parts: they are what the operator must decide about."""
    project.fill(DAY, 1)
    project.put(f"{DAY}/a.png", b"no image")
    project.put(f"{DAY}/b.png", png(1)[:60])
    project.run("limits.max_rejected=0")
    found = gathered(project, "limits.max_rejected=0")
    [line] = found.partitions
    assert (line.published, line.counts, found.rejected, found.figures.counts.rows) == (False, None, (), 0)
    assert line.notes[0].startswith("2 of 3 images were rejected")
    assert {(r.reason, r.images) for r in found.staged_rejected} == {
        ("decode.unrecognized", 1),
        ("decode.truncated", 1),
    }
    assert (run_state(found).state, found.exit_code) == ("incomplete", 5)


def test_staged_parts_that_were_not_read_are_counted(project, monkeypatch):
    """A day of very many parts shows the rejections of the first ones, and says that it is not all."""
    monkeypatch.setattr(report, "STAGED_PARTS", 2)
    for name in ("a", "b", "c"):
        project.put(f"{DAY}/{name}.png", b"no image")
    limits = ("limits.max_rejected=0", "limits.unit_images=1")
    project.run(*limits)
    found = gathered(project, *limits)
    assert ([r.images for r in found.staged_rejected], found.staged_unread) == ([2], 1)
    assert "1 more staged parts were not read" in render(found).decode()


def test_problems_of_the_run_are_told_from_those_of_a_partition(project):
    """Each stands once: beside its partition, or above all of them."""
    project.fill(DAY, 1)
    run = project.run().run
    path = project.folder / "out" / "_work" / "runs" / f"{run}.json"
    tree = json.loads(path.read_text())
    tree["did"]["problems"] = [
        f"{PARTITION}: late",
        f"{PARTITION} is held",
        f"{PARTITION}9: other",
        "stopped by Ctrl-C",
    ]
    path.write_text(json.dumps(tree))
    found = gathered(project)
    assert found.partitions[0].notes == ("late", f"{PARTITION} is held")
    assert found.problems == (f"{PARTITION}9: other", "stopped by Ctrl-C")


def test_a_killed_run_has_no_end(project):
    """Only the store has its results: nothing is published, and no speed is shown."""
    project.fill(DAY, 3)
    run = killed(project)
    found = gathered(project, run=run)
    assert (found.exit_code, found.ended, found.speed, found.published) == (None, None, None, 0)
    assert (found.partitions[0].now, found.partitions[0].notes) == ("not published", ())
    assert run_state(found).state == "unknown"


def test_what_others_published_since_is_told(project):
    """Rows of another fingerprint do not count; rows of the same one do, from any run."""
    project.fill(DAY, 2)
    first = project.run().run
    project.put(f"{DAY}/late.png", level=7)
    second = project.run().run
    [line] = gathered(project, run=first).partitions
    assert (line.counts.rows, line.counts.of_this_run) == (3, 2)
    assert line.notes == (f"published by run {second}",)
    third = project.run("tiling.overlap=0.5").run
    found = gathered(project, run=first)
    assert (found.partitions[0].now, found.figures.counts.rows) == ("replaced", 0)
    assert third in found.partitions[0].notes[0]
    assert (run_state(found).state, run_state(found).sentence) == (
        "replaced",
        "The run was complete, but readers no longer see its rows in 1 of 1 partition.",
    )
    project.data("2026-11-21").unlink()
    assert gathered(project, run=first).partitions[0].now == "gone"


def test_a_damaged_partition_is_a_line_and_no_crash(project):
    """A page about a run is most wanted when something is broken."""
    project.fill(DAY, 2)
    project.run()
    project.data("2026-11-21").write_bytes(b"PAR1 cut")
    [line] = gathered(project).partitions
    assert (line.now, line.counts) == ("damaged", None)
    assert "cannot be read" in line.notes[0]


def test_only_rejections(project):
    """A day of broken files: counts and reasons, no classes, no queue."""
    project.put(f"{DAY}/a.png", b"no image")
    project.run("limits.max_rejected=1.0")
    found = gathered(project, "limits.max_rejected=1.0")
    assert (found.figures.counts.rows, found.figures.counts.ok, found.queue, found.sample) == (1, 0, (), ())
    assert found.figures.classes[0].images == 0


# Which run --------------------------------------------------------------------------------------------------------


def test_without_a_name_the_newest_run_of_the_window_is_meant(project):
    """A run that worked on other days is another report."""
    project.fill("2026/11/20", 1)
    project.fill("2026/11/21", 1)
    early = project.run(window="2026-11-20").run
    rename(project, early, "20260101T000000-test-0")
    late = project.run(window="2026-11-21").run
    assert gathered(project).run == late
    assert gathered(project, window="2026-11-20").run == "20260101T000000-test-0"
    with pytest.raises(JobError, match="no record of a run that worked on this window"):
        gathered(project, window="2026-11-01..2026-11-02")


def rename(project: Project, run: str, name: str) -> None:
    folder = project.folder / "out" / "_work" / "runs"
    (folder / f"{run}.json").rename(folder / f"{name}.json")


def test_an_unknown_run_names_the_nearest(project):
    """One sentence, and never a path that leads elsewhere."""
    project.fill(DAY, 1)
    run = project.run().run
    with pytest.raises(JobError, match=f"is called {run}x: similar names are {run}"):
        gathered(project, run=f"{run}x")
    with pytest.raises(JobError, match=r"is called \.\./\.\./job"):
        gathered(project, run="../../job")


def test_a_damaged_record_is_one_sentence(project):
    """It names the object, and what to do."""
    project.fill(DAY, 1)
    run = project.run().run
    (project.folder / "out" / "_work" / "runs" / f"{run}.json").write_text("{")
    with pytest.raises(JobError, match=r"is damaged .* name another run"):
        gathered(project, run=run)


def test_a_record_of_an_earlier_version_gives_what_it_holds(project):
    """No end, no versions, no workers: these are left out."""
    project.fill(DAY, 1)
    run = project.run().run
    path = project.folder / "out" / "_work" / "runs" / f"{run}.json"
    tree = json.loads(path.read_text())
    for name in ("ended", "versions"):
        del tree[name]
    for name in ("workers", "loaders", "stage_s"):
        del tree["did"][name]
    tree["did"]["unheard_of"] = 1
    path.write_text(json.dumps(tree))
    found = gathered(project)
    assert (found.ended, found.speed.workers, found.speed.stages, found.speed.bottleneck) == (None, None, (), None)


# Pictures ---------------------------------------------------------------------------------------------------------


def test_loose_files_tars_and_pages_have_pictures(project):
    """Read through the job's own readers, at the version that was scored, each with its outline."""
    project.put(f"{DAY}/loose.png", level=3)
    tiff = io.BytesIO()
    frames = [Image.open(io.BytesIO(png(level, bright_rows=rows))) for level, rows in ((1, 0), (2, 8), (3, 16))]
    frames[0].save(tiff, "TIFF", save_all=True, append_images=frames[1:])
    project.put(f"{DAY}/pages.tif", tiff.getvalue())
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for _ in range(2):
            header = tarfile.TarInfo("twice.png")
            header.size = len(png(4))
            tar.addfile(header, io.BytesIO(png(4)))
    project.put(f"{DAY}/shard.tar", packed.getvalue())
    project.run()
    found = gathered(project, pictures=10)
    pictures = {found.shown(picture.candidate.image_key): picture for picture in found.sample}
    names = ("loose.png", "pages.tif", "pages.tif#page=1", "pages.tif#page=2", "shard.tar#twice.png")
    assert pictures.keys() == {f"{DAY}/{name}" for name in (*names, "shard.tar#twice.png#2")}
    assert all(picture.note == "" for picture in pictures.values())
    outlined = {name for name, picture in pictures.items() if has_outline(picture.jpeg)}
    assert outlined == pictures.keys() - {f"{DAY}/pages.tif"}
    third = pixels(pictures[f"{DAY}/pages.tif#page=2"].jpeg)
    middle = third.shape[0] // 2
    assert third[middle - 24, 100].min() > 150 > third[middle + 24, 100].max()  # bright and filled, dark and not


def archive_of(project: Project, kind: str) -> tuple[str, ...]:
    """The overrides that read an archive of two images in another container."""
    folder = project.folder / "other"
    folder.mkdir()
    uri = f"input.uri={folder}"
    if kind == "parquet":
        pq.write_table(pa.table({"image": [png(1), png(2)]}), folder / "a.parquet")
    elif kind == "manifest":
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(png(3))
        (folder / "list.csv").write_text("uri\na.png\nb.png\n")
        uri += "/list.csv"
    else:
        with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
            for name in ("a.png", "b.png"):
                header = tarfile.TarInfo(name)
                header.size = len(png(4))
                tar.addfile(header, io.BytesIO(png(4)))
    return uri, f"input.format={kind}"


@pytest.mark.parametrize("kind", ["parquet", "manifest", "webdataset"])
def test_every_container_has_pictures(project, kind):
    """Rows of Parquet files, objects that a manifest names, members of a compressed tar; archives without days."""
    options = archive_of(project, kind)
    project.run(*options)
    found = gathered(project, *options)
    assert [(has_outline(picture.jpeg), picture.note) for picture in found.sample] == [(True, "")] * 2
    assert not any("/other/" in found.shown(p.candidate.image_key) for p in found.sample if kind != "manifest")


@pytest.mark.parametrize("options", [("output.masks=[png]",), ("output.geometry=model",)])
def test_outlines_come_from_whatever_the_rows_hold(project, options):
    """A PNG of labels, or runs in the size of the model's picture."""
    project.fill(DAY, 2)
    project.run(*options)
    assert [has_outline(picture.jpeg) for picture in gathered(project, *options).sample] == [True, True]


def test_rows_without_masks_have_pictures_without_outlines(project):
    """Areas alone: the picture says so."""
    project.fill(DAY, 1)
    project.run("output.masks=[]")
    [picture] = gathered(project, "output.masks=[]").sample
    assert (picture.note, has_outline(picture.jpeg)) == ("without outlines: its row holds only areas", False)


def test_an_image_that_was_deleted_or_changed_since_is_a_sentence(project):
    """Its row is as it was; the others have their pictures."""
    project.fill(DAY, 3)
    project.run()
    (project.folder / "archive" / DAY / "000.png").unlink()
    project.put(f"{DAY}/001.png", png(50, bright_rows=20))
    found = gathered(project)
    notes = {found.shown(p.candidate.image_key)[-7:]: (p.jpeg is None, p.note) for p in found.sample}
    assert notes["000.png"][0]
    assert "read.not_found" in notes["000.png"][1]
    assert notes["001.png"][0]
    assert "read.changed" in notes["001.png"][1]
    assert notes["002.png"] == (False, "")


def test_a_tar_that_was_deleted_since_is_a_sentence(project):
    """Its members cannot be looked up, and nothing else breaks."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        header = tarfile.TarInfo("a.png")
        header.size = len(png(4))
        tar.addfile(header, io.BytesIO(png(4)))
    path = project.put(f"{DAY}/shard.tar", packed.getvalue())
    project.run()
    path.unlink()
    [picture] = gathered(project).sample
    assert picture.jpeg is None
    assert picture.note.startswith("can no longer be shown")


def test_a_row_that_moved_meanwhile_is_a_sentence(project):
    """Another run may publish between counting and drawing: no picture is shown under a wrong name."""
    project.fill(DAY, 2)
    project.run()
    first, second = (picture.candidate for picture in gathered(project).sample)
    moved = [
        replace(first, row=second.row),
        replace(first, row=99),
        replace(first, partition="date=2026-11-20"),
        second,
    ]
    pictures = draw(project.prepared(), moved[:1] + moved[3:])
    assert [picture.note for picture in pictures] == ["its row was replaced meanwhile", ""]
    assert [picture.jpeg for picture in draw(project.prepared(), moved[1:3])] == [None, None]


def test_16_bits_are_stretched_and_said_to_be(project):
    """For display only."""
    deep = np.full((SIZE, SIZE), 100, np.uint16)
    deep[:8] = 65000
    out = io.BytesIO()
    Image.fromarray(deep).save(out, "PNG")
    project.put(f"{DAY}/deep.png", out.getvalue())
    project.run()
    assert [picture.stretched for picture in gathered(project).sample] == [True]


def test_pictures_have_a_budget_of_pixels(project, monkeypatch):
    """Ten slides of 50 megapixels must not keep the operator waiting; the page says which were left out."""
    monkeypatch.setattr("unet_batch.review.pictures.MOST_PIXELS", 2 * SIZE * SIZE)
    project.fill(DAY, 3)
    project.run()
    found = gathered(project)
    assert sum(picture.jpeg is not None for picture in found.sample) == 2
    assert sum("not drawn" in picture.note for picture in found.sample) == 1


def test_the_sample_is_the_same_every_time(project):
    """Scored again by other settings: the same images in the same order."""
    project.fill(DAY, 9)
    project.run()
    first = [picture.candidate.image_key for picture in gathered(project).sample]
    project.run("tiling.overlap=0.5")
    assert [picture.candidate.image_key for picture in gathered(project, "tiling.overlap=0.5").sample] == first


# The command and its queries --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_below_the_output(project):
    """The last line of stdout says where, and which run; another name is exit code 2."""
    project.fill(DAY, 2)
    run = project.run().run
    told = last_json(project.command("report", "job.yaml", "--pictures", "1"))
    path = project.folder / "out" / "reports" / f"{run}.html"
    assert told["report"] == f"file://{path}"
    assert (told["run"], told["partitions"], told["published"], told["images"]) == (run, 1, 1, 2)
    assert (told["pictures"], told["bytes"]) == (2, path.stat().st_size)
    other = project.command("report", "job.yaml", "nothing")
    assert (other.returncode, run in other.stderr) == (2, True)
    many = project.command("report", "job.yaml", "--pictures", "61")
    assert (many.returncode, "at most 60" in many.stderr) == (2, True)


@pytest.mark.slow
def test_out_is_a_local_file_and_nothing_else_is_written(project):
    """For a look at an output that others own."""
    project.fill(DAY, 1)
    run = project.run().run
    told = last_json(project.command("report", "job.yaml", run, "--out", "page.html", "--pictures", "0"))
    assert told["report"] == f"file://{project.folder}/page.html"
    assert (project.folder / "page.html").read_bytes().startswith(b"<!DOCTYPE html>")
    assert not (project.folder / "out" / "reports").exists()
    assert project.command("report", "job.yaml", run, "--out", "no/such/page.html").returncode == 2


def test_the_pages_own_queries_find_its_figures(project):
    """What the page offers to type is typed here."""
    made = threshold_model("nchw", 1, 3, size=SIZE)
    (project.folder / "three.onnx").write_bytes(made.data)
    (project.folder / "three.yaml").write_text(made.contract_yaml)
    three = f"model.path={project.folder}/three.onnx"
    for day in ("2026/11/20", "2026/11/21"):
        project.fill(day, 4)
        project.put(f"{day}/gray.png", level=90)
        project.put(f"{day}/dark.png", png(1, bright_rows=0))
        project.put(f"{day}/notes.png", b"no image")
    project.run(three)
    found = gathered(project, three)
    figures = found.figures
    connection = duckdb.connect()
    answers = [connection.execute(query).fetchall() for query in queries(found).split(";") if query.strip()]
    _, [counts], reasons, areas, queue, [(mean, empty)] = answers
    assert counts == (figures.counts.rows, figures.counts.ok, figures.counts.rejected) == (14, 12, 2)
    assert reasons == [(line.reason, line.images) for line in found.rejected]
    shown = [(c.id, c.name, c.images, pytest.approx(c.mean), pytest.approx(list(c.quantiles))) for c in figures.classes]
    assert areas == shown
    assert [key for key, _ in queue] == [candidate.image_key for candidate in figures.queue]
    assert (mean, empty) == (pytest.approx(figures.mean_confidence), figures.empty)


@pytest.mark.slow
def test_a_run_leaves_its_page_when_it_is_asked_to(project):
    """The last line names it; a run that has nothing to do has nothing to show."""
    project.fill(DAY, 2)
    done = project.command("run", "job.yaml", "--window", "all", "--executor", "local", "--report")
    told = last_json(done)
    assert (done.returncode, told["published"]) == (0, 1)
    assert told["report"] == f"file://{project.folder}/out/reports/{told['run']}.html"
    assert f"wrote {told['report']}" in done.stderr
    again = project.command("run", "job.yaml", "--window", "all", "--executor", "local", "--report")
    assert (again.returncode, last_json(again)["report"]) == (0, None)
    assert len(list((project.folder / "out" / "reports").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fails", "hangs", "cannot begin", "says nothing", "is stopped"])
def test_a_page_that_cannot_be_written_changes_nothing_about_the_run(project, monkeypatch, capsys, how):
    """A message, no report, and the exit code of the run."""
    project.fill(DAY, 1)
    run = project.run().run
    job, page = project.job(), project.folder / "out" / "reports" / f"{run}.html"
    if how == "fails":
        page.mkdir(parents=True)
    elif how == "hangs":
        monkeypatch.setattr(command_report, "PATIENCE_S", 0.1)
    elif how == "cannot begin":
        monkeypatch.setattr(tempfile, "tempdir", str(project.folder / "nowhere"))
    elif how == "says nothing":
        monkeypatch.setattr(sys, "executable", "/bin/true")
    else:

        def stopped(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess, "run", stopped)
    assert command_report.report_apart(job, run) is None
    assert "the run has no report (" in capsys.readouterr().err
