"""Rejections whose reason may have passed: an ordinary run tries them again, and not for ever."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image
from project_fixture import png

from unet_batch.decode.decode import Page, decode
from unet_batch.errors import ImageError, Reason
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.planning.survey import selected, window_of
from unet_batch.records import Receipt
from unet_batch.spec import LimitsSpec
from unet_batch.table.publish import read_commit

DAY, NAME = "2026/11/21", "2026-11-21"
MARKED = b"this one is late"
"""Bytes behind an image: the decoder below takes too long for its last page."""


def late(data: bytes, *given, **named) -> Iterator[Page]:
    """As the real decoder, but for marked images, whose last page has a reason that may pass."""
    pages = list(decode(data, *given, **named))
    if data.endswith(MARKED):
        error = ImageError(Reason.DECODE_TIMEOUT, "late")
        pages[-1] = Page(pages[-1].page, pages[-1].pages, error, pages[-1].height, pages[-1].width)
    yield from pages


class InProcess(LocalExecutor):
    """The loop with that decoder, which a child process could not import."""

    def __init__(self, settings) -> None:
        super().__init__(replace(settings, decoder=f"{__name__}:late"))

    def run(self, units):
        by_id = {unit.unit_id: unit for unit in units}
        assert len(by_id) == len(units)
        return super().run([replace(unit, isolate=False) for unit in units])


def stack(pages: int, *, marked: bool) -> bytes:
    out = io.BytesIO()
    frames = [Image.open(io.BytesIO(png(n))) for n in range(pages)]
    frames[0].save(out, "TIFF", save_all=True, append_images=frames[1:])
    return out.getvalue() + (MARKED if marked else b"")


def commit(project):
    prepared = project.prepared()
    return read_commit(prepared.output, f"date={NAME}").commit


def verdicts(project) -> dict[str, str]:
    return {row["image_key"].rpartition("/")[2]: row["reason"] or "ok" for row in project.rows(NAME)}


@pytest.mark.parametrize("select", ["due", "failed", "all"])
def test_a_page_that_may_pass_lets_its_file_be_tried_again(project, select):
    """Two of three pages were scored; verdicts are those of the source, not of whichever page came last."""
    project.put(f"{DAY}/stack.tif", stack(3, marked=True))
    assert project.run(executor=InProcess).reasons == {"decode.timeout": 1}
    assert verdicts(project)["stack.tif#page=2"] == "decode.timeout"
    summary = project.run(select=select)
    assert (summary.planned, summary.ok, summary.published) == (3, 3, 1)
    assert set(verdicts(project).values()) == {"ok"}
    assert project.verify() == []


def test_a_day_above_its_limit_heals_in_an_ordinary_run(project):
    """Two images have a verdict that was true that night only, and the day is held back for them."""
    project.fill(DAY, 3)
    for number in range(2):
        project.put(f"{DAY}/late{number}.png", png(number) + MARKED)
    strict = "limits.max_rejected=0"
    first = project.run(strict, executor=InProcess)
    assert (first.published, first.exit_code) == (0, 3)
    assert any("2 of them may be temporary, so run the same command again" in p for p in first.problems)
    again = project.run(strict, executor=InProcess)  # as the night before
    assert (again.planned, again.exit_code) == (2, 3)
    healed = project.run(strict)
    assert (healed.planned, healed.ok, healed.published, healed.exit_code) == (2, 2, 1, 0)
    assert project.verify(strict) == []


def test_a_published_rejection_is_tried_by_so_many_runs_and_no_more(project):
    """The partition stays published, its commit counts the tries, and `failed` still tries it."""
    project.fill(DAY, 3)
    project.put(f"{DAY}/late.png", png(7) + MARKED)
    project.run(executor=InProcess)
    for tries in (1, 2, 3):
        assert [s.state for s in project.status()] == ["published"]
        summary = project.run(executor=InProcess)
        assert (summary.planned, summary.rejected, summary.exit_code) == (1, 1, 0)
        assert (commit(project).may_pass, list(commit(project).tried.values())) == (1, [tries])
    assert project.run(executor=InProcess).planned == 0
    assert selected(project.prepared(), window_of("all"), "due") == []
    assert [len(p.todo) for p in selected(project.prepared(), window_of("all"), "failed")] == [1]
    assert project.verify() == []
    assert project.run("limits.retries=4").ok == 1  # more tries were allowed, and it passed
    assert (commit(project).may_pass, commit(project).tried) == (0, {})


def test_an_archive_that_grows_every_night_does_not_start_the_count_again(project):
    """Tries are counted by image, so new neighbours change nothing."""
    project.put(f"{DAY}/late.png", png(7) + MARKED)
    project.put(f"{DAY}/first.png")
    project.run(executor=InProcess)
    planned = []
    for night in range(6):
        project.put(f"{DAY}/{night}.png", level=night)
        planned.append(project.run(executor=InProcess).planned)
    assert planned == [2, 2, 2, 1, 1, 1]


def test_a_reason_that_does_not_pass_is_never_tried_again(project):
    """A file that is no image stays none."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/bad.png", b"no image")
    project.run()
    assert [project.run(select=select).planned for select in ("due", "failed", "all")] == [0, 0, 0]


