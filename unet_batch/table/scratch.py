"""Room on the local disk for a file that is about to be published, and the end of what killed processes left of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "unet-batch-rows-"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of this process, gone at the end; those of processes that no longer live are removed first.

    Its owner holds a lock on it, which ends with the process: a PID says nothing between containers that share a
    temporary folder, and may be another process's by now. Raises OSError where the disk is full.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove(left, _lock(left))
    while (lock := _lock(folder := Path(tempfile.mkdtemp(prefix=PREFIX)))) is None:
        continue  # another process took it for one that was left, before it was locked
    try:
        yield folder
    finally:
        _remove(folder, lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder; None where a living process does, or where it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path, lock: int | None) -> None:
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
