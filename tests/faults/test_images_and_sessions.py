"""Images that crash, hang or swell, and sessions that fail: one row each, or an open unit; never a wrong number."""

from __future__ import annotations

import os
import signal
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import poison
import pytest
from faulty import ended, until
from project_fixture import SIZE, png
from strikes import HOG

from unet_batch.errors import ModelFailed, NeedsAction, OutOfMemory, SessionBroken
from unet_batch.model.model import Model
from unet_batch.session.session import Array, Session
from unet_batch.worker import worker

pytestmark = pytest.mark.slow

DAY, NAME = "2026/11/21", "2026-11-21"
WHITE = {"bright_rows": SIZE}
"""An image that a played session can tell from all others: every pixel of it is 255."""


def bomb(side: int) -> bytes:
    """A PNG of side² black pixels in a few kilobytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def reasons(project) -> dict[str, str | None]:
    return {row["uri"][-7:-4]: row["reason"] for row in project.rows(NAME)}


def test_a_crash_a_hang_a_hog_and_a_bomb_cost_a_row_each_in_the_plain_loop(faulty):
    """Each death costs one run its life and no image twice: the marker it left isolates that unit in the next run."""
    project = faulty.project
    limits = ("limits.unit_images=1", "limits.image_timeout_s=2", "limits.max_rejected=4",
              "limits.decode_memory_bytes=300000000")  # fmt: skip
    project.fill(DAY, 8)
    hangs = png(3) + poison.HANG
    project.put(f"{DAY}/001.png", png(1) + poison.CRASH)
    project.put(f"{DAY}/003.png", hangs)
    project.put(f"{DAY}/005.png", png(5) + HOG)
    project.put(f"{DAY}/006.png", bomb(8000))
    assert ended(faulty.start(overrides=limits)) == 1
    second = faulty.start(overrides=limits)
    until(lambda: faulty.decoded()[poison.hash_of(hangs)] == 1, "the second run reaches the image that hangs")
    os.kill(second.pid, signal.SIGKILL)
    assert ended(second) == -signal.SIGKILL
    assert ended(faulty.start(overrides=limits)) == -signal.SIGKILL
    last = faulty.rerun(*limits)
    assert (last.exit_code, last.planned, last.ok, last.rejected) == (0, 5, 1, 4)
    assert reasons(project) == {
        "000": None, "001": "decode.crashed", "002": None, "003": "decode.timeout", "004": None,
        "005": "decode.out_of_memory", "006": "decode.too_many_pixels", "007": None,
    }  # fmt: skip
    healthy = {poison.hash_of(png(i)) for i in (0, 2, 4, 7)}
    assert {name: n for name, n in faulty.decoded().items() if name in healthy} == dict.fromkeys(healthy, 1)
    assert faulty.decoded()[poison.hash_of(hangs)] == 4
    assert project.verify() == []
    assert faulty.left_after_sweep() == []


@dataclass
class Played:
    """A real session whose calls go through a function first."""

    inner: Session
    play: Callable[[Session, Array], Array]

    @property
    def provider(self) -> str:
        return self.inner.provider

    @property
    def device_name(self) -> str:
        return self.inner.device_name

    @property
    def model(self) -> Model:
        return self.inner.model

    def run(self, tiles: Array) -> Array:
        return self.play(self.inner, tiles)


def played(monkeypatch: pytest.MonkeyPatch, play: Callable[[Session, Array], Array]) -> None:
    """Let every session of this process run through `play`, but for the first call, which warms it."""
    real = worker.open_session

    def opened(*arguments, **options) -> Played:
        warm: list[Array] = []

        def after_warming(session: Session, tiles: Array) -> Array:
            if not warm:
                warm.append(tiles)
                return session.run(tiles)
            return play(session, tiles)

        return Played(real(*arguments, **options), after_warming)

    monkeypatch.setattr(worker, "open_session", opened)


def white(tiles: Array) -> Array:
    """Which tiles are of the image that is white all over."""
    return tiles.reshape(len(tiles), -1).min(axis=1) > 0.99


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_cost_the_image_they_belong_to(project, monkeypatch, value):
    """Neighbours of the same batch are scored."""
    project.fill(DAY, 8)
    project.put(f"{DAY}/005.png", png(5, **WHITE))

    def ill(session: Session, tiles: Array) -> Array:
        logits = session.run(tiles)
        logits[white(tiles), :, 3, 4] = value
        return logits

    played(monkeypatch, ill)
    summary = project.run()
    assert (summary.ok, summary.rejected, summary.published) == (7, 1, 1)
    assert reasons(project)["005"] == "model.non_finite_output"
    assert project.verify() == []


@pytest.mark.parametrize("error", [ModelFailed("failed"), RuntimeError("a surprise")], ids=["named", "unexpected"])
def test_a_session_that_fails_now_and_then_costs_no_image(project, monkeypatch, error):
    """Every fourth call of a batch of one: two units and then a half are cut until all twelve images have passed."""
    project.fill(DAY, 12)
    calls: list[bool] = []

    def moody(session: Session, tiles: Array) -> Array:
        calls.append(len(calls) % 4 == 3)
        if calls[-1]:
            raise error
        return session.run(tiles)

    played(monkeypatch, moody)
    summary = project.run("limits.unit_images=3", "session.batch_max=1")
    assert (summary.ok, summary.rejected, summary.published, summary.problems) == (12, 0, 1, [])
    assert (len(calls), sum(calls)) == (15, 3)
    assert project.verify() == []


def test_a_session_that_always_fails_stops_the_run_and_blames_no_image(project, monkeypatch):
    """When most units fail alike no image is rejected, and the next run with a sound session does it all."""
    project.fill(DAY, 12)

    def broken(session: Session, tiles: Array) -> Array:
        raise ModelFailed("failed")

    with monkeypatch.context() as patched:
        played(patched, broken)
        with pytest.raises(NeedsAction, match="not in the images") as stopped:
            project.run("limits.unit_images=3")
    assert stopped.value.exit_code == 5
    assert not project.data(NAME).exists()
    again = project.run("limits.unit_images=3")
    assert (again.planned, again.ok, again.published) == (12, 12, 1)


def test_an_image_that_the_model_fails_on_is_one_row_and_may_be_tried_again(project, monkeypatch):
    """Halving finds it; `failed` scores it alone when the fault is gone."""
    project.fill(DAY, 12)
    project.put(f"{DAY}/007.png", png(7, **WHITE))

    def picky(session: Session, tiles: Array) -> Array:
        if white(tiles).any():
            raise ModelFailed("not this one")
        return session.run(tiles)

    with monkeypatch.context() as patched:
        played(patched, picky)
        summary = project.run("limits.unit_images=4")
    assert (summary.ok, summary.rejected, summary.reasons) == (11, 1, {"model.failed": 1})
    assert reasons(project)["007"] == "model.failed"
    again = project.run("limits.unit_images=4", select="failed")
    assert (again.planned, again.ok, again.published) == (1, 1, 1)
    assert set(reasons(project).values()) == {None}
    assert project.verify() == []


def test_batches_that_do_not_fit_into_memory_are_made_smaller(project, monkeypatch):
    """All images are scored, in batches of two at most; what did not fit is counted."""
    project.fill(DAY, 24)
    refused: list[int] = []

    def narrow(session: Session, tiles: Array) -> Array:
        if len(tiles) > 2:
            refused.append(len(tiles))
            raise OutOfMemory(f"{len(tiles)} tiles do not fit")
        return session.run(tiles)

    played(monkeypatch, narrow)
    summary = project.run("limits.unit_images=24")
    assert (summary.ok, summary.rejected, summary.published) == (24, 0, 1)
    assert max(summary.batches) <= 2
    assert sum(size * count for size, count in summary.batches.items()) == 24
    assert summary.out_of_memory == len(refused) >= 1
    assert project.verify() == []


def test_a_machine_without_memory_publishes_nothing(project, monkeypatch):
    """No image is blamed: all stay open, one sentence says why, and an ordinary run with memory scores them."""
    project.fill(DAY, 6)

    def starved(session: Session, tiles: Array) -> Array:
        raise OutOfMemory("nothing fits")

    with monkeypatch.context() as patched:
        played(patched, starved)
        summary = project.run()
    assert (summary.exit_code, summary.published, summary.rejected, summary.remaining) == (3, 0, 0, 6)
    assert "6 of 6 images failed in the same way, so the fault is not in the images" in summary.problems[0]
    assert (project.data(NAME).exists(), project.parts()) == (False, [])
    again = project.run()
    assert (again.planned, again.ok, again.published) == (6, 6, 1)
    assert project.verify() == []


def test_a_lost_device_context_ends_the_plain_loop_and_the_next_run_goes_on(project, monkeypatch):
    """Nothing is tried again in the broken process; what it had staged stays."""
    project.fill(DAY, 12)
    calls: list[int] = []

    def lost(session: Session, tiles: Array) -> Array:
        calls.append(len(tiles))
        if len(calls) >= 3:
            raise SessionBroken("the device's context is lost")
        return session.run(tiles)

    with monkeypatch.context() as patched:
        played(patched, lost)
        with pytest.raises(SessionBroken):
            project.run("limits.unit_images=1")
    assert (calls, len(project.parts())) == ([1, 1, 1], 2)
    again = project.run("limits.unit_images=1")
    assert (again.planned, again.published) == (10, 1)
    assert project.verify() == []
