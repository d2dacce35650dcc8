"""Rejections that may come from the machine: held back, confirmed or not by another process, and then decided.

Counts, with the rules of `faults`; independent of executors. An image that is held back has no part, so it cannot be
published before the decision.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from unet_batch.errors import ContractError, ImageError, NeedsAction, Reason
from unet_batch.records import DoubtfulSource, Unit, sub_unit_id
from unet_batch.worker import faults

Readable = Callable[[str, Sequence[Unit]], bool | None]
"""Whether a known readable image of a partition (of these units, or of an earlier run) is still readable; None if no
such image is known."""

CONTROLS = 3
"""Units per partition that are remembered as readable."""


@dataclass(slots=True)
class Judgement:
    """The result of a judgement."""

    rows: list[tuple[Unit, ImageError]] = field(default_factory=list)
    """Units of one image with one page, and their rejections."""
    again: list[Unit] = field(default_factory=list)
    """Units to run again: for confirmation, or to write the rows of several pages."""
    open: list[tuple[list[Unit], str, str]] = field(default_factory=list)
    """Units that stay open, with code and message."""


@dataclass(frozen=True, slots=True)
class _Doubt:
    unit: Unit
    """Of one source."""
    origin: Unit
    """The unit from which it was held back."""
    reason: Reason
    message: str
    pages: int


class Judge:
    """Collects doubtful rejections during a pass and decides them at its end."""

    def __init__(self, salt: str, readable: Readable | None, scored_before: int) -> None:
        """scored_before: images that earlier runs scored with the same fingerprint."""
        self.images_scored = 0
        self._scored_before = scored_before
        self._salt = salt
        self._readable = readable
        self._controls: dict[str, deque[Unit]] = {}
        self._new: list[_Doubt] = []
        self._times: Counter[str] = Counter()
        """Doubtful rejections, by the source's unit."""
        self._rejected_count: Counter[Reason] = Counter()
        """Reason → number of images rejected twice for it."""
        self._refused: dict[str, set[str]] = {}
        """Partition → URIs of refused objects."""
        self._reads: Counter[str] = Counter()
        """Partition → number of images read."""

    def scored(self, unit: Unit) -> None:
        """Note a unit whose images were read."""
        self.images_scored += len(unit.sources)
        self._reads[unit.partition] += len(unit.sources)
        self._controls.setdefault(unit.partition, deque(maxlen=CONTROLS)).append(unit)

    def hold(self, unit: Unit, held: Sequence[DoubtfulSource]) -> None:
        """Take the images that were held back from a unit's part."""
        for found in held:
            source = unit.sources[found.position]
            single = unit
            if len(unit.sources) > 1:
                single = replace(unit, unit_id=sub_unit_id(unit.unit_id, self._salt, [source]), sources=(source,))
            self._new.append(_Doubt(single, unit, Reason(found.reason), found.message, found.pages))
            if self._new[-1].reason in faults.NOT_READABLE:
                self._refused.setdefault(unit.partition, set()).add(source.uri)
            self._times[single.unit_id] += 1

    def failed_alone(self, unit: Unit, reason: Reason, message: str) -> None:
        """Take a unit of one image that failed as a whole, twice."""
        self._times[unit.unit_id] = 2
        self._new.append(_Doubt(unit, unit, reason, message, 1))

    def withdrawn(self, unit: Unit, message: str) -> str | None:
        """A sentence if the store now refuses images of this unit's partition that were readable before, else None."""
        return self._withdrawn(message) if self._can_read(unit.partition) is False else None

    def taken(self) -> list[Unit]:
        """Remove and return all units that are held back and not yet decided."""
        units, self._new = [doubt.unit for doubt in self._new], []
        return units

    def judge(self) -> Judgement:
        """Decide everything taken since the last judgement."""
        verdict = Judgement()
        first = [doubt for doubt in self._new if self._times[doubt.unit.unit_id] < 2]
        second = [doubt for doubt in self._new if self._times[doubt.unit.unit_id] >= 2]
        self._new = []
        verdict.again += self._together([doubt for doubt in first if doubt.reason not in faults.DOUBTS])
        for doubt in first:
            if doubt.reason in faults.DOUBTS:
                isolate = doubt.unit.isolate or doubt.reason not in faults.NOT_READABLE
                verdict.again.append(replace(doubt.unit, isolate=isolate))
        for doubts, partition in _by_partition(d for d in second if d.reason in faults.NOT_READABLE):
            message = self._not_theirs(partition, doubts)
            self._end(verdict, doubts, message)
        others = [doubt for doubt in second if doubt.reason not in faults.NOT_READABLE]
        for reason in dict.fromkeys(doubt.reason for doubt in others):
            alike = [doubt for doubt in others if doubt.reason is reason]
            self._end(verdict, alike, self._alike(reason, alike))
        return verdict

    def _together(self, doubts: Sequence[_Doubt]) -> Iterator[Unit]:
        """Images with faults of their bytes, grouped by their original unit: there may be many, and they do not affect
        each other."""
        by_origin: dict[str, list[_Doubt]] = {}
        for doubt in doubts:
            by_origin.setdefault(doubt.origin.unit_id, []).append(doubt)
        for alike in by_origin.values():
            sources = tuple(source for doubt in alike for source in doubt.unit.sources)
            name = sub_unit_id(alike[0].origin.unit_id, self._salt, sources)
            yield replace(alike[0].origin, unit_id=name, sources=sources, isolate=True, confirms=True)

    def _end(self, verdict: Judgement, doubts: Sequence[_Doubt], not_theirs: str | None) -> None:
        """Rejections for these images, unless `not_theirs` says that the fault is not theirs."""
        if not_theirs is not None:
            verdict.open.append(([doubt.unit for doubt in doubts], doubts[0].reason, not_theirs))
            return
        for doubt in doubts:
            if doubt.pages == 1:
                verdict.rows.append((doubt.unit, ImageError(doubt.reason, doubt.message)))
            else:
                verdict.again.append(replace(doubt.unit, settle=True))

    def _not_theirs(self, partition: str, doubts: Sequence[_Doubt]) -> str | None:
        """Why refused reads are not faults of their images; None if they are."""
        objects = len(self._refused.get(partition, ()))
        reads = self._reads[partition] + len(doubts)
        example = doubts[0].message
        if self._can_read(partition) is False:
            return self._withdrawn(example)
        if faults.denied_in_numbers(objects, reads):
            return (
                f"{objects} objects of {partition} cannot be read, which is too many for faults of single images "
                f"({example}); restore access or repair the archive, and run the same command again"
            )
        if self._can_read(partition) is None:
            return f"no image of {partition} could be read ({example}); correct that and run the same command again"
        return None

    @staticmethod
    def _withdrawn(example: str) -> str:
        return (
            f"images that were readable before cannot be read now ({example}); restore access, and run the same "
            "command again"
        )

    def _can_read(self, partition: str) -> bool | None:
        """Whether an image of this partition, or else of any partition, that was read before is still readable."""
        if self._readable is None:
            return True if self.images_scored else None
        found = self._readable(partition, list(self._controls.get(partition, ())))
        if found is None and self._controls:
            name, controls = next(iter(self._controls.items()))
            found = self._readable(name, list(controls))
        return found

    def _alike(self, reason: Reason, doubts: Sequence[_Doubt]) -> str | None:
        """Why rejections of this reason are not faults of their images; None if they are.

        Raises ContractError for outputs out of range, and NeedsAction if a model fails on most images.
        """
        self._rejected_count[reason] += len(doubts)
        count, of = self._rejected_count[reason], self._rejected_count[reason] + self.images_scored
        # A contract that no image agreed with is wrong, even for few images.
        never_right = reason is Reason.MODEL_OUTPUT_OUT_OF_RANGE and not self.images_scored and not self._scored_before
        if reason in _BYTES or not (never_right or faults.systematic(count, of)):
            return None
        text = f"{count} of {of} images failed in the same way, so the fault is not in the images: {doubts[0].message}"
        if reason is Reason.MODEL_OUTPUT_OUT_OF_RANGE:
            raise ContractError(text)
        if reason in (Reason.MODEL_FAILED, Reason.MODEL_CRASHED):
            raise NeedsAction(f"{text}. Correct the model or the machine; finished units are staged")
        return f"{text}; run the same command again, on another machine or with more memory"


_BYTES = frozenset(
    reason
    for reason in Reason
    if reason.startswith(("decode.", "read.checksum"))
    and reason not in (Reason.DECODE_CRASHED, Reason.DECODE_TIMEOUT, Reason.DECODE_OUT_OF_MEMORY)
)
"""Faults of bytes that two processes found: they become rows in any number; limits.max_rejected guards publication."""


def _by_partition(doubts: Iterator[_Doubt]) -> Iterator[tuple[list[_Doubt], str]]:
    found: dict[str, list[_Doubt]] = {}
    for doubt in doubts:
        found.setdefault(doubt.unit.partition, []).append(doubt)
    for partition, some in found.items():
        yield some, partition
