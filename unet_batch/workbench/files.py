"""Atomic writes of model files to the local disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from unet_batch.errors import JobError


def replace_file(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see the old file or the new one. Raises JobError."""
    draft = _draft(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is reported
            draft.unlink(missing_ok=True)
        raise JobError(f"{path} cannot be written: {error.strerror or error}") from error


def check_place(path: Path) -> None:
    """Raise the JobError of `replace_file` now, before work that takes minutes; leaves nothing but missing folders."""
    if path.is_dir():
        raise JobError(f"{path} cannot be written: it is a folder")
    draft = _draft(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror or error}") from error


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.draft")
