"""Picture collections of other projects, downloaded once: oracles for readers and food for whole-job tests."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PILLOW = "13.0.0"
DOWNLOAD_TIMEOUT_S = 300


def cache_folder() -> Path:
    """$UNET_BATCH_CACHE, else ~/.cache/unet-batch-tests."""
    return Path(os.environ.get("UNET_BATCH_CACHE") or Path.home() / ".cache" / "unet-batch-tests")


@contextlib.contextmanager
def one_fetches(name: str) -> Iterator[None]:
    """Of the processes that need what the cache lacks, one brings it; the others wait here, and look again inside."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the block, and with the process
        yield


def pillow_test_images() -> Path:
    """The folder with Pillow's own 1,060 test files (59 MB); skips the test with a reason where it cannot be had.

    pip fetches the source distribution (47 MB) from the index that this machine is configured for.
    """
    folder = cache_folder() / f"pillow-{PILLOW}-images"
    with one_fetches(folder.name):
        if not folder.is_dir():
            _unpack(_sdist(), folder)
    return folder


def _sdist() -> Path:
    archive = cache_folder() / f"pillow-{PILLOW}.tar.gz"
    if archive.is_file():
        return archive
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "pillow"]
    try:
        subprocess.run(
            [*command, "--dest", str(archive.parent), f"pillow=={PILLOW}"],
            check=True,
            capture_output=True,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"Pillow's source distribution cannot be downloaded: {type(error).__name__}")
    if not archive.is_file():
        pytest.skip(f"pip left no {archive.name}")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    """Through a temporary name, so that a killed test leaves no half collection."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    inside = f"pillow-{PILLOW}/Tests/images/"
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and m.name.startswith(inside)]
        for member in members:
            member.name = member.name.removeprefix(inside)
        tar.extractall(partial, members=members, filter="data")
    partial.rename(folder)
