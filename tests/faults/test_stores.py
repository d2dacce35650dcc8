"""Faults of stores, by written schedules, under a whole job: what is tried again, what is a fact, what is left."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import tenacity.nap
from faulty import digest

from unet_batch.errors import Incomplete, JobError
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.sweep import sweep
from unet_batch.planning.survey import window_of
from unet_batch.store import local
from unet_batch.store.conditional import ANYTHING
from unet_batch.store.faults import ShortReadError
from unet_batch.store.local import LocalStore
from unet_batch.table import publish
from unet_batch.table.lease import Leases, read_lease

DAY, NAME = "2026/11/21", "2026-11-21"
IMAGES, UNIT = 6, 2
LIMITS = (f"limits.unit_images={UNIT}",)
OLD = "tiling.overlap=0.5"
ROWS = f"/predictions/date={NAME}/data.parquet"
TRIES, ROUNDS = 5, 3
"""Of one request, and of a unit whose requests all failed."""


class Answered(Exception):
    """A store's answer that is no success, as an SDK raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answered {status}")
        self.status_code = status


class Weather:
    """Plays faults on the local store: by method and a text of the URI, one per call; None is a call that works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        """Calls by the last part of their URI."""
        self.waits: list[float] = []
        self._schedule: dict[tuple[str, str], list[tuple[str, Exception] | None]] = {}
        self._lasting: dict[tuple[str, str], Exception] = {}
        monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=self.waits.append))
        inner, inner_put = LocalStore.read, LocalStore.put
        put = self._wrapped("put", lambda uri, store, *what: inner_put(store, uri, *what))
        monkeypatch.setattr(LocalStore, "put", lambda store, uri, *what: put(uri, store, *what))
        read = self._wrapped("read", lambda uri, store, how: inner(store, uri, **how))
        monkeypatch.setattr(LocalStore, "read", lambda store, uri, **how: read(uri, store, how))

    def next(self, method: str, text: str, *faults: tuple[str, Exception] | None) -> None:
        """What happens `before` or `after` the next calls took effect."""
        self._schedule[method, text] = list(faults)

    def always(self, method: str, text: str, error: Exception) -> None:
        """A fault that lasts until `clear`."""
        self._lasting[method, text] = error

    def clear(self) -> None:
        self._schedule.clear()
        self._lasting.clear()
        self.calls.clear()

    def _wrapped(self, method: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(uri: str, *rest: Any) -> Any:
            self.calls[f"{method} {uri.rpartition('/')[2]}"] += 1
            for (kind, text), error in self._lasting.items():
                if kind == method and text in uri:
                    raise error
            for (kind, text), faults in self._schedule.items():
                if kind == method and text in uri and faults:
                    fault = faults.pop(0)
                    if fault is not None and fault[0] == "before":
                        raise fault[1]
                    found = inner(uri, *rest)
                    if fault is not None:
                        raise fault[1]
                    return found
            return inner(uri, *rest)

        return call


@pytest.fixture
def weather(monkeypatch: pytest.MonkeyPatch) -> Weather:
    return Weather(monkeypatch)


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "error",
    [Answered(500), Answered(502), Answered(503), Answered(429), ConnectionResetError("reset"), TimeoutError("slow"),
     ShortReadError("1 of 2 bytes came")],
    ids=["500", "502", "503", "429", "reset", "time-out", "truncated body"],
)  # fmt: skip
def test_a_transient_fault_of_every_read_costs_a_second_try_each(project, weather, error):
    """Twelve reads for six images, six predictions, and nothing to report."""
    project.fill(DAY, IMAGES)
    for i in range(IMAGES):
        weather.next("read", f"/archive/{DAY}/{i:03}.png", ("before", error))
    summary = project.run(*LIMITS)
    assert (summary.ok, summary.rejected, summary.published, summary.problems) == (IMAGES, 0, 1, [])
    assert [weather.calls[f"read {i:03}.png"] for i in range(IMAGES)] == [2] * IMAGES
    assert len(weather.waits) == IMAGES
    assert project.verify() == []


@pytest.mark.parametrize(("method", "text"), [("read", f"/archive/{DAY}/003.png"), ("put", ".part")])
def test_a_fault_that_lasts_leaves_units_open_and_never_becomes_a_row(project, weather, method, text):
    """Exit code 3 after bounded tries, the old rows stay, and the next run does what is left."""
    project.fill(DAY, IMAGES)
    project.run(OLD)
    old = digest(project.data(NAME))
    weather.clear()
    weather.always(method, text, Answered(503))
    summary = project.run(*LIMITS)
    left = UNIT if method == "read" else IMAGES
    assert (summary.exit_code, summary.published, summary.rejected, summary.remaining) == (3, 0, 0, left)
    assert summary.problems[0].startswith("storage.unavailable: ")
    tried = [n for name, n in weather.calls.items() if name.startswith(method) and name.endswith(text[-4:])]
    assert max(tried) == TRIES * ROUNDS
    assert digest(project.data(NAME)) == old
    weather.clear()
    again = project.run(*LIMITS)
    assert (again.planned, again.ok, again.published, again.exit_code) == (left, left, 1, 0)
    assert project.verify() == []


def test_an_image_that_may_not_be_read_is_a_fact_and_may_be_tried_again(project, weather):
    """Tried twice, one rejection; when the permission is there, `failed` scores that image alone."""
    project.fill(DAY, IMAGES)
    weather.always("read", "/003.png", PermissionError(errno.EACCES, "not yours"))
    summary = project.run(*LIMITS)
    assert (summary.ok, summary.rejected, summary.published, summary.reasons) == (5, 1, 1, {"read.denied": 1})
    assert weather.calls["read 003.png"] == 2
    weather.clear()
    again = project.run(*LIMITS, select="failed")
    assert (again.planned, again.ok, again.published) == (1, 1, 1)
    assert sum(n for name, n in weather.calls.items() if name.endswith(".png")) == 1
    assert {row["status"] for row in project.rows(NAME)} == {"ok"}
    assert project.verify() == []


def test_credentials_that_expire_under_way_reject_no_image(project, weather):
    """What the store says then, it says of every object: units stay open, and the sentence says what to renew."""
    project.fill(DAY, IMAGES)
    weather.next("read", "/000.png", None)
    weather.always("read", "/003.png", Answered(401))
    weather.always("read", "/004.png", Answered(401))
    summary = project.run(*LIMITS)
    assert (summary.ok, summary.rejected, summary.published, summary.exit_code) == (2, 0, 0, 3)
    assert summary.problems[0].startswith("storage.not_logged_in: the store does not accept these credentials")
    assert weather.calls["read 003.png"] == ROUNDS
    weather.clear()
    again = project.run(*LIMITS)
    assert (again.planned, again.ok, again.published, again.exit_code) == (4, 4, 1, 0)
    assert project.verify() == []


def test_an_image_that_changes_under_way_is_scored_by_the_next_run(project):
    """Its row would be of bytes that are gone; the planned version is pinned in every read."""
    project.fill(DAY, IMAGES)

    class Overtaken(LocalExecutor):
        def run(self, units) -> Iterator:
            project.put(f"{DAY}/003.png", level=77)
            yield from super().run(units)

    summary = project.run(*LIMITS, executor=Overtaken)
    assert (summary.ok, summary.rejected, summary.reasons) == (5, 1, {"read.changed": 1})
    assert [f.kind for f in project.verify()] != []
    again = project.run(*LIMITS)
    assert (again.planned, again.ok, again.published) == (1, 1, 1)
    assert project.verify() == []


@pytest.mark.parametrize(
    ("faults", "puts"),
    [
        ((("before", Answered(503)), ("before", Answered(503))), 3),
        ((("after", TimeoutError("no answer")),), 2),
        ((("after", ConnectionResetError("reset")),), 2),
        ((("before", TimeoutError("no answer")),), 2),
    ],
    ids=["503 twice", "landed, no answer", "landed, reset", "lost, no answer"],
)
def test_a_part_whose_put_is_unsure_is_put_again_and_there_once(project, weather, faults, puts):
    """Named by its content: "already there" is success."""
    project.fill(DAY, IMAGES)
    weather.next("put", ".part", *faults)
    summary = project.run(*LIMITS)
    assert (summary.ok, summary.published, summary.problems) == (IMAGES, 1, [])
    parts = sorted((n for name, n in weather.calls.items() if re.fullmatch(r"put .*\.part", name)), reverse=True)
    assert parts == [puts, 1, 1]
    assert len(project.parts()) == IMAGES // UNIT
    assert project.verify() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("faults", "puts", "exit_code"),
    [
        ((("after", TimeoutError("no answer")),), 1, 0),
        ((("after", Answered(500)),), 1, 0),
        ((("after", Answered(503)),), 2, 0),
        ((("before", Answered(503)), ("before", Answered(429))), 3, 0),
        ((("before", TimeoutError("no answer")),), 1, 3),
        ((("before", ConnectionResetError("reset")),), 1, 3),
    ],
    ids=["landed, time-out", "landed, 500", "landed, then 503", "503, 429, then landed", "lost, time-out", "reset"],
)
def test_a_publication_whose_put_is_unsure_is_settled_by_reading_back(project, weather, faults, puts, exit_code):
    """Ours: success without a word. Not there: nothing changed, exit code 3, and the next run only publishes."""
    project.fill(DAY, IMAGES)
    project.run(OLD)
    old = digest(project.data(NAME))
    weather.clear()
    weather.next("put", ROWS, *faults)
    summary = project.run(*LIMITS)
    landed = exit_code == 0
    assert (summary.exit_code, summary.ok) == (exit_code, IMAGES)
    assert (digest(project.data(NAME)) == old) is not landed
    assert len(summary.problems) == (0 if landed else 1)
    if landed:
        assert weather.calls["put data.parquet"] == puts
    weather.clear()
    again = project.run(*LIMITS)
    assert (again.planned, again.published, again.exit_code) == (0, 0 if landed else 1, 0)
    assert project.verify() == []


def test_a_lost_answer_and_a_rival_in_between_is_no_success(project, weather):
    """Reading back finds another run's generation: exit code 4, and that run's rows stay."""
    project.fill(DAY, IMAGES)
    project.run(OLD)
    theirs = project.data(NAME).read_bytes()
    project.data(NAME).unlink()

    class Overtaken(LocalExecutor):
        def run(self, units) -> Iterator:
            yield from super().run(units[:-1])
            project.data(NAME).write_bytes(theirs)
            yield from super().run(units[-1:])

    weather.next("put", ROWS, ("before", TimeoutError("no answer")))
    summary = project.run(*LIMITS, executor=Overtaken)
    assert (summary.exit_code, summary.published) == (4, 0)
    assert project.data(NAME).read_bytes() == theirs


def stop_after(units_done: int) -> type[LocalExecutor]:
    class Stops(LocalExecutor):
        def run(self, units) -> Iterator:
            for count, receipt in enumerate(super().run(units), start=1):
                yield receipt
                if count == units_done:
                    raise KeyboardInterrupt

    return Stops


def blind(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let listings leave out every object whose URI holds a text, as a store whose listing lags does."""
    inner = LocalStore.list
    monkeypatch.setattr(
        LocalStore, "list", lambda store, folder: (o for o in inner(store, folder) if text not in o.uri)
    )


