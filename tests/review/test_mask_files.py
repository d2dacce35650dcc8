"""`output.mask_files`: files beside the table, after the rows, never without them, complete at the latest after the
next run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from project_fixture import SIZE, last_json, png, project

from unet_batch.errors import JobError
from unet_batch.job.sweep import sweep
from unet_batch.planning.fingerprint import OUTSIDE
from unet_batch.planning.survey import window_of
from unet_batch.review.masks.beside import Beside, write_beside
from unet_batch.store.storage import Storage

__all__ = ["project"]

DAY, NAME = "2026/11/21", "2026-11-21"
OTHER_DAY, OTHER_NAME = "2026/11/22", "2026-11-22"
FILES = "output.mask_files=[png]"


def written(project, window: str = "all", *overrides: str) -> Beside:
    return write_beside(project.prepared(FILES, *overrides), window_of(window))


def folder(project, day: str = NAME) -> Path:
    return project.folder / "out" / "masks" / "png" / f"date={day}"


def pngs(project, day: str = NAME) -> set[str]:
    return {path.name for path in folder(project, day).rglob("*.png")}


@pytest.fixture
def scored(project):
    """Two days of two and one pictures, published, without files; one file is broken."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/broken.png", b"no picture")
    project.fill(OTHER_DAY, 1)
    project.run(FILES)
    return project


