"""Files of a draft: written only where there is none yet, unless the user said --force."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unet_batch.errors import JobError
from unet_batch.workbench.files import replace_file


def check_new(paths: Sequence[Path], *, force: bool) -> None:
    """Raise JobError if a file is there already and may not be replaced, or if a path cannot be a file."""
    for path in paths:
        if path.is_dir():
            raise JobError(f"{path} is a folder, and a file of that name has to be written: choose another --out")
    there = [str(path) for path in paths if path.exists()]
    if there and not force:
        raise JobError(
            f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already and nothing is overwritten: "
            "choose another --out, or say --force"
        )


def write_new(path: Path, data: bytes, *, force: bool) -> None:
    """Write a file that is not there yet. Raises JobError as `check_new` does."""
    check_new([path], force=force)
    replace_file(path, data)
