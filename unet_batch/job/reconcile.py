"""Compares receipts with the plan, pass by pass, and runs missing or failed units again.

The rules are in `faults`: what happens to a unit that ended with a code, and which rejections are doubtful. This module
counts how each unit ended, which images are held back, and whether so many fail in the same way that the fault is not
in the images. Every unit ends with a part, or stays open with a message.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from unet_batch.errors import HandoverFailed, ImageError, NeedsAction, TooLate
from unet_batch.job.judge import Judge, Readable
from unet_batch.planning.plan import halves
from unet_batch.records import Receipt, Unit
from unet_batch.worker import faults
from unet_batch.worker.faults import Act, course

log = logging.getLogger(__name__)


class Executor(Protocol):
    """Runs units. It may lose units, but every receipt is of a unit that was really run."""

    name: str
    """Name in records and summaries, e.g. `ray`."""
    workers: int
    """Most units that are scored at the same time."""
    loaders: int
    """Number of workers that only load; 0 if each worker loads its own units."""

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt | HandoverFailed]:
        """Run one pass: yields a receipt of every unit that was not lost, in any order.

        If units were lost by a known fault of the infrastructure, a HandoverFailed is the last item. Raises
        RayUnavailable, JobError, and the error of the starts if no worker can start.
        """

    def close(self) -> None:
        """End the workers."""


@dataclass(slots=True)
class Outcome:
    """The result of scoring: the units that are still open."""

    open: list[Unit] = field(default_factory=list)
    """Units without a part."""
    failures: dict[str, str] = field(default_factory=dict)
    """Code → one message of the faults that left them open."""
    late: int = 0
    """Sources of units that were not started because of the deadline."""


def score(
    executor: Executor,
    units: Sequence[Unit],
    salt: str,
    *,
    done: Callable[[Unit, Receipt], None],
    reject: Callable[[Unit, ImageError], Receipt],
    readable: Readable | None = None,
    scored_before: int = 0,
) -> Outcome:
    """Run the units until each has a receipt or no more tries.

    done: called once for every unit with a part. reject: writes the part of a unit with a single rejected image.
    readable: whether images that were readable before still are; called before refused reads become rows.
    scored_before: images that earlier runs scored with the same fingerprint.
    Raises ProviderMissing, ContractError, ModelRefused or JobError at the first receipt with one of them, and
    NeedsAction if most units fail in the same way.
    """
    reconciliation = _Reconciliation(executor, done, reject, Judge(salt, readable, scored_before), salt)
    waiting = list(units)
    while waiting:
        alone = [u for u in waiting if reconciliation.runs_alone(u)]
        together = [u for u in waiting if not reconciliation.runs_alone(u)]
        # A suspect runs alone, so that the crash of another unit is not counted for it.
        passes = ([together] if together else []) + [[unit] for unit in alone]
        waiting = [unit for some in passes for unit in reconciliation.run(some)]
        if waiting:
            log.warning("%d unit(s) have no receipt and run again", len(waiting))
    return reconciliation.outcome


class _Reconciliation:
    """The state of the comparison over all passes."""

    def __init__(
        self,
        executor: Executor,
        done: Callable[[Unit, Receipt], None],
        reject: Callable[[Unit, ImageError], Receipt],
        judge: Judge,
        salt: str,
    ) -> None:
        self.outcome = Outcome()
        self._executor = executor
        self._fault: HandoverFailed | None = None
        """The known infrastructure fault by which the last pass lost units, else None."""
        self._salt = salt
        self._done = done
        self._reject = reject
        self._judge = judge
        self._times: Counter[tuple[str, str]] = Counter()
        """(unit id, code) → how often the unit ended with it."""
        self._failed = 0
        """Units, of any size, with a failure that an image can cause."""
        self._suspects: set[str] = set()
        """Units that were lost once and run again in isolation."""
        self._alone: set[str] = set()
        """Lost units and their halves; each unit of a single image among them gets its own pass."""
        self._lost_twice: set[str] = set()
        self._passes_without_progress = 0
        """Consecutive passes without any receipt, because of infrastructure faults."""
        self._unfit = 0
        """Consecutive single images that failed by infrastructure faults."""
        self._stopped: tuple[str, str] | None = None
        """Code and message of a lasting fault: waiting units are left open."""

    def runs_alone(self, unit: Unit) -> bool:
        """Whether a unit's single image may have killed its process, or needs the memory of others."""
        return len(unit.sources) == 1 and unit.unit_id in self._alone

    def run(self, units: Sequence[Unit]) -> list[Unit]:
        """Run the units once; returns the units to run next."""
        if self._stopped is not None:
            return self._left_open(units, *self._stopped)
        fault = self._fault
        if fault is not None and (self._passes_without_progress > faults.RETRIES or self._unfit >= faults.SYSTEMATIC):
            return self._left_open(units, fault.code, str(fault))
        missing = {unit.unit_id: unit for unit in units}
        again = self._receive(units, missing)
        if self._stopped is not None:
            return self._left_open([*again, *self._judge.taken(), *missing.values()], *self._stopped)
        fault = self._fault
        if missing and fault is not None:
            return [*again, *self._after_judgement(), *self._after_fault(list(missing.values()), fault, units)]
        self._passes_without_progress = self._unfit = 0
        # A dying process loses other units too; only a second loss, in isolation, counts for the unit.
        self._lost_twice |= self._suspects & missing.keys()
        _refuse_systematic(len(self._lost_twice), len(self._suspects), "their processes died or ran out of time")
        again += self._after_judgement()
        for unit in missing.values():
            again += self._after_end(unit, faults.LOST, "its process died while it was alone")
        return again

    def _receive(self, units: Sequence[Unit], missing: dict[str, Unit]) -> list[Unit]:
        """Process the receipts of a pass; returns units to run again. `missing` keeps the units without a receipt."""
        again: list[Unit] = []
        in_a_row, enough = 0, faults.IN_A_ROW + 2 * self._executor.workers
        self._fault = None
        for receipt in self._executor.run(units):
            if isinstance(receipt, HandoverFailed):
                self._fault = receipt
                continue
            unit = missing.pop(receipt.unit_id, None)
            if unit is None:
                continue  # Ray ran the task twice; the part is the same
            if receipt.failure is None:
                refused = self._arrived(unit, receipt)
            else:
                again += self._after_end(unit, *receipt.failure, suspect=receipt.suspect)
                refused = receipt.failure if faults.is_machines(receipt.failure[0]) else None
            in_a_row = in_a_row + 1 if refused is not None else 0
            if refused is not None and in_a_row >= enough:
                self._stopped, in_a_row = self._lasting(unit, *refused), 0
                if self._stopped is not None:
                    break
        return again

    def _arrived(self, unit: Unit, receipt: Receipt) -> tuple[str, str] | None:
        """Record a part and the images held back. Returns reason and message if there were only refused reads."""
        part = unit.without([held.position for held in receipt.held])
        if part.sources:
            self._judge.scored(part)
            self._done(part, receipt)
        self._judge.hold(unit, receipt.held)
        refused = [held for held in receipt.held if held.reason in faults.NOT_READABLE]
        return (refused[0].reason, refused[0].message) if refused and not part.sources else None

    def _lasting(self, unit: Unit, code: str, message: str) -> tuple[str, str] | None:
        """Code and message of a fault that stops the pass, unless other images are readable."""
        if code not in faults.NOT_READABLE:
            return code, message
        sentence = self._judge.withdrawn(unit, message)
        return None if sentence is None else (code, sentence)

    def _after_end(self, unit: Unit, code: str, message: str, *, suspect: int | None = None) -> list[Unit]:
        """Apply the rule for a unit that ended with a code; returns units to run again."""
        times, ways = self._times, course(code)
        if code == faults.LOST and unit.isolate and not times[unit.unit_id, code]:
            times[unit.unit_id, code] = 1  # counts for the whole unit, before it is halved
        times[unit.unit_id, code] += 1
        act = ways.act(len(unit.sources), times[unit.unit_id, code])
        if code == TooLate.code:
            self.outcome.open.append(unit)
            self.outcome.late += len(unit.sources)
            return []
        if ways.reason is not None and code != faults.LOST:
            self._failed += 1
            if not self._judge.images_scored and self._failed >= faults.HOPELESS:
                _refuse_systematic(self._failed, self._failed, message)
        if code == faults.LOST and not unit.isolate:
            self._suspects.add(unit.unit_id)
        if code in (faults.LOST, HandoverFailed.code):
            self._alone.add(unit.unit_id)
        if act is Act.END:
            raise faults.ENDS[code](message)
        if act is Act.HALVE:
            return self._smaller(unit, code, suspect)
        if act is Act.OPEN:
            return self._left_open([unit], code, message)
        if act is Act.ROW and ways.reason is not None:
            self._judge.failed_alone(unit, ways.reason, message)
            return self._after_judgement() if code == faults.LOST else []
        return [replace(unit, isolate=True)] if act is Act.APART else [unit]

    def _smaller(self, unit: Unit, code: str, suspect: int | None) -> list[Unit]:
        if suspect is not None:
            found, others = unit.without(set(range(len(unit.sources))) - {suspect}), unit.without({suspect})
            return [replace(found, isolate=True), others]
        pieces = [replace(half, isolate=unit.isolate or code == faults.LOST) for half in halves(unit, self._salt)]
        if code == faults.LOST:
            self._alone |= {piece.unit_id for piece in pieces}
        return pieces

    def _after_judgement(self) -> list[Unit]:
        """Write the certain rows, leave faults of the infrastructure open, and return the rest to run again."""
        verdict = self._judge.judge()
        for unit, error in verdict.rows:
            self._done(unit, self._reject(unit, error))
        for units, code, message in verdict.open:
            self._left_open(units, code, message)
        return verdict.again

    def _left_open(self, units: Sequence[Unit], code: str, message: str) -> list[Unit]:
        if units:
            first = units[0]
            log.error("%d unit(s) left open, %s of %s: %s", len(units), first.unit_id, first.partition, message)
            self.outcome.open += units
            self.outcome.failures[code] = message
        return []

    def _after_fault(self, lost: Sequence[Unit], fault: HandoverFailed, units: Sequence[Unit]) -> list[Unit]:
        """Halve units lost by an infrastructure fault: they need less memory. No image is suspected or rejected."""
        log.warning("%d of %d unit(s) were lost: %s", len(lost), len(units), fault)
        self._passes_without_progress = self._passes_without_progress + 1 if len(lost) == len(units) > 1 else 0
        again: list[Unit] = []
        for unit in lost:
            if len(unit.sources) > 1:
                again += halves(unit, self._salt) if unit.isolate else [replace(unit, isolate=True)]
                continue
            next_units = self._after_end(unit, fault.code, str(fault))
            self._unfit += not next_units
            again += next_units
        return again


def _refuse_systematic(count: int, units: int, what: str) -> None:
    """Raise NeedsAction if most units fail: the fault is not in the images, so they must not be rejected one by one."""
    if faults.systematic(count, units):
        raise NeedsAction(
            f"{count} of {units} units failed in the same way, so the fault is not in the images: {what}. Correct the "
            "model or the machine; finished units are staged"
        )
