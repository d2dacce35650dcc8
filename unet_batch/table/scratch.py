"""Temporary folders, and removal of those of killed processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "unet-batch-scratch-"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of this process, removed at the end. Folders of dead processes are removed first.

    The owner holds a file lock, which ends with the process: a PID may be reused, and is not unique between containers
    that share a temporary folder. Raises OSError if the disk is full.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove(left, _lock(left))
    while (lock := _lock(folder := Path(tempfile.mkdtemp(prefix=PREFIX)))) is None:
        continue  # another process removed it as a leftover before it was locked
    try:
        yield folder
    finally:
        _remove(folder, lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that locks the folder; None if a living process holds it, or if it is gone."""
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
