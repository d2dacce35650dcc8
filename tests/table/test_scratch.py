"""Local room: gone at the end, and gone when its owner was killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from unet_batch.table.scratch import PREFIX, scratch_folder

WAITS = """
import sys, time
from unet_batch.table.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "data").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def room(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def owner(room: Path, *before: str) -> subprocess.Popen[str]:
    """A process that has made its folder and keeps it."""
    command = [*before, sys.executable, "-c", WAITS]
    made = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(room)}, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert Path(made.stdout.readline().strip()).parent == room
    return made


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_uses_stays(room):
    """Up to the size of a partition, for every kill."""
    lives = owner(room)
    [used] = room.iterdir()
    dies = owner(room)
    foreign = room / "unet-batch-notes"
    foreign.mkdir()
    try:
        dies.kill()
        dies.wait()
        assert len(list(room.iterdir())) == 3
        with scratch_folder() as folder:
            assert set(room.iterdir()) == {used, foreign, folder}
        assert set(room.iterdir()) == {used, foreign}
        assert (used / "data").read_bytes() == b"x"
    finally:
        lives.kill()
        lives.wait()


def test_a_live_process_of_another_container_keeps_its_folder(room):
    """Its number means nothing here, or is another process's: it shares the temporary folder and the kernel."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system makes no PID namespace for us")
    lives = owner(room, *unshare)
    [used] = room.iterdir()
    try:
        with scratch_folder() as folder:
            assert set(room.iterdir()) == {used, folder}
    finally:
        lives.kill()
        lives.wait()


def _come_and_go(folder: str, times: int) -> None:
    tempfile.tempdir = folder
    for _ in range(times):
        with scratch_folder() as mine:
            (mine / "data").write_bytes(b"x")
            assert (mine / "data").read_bytes() == b"x"


def test_processes_that_come_and_go_never_lose_their_folder(room):
    """Each sweeps before it begins: a folder that was just made, and is not locked yet, may be swept and made anew."""
    context = multiprocessing.get_context("spawn")
    crowd = [context.Process(target=_come_and_go, args=(str(room), 200)) for _ in range(3)]
    [process.start() for process in crowd]
    [process.join(60) for process in crowd]
    assert [process.exitcode for process in crowd] == [0, 0, 0]
    assert list(room.glob(f"{PREFIX}*")) == []
