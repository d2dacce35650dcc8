"""Controls: images that were readable before and are read again when the store refuses others.

If a store refuses one object and others are readable, the fault is the object's. If it also refuses objects that were
readable before, the fault is the store's: a policy was changed, or a disk is no longer mounted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unet_batch.archive.shards import read_unit
from unet_batch.errors import ImageError, StorageError
from unet_batch.planning.plan import PartitionPlan, units
from unet_batch.planning.prepare import Prepared
from unet_batch.records import Unit
from unet_batch.worker.faults import NOT_READABLE


class Controls:
    """Whether an image of a partition that was readable before is still readable. A `judge.Readable`."""

    def __init__(self, prepared: Prepared, work: Sequence[PartitionPlan]) -> None:
        """work: the partitions of this run; their images from earlier runs are controls too."""
        self._prepared = prepared
        self._plans = {plan.partition: plan for plan in work}

    def __call__(self, partition: str, scored: Sequence[Unit]) -> bool | None:
        """Whether the last image of one of these units is readable; None if no image is known."""
        job, asked = self._prepared.job, scored or self._earlier(partition)
        for unit in asked:
            single = replace(unit, sources=unit.sources[-1:])
            try:
                (found,) = (content for _, content in read_unit(self._prepared.archive, job.input, single, job.limits))
            except StorageError:
                return False
            if not isinstance(found, ImageError) or found.reason not in NOT_READABLE:
                return True
        return False if asked else None

    def _earlier(self, partition: str) -> Sequence[Unit]:
        plan = self._plans.get(partition)
        if plan is None:
            return ()
        left = {source.key for source in plan.todo}
        known = [source for source in plan.sources if source.key not in left and source.problem is None]
        scored = replace(plan, open=tuple(known[-1:]), retry=())
        return units(scored, self._prepared.job, self._prepared.fingerprint, workers=1)
