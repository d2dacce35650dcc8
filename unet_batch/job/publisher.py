"""Publishes each partition when its last unit has arrived, and writes the run's record."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any, get_args

from unet_batch import __version__
from unet_batch.errors import (
    AlreadyExists,
    Damaged,
    Denied,
    ExitCode,
    Held,
    Incomplete,
    JobError,
    NotFound,
    NotLoggedIn,
    StorageError,
    overall,
)
from unet_batch.job.nights import Nights
from unet_batch.job.publishing.beside import PARTITION_IMAGES, Beside
from unet_batch.planning.plan import PartitionPlan
from unet_batch.planning.prepare import Prepared
from unet_batch.records import NOTHING_PASSED, PassedOver, Unit
from unet_batch.spec import Engine, OutputSpec
from unet_batch.store.objects import redact
from unet_batch.table.output import Output
from unet_batch.table.plausibility import Implausible
from unet_batch.table.publish import Publication, Published, publish
from unet_batch.table.rowset import Name

log = logging.getLogger(__name__)

WROTE_WITH = ("numpy", *get_args(Engine), "onnxruntime-gpu", "pillow", "pyarrow", "ray")
"""Packages whose versions go into a record, if installed on the driver's machine."""


def demand_conditional_puts(spec: OutputSpec, output: Output) -> None:
    """Probe whether the output's store honours conditional puts, unless the job has `single_writer`.

    Raises JobError if it does not, and as `before_scoring`.
    """
    if spec.single_writer:
        return
    with before_scoring():
        refused = output.store.probe(output.scratch)
    if refused is not None:
        raise JobError(
            f"{spec.uri} cannot publish safely: {refused}; use another store, or set output.single_writer: true if "
            "no two runs ever write there"
        )


@contextmanager
def before_scoring() -> Iterator[None]:
    """Convert errors of a store before scoring.

    Raises JobError if the user must change something (a bucket, a permission), Incomplete if the same command may
    succeed later.
    """
    try:
        yield
    except (Denied, NotFound, NotLoggedIn) as error:
        raise JobError(f"nothing was scored: {error}") from error
    except StorageError as error:
        raise Incomplete(f"nothing was scored: {error}") from error


def ended_by(error: StorageError) -> tuple[str, ExitCode]:
    """What to do about a store that failed during a run, as the end of a sentence, and the run's exit code."""
    if isinstance(error, Damaged):
        return "", ExitCode.NEEDS_ACTION  # its message says what to do
    if isinstance(error, Denied):
        return "; grant this run the permission, then run the same command again", ExitCode.NEEDS_ACTION
    return "; run the same command again", ExitCode.UNFINISHED


class Record:
    """A run's record in the output: the plan and the objects to replace; at the end, the results."""

    def __init__(self, prepared: Prepared, run_id: str, select: str, passed: PassedOver = NOTHING_PASSED) -> None:
        self._prepared = prepared
        self._uri = prepared.output.run(run_id)
        self._begun = False
        self._tree: dict[str, Any] = {
            "run": run_id,
            "started": datetime.now(UTC).isoformat(),
            "version": __version__,
            "versions": _versions(),
            "job": prepared.job.model_dump(mode="json"),
            "model": prepared.model.sha256,
            "fingerprint": prepared.fingerprint,
            "select": select,
            "conditional_writes": "not needed: single_writer" if prepared.job.output.single_writer else "honoured",
            "passed_over": passed.to_json(),
            "partitions": {},
        }

    def begin(self, work: Iterable[PartitionPlan]) -> None:
        """Write the plan of some partitions, before any work on them."""
        self._tree["partitions"] |= {
            p.partition: {
                "state": p.state,
                "images": len(p.sources),
                "open": len(p.todo),
                "retry": len(p.retry),
                "base": p.published.version if p.published else None,
            }
            for p in work
        }
        put = self._prepared.output.store.put if self._begun else self._prepared.output.store.create
        self._begun = True
        try:
            put(self._uri, self._body())
        except AlreadyExists:
            log.info("%s was put by a try whose answer was lost", self._uri)

    def end(self, did: dict[str, Any]) -> None:
        """Write the results; nothing for a run that never began."""
        if self._begun:
            self._tree["ended"] = datetime.now(UTC).isoformat()
            self._tree["did"] = did
            self._prepared.output.store.put(self._uri, self._body())

    def _body(self) -> bytes:
        # Options may contain URLs: others can read this file, so credentials are left out.
        return redact(json.dumps(self._tree, indent=1, default=str)).encode()


@dataclass(slots=True)
class PublishResult:
    """The published partitions, and the problems."""

    partitions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[Implausible] = field(default_factory=list)
    """What looks wrong in the rows of published partitions."""
    exit_code: int = ExitCode.COMPLETE
    seconds: float = 0.0

    def problem(self, text: str, exit_code: int) -> None:
        """Record why a partition was not published, and the exit code."""
        self.problems.append(text)
        self.exit_code = overall((self.exit_code, exit_code))


