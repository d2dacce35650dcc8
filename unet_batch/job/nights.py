"""The nights beside a partition: what the nearest published ones of the same model and settings counted."""

from __future__ import annotations

import logging
from bisect import bisect_left

from unet_batch.errors import StorageError
from unet_batch.planning.survey import published_partitions
from unet_batch.table.output import Output
from unet_batch.table.publish import read_tally
from unet_batch.table.tally import Tally

log = logging.getLogger(__name__)

NIGHTS = 7
"""A week, so that weekdays with other images are among them."""
MOST_READ = 14
"""Footers that are read for them: nights of another fingerprint do not count."""


class Nights:
    """Reads the tallies of published nights, each once."""

    def __init__(self, output: Output, fingerprint: str) -> None:
        self._output = output
        self._fingerprint = fingerprint
        self._names: list[str] | None = None
        self._tallies: dict[str, Tally | None] = {}

    def beside(self, partition: str) -> tuple[Tally, ...]:
        """At most NIGHTS tallies: of the nights before it, the nearest first, then of those after it.

        Empty for a partition that is not a day. A store that fails costs the comparison, not the publication.
        """
        if not partition.startswith("date="):
            return ()
        try:
            return self._beside(partition)
        except StorageError as error:
            log.warning("%s is not compared with other nights: %s", partition, error)
            return ()

    def published(self, partition: str, tally: Tally) -> None:
        """Note a night that this run published."""
        self._tallies[partition] = tally
        if self._names is not None and partition not in self._names:
            self._names = sorted([*self._names, partition])

    def _beside(self, partition: str) -> tuple[Tally, ...]:
        if self._names is None:
            self._names = sorted({*published_partitions(self._output), *self._tallies})
        rest = _bucket(partition)
        names = [name for name in self._names if name != partition and _bucket(name) == rest]
        place = bisect_left(names, partition)
        found: list[Tally] = []
        for name in [*reversed(names[:place]), *names[place:]][:MOST_READ]:
            tally = self._read(name)
            if tally is not None:
                found.append(tally)
            if len(found) == NIGHTS:
                break
        return tuple(found)

    def _read(self, name: str) -> Tally | None:
        if name not in self._tallies:
            self._tallies[name] = read_tally(self._output, name, self._fingerprint)
        return self._tallies[name]


def _bucket(partition: str) -> str | None:
    """What follows the day in a partition's name; None for a partition that is not a day."""
    day, _, rest = partition.partition("/")
    return rest if day.startswith("date=") else None
