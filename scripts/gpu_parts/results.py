"""What a section found, on disk as soon as it is known: a section that is killed leaves what it had."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unet_batch.errors import ProviderMissing


class Skipped(Exception):
    """A section that cannot run here, for a reason that is no failure."""


class Results:
    """The findings of one section, in `<folder>/<section>.json`."""

    def __init__(self, folder: Path, section: str, until_s: float = 0.0) -> None:
        """until_s: seconds since 1970 at which the section must have ended; 0: no limit."""
        self.section = section
        self.found: dict[str, Any] = {}
        self._path = folder / f"{section}.json"
        self._until_s = until_s or math.inf

    def put(self, name: str, value: object) -> None:
        """Record one finding."""
        self.found[name] = value
        self._write()

    def add(self, name: str, value: object) -> None:
        """Append to the list of findings with this name."""
        self.found.setdefault(name, []).append(value)
        self._write()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A block whose error is recorded under `errors`, and does not end the section.

        Raises ProviderMissing: without its provider, a section has nothing to do.
        """
        try:
            yield
        except ProviderMissing:
            raise
        except Skipped as reason:
            self.add("left_out", f"{what}: {reason}")
        except Exception as error:
            self.add("errors", f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:600]}")

    def left_s(self) -> float:
        """Seconds that remain for this section."""
        return self._until_s - time.time()

    def has_time(self, what: str, needs_s: float) -> bool:
        """Whether something of this length still fits; if not, it is listed under `left_out`."""
        if self.left_s() >= needs_s:
            return True
        self.add("left_out", f"{what}: no time is left")
        return False

    def _write(self) -> None:
        scratch = self._path.with_suffix(".part")
        scratch.write_text(json.dumps(self.found))
        os.replace(scratch, self._path)


def read(folder: Path, section: str) -> dict[str, Any]:
    """The findings of a section, empty if it left none."""
    try:
        found: dict[str, Any] = json.loads((folder / f"{section}.json").read_text())
    except (OSError, ValueError):
        return {}
    return found
