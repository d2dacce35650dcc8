"""Atomic writes of model files to the local disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from unet_batch.errors import JobError


def replace_file(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see the old file or the new one. Raises JobError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is reported
            draft.unlink(missing_ok=True)
        raise JobError(f"{path} cannot be written: {error.strerror or error}") from error
