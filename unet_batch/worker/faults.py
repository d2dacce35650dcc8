"""The rule of what becomes a row: facts about bytes do; facts about machines never do, unless they repeat on another
process in isolation; facts about one image never stop the others.

Two tables and no state. `course` tells, for every code that a stage can end a unit with, what happens to the unit at
the first, second and later time. `DOUBTS` are verdicts on single images that a machine, a store or a permission can
have caused as well: their image is held back, without a row, until they repeated elsewhere and were judged.
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
"""Fewer failing units or images than this prove nothing about the machinery."""
MANY_READS = 0.01
"""A larger share of reads that are refused is a fault of the run, not of its images."""
HOPELESS = 64
"""After so many failing units and not one scored image, the rest is not tried."""
IN_A_ROW = 8
"""After so many units in a row (and two for each worker) that a store refused or failed, the rest is left open."""
RETRIES = 2
"""How often a unit goes round again after a fault of the machinery."""

LOST = "process.lost"
"""A unit whose process died, whatever it died of."""
TOO_LARGE = "unit.too_large"
UNEXPECTED = "unexpected"
NOT_STARTED = "actor.not_started"
"""A unit that came to an actor whose start had failed: no try of the unit."""
SILENT_READ, SILENT_DECODE, SILENT_SCORE = "silent.read", "silent.decode", "silent.score"
"""A process that our own limit on silence ended, by the stage it was in."""


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
    """What happens to a unit at the first, second, … time that it ends in the same way; the last act stays."""

    one: tuple[Act, ...]
    """To a unit of one image."""
    many: tuple[Act, ...]
    """To a unit of several."""
    reason: Reason | None = None
    """Of the row, where one is written."""

    def act(self, images: int, time: int) -> Act:
        """What happens to a unit of so many images at the n-th time, from 1."""
        acts = self.one if images == 1 else self.many
        return acts[min(time, len(acts)) - 1]


def _same(*acts: Act) -> Course:
    return Course(acts, acts)


_MACHINE = _same(*[Act.AGAIN] * RETRIES, Act.OPEN)
_END = _same(Act.END)


def _image(reason: Reason) -> Course:
    """Of what one image can cause, and a machine too: halved, then once more elsewhere."""
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
"""By code. What is not here is a machine's fault: tried again, then left open."""

ENDS: dict[str, type[UnetBatchError]] = {c.code: c for c in (JobError, ContractError, ModelRefused, ProviderMissing)}
"""What ends a run, as the error it is raised as."""

NOT_READABLE = frozenset({Reason.READ_DENIED, Reason.READ_NOT_FOUND})
"""What a store says of one object, or of all of them: whether others can still be read decides."""
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
"""Verdicts that need a second one from another process. All others are facts about bytes."""


def course(code: str) -> Course:
    """What happens to a unit that ended with this code."""
    return COURSES.get(code, _MACHINE)


def is_machines(code: str) -> bool:
    """Whether a code says nothing at all about an image."""
    return course(code) is _MACHINE


def doubtful(verdicts: Collection[Reason | None], *, confirms: bool = False) -> set[Reason]:
    """Which of a unit's verdicts, one for each image or None, need a second one.

    Where most of its images are rejected by their bytes, those count too: a broken decoder or store looks like that.
    confirms: whether another process said the same of these bytes already.
    """
    rejected = [reason for reason in verdicts if reason is not None]
    doubts = {reason for reason in rejected if reason in DOUBTS}
    by_bytes = [reason for reason in rejected if reason.startswith("decode.")]
    return doubts | set(by_bytes) if not confirms and systematic(len(by_bytes), len(verdicts)) else doubts


def systematic(count: int, of: int) -> bool:
    """Whether so many that fail alike speak of the machinery: several, and more than half."""
    return count >= SYSTEMATIC and count > of / 2


def denied_in_numbers(objects: int, reads: int) -> bool:
    """Whether so many refused objects among so many reads are a fault of the run."""
    return objects >= SYSTEMATIC and objects > MANY_READS * reads
