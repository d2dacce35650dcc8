"""Load and Infer of one process: a unit in, its receipt out, each stage watched."""

from __future__ import annotations

import threading

from unet_batch.records import Receipt, Unit
from unet_batch.worker.infer import Infer
from unet_batch.worker.load import Load
from unet_batch.worker.watchdog import Notes, of_this_process


class Scorer:
    """Scores units. Thread-safe.

    One thread computes at a time (two threads that share the interpreter's lock are a fifth slower); others fetch.
    """

    def __init__(self, load: Load, infer: Infer, *, limit_s: float, notes: Notes) -> None:
        """limit_s: seconds without progress after which the watchdog ends this process; math.inf: no limit."""
        self._load, self._infer = load, infer
        self._limit_s, self._notes = limit_s, notes
        self._core = threading.Lock()

    def __call__(self, unit: Unit) -> Receipt:
        """The unit's receipt. Raises SessionBroken if the process must be replaced."""
        dog = of_this_process()
        with dog.watch(unit, "read", limit_s=self._limit_s, notes=self._notes) as watch:
            fetched = self._load.fetch(unit, watch.step)
        with self._core:
            with dog.watch(unit, "decode", limit_s=self._limit_s, notes=self._notes) as watch:
                loaded = self._load.decode(fetched, watch.step)
            with dog.watch(unit, "score", limit_s=self._limit_s, notes=self._notes) as watch:
                return self._infer(loaded, watch.step)