def test_parts_that_no_listing_shows_are_redone_and_count_once(project, monkeypatch, weather):
    """Their names are taken: the second put finds them there, and no image has two rows."""
    project.fill(DAY, IMAGES)
    first = project.run(*LIMITS, executor=stop_after(2))
    assert (first.exit_code, len(project.parts())) == (3, 2)
    written = {path: path.stat().st_mtime_ns for path in project.parts()}
    blind(monkeypatch, "/_work/parts/")
    again = project.run(*LIMITS)
    assert (again.planned, again.ok, again.published) == (IMAGES, IMAGES, 1)
    assert len(project.parts()) == IMAGES // UNIT
    assert {path: path.stat().st_mtime_ns for path in written} == written
    monkeypatch.undo()
    assert project.verify() == []


def test_rows_that_no_listing_shows_are_found_by_name(project, monkeypatch):
    """Nothing is scored again, verify agrees, and sweep removes nothing that it cannot see to be published."""
    project.fill(DAY, IMAGES)
    project.run(*LIMITS)
    blind(monkeypatch, "/predictions/")
    again = project.run(*LIMITS)
    assert (again.planned, again.published) == (0, 0)
    assert project.verify() == []
    assert sweep(project.prepared(), window_of("all"), keep_other_models=False, dry_run=False) == []
    monkeypatch.undo()
    swept = sweep(project.prepared(), window_of("all"), keep_other_models=False, dry_run=False)
    assert [litter.kind for litter in swept] == ["part"] * (IMAGES // UNIT)


def test_an_image_that_the_listing_shows_late_is_scored_alone(project, monkeypatch):
    """The partition looked complete; the next run adds the missing row."""
    project.fill(DAY, IMAGES)
    with monkeypatch.context() as lagging:
        blind(lagging, f"/archive/{DAY}/004.png")
        assert (project.run(*LIMITS).ok, len(project.rows(NAME))) == (IMAGES - 1, IMAGES - 1)
    assert project.verify()[0].kind == "images without a row"
    again = project.run(*LIMITS)
    assert (again.planned, again.ok, again.published, len(project.rows(NAME))) == (1, 1, 1, IMAGES)
    assert project.verify() == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "not yours"), "the store refuses access to .*/out/_work/"),
        (Answered(401), "the store does not accept these credentials .*/out/_work/"),
    ],
    ids=["no permission", "no credentials"],
)
def test_an_output_that_may_not_be_written_is_said_before_anything_is_scored(project, weather, error, sentence):
    """One sentence with the place, nothing below the output."""
    project.fill(DAY, IMAGES)
    weather.always("put", "/out/", error)
    with pytest.raises(JobError, match=f"nothing was scored: {sentence}"):
        project.run(*LIMITS)
    assert files_below(project.folder / "out") == []
    assert weather.calls.total() == len([n for n in weather.calls if n.startswith("read")]) + 1


