"""What a run leaves for others: each partition, published when its last unit has arrived, and the run's own record."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
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
from unet_batch.planning.plan import PartitionPlan
from unet_batch.planning.prepare import Prepared
from unet_batch.records import NOTHING_PASSED, PassedOver, Unit
from unet_batch.spec import Engine, OutputSpec
from unet_batch.store.objects import redact
from unet_batch.table.output import Output
from unet_batch.table.publish import Publication, publish
from unet_batch.table.rowset import Name

log = logging.getLogger(__name__)

WROTE_WITH = ("numpy", *get_args(Engine), "onnxruntime-gpu", "pillow", "pyarrow", "ray")
"""Packages whose versions a record holds, as far as they are installed beside the driver."""


def demand_conditional_puts(spec: OutputSpec, output: Output) -> None:
    """Ask the output's store whether it can publish safely, unless the job says that one run writes.

    Raises JobError where it cannot, and as `before_scoring` does.
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
    """What a store that fails means before anything was done.

    Raises JobError where somebody must change something (a bucket, a permission), Incomplete where the same command
    may succeed later.
    """
    try:
        yield
    except (Denied, NotFound, NotLoggedIn) as error:
        raise JobError(f"nothing was scored: {error}") from error
    except StorageError as error:
        raise Incomplete(f"nothing was scored: {error}") from error


def ended_by(error: StorageError) -> tuple[str, ExitCode]:
    """What to do about a store that failed under way, as the end of a sentence, and the exit code of that run."""
    if isinstance(error, Damaged):
        return "", ExitCode.NEEDS_ACTION  # its message says what to do
    if isinstance(error, Denied):
        return "; give this run the right to do that, then run the same command again", ExitCode.NEEDS_ACTION
    return "; run the same command again", ExitCode.UNFINISHED


class Record:
    """A run's record in the output: what it set out to do and what it will replace; at its end, what it did."""

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
        """Write down, before anything else happens to them, what is to be done with some partitions."""
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
        """Write down what was done; nothing for a run that never began."""
        if self._begun:
            self._tree["ended"] = datetime.now(UTC).isoformat()
            self._tree["did"] = did
            self._prepared.output.store.put(self._uri, self._body())

    def _body(self) -> bytes:
        # Options may hold URLs: what people sign or log in with stays out of a file that others read.
        return redact(json.dumps(self._tree, indent=1, default=str)).encode()


@dataclass(slots=True)
class Published:
    """What was published, and what was not."""

    partitions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    exit_code: int = ExitCode.COMPLETE
    seconds: float = 0.0

    def problem(self, text: str, exit_code: int) -> None:
        """Note what kept a partition from being published, and what that means for the run's exit code."""
        self.problems.append(text)
        self.exit_code = overall((self.exit_code, exit_code))


def _versions() -> dict[str, str]:
    found = {"python": python_version()}
    for name in WROTE_WITH:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
        self._open = {name: {s.key for s in p.todo} for name, p in self._plans.items()}
        self._retried = {name: {s.key for s in p.retry} for name, p in self._plans.items()}
        self._parts = {name: list(p.parts) for name, p in self._plans.items()}

    def arrived(self, unit: Unit) -> None:
        """Note a unit's part; publish when it was the last of its partition."""
        output = self._prepared.output
        self._parts[unit.partition].append(output.part(self._prepared.fingerprint, unit.partition, unit.unit_id))
        left = self._open[unit.partition]
        left.difference_update(s.key for s in unit.sources)
        if not left:
            self._publish(unit.partition)

    def publish_complete(self) -> None:
        """Publish the partitions whose rows were all staged by an earlier run."""
        for partition, left in self._open.items():
            if not left:
                self._publish(partition)

    def report_incomplete(self, exit_code: ExitCode = ExitCode.UNFINISHED) -> None:
        """Say which partitions still miss rows. exit_code: NEEDS_ACTION where another run alone cannot score them."""
        for partition, left in self._open.items():
            if not left:
                continue
            if left <= self._retried[partition]:  # these have rows, and rejections hold nothing back
                text = f"{partition}: {len(left)} rejected images could not be tried again; run the same command again"
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
        """The rejections that were tried again, whatever became of them."""
        left = self._open[plan.partition]
        return frozenset((s.key, s.version) for s in plan.retry if s.key not in left)

    def _publish(self, partition: str) -> None:
        plan, job = self._plans[partition], self._prepared.job
        started = time.perf_counter()
        try:
            publish(
                self._prepared.output,
                Publication(
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
                ),
                job.limits,
            )
            self._outcome.partitions.append(partition)
        except (Incomplete, Held) as error:
            self._outcome.problem(str(error), error.exit_code)
        except StorageError as error:
            advice, exit_code = ended_by(error)
            self._outcome.problem(f"{partition} could not be published: {error}{advice}", exit_code)
        finally:
            self._outcome.seconds += time.perf_counter() - started
            self._done(partition)
