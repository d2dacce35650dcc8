"""Publishes each partition of a run by itself, as soon as its last unit has arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from unet_batch.errors import Held, Incomplete, StorageError
from unet_batch.job.plan import PartitionPlan
from unet_batch.job.prepare import Prepared
from unet_batch.records import Unit
from unet_batch.table.publish import Publication, publish


@dataclass(slots=True)
class Published:
    """What was published, and what was not."""

    partitions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    exit_code: int = 0
    seconds: float = 0.0

    def problem(self, text: str, exit_code: int) -> None:
        """Note what kept a partition from being published; the largest exit code is the run's."""
        self.problems.append(text)
        self.exit_code = max(self.exit_code, exit_code)


class Publisher:
    """Knows which sources of which partition still wait for a part."""

    def __init__(
        self,
        prepared: Prepared,
        run_id: str,
        work: Iterable[PartitionPlan],
        outcome: Published,
        done: Callable[[str], None],
    ) -> None:
        """done: called with every partition that needs nothing more from this run."""
        self._prepared = prepared
        self._run_id = run_id
        self._outcome = outcome
        self._done = done
        self._plans = {p.partition: p for p in work}
        self._open = {name: {s.key for s in p.open} for name, p in self._plans.items()}
        self._parts = {name: list(p.parts) for name, p in self._plans.items()}

    def arrived(self, unit: Unit) -> None:
        """Note a unit's part; publish when it was the last of its partition."""
        layout = self._prepared.layout
        self._parts[unit.partition].append(layout.part(self._prepared.fingerprint, unit.partition, unit.unit_id))
        left = self._open[unit.partition]
        left.difference_update(s.key for s in unit.sources)
        if not left:
            self._publish(unit.partition)

    def publish_complete(self) -> None:
        """Publish the partitions whose rows were all staged by an earlier run."""
        for partition, left in self._open.items():
            if not left:
                self._publish(partition)

    def report_incomplete(self) -> None:
        """Say which partitions still miss rows."""
        for partition, left in self._open.items():
            if left:
                self._outcome.problem(
                    f"{partition}: {len(left)} images have no row yet; run the same command again", Incomplete.exit_code
                )
                self._done(partition)

    def _publish(self, partition: str) -> None:
        plan, job = self._plans[partition], self._prepared.job
        started = time.perf_counter()
        try:
            publish(
                self._prepared.output,
                self._prepared.layout,
                Publication(
                    partition=partition,
                    sources=plan.sources,
                    fingerprint=self._prepared.fingerprint,
                    model_digest=self._prepared.model.sha256,
                    run_id=self._run_id,
                    base=plan.published.version if plan.published else None,
                    parts=self._parts[partition],
                    compression=job.output.compression,
                    single_writer=job.output.single_writer,
                ),
                job.limits,
            )
            self._outcome.partitions.append(partition)
        except (Incomplete, Held) as error:
            self._outcome.problem(str(error), error.exit_code)
        except StorageError as error:
            text = f"{partition} could not be published: {error}; run the same command again"
            self._outcome.problem(text, Incomplete.exit_code)
        finally:
            self._outcome.seconds += time.perf_counter() - started
            self._done(partition)