PROBE = "/_work/probe/"


@pytest.mark.parametrize(
    "faults",
    [
        (("after", ConnectionResetError("reset")),),
        (("before", ConnectionResetError("reset")),),
        (None, ("after", TimeoutError("slow"))),
        (None, None, ("after", ConnectionResetError("reset"))),
        (None, None, ("before", ConnectionResetError("reset"))),
        (None, None, None, ("after", ConnectionResetError("reset"))),
    ],
    ids=["the first put, landed", "the first put, lost", "the second put", "the replacement, landed", "and lost",
         "the stale one"],
)  # fmt: skip
def test_an_answer_that_the_probe_loses_is_no_verdict_on_the_store(project, weather, faults):
    """A probe that cannot tell begins again under a fresh name; the run is as any other, and nothing is left of it."""
    project.fill(DAY, IMAGES)
    weather.next("put", PROBE, *faults)
    summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.ok, summary.published, summary.problems) == (0, IMAGES, 1, [])
    assert files_below(project.folder / "out" / "_work" / "probe") == []


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), Answered(503), TimeoutError("slow")])
def test_an_output_that_does_not_answer_is_one_sentence_before_anything_is_scored(project, weather, error):
    """Exit code 3, which says: again. Nothing was put; the next run does it all."""
    project.fill(DAY, IMAGES)
    weather.always("put", PROBE, error)
    with pytest.raises(Incomplete, match=r"nothing was scored: .*/out/_work/probe/.* is not available now") as ended:
        project.run(*LIMITS)
    assert (ended.value.exit_code, "\n" in str(ended.value)) == (3, False)
    assert files_below(project.folder / "out") == []
    weather.clear()
    assert project.run(*LIMITS).exit_code == 0