def test_a_run_leaves_a_file_for_each_row_with_masks(project):
    """As `masks --to png` writes them, below the partition; the result says how many."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/broken.png", b"no picture")
    result = project.command("run", "job.yaml", "--set", FILES, "--window", "all", "--executor", "local")
    assert result.returncode == 0, result.stderr
    assert last_json(result)["mask_files"] == {"png": 2}
    assert "wrote 2 mask files (png) beside the table" in result.stderr
    labels = np.asarray(Image.open(folder(project) / DAY / "000.png"))
    assert (labels[:8].all(), labels[8:].any(), labels.shape) == (True, False, (SIZE, SIZE))
    assert project.verify(FILES) == []


def test_files_are_made_of_rows_and_change_no_fingerprint(project):
    assert "output.mask_files" in OUTSIDE
    assert project.prepared(FILES).fingerprint == project.prepared().fingerprint


def test_what_is_complete_is_not_read_again(scored, monkeypatch):
    """Neither rows nor files: a run of one night costs two listings for all others."""
    written(scored)

    def opened(*_):
        raise AssertionError("rows were read again")

    monkeypatch.setattr("unet_batch.review.masks.export.published_rows", opened)
    assert written(scored).written == {}


def test_the_next_run_completes_what_a_kill_left_out(scored, monkeypatch):
    """Killed at its second put: the rows stay as they are, and another night's run writes all files."""
    put, puts = Storage.put, []

    def killed(self, uri, body):
        puts.append(uri)
        if len(puts) == 2:
            raise KeyboardInterrupt
        return put(self, uri, body)

    rows = scored.rows(NAME)
    monkeypatch.setattr(Storage, "put", killed)
    monkeypatch.setattr("unet_batch.review.masks.export.AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        written(scored)
    monkeypatch.setattr(Storage, "put", put)
    assert scored.verify(FILES)
    assert scored.rows(NAME) == rows
    scored.fill("2026/11/23", 1)
    scored.run(FILES, window="last")
    written(scored, "last")
    assert (pngs(scored), pngs(scored, OTHER_NAME)) == ({"000.png", "001.png"}, {"000.png"})
    assert scored.verify(FILES) == []


def test_new_rows_get_new_files_and_files_without_a_row_go(scored):
    """One image is gone, one is broken now, and one has another mask."""
    written(scored)
    (scored.folder / "archive" / DAY / "001.png").unlink()
    changed = scored.put(f"{DAY}/000.png", png(0, bright_rows=12))
    os.utime(changed, (1e9, 1e9))
    broken = scored.put(f"{OTHER_DAY}/000.png", b"no picture any more")
    os.utime(broken, (1e9, 1e9))
    scored.put(f"{OTHER_DAY}/001.png")
    scored.run(FILES)
    assert {finding.partition for finding in scored.verify(FILES)} == {f"date={NAME}", f"date={OTHER_NAME}"}
    written(scored)
    assert (pngs(scored), pngs(scored, OTHER_NAME)) == ({"000.png"}, {"001.png"})
    assert np.asarray(Image.open(folder(scored) / DAY / "000.png"))[:12].all()
    assert scored.verify(FILES) == []


@pytest.mark.parametrize("change", ["gone", "cut", "another"])
def test_verify_sees_files_that_are_not_those_that_were_written_and_a_run_repairs_them(scored, change):
    written(scored)
    path = folder(scored) / DAY / "000.png"
    if change == "gone":
        path.unlink()
    else:
        (path if change == "cut" else path.with_name("mine.png")).write_bytes(b"cut")
    [finding] = scored.verify(FILES)
    assert "png mask files of " in str(finding)
    written(scored)
    assert (pngs(scored), scored.verify(FILES)) == ({"000.png", "001.png"}, [])


def test_a_job_without_the_key_does_not_ask_for_files(scored):
    assert scored.verify() == []
    assert "the png mask files are not those of the published rows" in str(scored.verify(FILES)[0])


def test_sweep_removes_files_of_partitions_that_are_gone_and_markers_of_old_rows(scored):
    written(scored)
    scored.put(f"{DAY}/002.png")
    scored.run(FILES)
    written(scored)
    scored.data(OTHER_NAME).unlink()
    removed = sweep(scored.prepared(FILES), window_of("all"), keep_other_models=False, dry_run=False)
    kinds = sorted(leftover.kind for leftover in removed if leftover.kind in ("mask", "marker"))
    assert kinds == ["marker", "marker", "mask", "mask"]  # of the other day its file and its manifest
    assert not pngs(scored, OTHER_NAME)
    assert pngs(scored) == {"000.png", "001.png", "002.png"}
    assert scored.verify(FILES, window=NAME) == []


def test_an_image_that_cannot_be_read_any_more_has_no_overlay_and_says_so(scored):
    """The archive's image changed after it was scored: a person must know, and the run is not incomplete."""
    changed = scored.put(f"{OTHER_DAY}/000.png", png(0, bright_rows=12))
    os.utime(changed, (1e9, 1e9))
    found = write_beside(scored.prepared("output.mask_files=[overlay]"), window_of("all"))
    assert found.written == {"overlay": 2}
    [(kind, reason)] = found.without
    assert (kind, "read.changed" in reason.why, reason.may_pass) == ("overlay", True, False)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("output.masks=[]",), "mask_files are made from the masks in the rows"),
        (("output.mask_files=[coco]",), "coco"),
    ],
)
def test_a_wrong_key_is_refused_before_the_run(project, overrides, said):
    with pytest.raises(JobError, match=said):
        project.job(FILES, *overrides)


def test_files_that_would_become_images_are_refused_before_the_run(project):
    """The table alone would not be in the way: the pattern takes pictures only."""
    archive = project.folder / "archive"
    inside = (f"output.uri={archive}/out", f"input.uri={archive}", "input.pattern=**/*.png")
    project.prepared(*inside)
    with pytest.raises(JobError, match="inside the archive"):
        project.prepared(FILES, *inside)


def test_a_failing_store_leaves_the_rows_and_exit_code_3(project, monkeypatch):
    """The message says that rows are published."""
    from unet_batch.cli.command import Exit
    from unet_batch.cli.main import cli
    from unet_batch.errors import Unavailable

    def failing(*_):
        raise Unavailable("the store is away")

    project.fill(DAY, 1)
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr("unet_batch.review.masks.beside.export_objects", failing)
    words = ["run", "job.yaml", "--set", FILES, "--window", "all", "--executor", "local", "--quiet"]
    with pytest.raises(Exit) as ended:
        cli.main(words, standalone_mode=False)
    assert ended.value.code == 3
    assert len(project.rows(NAME)) == 1
