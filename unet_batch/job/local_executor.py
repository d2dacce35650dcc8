"""The same stages in a plain loop in this process: the reference, the debugger and most tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from unet_batch.errors import AlreadyExists
from unet_batch.records import Receipt, Unit
from unet_batch.session.session import Device
from unet_batch.table.output import Output
from unet_batch.worker.notes import LoggedNotes
from unet_batch.worker.scorer import Scorer
from unet_batch.worker.worker import Settings, build_infer, build_load


class LocalExecutor:
    """Scores units one after the other.

    Nothing stands between a poisonous image and this process, so each unit's start leaves an empty marker in the store,
    removed at its end: a unit that killed an earlier process is decoded in isolation from the start.
    """

    name = "local"
    workers = 1
    loaders = 0

    def __init__(self, settings: Settings, *, threads: int = 1) -> None:
        infer = build_infer(settings, Device(threads=threads))
        # Nothing is limited here; the watchdog only prints where a slow unit stands.
        self._scorer = Scorer(build_load(settings), infer, limit_s=math.inf, notes=LoggedNotes())
        self._output = Output.of(settings.job.output)
        self._begun: str | None = None
        """Marker of the unit under work."""

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """A receipt for every unit, in order."""
        for unit in units:
            self._begun = marker = self._output.attempt(unit.unit_id)
            try:
                self._output.store.create(marker, b"")
                tried = False
            except AlreadyExists:
                tried = True
            receipt = self._scorer(replace(unit, isolate=True) if tried else unit)
            yield receipt
            if not receipt.held:  # else it may have killed an earlier process, and has no row that says so
                self._output.store.delete(marker)
            self._begun = None

    def close(self) -> None:
        """Remove the marker of a unit that was left in the middle: this process lives, so the unit did not kill it."""
        if self._begun is not None:
            self._output.store.delete(self._begun)