def test_an_output_whose_answers_get_lost_again_and_again_is_given_up(project, weather):
    """Three probes, each with a put that landed without an answer."""
    project.fill(DAY, IMAGES)
    weather.next("put", PROBE, *[("after", ConnectionResetError("reset")), None] * 3)
    with pytest.raises(Incomplete, match="3 probes lost an answer"):
        project.run(*LIMITS)
    assert files_below(project.folder / "out") == []


def test_an_archive_that_cannot_be_listed_is_one_sentence(project, monkeypatch):
    """Away: exit code 3. Not ours to see: exit code 2."""
    project.fill(DAY, IMAGES)
    error: list[Exception] = [ConnectionResetError("reset")]

    def refused(*_: Any) -> Any:
        raise error[0]

    monkeypatch.setattr(LocalStore, "list", refused)
    with pytest.raises(Incomplete, match=r"nothing was scored: .*/archive/.* is not available now"):
        project.run(*LIMITS)
    error[0] = PermissionError(errno.EACCES, "not yours")
    with pytest.raises(JobError, match=r"nothing was scored: the store refuses access to .*/archive/"):
        project.run(*LIMITS)


def test_a_record_that_cannot_be_begun_ends_the_run_before_it_scores(project, weather):
    """What a run will replace must be known before it does so: exit code 3, and the lease is given back."""
    project.fill(DAY, IMAGES)
    weather.always("put", "/_work/runs/", ConnectionResetError("reset"))
    summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.ok, summary.published) == (3, 0, 0)
    assert "the run ended early, because a store failed: " in summary.problems[0]
    assert files_below(project.folder / "out") == []
    weather.clear()
    assert project.run(*LIMITS).exit_code == 0


