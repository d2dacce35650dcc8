"""The end of a run is a comparison of receipts with the plan: lost units go round again, smaller and in isolation.

A unit without a receipt was lost with its process. It is decoded in isolation next time, then halved, until the one
poisonous image is alone and becomes a rejection; innocent neighbours are scored on the way. Faults of the machinery
(storage, memory of the host, a full disk between two actors) never become rows: their units stay open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from unet_batch.errors import (
    ContractError,
    HandoverFailed,
    ImageError,
    JobError,
    ModelRefused,
    ProviderMissing,
    Reason,
    TooLate,
    UnetBatchError,
)
from unet_batch.job.plan import halves
from unet_batch.records import Receipt, Unit

log = logging.getLogger(__name__)

SYSTEMATIC = 4
"""Fewer failing units than this prove nothing about the machinery."""
HOPELESS = 64
"""After so many failing units and not one scored image, the rest is not tried."""
RETRIES = 2
"""How often a unit goes round again after a fault of the machinery."""
FATAL = {cls.code: cls for cls in (ProviderMissing, ContractError, ModelRefused, JobError)}
HALVED = ("model.failed", "model.shape_mismatch", "unexpected")
"""Failures that one image can cause: its unit is halved until that image is alone."""


class Executor(Protocol):
    """What runs units. It may lose some; it never invents a receipt."""

    name: str
    workers: int
    """Units that are scored at a time, at most."""
    loaders: int
    """Workers that only load; 0 where each one loads its own units."""
    fault: HandoverFailed | None
    """Why units were lost in the pass that ended last, where it is known and no image can have done it."""

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt]: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Outcome:
    """What is left when every unit had its chances."""

    open: list[Unit] = field(default_factory=list)
    """Units that left no part."""
    failures: dict[str, str] = field(default_factory=dict)
    """One message by code, of the faults that left them open."""
    late: int = 0
    """Sources of units that the run's deadline kept from being begun."""


def score(
    executor: Executor,
    units: Sequence[Unit],
    mark: str,
    *,
    done: Callable[[Unit, Receipt], None],
    reject: Callable[[Unit, ImageError], Receipt],
) -> Outcome:
    """Run the units until each has a receipt or no more chances.

    done: called once for every unit with a part. reject: writes the part of a unit whose one image no process survives.
    Raises ProviderMissing, ContractError, ModelRefused or JobError at the first receipt that tells of one, and
    UnetBatchError when most units fail alike.
    """
    reconciliation = _Reconciliation(executor, mark, done, reject)
    waiting = list(units)
    while waiting:
        alone = [u for u in waiting if u.isolate and len(u.sources) == 1]
        together = [u for u in waiting if not (u.isolate and len(u.sources) == 1)]
        # A single suspect runs by itself: nobody else's crash may be counted against it.
        passes = ([together] if together else []) + [[unit] for unit in alone]
        waiting = [unit for some in passes for unit in reconciliation.run(some)]
        if waiting:
            log.warning("%d unit(s) did not come back and go round again", len(waiting))
    return reconciliation.outcome


