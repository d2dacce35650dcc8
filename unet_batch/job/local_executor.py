"""The stages in a loop in this process: for debugging, as a reference, and in most tests."""

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

    An image may kill this process. So each unit puts an empty marker at its start and removes it at its end; a unit
    with a marker of an earlier process is decoded in isolation.
    """

    name = "local"
    workers = 1
    loaders = 0

    def __init__(self, settings: Settings, *, threads: int = 1) -> None:
        infer = build_infer(settings, Device(threads=threads))
        # There is no limit here; the watchdog only logs slow units.
        self._scorer = Scorer(build_load(settings), infer, limit_s=math.inf, notes=LoggedNotes())
        self._output = Output.of(settings.job.output)
        self._begun: str | None = None
        """Marker of the active unit."""

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
            if not receipt.held:  # a unit that is held back has no row yet and keeps its marker
                self._output.store.delete(marker)
            self._begun = None

    def close(self) -> None:
        """Remove the marker of an unfinished unit: this process lives, so the unit did not kill it."""
        if self._begun is not None:
            self._output.store.delete(self._begun)
