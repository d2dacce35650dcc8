"""A run: survey, score what is open, publish every partition that became complete, and write it all down.

Nightly, submitted and backfilled runs are this one function; resuming is running again.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from unet_batch import __version__
from unet_batch.archive.discovery import Window
from unet_batch.errors import Held, ImageError, Incomplete, JobError, StorageError
from unet_batch.job.plan import PartitionPlan, Select, selected, units
from unet_batch.job.prepare import Prepared, new_run_id
from unet_batch.job.progress import ProgressDisplay
from unet_batch.job.reconcile import Executor, score
from unet_batch.job.stages import reject_unit
from unet_batch.job.survey import survey
from unet_batch.job.worker import Settings
from unet_batch.records import Receipt, Unit
from unet_batch.table.publish import Publication, publish
from unet_batch.table.rows import Provenance

log = logging.getLogger(__name__)

MakeExecutor = Callable[[Settings], Executor]


@dataclass(slots=True)
class Summary:
    """What a run did; its JSON is the last line of stdout."""

    run: str
    planned: int = 0
    """Images that had no row when the run began (pages of multi-page files count as they are found)."""
    ok: int = 0
    rejected: int = 0
    remaining: int = 0
    """Images of this run that still have no row."""
    published: int = 0
    """Partitions that this run published."""
    images_per_s: float = 0.0
    """Images of this run over the time from the first unit to the last publication."""
    partitions: list[str] = field(default_factory=list)
    """Names of the published partitions."""
    problems: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    provider: str | None = None
    executor: str | None = None
    fingerprint: str = ""
    start_s: float = 0.0
    """Starting the executor."""
    stop_s: float = 0.0
    """Ending it, after the last publication."""
    score_s: float = 0.0
    publish_s: float = 0.0
    read_bytes: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds of all workers in reading, decoding, the session, and encoding."""
    batches: dict[int, int] = field(default_factory=dict)
    """How many batches had how many tiles."""
    out_of_memory: int = 0
    peak_worker_rss_bytes: int = 0
    exit_code: int = 0


def run(
    prepared: Prepared, window: Window, make_executor: MakeExecutor, *, select: Select = "all", quiet: bool = False
) -> Summary:
    """Score what the window still needs and publish it. Problems of single partitions end in the summary."""
    summary = Summary(run=new_run_id(prepared.job), fingerprint=prepared.fingerprint)
    work = selected(survey(prepared, window, repair=True), select)
    if not work:
        return summary
    refused = None if prepared.job.output.single_writer else prepared.output.probe(prepared.layout.scratch)
    if refused is not None:
        raise JobError(
            f"{prepared.job.output.uri} cannot publish safely: {refused}; use another store, or set "
            "output.single_writer: true "
            "if no two runs ever write there"
        )
    record = _start_record(prepared, work, select, summary)
    try:
        _score_and_publish(prepared, work, make_executor, summary, quiet=quiet)
    except KeyboardInterrupt:
        summary.problems.append("stopped by Ctrl-C; finished units are staged: run the same command again to go on")
        summary.exit_code = 3
    finally:
        _finish(summary)
        prepared.output.put(prepared.layout.run(summary.run), _json({**record, "did": asdict(summary)}))
    return summary


def _score_and_publish(
    prepared: Prepared, work: Sequence[PartitionPlan], make_executor: MakeExecutor, summary: Summary, *, quiet: bool
) -> None:
    publisher = _Publisher(prepared, work, summary)
    summary.planned = summary.remaining = sum(len(p.open) for p in work)
    seconds = 0.0
    publisher.publish_complete()
    if summary.remaining:
        started = time.perf_counter()
        executor = make_executor(
            Settings(prepared.job.model_dump_json(), prepared.model.to_json(), prepared.fingerprint, summary.run)
        )
        summary.executor, summary.start_s = executor.name, time.perf_counter() - started
        clock = time.perf_counter()
        try:
            with ProgressDisplay(summary.planned, quiet=quiet) as progress:
                _score(prepared, work, executor, publisher, summary, progress)
        finally:
            seconds = time.perf_counter() - clock
            executor.close()
            summary.stop_s = round(time.perf_counter() - clock - seconds, 3)
    publisher.report_incomplete()
    summary.images_per_s = round((summary.ok + summary.rejected) / seconds, 2) if seconds else 0.0


