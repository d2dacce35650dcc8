"""The end of a run is a comparison of receipts with the plan: lost units go round again, smaller and in isolation.

A unit without a receipt was lost with its process. It is decoded in isolation next time, then halved, until the one
poisonous image is alone and becomes a rejection; innocent neighbours are scored on the way. Faults of the machinery
(storage, memory of the host) never become rows: their units stay open.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from unet_batch.errors import ContractError, ImageError, JobError, ProviderMissing, Reason, UnetBatchError
from unet_batch.job.plan import halves
from unet_batch.records import Receipt, Unit

log = logging.getLogger(__name__)

RETRIES = 2
"""How often a unit goes round again after a fault of the machinery."""
FATAL = {cls.code: cls for cls in (ProviderMissing, ContractError, JobError)}
HALVED = ("session.failed", "model.shape_mismatch", "unexpected")
"""Failures that one image can cause: its unit is halved until that image is alone."""


class Executor(Protocol):
    """What runs units. It may lose some; it never invents a receipt."""

    name: str
    workers: int

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt]: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Outcome:
    """What is left when every unit had its chances."""

    open: list[Unit] = field(default_factory=list)
    """Units that left no part."""
    failures: dict[str, str] = field(default_factory=dict)
    """One message by code, of the faults that left them open."""


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
    Raises ProviderMissing, ContractError or JobError at the first receipt that tells of one.
    """
    outcome = Outcome()
    tries: dict[str, int] = {}
    waiting = list(units)
    while waiting:
        alone = [u for u in waiting if u.isolate and len(u.sources) == 1]
        together = [u for u in waiting if not (u.isolate and len(u.sources) == 1)]
        waiting = []
        if together:
            waiting += _pass(executor, together, mark, done, outcome, tries, reject)
        for unit in alone:  # one at a time: nobody else's crash may be counted against a single image
            waiting += _pass(executor, [unit], mark, done, outcome, tries, reject)
        if waiting:
            log.warning("%d unit(s) did not come back and go round again", len(waiting))
    return outcome


def _pass(
    executor: Executor,
    units: Sequence[Unit],
    mark: str,
    done: Callable[[Unit, Receipt], None],
    outcome: Outcome,
    tries: dict[str, int],
    reject: Callable[[Unit, ImageError], Receipt],
) -> list[Unit]:
    """Run the units once; the units to run next."""
    missing = {unit.unit_id: unit for unit in units}
    again: list[Unit] = []
    suspicious = 0
    for receipt in executor.run(units):
        unit = missing.pop(receipt.unit_id, None)
        if unit is None:
            continue  # a task that Ray ran twice; its part is the same part
        if receipt.failure is None:
            done(unit, receipt)
        else:
            suspicious += receipt.failure[0] in HALVED
            _refuse_systematic(suspicious, len(units), receipt.failure[1])
            again += _after_failure(unit, receipt.failure, mark, outcome, tries, done, reject)
    _refuse_systematic(len(missing), len(units), "their processes died or ran out of time")
    for unit in missing.values():
        again += _after_loss(unit, mark, tries, done, reject)
    return again


def _refuse_systematic(count: int, units: int, what: str) -> None:
    """When most units fail it is not their images: stop, rather than reject an archive image by image."""
    if count >= 4 and count > units / 2:
        raise UnetBatchError(f"{count} of {units} units failed alike, so the fault is not in their images: {what}")


def _after_failure(
    unit: Unit,
    failure: tuple[str, str],
    mark: str,
    outcome: Outcome,
    tries: dict[str, int],
    done: Callable[[Unit, Receipt], None],
    reject: Callable[[Unit, ImageError], Receipt],
) -> list[Unit]:
    code, message = failure
    if code in FATAL:
        raise FATAL[code](message)
    if code == "unit.too_large":
        return [replace(half, isolate=unit.isolate) for half in halves(unit, mark)]
    if code in HALVED:
        if len(unit.sources) > 1:
            return [replace(half, isolate=unit.isolate) for half in halves(unit, mark)]
        done(unit, reject(unit, ImageError(Reason.MODEL_FAILED, message)))
        return []
    tries[unit.unit_id] = tries.get(unit.unit_id, 0) + 1
    if tries[unit.unit_id] <= RETRIES:
        return [unit]
    log.error("unit %s of %s is left open: %s", unit.unit_id, unit.partition, message)
    outcome.open.append(unit)
    outcome.failures[code] = message
    return []


def _after_loss(
    unit: Unit,
    mark: str,
    tries: dict[str, int],
    done: Callable[[Unit, Receipt], None],
    reject: Callable[[Unit, ImageError], Receipt],
) -> list[Unit]:
    if not unit.isolate:
        return [replace(unit, isolate=True)]
    if len(unit.sources) > 1:
        return halves(unit, mark)
    tries[unit.unit_id] = tries.get(unit.unit_id, 0) + 1
    if tries[unit.unit_id] == 1:
        return [unit]
    message = "its process died or ran out of time twice while it was alone"
    done(unit, reject(unit, ImageError(Reason.MODEL_CRASHED, message)))
    return []