class _Reconciliation:
    """Compares receipts with what was asked for, pass by pass."""

    def __init__(
        self,
        executor: Executor,
        mark: str,
        done: Callable[[Unit, Receipt], None],
        reject: Callable[[Unit, ImageError], Receipt],
    ) -> None:
        self.outcome = Outcome()
        self._executor = executor
        self._mark = mark
        self._done = done
        self._reject = reject
        self._tries: dict[tuple[str, str], int] = {}
        self._scored = 0
        """Images with a row."""
        self._failed = 0
        """Units, of whatever size, that failed as an image can make them fail."""
        self._condemned: list[tuple[Unit, str]] = []
        """Single images that failed so in this pass."""
        self._blamed = 0
        self._suspects: set[str] = set()
        """Units that were lost once, and run again in isolation."""
        self._lost_twice: set[str] = set()
        self._dry = 0
        """Passes in a row from which the machinery let nothing come back."""
        self._unfit = 0
        """Single images in a row that the machinery did not let through."""

    def run(self, units: Sequence[Unit]) -> list[Unit]:
        """Run the units once; the units to run next."""
        fault = self._executor.fault
        if fault is not None and (self._dry > RETRIES or self._unfit >= SYSTEMATIC):
            return self._left_open(units, fault.code, str(fault))
        missing = {unit.unit_id: unit for unit in units}
        again: list[Unit] = []
        self._condemned = []
        for receipt in self._executor.run(units):
            unit = missing.pop(receipt.unit_id, None)
            if unit is None:
                continue  # a task that Ray ran twice; its part is the same part
            if receipt.failure is None:
                self._scored += len(unit.sources)
                self._done(unit, receipt)
                continue
            again += self._after_failure(unit, *receipt.failure)
        fault = self._executor.fault
        if missing and fault is not None:
            self._judge()
            return again + self._after_fault(list(missing.values()), fault, units)
        self._dry = self._unfit = 0
        # A process that dies takes other units along; only a second loss, in isolation, speaks of the unit itself.
        self._lost_twice |= self._suspects & missing.keys()
        _refuse_systematic(len(self._lost_twice), len(self._suspects), "their processes died or ran out of time")
        self._judge()
        return again + [next_unit for unit in missing.values() for next_unit in self._after_loss(unit)]

    def _after_failure(self, unit: Unit, code: str, message: str) -> list[Unit]:
        if code in FATAL:
            raise FATAL[code](message)
        if code == TooLate.code:
            self.outcome.open.append(unit)
            self.outcome.late += len(unit.sources)
            return []
        if code in HALVED:
            self._failed += 1
            if not self._scored and self._failed >= HOPELESS:
                _refuse_systematic(self._failed, self._failed, message)
        if code == "unit.too_large" or (code in HALVED and len(unit.sources) > 1):
            return [replace(half, isolate=unit.isolate) for half in halves(unit, self._mark)]
        if code in HALVED:
            self._condemned.append((unit, message))
            return []
        return [unit] if self._tried(unit) <= RETRIES else self._left_open([unit], code, message)

    def _left_open(self, units: Sequence[Unit], code: str, message: str) -> list[Unit]:
        first = units[0]
        log.error("%d unit(s) left open, %s of %s: %s", len(units), first.unit_id, first.partition, message)
        self.outcome.open += units
        self.outcome.failures[code] = message
        return []

    def _judge(self) -> None:
        """Reject the images that failed alone, unless more images failed than were ever scored."""
        self._blamed += len(self._condemned)
        if self._condemned:
            _refuse_systematic(self._blamed, self._blamed + self._scored, self._condemned[0][1])
        for unit, message in self._condemned:
            self._rejected(unit, Reason.MODEL_FAILED, message)

    def _after_fault(self, lost: Sequence[Unit], fault: HandoverFailed, units: Sequence[Unit]) -> list[Unit]:
        """Smaller units need less room between two actors; nobody is suspected, and nobody is rejected."""
        log.warning("%d of %d unit(s) were lost: %s", len(lost), len(units), fault)
        self._dry = self._dry + 1 if len(lost) == len(units) > 1 else 0
        again: list[Unit] = []
        for unit in lost:
            if len(unit.sources) > 1:
                again += halves(unit, self._mark) if unit.isolate else [replace(unit, isolate=True)]
            elif self._tried(unit, fault.code) <= RETRIES:
                again.append(replace(unit, isolate=True))
            else:
                self._unfit += 1
                again += self._left_open([unit], fault.code, str(fault))
        return again

    def _after_loss(self, unit: Unit) -> list[Unit]:
        if not unit.isolate:
            self._suspects.add(unit.unit_id)
            return [replace(unit, isolate=True)]
        if len(unit.sources) > 1:
            return halves(unit, self._mark)
        if self._tried(unit) == 1:
            return [unit]
        return self._rejected(
            unit, Reason.MODEL_CRASHED, "its process died or ran out of time twice while it was alone"
        )

    def _tried(self, unit: Unit, how: str = "") -> int:
        """How often a unit was tried and ended so, this time included."""
        self._tries[unit.unit_id, how] = self._tries.get((unit.unit_id, how), 0) + 1
        return self._tries[unit.unit_id, how]

    def _rejected(self, unit: Unit, reason: Reason, message: str) -> list[Unit]:
        self._done(unit, self._reject(unit, ImageError(reason, message)))
        return []


def _refuse_systematic(count: int, units: int, what: str) -> None:
    """When most fail it is not their images: stop, rather than reject an archive image by image."""
    if count >= SYSTEMATIC and count > units / 2:
        raise UnetBatchError(f"{count} of {units} units failed alike, so the fault is not in their images: {what}")