def _score(
    prepared: Prepared,
    work: Sequence[PartitionPlan],
    executor: Executor,
    publisher: _Publisher,
    summary: Summary,
    progress: ProgressDisplay,
) -> None:
    open_units = [u for p in work for u in units(p, prepared.job, prepared.fingerprint, workers=executor.workers)]
    nobody = Provenance(
        prepared.model.sha256, prepared.fingerprint, summary.run, "none", prepared.job.session.precision
    )

    def done(unit: Unit, receipt: Receipt) -> None:
        _count(summary, unit, receipt)
        progress.advance(len(unit.sources), receipt.rejected, receipt.rows - len(unit.sources))
        publisher.arrived(unit)

    def reject(unit: Unit, error: ImageError) -> Receipt:
        return reject_unit(prepared.job, unit, error, nobody)

    started = time.perf_counter()
    try:
        outcome = score(executor, open_units, prepared.fingerprint, done=done, reject=reject)
    finally:
        summary.score_s = time.perf_counter() - started - summary.publish_s
    summary.problems += [f"{code}: {message}" for code, message in outcome.failures.items()]


class _Publisher:
    """Publishes each partition by itself, as soon as its last unit has arrived."""

    def __init__(self, prepared: Prepared, work: Sequence[PartitionPlan], summary: Summary) -> None:
        self._prepared = prepared
        self._summary = summary
        self._plans = {p.partition: p for p in work}
        self._open = {p.partition: {s.key for s in p.open} for p in work}
        self._parts = {p.partition: list(p.parts) for p in work}

    def arrived(self, unit: Unit) -> None:
        """Note a unit's part; publish when it was the last of its partition."""
        self._parts[unit.partition].append(
            self._prepared.layout.part(self._prepared.fingerprint, unit.partition, unit.unit_id)
        )
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
                self._summary.problems.append(
                    f"{partition}: {len(left)} images have no row yet; run the same command again"
                )
                self._summary.exit_code = max(self._summary.exit_code, Incomplete.exit_code)

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
                    run_id=self._summary.run,
                    base=plan.published.version if plan.published else None,
                    parts=self._parts[partition],
                    compression=job.output.compression,
                    single_writer=job.output.single_writer,
                ),
                job.limits,
            )
            self._summary.published += 1
            self._summary.partitions.append(partition)
        except (Incomplete, Held) as error:
            self._summary.problems.append(str(error))
            self._summary.exit_code = max(self._summary.exit_code, error.exit_code)
        except StorageError as error:
            self._summary.problems.append(f"{partition} could not be published: {error}; run the same command again")
            self._summary.exit_code = max(self._summary.exit_code, Incomplete.exit_code)
        finally:
            self._summary.publish_s += time.perf_counter() - started


def _count(summary: Summary, unit: Unit, receipt: Receipt) -> None:
    summary.ok += receipt.ok
    summary.rejected += receipt.rejected
    summary.remaining -= len(unit.sources)
    summary.planned += receipt.rows - len(unit.sources)
    summary.provider = receipt.provider or summary.provider
    summary.read_bytes += receipt.images_read_bytes
    summary.out_of_memory += receipt.out_of_memory
    summary.peak_worker_rss_bytes = max(summary.peak_worker_rss_bytes, receipt.peak_rss_bytes)
    for name in ("read_s", "decode_s", "session_s", "encode_s"):
        summary.stage_s[name] = summary.stage_s.get(name, 0.0) + getattr(receipt, name)
    summary.reasons = dict(Counter(summary.reasons) + Counter(dict(receipt.reasons)))
    summary.batches = dict(Counter(summary.batches) + Counter(dict(receipt.batches)))


def _start_record(
    prepared: Prepared, work: Sequence[PartitionPlan], select: Select, summary: Summary
) -> dict[str, Any]:
    """Write down, before anything else, what the run set out to do and what it will replace."""
    record = {
        "run": summary.run,
        "started": datetime.now(UTC).isoformat(),
        "version": __version__,
        "job": prepared.job.model_dump(mode="json"),
        "model": prepared.model.sha256,
        "fingerprint": prepared.fingerprint,
        "select": select,
        "conditional_writes": "not needed: single_writer" if prepared.job.output.single_writer else "honoured",
        "partitions": {
            p.partition: {
                "state": p.state,
                "images": len(p.sources),
                "open": len(p.open),
                "base": p.published.version if p.published else None,
            }
            for p in work
        },
    }
    prepared.output.create(prepared.layout.run(summary.run), _json(record))
    return record


def _finish(summary: Summary) -> None:
    summary.stage_s = {name: round(seconds, 3) for name, seconds in summary.stage_s.items()}
    summary.score_s, summary.publish_s = round(summary.score_s, 3), round(summary.publish_s, 3)
    summary.start_s = round(summary.start_s, 3)
    if summary.remaining and not summary.exit_code:
        summary.exit_code = Incomplete.exit_code


def _json(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, indent=1, default=str).encode()