def test_a_record_that_cannot_be_finished_costs_a_sentence(project, weather):
    """Exit code 3 once; the rows are published, and the next run has nothing to do."""
    project.fill(DAY, IMAGES)
    weather.next("put", "/_work/runs/", None, *[("before", ConnectionResetError("reset"))] * TRIES)
    summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.ok, summary.published) == (3, IMAGES, 1)
    [problem] = summary.problems
    assert problem.startswith("the run's record could not be finished, and nothing else is missing: file://")
    assert len(project.rows(NAME)) == IMAGES
    assert project.verify() == []
    weather.clear()
    again = project.run(*LIMITS)
    assert (again.planned, again.published, again.exit_code) == (0, 0, 0)


def test_a_store_that_goes_away_between_two_days_ends_the_run_with_what_it_has(project, weather):
    """The first day is published; the sentence names the object, exit code 3."""
    project.fill(DAY, IMAGES)
    project.fill("2026/11/22", IMAGES)
    weather.next("put", "/_work/runs/", None, *[("before", ConnectionResetError("reset"))] * TRIES)
    summary = project.run(*LIMITS, max_active=1)
    assert (summary.exit_code, summary.partitions) == (3, [f"date={NAME}"])
    assert "the run ended early, because a store failed: " in summary.problems[0]
    weather.clear()
    again = project.run(*LIMITS)
    assert (again.partitions, again.exit_code) == (["date=2026-11-22"], 0)
    assert project.verify() == []


def test_a_permission_that_goes_away_before_the_parts_needs_a_person(project, weather):
    """Exit code 5, not 3: a scheduler that retries would be refused again; with the permission back all is scored."""
    project.fill(DAY, IMAGES)
    weather.always("put", "/_work/parts/", PermissionError(errno.EACCES, "not yours"))
    summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.remaining, summary.published) == (5, IMAGES, 0)
    assert any("refuses access" in problem for problem in summary.problems)
    weather.clear()
    again = project.run(*LIMITS)
    assert (again.ok, again.published, again.exit_code) == (IMAGES, 1, 0)


