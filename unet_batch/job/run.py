"""A run: survey, score the open images, publish every complete partition, and write the record.

Nightly, submitted and backfill runs all use this function; running it again resumes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from unet_batch.archive.window import Window
from unet_batch.errors import (
    Denied,
    ExitCode,
    HandoverFailed,
    Held,
    ImageError,
    JobError,
    RayUnavailable,
    StorageError,
    UnetBatchError,
    overall,
)
from unet_batch.gate.gate import check_unit
from unet_batch.job.controls import Controls
from unet_batch.job.progress import ProgressDisplay
from unet_batch.job.publisher import Publisher, PublishResult, Record, before_scoring, demand_conditional_puts, ended_by
from unet_batch.job.publishing.beside import Beside, beside
from unet_batch.job.reconcile import Executor, score
from unet_batch.job.stopping import ending, stopped_by
from unet_batch.job.summary import Summary
from unet_batch.planning.choice import Choice
from unet_batch.planning.groups import groups
from unet_batch.planning.plan import PartitionPlan, units, wants
from unet_batch.planning.prepare import Prepared, new_run_id
from unet_batch.planning.survey import (
    Buckets,
    Holdings,
    archive_partitions,
    may_have_work,
    nothing_found,
    plan_rescore,
    survey_partition,
    twice,
    vanished,
)
from unet_batch.records import Receipt, Source, Unit
from unet_batch.table.lease import Leases
from unet_batch.table.rows import Provenance
from unet_batch.worker.infer import reject_unit
from unet_batch.worker.worker import Settings

__all__ = ["Choice", "MakeExecutor", "run"]

log = logging.getLogger(__name__)

MakeExecutor = Callable[[Settings], Executor]

EVERYTHING_DUE = Choice()


def run(
    prepared: Prepared,
    window: Window,
    make_executor: MakeExecutor,
    *,
    choice: Choice = EVERYTHING_DUE,
    quiet: bool = False,
) -> Summary:
    """Score the open images of a window and publish its partitions.

    Problems of single partitions, and a store that fails during the run, are in the summary. Raises JobError and
    Incomplete before scoring, and errors that mean that the model or the machine cannot score.
    """
    summary = Summary(run=new_run_id(prepared.job), fingerprint=prepared.fingerprint)
    with before_scoring():
        holdings = archive_partitions(prepared, window, keep=True)
        empty = nothing_found(prepared.job, prepared.archive, holdings)
        lost = vanished(prepared.output, prepared.job.limits, holdings) if choice.select != "failed" else None
        if (double := twice(prepared, holdings)) is not None:
            raise JobError(f"nothing was scored: {double}")
    summary.passed_over = holdings.passed.to_json()
    for sentence in (empty, lost):
        if sentence is not None:
            summary.problem(sentence, ExitCode.UNFINISHED)
    inventory = holdings.partitions
    names = [
        name
        for name, sources in inventory.items()
        if choice.rescore or may_have_work(prepared, name, sources, choice.select)
    ]
    if choice.newest_first:
        names.reverse()
    if names:
        demand_conditional_puts(prepared.job.output, prepared.output)
    elif not summary.problems:
        return summary
    scoring = _Run(prepared, choice, summary, make_executor, holdings, quiet=quiet)
    try:
        while names:
            for group in groups({name: len(inventory[name]) for name in names}, choice.max_active):
                scoring.work({name: inventory[name] for name in group})
            names = scoring.wait()
    except StorageError as error:
        advice, exit_code = ended_by(error)
        summary.problem(f"the run ended early, because a store failed: {error}{advice}", exit_code)
    except HandoverFailed as error:
        summary.problem(f"{error}; finished units are staged: run the same command again", error.exit_code)
    except RayUnavailable as error:
        summary.problem(str(error), error.exit_code)
    except KeyboardInterrupt:
        text = "finished units are staged: run the same command again to continue"
        summary.problem(f"stopped by {stopped_by() or 'Ctrl-C'}; {text}", ExitCode.UNFINISHED)
    except UnetBatchError as error:  # nothing can be scored: the record must say so too
        summary.problem(str(error), error.exit_code)
        raise
    finally:
        with ending():
            scoring.close()
    return summary


class _Run:
    """The state of a run: executor, leases and record, over one or more groups of partitions."""

    def __init__(
        self,
        prepared: Prepared,
        choice: Choice,
        summary: Summary,
        make_executor: MakeExecutor,
        holdings: Holdings,
        *,
        quiet: bool,
    ) -> None:
        self._prepared = prepared
        self._choice = choice
        self._summary = summary
        self._make_executor = make_executor
        self._quiet = quiet
        self._stop_at = choice.stop_at_s()
        self._executor: Executor | None = None
        self._record = Record(prepared, summary.run, "rescore" if choice.rescore else choice.select, holdings.passed)
        self._buckets = Buckets(prepared.output, holdings.partitions)
        self._is_empty = not holdings.images
        self._refused = bool(summary.problems)
        """Whether the archive was empty: such a run writes a record too."""
        self._waiting: list[str] | None = [] if choice.wait_s else None
        """Partitions held by other runs, whose leases may end; None if the run no longer waits."""
        self._published = PublishResult()
        self._scoring_s = 0.0
        self._open_means = ExitCode.UNFINISHED
        """Exit code for open units of the current group."""
        self._beside: Beside | None = None
        self._leases: Leases | None = None
        if not prepared.job.output.single_writer:
            ttl_s = prepared.job.limits.lease_s
            self._leases = Leases(prepared.output, summary.run, ttl_s).__enter__()
        # Parts of retried rejections need other names than the parts of the first try.
        self._again_salt = f"{prepared.fingerprint}\0{summary.run}"

    def work(self, inventory: Mapping[str, Sequence[Source]]) -> None:
        """Score and publish some partitions. Raises errors that end the whole run."""
        claimed = list(self._claim(inventory))
        if not claimed:
            return
        self._record.begin(claimed)
        self._beside = beside(self._prepared.job, [len(p.sources) for p in claimed])
        publisher = Publisher(
            self._prepared, self._summary.run, claimed, self._published, self._give_back, self._beside
        )
        planned = sum(len(p.todo) for p in claimed)
        self._summary.planned += planned
        self._summary.remaining += planned
        try:
            publisher.publish_complete()
            if planned:
                self._score(claimed, publisher, planned)
            publisher.collect(wait=True)
        finally:
            publisher.collect()
            self._count_published()
        publisher.report_incomplete(self._open_means)
        publisher.collect(wait=True)
        self._count_published()
        self._publish_no_more()

    def wait(self) -> list[str]:
        """Wait for the leases of runs that seem to be dead; returns their partitions. Used once per run."""
        names, self._waiting = self._waiting or [], None
        until_s = min(time.time() + self._choice.wait_s, self._stop_at or math.inf)
        if names:
            log.info("waiting for the leases of %d partition(s), such as %s, to end", len(names), names[0])
        free = []
        for name in names:
            try:
                if self._leases is not None:
                    self._leases.wait(name, until_s)
                free.append(name)
            except Held as error:
                self._published.problem(str(error), error.exit_code)
        self._count_published()
        return free

    def close(self) -> None:
        """End the executor, release the leases, and write the record."""
        summary, started = self._summary, time.perf_counter()
        try:
            if self._executor is not None:
                self._executor.close()
                summary.stop_s = time.perf_counter() - started
        finally:
            self._publish_no_more()
            if self._leases is not None:
                self._leases.__exit__(None, None, None)
            summary.close(self._scoring_s)
            try:
                if self._refused:
                    self._record.begin(())
                self._record.end(asdict(summary))
            except StorageError as error:
                text = f"the run's record could not be finished, and nothing else is missing: {error}"
                summary.problem(text, ExitCode.UNFINISHED)

    def _claim(self, inventory: Mapping[str, Sequence[Source]]) -> Iterator[PartitionPlan]:
        """Plans of the partitions to work on, made while this run holds their leases."""
        for name, sources in inventory.items():
            try:
                if self._leases is not None:
                    self._leases.take(name)
                plan = survey_partition(
                    self._prepared,
                    name,
                    sources,
                    select=self._choice.select,
                    others=self._buckets.others(name),
                    unsplit=self._buckets.unsplit(name, self._prepared.fingerprint),
                    repair=True,
                    rescore=self._choice.rescore,
                )
                if self._choice.rescore:
                    plan = plan_rescore(self._prepared.output, self._prepared.fingerprint, plan, repair=True)
            except Held as error:
                if self._waiting is None:
                    self._published.problem(str(error), error.exit_code)
                else:
                    self._waiting.append(name)
                continue
            except StorageError as error:
                self._published.problem(f"{name} cannot be worked on: {error}", ended_by(error)[1])
                self._give_back(name)
                continue
            if plan.refused is None and wants(self._choice.select, plan):
                yield plan
                continue
            self._give_back(name)
            if plan.refused is not None and wants(self._choice.select, plan):
                self._refused = True
                if plan.published is not None or not self._is_empty:  # else already reported
                    code = ExitCode.NEEDS_ACTION if plan.another_jobs else ExitCode.UNFINISHED
                    self._published.problem(plan.refused, code)
        self._count_published()

    def _score(self, work: Sequence[PartitionPlan], publisher: Publisher, planned: int) -> None:
        prepared, summary = self._prepared, self._summary
        salt, again = prepared.fingerprint, self._again_salt

        def cut(plan: PartitionPlan, workers: int) -> list[Unit]:
            return units(plan, prepared.job, salt, workers=workers, retry_salt=again)

        executor = self._running(next(cut(p, 1) for p in work if p.todo))
        todo = [unit for p in work for unit in cut(p, executor.workers)]
        summary.workers = max(summary.workers, min(executor.workers, len(todo)))
        summary.loaders = max(summary.loaders, min(executor.loaders, len(todo)))
        no_session = Provenance(
            prepared.model.sha256, prepared.fingerprint, summary.run, "none", prepared.job.model.precision
        )
        published_s, clock = self._published.seconds, time.perf_counter()
        with ProgressDisplay(planned, quiet=self._quiet) as progress:

            def done(unit: Unit, receipt: Receipt) -> None:
                summary.count(unit, receipt)
                progress.advance(len(unit.sources), receipt.rejected, receipt.rows - len(unit.sources), receipt.work_s)
                publisher.arrived(unit)

            def reject(unit: Unit, error: ImageError) -> Receipt:
                return reject_unit(prepared.job, unit, error, no_session)

            try:
                halved = again if any(p.retry for p in work) else salt
                before = sum(len(p.sources) - len(p.todo) for p in work)
                controls = Controls(prepared, work)
                outcome = score(
                    executor, todo, halved, done=done, reject=reject, readable=controls, scored_before=before
                )
            finally:
                seconds = time.perf_counter() - clock
                self._scoring_s += seconds
                summary.score_s += seconds - (self._published.seconds - published_s)
        summary.problems += [f"{code}: {message}" for code, message in outcome.failures.items()]
        denied = outcome.failures.keys() == {Denied.code} and not outcome.late
        self._open_means = ExitCode.NEEDS_ACTION if denied else ExitCode.UNFINISHED
        if outcome.late:
            summary.problems.append(f"the deadline came before {outcome.late} images; run the same command again")

    def _running(self, units: Sequence[Unit]) -> Executor:
        if self._executor is None:
            job, started = self._prepared.job, time.perf_counter()
            settings = Settings(
                job.model_dump_json(),
                self._prepared.model.to_json(),
                self._prepared.fingerprint,
                self._summary.run,
                members=tuple(member.to_json() for member in self._prepared.members),
                check_unit=check_unit(self._prepared.job, units, proven=self._prepared.proven),
                stop_at_s=self._stop_at,
            )
            self._executor = self._make_executor(settings)
            self._summary.executor, self._summary.start_s = self._executor.name, time.perf_counter() - started
        return self._executor

    def _publish_no_more(self) -> None:
        """End the processes that publish this group."""
        if self._beside is not None:
            self._beside.close()
            self._beside = None

    def _give_back(self, partition: str) -> None:
        if self._leases is not None:
            self._leases.release(partition)

    def _count_published(self) -> None:
        """Move the publisher's outcome into the summary."""
        summary, found = self._summary, self._published
        summary.published += len(found.partitions)
        summary.partitions += found.partitions
        summary.problems += found.problems
        summary.exit_code = overall((summary.exit_code, found.exit_code))
        summary.publish_s += found.seconds
        summary.warn(found.warnings)
        found.partitions, found.problems, found.warnings, found.seconds = [], [], [], 0.0
