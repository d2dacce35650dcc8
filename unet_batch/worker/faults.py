"""The rules for failures: which failures become rows, and what happens to their units.

Faults of an image's bytes become rows. Faults of a machine do not, unless they repeat on another process in isolation.
A fault of one image never stops other images.

Two tables, no state. `course` gives, for each code with which a stage can end a unit, what happens to the unit the
first, second and later time. `DOUBTS` are rejections that a machine, a store or a permission may have caused: such an
image gets no row until another process confirms the rejection.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from unet_batch.errors import (
    ContractError,
    HandoverFailed,
    JobError,
    ModelFailed,
    ModelRefused,
    OutOfMemory,
    ProviderMissing,
    Reason,
    ShapeMismatch,
    TooLate,
    UnetBatchError,
)

SYSTEMATIC = 4
"""Smallest number of failing units or images that counts as systematic."""
MANY_READS = 0.01
"""Share of refused reads above which the fault is the run's, not that of single images."""
HOPELESS = 64
"""Number of failing units, without one scored image, after which the run stops trying."""
IN_A_ROW = 8
"""Number of consecutive units (plus two per worker) with a failing store after which the rest is left open."""
RETRIES = 2
"""Retries of a unit after a fault of the infrastructure."""

LOST = "process.lost"
"""A unit whose process died, for any reason."""
TOO_LARGE = "unit.too_large"
UNEXPECTED = "unexpected"
NOT_STARTED = "actor.not_started"
"""A unit that was sent to an actor whose start had failed; it does not count as a try."""
SILENT_READ, SILENT_DECODE, SILENT_SCORE = "silent.read", "silent.decode", "silent.score"
"""A process that the watchdog ended, by stage."""


class Act(StrEnum):
    """What happens to a unit."""

    END = "end the run"
    AGAIN = "again, as it is"
    APART = "again, decoded in isolation and on another process"
    HALVE = "again, in halves"
    ROW = "a rejection, unless it is systematic"
    OPEN = "left open"


@dataclass(frozen=True, slots=True)
class Course:
    """What happens to a unit the first, second, … time that it ends with the same code; the last act repeats."""

    one: tuple[Act, ...]
    """For a unit of one image."""
    many: tuple[Act, ...]
    """For a unit of several images."""
    reason: Reason | None = None
    """Reason of the row, if a row is written."""

    def act(self, images: int, time: int) -> Act:
        """The act for a unit with this number of images. time: counted from 1."""
        acts = self.one if images == 1 else self.many
        return acts[min(time, len(acts)) - 1]


def _same(*acts: Act) -> Course:
    return Course(acts, acts)


_MACHINE = _same(*[Act.AGAIN] * RETRIES, Act.OPEN)
_END = _same(Act.END)


def _image(reason: Reason) -> Course:
    """For faults that an image or a machine can cause: halved, then tried once more on another process."""
    return Course((Act.APART, Act.ROW), (Act.HALVE,), reason)


COURSES: dict[str, Course] = {
    JobError.code: _END,
    ContractError.code: _END,
    ModelRefused.code: _END,
    ProviderMissing.code: _END,
    TooLate.code: _same(Act.OPEN),
    TOO_LARGE: Course((Act.OPEN,), (Act.HALVE,)),
    UNEXPECTED: _image(Reason.MODEL_FAILED),
    ModelFailed.code: _image(Reason.MODEL_FAILED),
    ShapeMismatch.code: _image(Reason.MODEL_FAILED),
    OutOfMemory.code: _image(Reason.MODEL_OUT_OF_MEMORY),
    SILENT_SCORE: _image(Reason.MODEL_TIMEOUT),
    SILENT_DECODE: _image(Reason.DECODE_TIMEOUT),
    SILENT_READ: _MACHINE,
    LOST: Course((Act.APART, Act.APART, Act.ROW), (Act.APART, Act.HALVE), Reason.MODEL_CRASHED),
    HandoverFailed.code: Course((*[Act.APART] * RETRIES, Act.OPEN), (Act.APART, Act.HALVE)),
    NOT_STARTED: _same(*[Act.AGAIN] * 5, Act.OPEN),
}
"""Code → course. Other codes are faults of a machine: tried again, then left open."""

ENDS: dict[str, type[UnetBatchError]] = {c.code: c for c in (JobError, ContractError, ModelRefused, ProviderMissing)}
"""Codes that end a run → the error to raise."""

NOT_READABLE = frozenset({Reason.READ_DENIED, Reason.READ_NOT_FOUND})
"""Reasons that concern one object or the whole store; whether other objects are readable decides."""
DOUBTS = NOT_READABLE | {
    Reason.READ_CHECKSUM_MISMATCH,
    Reason.DECODE_CRASHED,
    Reason.DECODE_TIMEOUT,
    Reason.DECODE_OUT_OF_MEMORY,
    Reason.MODEL_OUT_OF_MEMORY,
    Reason.MODEL_OUTPUT_OUT_OF_RANGE,
    Reason.MODEL_NON_FINITE_OUTPUT,
    Reason.MODEL_FAILED,
}
"""Rejections that another process must confirm. All others are faults of the bytes."""


def course(code: str) -> Course:
    """The course of a unit that ended with this code."""
    return COURSES.get(code, _MACHINE)


def is_machines(code: str) -> bool:
    """Whether a code is a fault of a machine and not of an image."""
    return course(code) is _MACHINE


def doubtful(verdicts: Collection[Reason | None], *, confirms: bool = False) -> set[Reason]:
    """The reasons of a unit that another process must confirm. verdicts: one per image; None: not rejected.

    If most images are rejected by their bytes, those reasons are included: a broken decoder or store looks the same.
    confirms: whether another process has already rejected these bytes.
    """
    rejected = [reason for reason in verdicts if reason is not None]
    doubts = {reason for reason in rejected if reason in DOUBTS}
    by_bytes = [reason for reason in rejected if reason.startswith("decode.")]
    return doubts | set(by_bytes) if not confirms and systematic(len(by_bytes), len(verdicts)) else doubts


def systematic(count: int, of: int) -> bool:
    """Whether this number of equal failures is a fault of the infrastructure: several, and more than half."""
    return count >= SYSTEMATIC and count > of / 2


def denied_in_numbers(objects: int, reads: int) -> bool:
    """Whether this number of refused objects among the reads is a fault of the run."""
    return objects >= SYSTEMATIC and objects > MANY_READS * reads