def _versions() -> dict[str, str]:
    found = {"python": python_version()}
    for name in WROTE_WITH:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class Publisher:
    """Counts the open sources of each partition, and publishes complete partitions."""

    def __init__(
        self,
        prepared: Prepared,
        run_id: str,
        work: Iterable[PartitionPlan],
        outcome: PublishResult,
        done: Callable[[str], None],
        beside: Beside | None = None,
    ) -> None:
        """done: called with every partition for which this run has no more work. beside: publishes large partitions."""
        self._prepared = prepared
        self._run_id = run_id
        self._outcome = outcome
        self._done = done
        self._plans = {p.partition: p for p in work}
        self._open = {name: {s.key for s in p.todo} for name, p in self._plans.items()}
        self._retried = {name: {s.key for s in p.retry} for name, p in self._plans.items()}
        self._parts = {name: list(p.parts) for name, p in self._plans.items()}
        self._nights = Nights(prepared.output, prepared.fingerprint)
        self._beside = beside
        self._under_way: dict[str, Future[Published]] = {}
        """Partitions that are being published beside the driver."""

    def arrived(self, unit: Unit) -> None:
        """Record a unit's part; publish the partition if it was the last unit."""
        output = self._prepared.output
        self._parts[unit.partition].append(output.part(self._prepared.fingerprint, unit.partition, unit.unit_id))
        left = self._open[unit.partition]
        left.difference_update(s.key for s in unit.sources)
        if not left:
            self._publish(unit.partition)
        self.collect()

    def collect(self, *, wait: bool = False) -> None:
        """Take the results of partitions that were published beside the driver. wait: of all that are under way."""
        for partition, future in list(self._under_way.items()):
            if wait or future.done():
                del self._under_way[partition]
                self._settle(partition, future.result, time.perf_counter())

    def publish_complete(self) -> None:
        """Publish the partitions whose rows were all staged by an earlier run."""
        for partition, left in self._open.items():
            if not left:
                self._publish(partition)

    def report_incomplete(self, exit_code: ExitCode = ExitCode.UNFINISHED) -> None:
        """Report partitions with missing rows. exit_code: NEEDS_ACTION if another run cannot score them by itself."""
        for partition, left in self._open.items():
            if not left:
                continue
            if left <= self._retried[partition]:  # these images have rows, and the partition can be published
                text = f"{partition}: {len(left)} rejected images could not be retried; run the same command again"
                self._outcome.problem(text, exit_code)
                plan = self._plans[partition]
                if not plan.up_to_date or plan.better or left < self._retried[partition]:
                    self._publish(partition)
                    continue
            else:
                text = f"{partition}: {len(left)} images have no row yet; run the same command again"
                self._outcome.problem(text, exit_code)
            self._done(partition)

    def _tried(self, plan: PartitionPlan) -> frozenset[Name]:
        """The rejections that were retried, with any result."""
        left = self._open[plan.partition]
        return frozenset((s.key, s.version) for s in plan.retry if s.key not in left)

    def _publish(self, partition: str) -> None:
        plan, job = self._plans[partition], self._prepared.job
        started = time.perf_counter()
        wanted = Publication(
            partition=partition,
            sources=plan.sources,
            fingerprint=self._prepared.fingerprint,
            model_digest=self._prepared.model.sha256,
            run_id=self._run_id,
            base=plan.published.version if plan.published else None,
            parts=self._parts[partition],
            afresh=plan.afresh,
            compression=job.output.compression,
            single_writer=job.output.single_writer,
            tried=self._tried(plan),
            others=plan.others,
            classes=self._prepared.model.contract.output.in_rows,
            nights=self._nights.beside(partition),
        )
        if self._beside is not None and len(plan.sources) >= PARTITION_IMAGES:
            self._under_way[partition] = self._beside.publish(wanted)
        else:
            self._settle(partition, lambda: publish(self._prepared.output, wanted, job.limits), started)

    def _settle(self, partition: str, result: Callable[[], Published], started: float) -> None:
        """Record the result of a publication. started: since when the driver has waited for it (perf_counter)."""
        try:
            published = result()
            if published.tally is not None:
                self._nights.published(partition, published.tally)
            self._outcome.warnings += published.warnings
            self._outcome.partitions.append(partition)
        except (Incomplete, Held) as error:
            self._outcome.problem(str(error), error.exit_code)
        except StorageError as error:
            advice, exit_code = ended_by(error)
            self._outcome.problem(f"{partition} could not be published: {error}{advice}", exit_code)
        finally:
            self._outcome.seconds += time.perf_counter() - started
            self._done(partition)