def test_what_the_listing_itself_finds_out_is_not_tried_again(project):
    """A manifest names an object that is not there: the listing looked a moment ago."""
    manifest = project.put("list.csv", b"uri\nhere.png\ngone.png\n")
    project.put("here.png")
    job = (f"input.uri={manifest}", "input.format=manifest")
    assert project.run(*job).reasons == {"read.not_found": 1}
    assert [project.run(*job, select=select).planned for select in ("due", "failed")] == [0, 0]
    project.put("gone.png", level=1)
    assert project.run(*job).ok == 1


def test_a_try_that_cannot_be_made_holds_no_new_image_back(project):
    """The store does not answer for the rejected image; the new one is published beside its old verdict."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/late.png", png(7) + MARKED)
    project.run(executor=InProcess)
    project.put(f"{DAY}/new.png", level=9)

    class Away(InProcess):
        def run(self, units):
            for unit in units:
                if unit.sources[0].uri.endswith("late.png"):
                    failure = ("storage.unavailable", "503")
                    yield Receipt(unit.unit_id, unit.partition, 0, 0, 0, failure=failure)
                else:
                    yield from super().run([unit])

    summary = project.run(executor=Away)
    assert (summary.exit_code, any("could not be retried" in p for p in summary.problems)) == (3, True)
    assert f"date={NAME}" in summary.partitions
    assert (verdicts(project)["new.png"], verdicts(project)["late.png"]) == ("ok", "decode.timeout")
    assert commit(project).tried == {}
    assert project.run().ok == 1


def test_a_try_that_cannot_be_made_holds_no_other_try_back(project):
    """One rejection passes while the store refuses another: what readers may see now does not wait for all of them."""
    project.fill(DAY, 2)
    for name in ("gone", "late"):
        project.put(f"{DAY}/{name}.png", png(7) + MARKED)
    project.run("limits.max_rejected=2", executor=InProcess)

    class Away(LocalExecutor):
        def run(self, units):
            for unit in units:
                if unit.sources[0].uri.endswith("gone.png"):
                    yield Receipt(unit.unit_id, unit.partition, 0, 0, 0, failure=("storage.unavailable", "503"))
                else:
                    yield from super().run([unit])

    summary = project.run("limits.max_rejected=2", "limits.unit_images=1", executor=Away)
    assert (summary.exit_code, summary.published) == (3, 1)
    assert (verdicts(project)["gone.png"], verdicts(project)["late.png"]) == ("decode.timeout", "ok")
    assert commit(project).tried == {}


def test_rejections_are_tried_again_beside_new_images_and_under_other_names(project):
    """Both in one run; the try again leaves a part of its own, so that the first one's does not stand for it."""
    project.fill(DAY, 2)
    project.put(f"{DAY}/late.png", png(7) + MARKED)
    project.run(executor=InProcess)
    project.put(f"{DAY}/new.png", level=9)
    before = set(project.parts())
    summary = project.run()
    assert (summary.planned, summary.ok) == (2, 2)
    assert len(set(project.parts()) - before) == 2
    assert set(verdicts(project).values()) == {"ok"}


def test_the_default_is_three_runs():
    """What the reference says."""
    assert LimitsSpec().retries == 3


def test_a_run_that_was_stopped_is_resumed_without_trying_anything_twice(project, monkeypatch):
    """What has a row is done, a rejection too: it is published first, and tried again by a later run."""
    project.fill(DAY, 3)
    project.put(f"{DAY}/late.png", png(7) + MARKED)
    with monkeypatch.context() as patch:
        patch.setattr("unet_batch.job.publisher.publish", lambda *_: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception):
            project.run(executor=InProcess)
    resumed = project.run(executor=InProcess)
    assert (resumed.planned, resumed.published) == (0, 1)
    assert project.run().ok == 1
