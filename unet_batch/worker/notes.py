"""Notes about slow units in the output's store, written by workers and read by the driver.

A note is a small object, `_work/attempts/<unit>.note`. It is put and updated while a unit takes long, and removed when
the unit is done. It remains if the process dies, and tells that the watchdog ended it, in which stage and at which
image.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, fields

from unet_batch.errors import NotFound, StorageError
from unet_batch.records import Receipt, Unit
from unet_batch.table.output import Output
from unet_batch.worker.faults import SILENT_DECODE, SILENT_READ, SILENT_SCORE
from unet_batch.worker.watchdog import Note

log = logging.getLogger(__name__)


def silence(unit: Unit, note: Note, unit_timeout_s: float) -> Receipt:
    """The receipt of a unit whose process the watchdog ended, from its last note."""
    text = (
        f"no progress for {note.silent_s:.0f} s ({note}), more than limits.unit_timeout_s: {unit_timeout_s:g}; raise "
        "the limit if the image is valid"
    )
    code = {"read": SILENT_READ, "decode": SILENT_DECODE, "score": SILENT_SCORE}[note.stage]
    suspect = note.source if len(unit.sources) > 1 else None
    return Receipt(unit.unit_id, unit.partition, 0, 0, 0, failure=(code, text), suspect=suspect)


class StoredNotes:
    """The notes of one run; those of other runs are ignored."""

    def __init__(self, output: Output, run_id: str) -> None:
        self._output, self._run_id = output, run_id

    def put(self, note: Note) -> None:
        """Write a note; it replaces an older one about the same unit."""
        self._output.store.put(
            self._output.note(note.unit_id), json.dumps({"run": self._run_id, **asdict(note)}).encode()
        )

    def remove(self, unit_id: str) -> None:
        """Delete the note about a unit."""
        self._output.store.delete(self._output.note(unit_id))

    def get(self, unit_id: str) -> Note | None:
        """The note of this run about a unit, or None."""
        return self._read(self._output.note(unit_id))

    def all(self) -> Iterator[Note]:
        """Every note of this run. Raises StorageError."""
        for found in self._output.store.list(self._output.attempts):
            if found.uri.endswith(".note") and (note := self._read(found.uri)) is not None:
                yield note

    def _read(self, uri: str) -> Note | None:
        try:
            tree = json.loads(self._output.store.read(uri, max_bytes=1 << 16))
            known = {name.name: tree[name.name] for name in fields(Note)}
            return Note(**known) if tree["run"] == self._run_id else None
        except NotFound:
            return None
        except (StorageError, ValueError, KeyError, TypeError):
            log.debug("the note %s cannot be read", uri, exc_info=True)
            return None


class LoggedNotes:
    """Notes of the plain loop: log lines."""

    def put(self, note: Note) -> None:
        """Log the state of the work."""
        log.info("%s", note)

    def remove(self, unit_id: str) -> None:
        """Nothing was kept."""
