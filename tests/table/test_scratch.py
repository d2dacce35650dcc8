"""Local room: gone at the end, and gone when its owner was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from unet_batch.table.scratch import PREFIX, scratch_folder


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_uses_stays(tmp_path, monkeypatch):
    """Up to the size of a partition, for every kill."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os,signal;from unet_batch.table.scratch import scratch_folder\n"
        "with scratch_folder() as f: (f/'data').write_bytes(b'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    [left] = tmp_path.iterdir()
    mine, foreign = tmp_path / f"{PREFIX}{os.getpid()}-x", tmp_path / f"{PREFIX}notes"
    mine.mkdir()
    foreign.mkdir()
    with scratch_folder() as folder:
        assert not left.exists()
        assert {mine, foreign, folder} == set(tmp_path.iterdir())
    assert not folder.exists()