def test_a_permission_that_goes_away_before_publication_keeps_what_was_staged(project, weather):
    """Exit code 5, because a person must give it back; with the permission back nothing is scored again."""
    project.fill(DAY, IMAGES)
    project.run(OLD)
    old = digest(project.data(NAME))
    weather.always("put", ROWS, PermissionError(errno.EACCES, "not yours"))
    summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.ok, summary.published) == (5, IMAGES, 0)
    assert "refuses access" in summary.problems[0]
    assert digest(project.data(NAME)) == old
    weather.clear()
    again = project.run(*LIMITS)
    assert (again.planned, again.published, again.exit_code) == (0, 1, 0)


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_conditions_is_refused_unless_one_run_writes(project, monkeypatch, ignored):
    """Exit code 2 and nothing left below the output; with single_writer the day is published."""
    project.fill(DAY, IMAGES)
    inner = LocalStore.put

    def careless(store: LocalStore, uri: str, body: bytes | Path, expect: str | None) -> str:
        mine = expect is None if ignored == "If-None-Match" else expect not in (None, ANYTHING)
        return inner(store, uri, body, ANYTHING if mine else expect)

    monkeypatch.setattr(LocalStore, "put", careless)
    with pytest.raises(JobError, match=rf"ignores.*{ignored}.*single_writer"):
        project.run(*LIMITS)
    assert files_below(project.folder / "out") == []
    summary = project.run(*LIMITS, "output.single_writer=true")
    assert (summary.ok, summary.published, summary.exit_code) == (IMAGES, 1, 0)
    assert project.verify() == []


def full_disk(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let the disk be full half-way through every file whose name holds a text."""
    inner = local._write

    def write(path: str, body: bytes | Path) -> None:
        if text in path:
            whole = body.read_bytes() if isinstance(body, Path) else body
            inner(path, whole[: len(whole) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(path, body)

    monkeypatch.setattr(local, "_write", write)


@pytest.mark.parametrize(("text", "again_planned"), [("/_work/parts/", IMAGES), ("/predictions/", 0)])
def test_a_full_disk_leaves_the_old_rows_and_no_half_file(project, monkeypatch, text, again_planned):
    """Exit code 3 with the system's own words; with room again the same command completes."""
    project.fill(DAY, IMAGES)
    project.run(OLD)
    old, parts = digest(project.data(NAME)), len(project.parts())
    with monkeypatch.context() as full:
        full_disk(full, text)
        summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.published, summary.rejected) == (3, 0, 0)
    assert "No space left on device" in summary.problems[0]
    assert digest(project.data(NAME)) == old
    assert len(project.parts()) - parts == (IMAGES - again_planned) // UNIT
    assert [n for n in files_below(project.folder / "out") if n.startswith(".put-")] == []
    again = project.run(*LIMITS)
    assert (again.planned, again.published, again.exit_code) == (again_planned, 1, 0)
    assert project.verify() == []


def test_a_full_temporary_folder_stops_publication_in_one_sentence(project, monkeypatch):
    """The merged rows are written to a local file first: that disk may be another one."""
    project.fill(DAY, IMAGES)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(publish, "_write", full)
        summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.ok, summary.published) == (3, IMAGES, 0)
    assert "No space left on device" in summary.problems[0]
    again = project.run(*LIMITS)
    assert (again.planned, again.published, again.exit_code) == (0, 1, 0)


def flip_a_bit(project, column: str) -> None:
    """Damage the last byte but two of a column of the published object."""
    path = project.data(NAME)
    group = pq.ParquetFile(path).metadata.row_group(0)
    found = next(c for c in (group.column(i) for i in range(group.num_columns)) if c.path_in_schema == column)
    data = bytearray(path.read_bytes())
    data[found.data_page_offset + found.total_compressed_size - 3] ^= 0x10
    path.write_bytes(bytes(data))


def test_published_rows_whose_keys_are_damaged_are_scored_again(project):
    """It is unknown which run wrote the rows, so the day is scored and published again."""
    project.fill(DAY, IMAGES)
    project.run(*LIMITS)
    for part in project.parts():
        part.unlink()
    flip_a_bit(project, "image_key")
    project.put(f"{DAY}/late.png", level=9)
    again = project.run(*LIMITS)
    assert (again.planned, again.ok, again.published, again.exit_code) == (IMAGES + 1, IMAGES + 1, 1, 0)
    assert project.verify() == []


