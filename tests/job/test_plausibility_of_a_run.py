"""Rows that look wrong: the run says so in its JSON, on the terminal and in the report, or refuses to publish them."""

from __future__ import annotations

import pytest
from project_fixture import SIZE, last_json, png
from test_whole_job import rows_of

from unet_batch.table.publish import read_commit
from unet_batch.table.tally import Tally

TODAY, NAME = "2026/11/21", "date=2026-11-21"


def fill(project, day: str, count: int, bright_rows: int) -> None:
    for i in range(count):
        project.put(f"{day}/{i:03}.png", png(60 + i % 30, bright_rows=bright_rows))


def tally_of(project, name: str = NAME) -> Tally:
    return read_commit(project.prepared().output, name).tally


def test_a_night_of_empty_masks_is_published_with_a_warning_in_json_terminal_and_report(project):
    """The rows are there, exit 0; whoever reads the JSON, the terminal or the page learns of it."""
    fill(project, TODAY, 6, bright_rows=0)
    ended = project.command("run", "job.yaml", "--window", "all", "--executor", "local", "--report")
    found = last_json(ended)
    assert (ended.returncode, found["published"]) == (0, 1)
    assert found["implausible"] == {"empty": {NAME: 1.0}}
    assert f"warning: {NAME}: the mask is empty in 6 of 6 images" in " ".join(ended.stderr.split())
    [page] = (project.folder / "out" / "reports").glob("*.html")
    assert "the mask is empty in 6 of 6 images" in page.read_text()


def test_an_ordinary_night_has_no_warning(project):
    """Masks of a quarter of each image."""
    project.fill(TODAY, 6)
    summary = project.run()
    assert (summary.implausible, summary.hints) == ({}, [])
    assert (tally_of(project).ok, tally_of(project).seen[1]) == (6, 6)


def test_an_archive_of_empty_images_is_warned_of_once(project):
    """The next night of the same kind is how the archive is; an ordinary one in between changes nothing."""
    fill(project, "2026/11/19", 6, bright_rows=0)
    assert project.run().implausible == {"empty": {"date=2026-11-19": 1.0}}
    fill(project, "2026/11/20", 6, bright_rows=8)
    fill(project, TODAY, 6, bright_rows=0)
    assert project.run().implausible == {}


def test_a_night_unlike_the_nights_before_it_is_warned_of(project):
    """Full masks after ordinary ones; several nights in one run are compared in their order."""
    for day in ("18", "19", "20"):
        fill(project, f"2026/11/{day}", 5, bright_rows=8)
    fill(project, TODAY, 5, bright_rows=SIZE)
    summary = project.run()
    assert summary.implausible == {"full": {NAME: 1.0}}
    assert "unlike the 3 nearest published night(s)" in summary.hints[0]


def test_a_sentence_is_not_repeated_for_every_partition(project):
    """Three buckets with empty masks are one sentence, and the names of the other two."""
    job = project.folder / "job.yaml"
    text = job.read_text().replace("/{date:%Y/%m/%d}/", "/")
    job.write_text(text.replace("output: {uri:", "output: {buckets: 3, uri:"))
    fill(project, "loose", 40, bright_rows=0)
    summary = project.run()
    assert len(summary.implausible["empty"]) == 3
    assert len(summary.hints) == 2
    assert summary.hints[1].startswith("2 more partition(s) look wrong in the same way (empty): all/bucket=1, all/b")


def test_above_the_limit_nothing_is_published_until_a_person_acts(project):
    """Exit 5, old rows stay, nothing is scored again; with the limit raised the same command publishes."""
    project.fill(TODAY, 6)
    project.run()
    before = project.data("2026-11-21").read_bytes()
    fill(project, TODAY, 6, bright_rows=0)
    for scored in (6, 0):  # the second run finds everything staged, and refuses as the first
        summary = project.run("limits.implausible=0.9")
        assert (summary.ok, summary.published, summary.exit_code) == (scored, 0, 5)
        assert "the mask is empty in 6 of 6 images" in summary.problems[0]
        assert "limits.implausible: 1.0" in summary.problems[0]
    assert project.data("2026-11-21").read_bytes() == before
    assert project.status()[0].staged == 6
    assert (project.run().published, project.verify()) == (1, [])


def test_dark_pixels_are_refused_in_every_run_although_only_the_first_decoded_them(project):
    """The count travels in the staged parts and in the published object."""
    for i in range(6):
        project.put(f"{TODAY}/{i}.tif", rows_of(255))
    for scored in (6, 0):
        summary = project.run("limits.implausible=0.5")
        assert (summary.ok, summary.published, summary.exit_code) == (scored, 0, 5)
        assert "input.normalize.max" in summary.problems[0] or "the mask is empty" in summary.problems[0]
    assert set(project.run().implausible) == {"empty", "dim"}
    assert tally_of(project).dim == 6
    project.put(f"{TODAY}/late.tif", rows_of(65000))
    project.run()
    assert (tally_of(project).ok, tally_of(project).dim) == (7, 6)


def test_rejections_are_not_masks(project):
    """A partition without predictions has nothing to judge."""
    for i in range(6):
        project.put(f"{TODAY}/{i}.png", b"no picture")
    assert project.run("limits.max_rejected=6").implausible == {}


def test_objects_of_earlier_versions_are_nights_without_a_tally(project, monkeypatch):
    """They are neither damaged nor compared."""
    monkeypatch.setattr("unet_batch.table.publish.TALLY_METADATA", b"other")
    fill(project, "2026/11/20", 6, bright_rows=0)
    project.run()
    monkeypatch.undo()
    assert tally_of(project, "date=2026-11-20") is None
    fill(project, TODAY, 6, bright_rows=0)
    assert project.run().implausible == {"empty": {NAME: 1.0}}


@pytest.mark.parametrize("value", ["-0.1", "1.5"])
def test_the_limit_is_a_share(project, value):
    """A number outside 0 to 1 is a mistake in the job file."""
    project.fill(TODAY, 1)
    ended = project.command("plan", "job.yaml", "--set", f"limits.implausible={value}")
    assert ended.returncode == 2
    assert "limits.implausible" in ended.stderr
