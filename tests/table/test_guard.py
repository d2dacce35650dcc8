"""Nothing found is not success: rows are never replaced by none, or by far fewer, without a word from the user."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from project_fixture import last_json, png

from unet_batch.errors import Incomplete
from unet_batch.job import run as run_module
from unet_batch.job.verify import overview
from unet_batch.planning.scope import window_of
from unet_batch.planning.survey import planned
from unet_batch.spec import LimitsSpec
from unet_batch.table.guard import refusal
from unet_batch.table.publish import read_commit

DAY, NAME = "2026/11/21", "date=2026-11-21"


@pytest.fixture
def undated(project):
    """The same project, without dates: one partition `all`."""
    job = project.folder / "job.yaml"
    job.write_text(job.read_text().replace("/{date:%Y/%m/%d}/", "/"))
    return project


def visible(project, name: str = "all") -> int:
    prepared = project.prepared()
    found = read_commit(prepared.output, name)
    return 0 if found is None else found.commit.rows


@pytest.mark.parametrize(
    ("published", "now", "limits", "refused"),
    [
        (0, 0, {}, "holds no image"),
        (0, 0, {"allow_empty": True}, None),
        (41, 0, {}, "41 images are published, but the archive holds none"),
        (41, 0, {"max_shrink": 1.0}, "limits.allow_empty"),
        (41, 0, {"allow_empty": True}, None),
        (100, 90, {}, None),
        (100, 89, {}, "100 images are published, but the archive holds 89 of it now"),
        (100, 89, {"max_shrink": 0.11}, None),
        (100, 99, {"max_shrink": 0.0}, "1% fewer"),
        (100, 101, {"max_shrink": 0.0}, None),
        (3, 2, {}, None),  # one of a few may always go
        (3, 1, {}, "set limits.max_shrink: 0.67"),
        (1, 0, {}, "none"),
        (1000, 1, {"max_shrink": 1.0}, None),
    ],
)
def test_what_may_replace_what_is_published(published, now, limits, refused):
    """A table: images that readers see, images that the archive holds, limits, and a word of the sentence."""
    said = refusal("all", published, now, LimitsSpec(**limits))
    assert (said is None) if refused is None else (refused in said)


def test_the_share_that_a_refusal_names_lets_the_rows_through():
    """A user who sets the option of the message is not refused again."""
    refused = 0
    for published in range(1, 60):
        for now in range(1, published):
            said = refusal("all", published, now, LimitsSpec())
            if said is not None:
                share = float(said.partition("limits.max_shrink: ")[2].split()[0])
                assert refusal("all", published, now, LimitsSpec(max_shrink=share)) is None
                refused += 1
    assert refused > 1000


@pytest.mark.parametrize("select", ["due", "changed", "all"])
def test_an_empty_archive_erases_no_published_table(undated, select):
    """A lost mount is an empty folder. The rows stay, and what was there and what is there now is said."""
    undated.fill("x", 4)
    undated.run()
    shutil.rmtree(undated.folder / "archive/x")
    summary = undated.run(select=select)
    assert (summary.exit_code, summary.published, visible(undated)) == (3, 0, 4)
    assert any("4 images are published, but the archive holds none" in problem for problem in summary.problems)
    assert undated.verify() != []


def test_allow_empty_is_the_word_that_replaces_rows_by_none(undated):
    """Then an empty table is published, and the archive agrees with it."""
    undated.fill("x", 4)
    undated.run()
    shutil.rmtree(undated.folder / "archive/x")
    allowed = "limits.allow_empty=true"
    assert (undated.run(allowed).published, visible(undated)) == (1, 0)
    assert undated.verify(allowed) == []
    assert undated.verify() != []  # without the word, nothing found is still no success


def test_a_partition_does_not_shrink_by_much(undated):
    """Two of twenty images may go; then half of them may not, until the job says so."""
    undated.fill("x", 20)
    undated.run()
    for number in (18, 19):
        (undated.folder / f"archive/x/{number:03}.png").unlink()
    assert (undated.run().published, visible(undated)) == (1, 18)
    for number in range(9):
        (undated.folder / f"archive/x/{number:03}.png").unlink()
    summary = undated.run()
    assert (summary.exit_code, summary.planned, visible(undated)) == (3, 0, 18)
    assert "the archive holds 9 of it now, which is 50% fewer" in summary.problems[0]
    assert (undated.run("limits.max_shrink=0.5").published, visible(undated)) == (1, 9)


def test_a_new_model_does_not_let_a_partition_shrink(undated):
    """Another fingerprint replaces every row, and the guard counts all the same; nothing is scored in vain."""
    undated.fill("x", 6)
    undated.run()
    for number in range(3):
        (undated.folder / f"archive/x/{number:03}.png").unlink()
    summary = undated.run("output.confidence=false")
    assert (summary.exit_code, summary.planned, visible(undated)) == (3, 0, 6)


def test_an_empty_manifest_erases_nothing(undated):
    """A header without rows is what a failed query writes."""
    undated.fill("x", 3)
    manifest = undated.put("list.csv", b"uri\nx/000.png\nx/001.png\nx/002.png\n")
    job = (f"input.uri={manifest}", "input.format=manifest")
    assert undated.run(*job).published == 1
    manifest.write_bytes(b"uri\n")
    summary = undated.run(*job)
    assert (summary.exit_code, visible(undated)) == (3, 3)


def test_a_pattern_that_matches_nothing_any_more_erases_nothing(undated):
    """What is there is said beside what was passed over."""
    undated.fill("x", 3)
    undated.run("input.pattern=**/*.png")
    summary = undated.run("input.pattern=**/*.tif")
    assert (summary.exit_code, visible(undated)) == (3, 3)
    assert any("passed over: 3 .png files (x/0" in problem for problem in summary.problems)
    assert [(kind["what"], kind["count"]) for kind in summary.passed_over] == [(".png file", 3)]


def test_a_day_whose_folder_went_empty_keeps_its_rows_and_is_said(project):
    """The other day is scored; the window is not complete."""
    project.fill("2026/11/20", 3)
    project.fill(DAY, 2)
    project.run()
    shutil.rmtree(project.folder / "archive/2026/11/20")
    project.put(f"{DAY}/late.png", level=9)
    summary = project.run()
    assert (summary.exit_code, summary.partitions) == (3, [NAME])
    assert any("date=2026-11-20 (3 images)" in problem for problem in summary.problems)
    assert visible(project, "date=2026-11-20") == 3
    assert project.run("limits.allow_removed=true").exit_code == 0
    assert visible(project, "date=2026-11-20") == 3
    assert project.run(window="last").exit_code == 0


def test_small_buckets_shrink_by_chance_and_are_counted_together(undated):
    """A bucket of a few images may lose most of them; the partition may not."""
    undated.fill("x", 40)
    split = "output.buckets=16"
    undated.run(split)
    for number in range(4):
        (undated.folder / f"archive/x/{number:03}.png").unlink()
    assert undated.run(split).exit_code == 0
    for number in range(4, 30):
        (undated.folder / f"archive/x/{number:03}.png").unlink()
    summary = undated.run(split)
    assert (summary.exit_code, summary.published) == (3, 0)


def test_the_guard_is_asked_again_where_publication_is_decided(project, monkeypatch):
    """Another run published more images between the survey and the put, and this job checks no condition."""
    project.fill(DAY, 4)
    more = project.prepared("output.single_writer=true")
    real = run_module.survey_partition

    def surveyed(prepared, partition, sources, **how):
        plan = real(prepared, partition, sources, **how)
        project.run("output.single_writer=true")  # the rival, with four images
        return replace(plan, sources=plan.sources[:1], open=plan.open[:1])

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "survey_partition", _once(surveyed, real))
        summary = project.run("output.single_writer=true")
    found = read_commit(more.output, NAME)
    assert (summary.exit_code, found.commit.rows) == (Incomplete.exit_code, 4)


def _once(first, then):
    """A function that is another one from its second call on, those inside the first call included."""
    calls = []

    def call(*given, **named):
        calls.append(1)
        return (first if len(calls) == 1 else then)(*given, **named)

    return call


def test_a_stack_that_became_one_picture_does_not_replace_its_pages(undated):
    """Sources are as many as before, rows are not."""
    import io

    from PIL import Image

    def tiff(pages: int) -> bytes:
        out = io.BytesIO()
        frames = [Image.open(io.BytesIO(png(n))) for n in range(pages)]
        frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
        return out.getvalue()

    undated.put("stack.tif", tiff(12))
    undated.run()
    undated.put("stack.tif", tiff(1))
    summary = undated.run()
    assert (summary.exit_code, visible(undated)) == (3, 12)
    assert undated.run("limits.max_shrink=1.0").published == 1


def test_nothing_found_is_exit_3_and_leaves_a_record(project):
    """A scheduler must not take a window without images for a night that is done."""
    project.fill("2026/11/10", 2)
    done = project.command("run", "job.yaml", "--executor", "local", "--quiet", "--window", "2026-11-21")
    assert done.returncode == 3
    assert f"nearest: {project.folder}/archive/2026/11/10" in done.stderr
    record = json.loads((project.folder / f"out/_work/runs/{last_json(done)['run']}.json").read_text())
    assert (record["partitions"], record["did"]["exit_code"]) == ({}, 3)
    for command in ("plan", "verify"):
        proof = project.command(command, "job.yaml", "--window", "2026-11-21")
        assert (proof.returncode, "nearest" in proof.stderr) == (3, True), command
    assert "nearest" in project.command("status", "job.yaml", "--window", "2026-11-21").stderr
    allowed = ("--set", "limits.allow_empty=true", "--window", "2026-11-21")
    assert project.command("run", "job.yaml", "--executor", "local", *allowed).returncode == 0
    assert project.command("verify", "job.yaml", *allowed).returncode == 0


def test_days_that_the_archive_removes_after_a_while_keep_their_rows_and_are_no_fault(project):
    """A retention rule is not a lost mount: `limits.allow_removed` says so; an archive without any image is exit 3."""
    for day in ("2026/11/20", "2026/11/21"):
        project.fill(day, 3)
    every, keep = ("--window", "all"), ("--set", "limits.allow_removed=true")
    assert project.command("run", "job.yaml", "--executor", "local", "--quiet", *every).returncode == 0
    shutil.rmtree(project.folder / "archive/2026/11/20")
    lost = project.command("run", "job.yaml", "--executor", "local", "--quiet", *every)
    assert (lost.returncode, "limits.allow_removed" in lost.stderr) == (3, True)
    assert project.command("verify", "job.yaml", *every).returncode == 3
    for command in (("run", "job.yaml", "--executor", "local", "--quiet"), ("verify", "job.yaml")):
        assert project.command(*command, *every, *keep).returncode == 0, command
    assert len(project.rows("2026-11-20")) == 3
    shutil.rmtree(project.folder / "archive/2026/11/21")
    nothing = project.command("run", "job.yaml", "--executor", "local", "--quiet", *every, *keep)
    assert nothing.returncode == 3


def test_a_misspelt_folder_is_named_beside_the_one_that_is_there(project):
    """`nothing matches fotos/…; nearest: photos/2026/11/10`."""
    project.fill("2026/11/10", 1)
    (project.folder / "archive").rename(project.folder / "photos")
    wrong = f"input.uri={project.folder}/fotos/{{date:%Y/%m/%d}}/"
    done = project.command("run", "job.yaml", "--executor", "local", "--set", wrong)
    assert done.returncode == 3
    assert "nothing matches" in done.stderr
    assert "photos/2026/11/10" in done.stderr
    undated = project.command("run", "job.yaml", "--executor", "local", "--set", f"input.uri={project.folder}/fotos/")
    assert (undated.returncode, "nearest" in undated.stderr and "photos" in undated.stderr) == (3, True)


def test_plan_status_and_doctor_say_what_a_run_would_refuse(undated):
    """Before a run."""
    undated.fill("x", 6)
    undated.run()
    for number in range(5):
        (undated.folder / f"archive/x/{number:03}.png").unlink()
    found = planned(undated.prepared(), window_of("all"), "due")
    assert (found.work, "6 images are published" in found.problems[0]) == ([], True)
    assert "6 images are published" in overview(undated.prepared(), window_of("all")).problems[0]
    assert "6 images are published" in undated.command("doctor", "job.yaml").stderr


def test_a_day_of_which_no_member_is_an_image_is_not_published(project):
    """A tar of text beside a day with images: its rows would be none."""
    import io
    import tarfile

    project.fill("2026/11/20", 1)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("a.txt")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    project.put(f"{DAY}/day.tar", out.getvalue())
    summary = project.run()
    assert (summary.exit_code, summary.partitions) == (3, ["date=2026-11-20"])
    assert any(problem.startswith(f"{NAME}: the archive holds no image") for problem in summary.problems)
    assert summary.passed_over == [{"what": ".txt member", "count": 1, "examples": ["a.txt"]}]


def test_what_was_passed_over_is_said_everywhere(project):
    """By plan, run, verify and status, in the record and on the page about the run."""
    project.put(f"{DAY}/a.png")
    project.put(f"{DAY}/.hidden.png")
    project.put(f"{DAY}/notes.TXT")
    project.put(f"{DAY}/thumbs/a.png")
    project.put("2026/11/calibration/c.png")
    settings = ("--set", "input.pattern=**/*.png", "--set", 'input.exclude=["thumbs/**"]')
    line = (
        "passed over: 1 .txt file (notes.TXT), 1 excluded name (thumbs/a.png), 1 hidden name (.hidden.png), "
        "1 undated folder (2026/11/calibration)"
    )
    run = project.command("run", "job.yaml", "--executor", "local", "--quiet", "--window", "all", "--report", *settings)
    assert (run.returncode, line in run.stderr) == (0, True), run.stderr
    for command in ("plan", "verify", "status"):
        assert line in project.command(command, "job.yaml", "--window", "all", *settings).stderr, command
    done = last_json(run)
    record = json.loads((project.folder / f"out/_work/runs/{done['run']}.json").read_text())
    assert record["passed_over"] == record["did"]["passed_over"] == done["passed_over"]
    assert "1 excluded name" in (project.folder / f"out/reports/{done['run']}.html").read_text()