def test_published_rows_that_are_damaged_elsewhere_are_not_carried_over(project):
    """The merge reads every page: exit code 5 and the object to move away; then the day is scored anew."""
    project.fill(DAY, IMAGES)
    project.run(*LIMITS)
    for part in project.parts():
        part.unlink()
    flip_a_bit(project, "uri")
    damaged = digest(project.data(NAME))
    project.put(f"{DAY}/late.png", level=9)
    summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.ok, summary.published) == (5, 1, 0)
    assert f"file://{project.data(NAME)} is damaged: move it away" in summary.problems[0]
    assert "damaged" in project.verify()[0].kind
    assert digest(project.data(NAME)) == damaged
    project.data(NAME).unlink()
    again = project.run(*LIMITS)
    assert (again.planned, again.ok, again.published) == (IMAGES, IMAGES, 1)
    assert project.verify() == []


def test_a_renewal_that_nobody_can_settle_is_tried_again(project, weather):
    """A lost answer and a store that is away: the renewing thread lives on, and finds its lease later."""
    prepared = project.prepared()
    held = Leases(prepared.output, "run-1", 300.0)
    held.take(f"date={NAME}")
    weather.clear()
    weather.next("put", "/_work/leases/", ("after", TimeoutError("no answer")))
    weather.always("read", "/_work/leases/", Answered(503))
    held.renew()
    weather.clear()
    before = read_lease(prepared.output, f"date={NAME}")
    held.renew()
    held.renew()
    after = read_lease(prepared.output, f"date={NAME}")
    assert after.run == "run-1"
    assert after.expires_s > before.expires_s


def test_a_take_over_whose_answer_is_lost_is_a_take_over(project, weather):
    """Reading back finds this run's own name: there is no other run, and the partition is worked on."""
    project.fill(DAY, IMAGES)
    prepared = project.prepared()
    dead = Leases(prepared.output, "dead", 0.0)
    dead.take(f"date={NAME}")
    weather.next("put", "/_work/leases/", None, ("after", TimeoutError("no answer")))
    summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.ok, summary.published, summary.problems) == (0, IMAGES, 1, [])
    assert read_lease(prepared.output, f"date={NAME}") is None


def test_a_run_record_whose_answer_is_lost_is_there(project, weather):
    """A run's name is its own: "already there" is its own put."""
    project.fill(DAY, IMAGES)
    weather.next("put", "/_work/runs/", ("after", TimeoutError("no answer")))
    summary = project.run(*LIMITS)
    assert (summary.exit_code, summary.ok, summary.published, summary.problems) == (0, IMAGES, 1, [])
    assert [n.removesuffix(".json") for n in files_below(project.folder / "out" / "_work" / "runs")] == [summary.run]


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "not yours"), FileNotFoundError(errno.ENOENT, "gone")])
def test_an_archive_that_is_taken_away_under_way_rejects_no_image(project, weather, monkeypatch, error):
    """Its policy is removed, or its disk is not mounted any more: exit 3, the command that heals, and it does."""
    project.fill(DAY, 40)
    read, reads = LocalStore.read, Counter()

    def taken_away(store, uri, **how):
        reads.update(["image"] if "/archive/" in uri else [])
        if "/archive/" in uri and reads["image"] > 30:
            raise error
        return read(store, uri, **how)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "read", taken_away)
        summary = project.run(*LIMITS, "resources.fetch_threads=1")
    assert (summary.exit_code, summary.ok, summary.rejected, summary.published) == (3, 30, 0, 0)
    assert "images that were readable before cannot be read now" in summary.problems[0]
    assert "run the same command again" in summary.problems[0]
    assert not project.data(NAME).exists()
    again = project.run(*LIMITS)
    assert (again.planned, again.ok, again.rejected, again.published, again.exit_code) == (10, 10, 0, 1, 0)
    assert project.verify() == []
