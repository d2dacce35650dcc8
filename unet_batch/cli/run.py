"""The commands `plan`, `run` and `backfill`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import click

from unet_batch.cli.command import Scoring, finish, job_command, say, scoring
from unet_batch.cli.report import report_apart
from unet_batch.errors import ExitCode, JobError, ModelRefused, StorageError
from unet_batch.job import stopping
from unet_batch.planning.selection import SELECTIONS, Select
from unet_batch.records import PassedOver

if TYPE_CHECKING:
    from unet_batch.job.summary import Summary
    from unet_batch.planning.prepare import Prepared
    from unet_batch.spec import JobSpec

EXECUTORS = ("auto", "processes", "ray", "local")
"""Choices of --executor; `chosen` resolves `auto`."""


def runner(body: Callable[..., None]) -> Callable[..., None]:
    """Decorator: adds the options of commands that score on this machine."""
    executor = click.option(
        "--executor",
        type=click.Choice(EXECUTORS),
        default="auto",
        show_default=True,
        help="processes: one for each core of this machine. ray: Ray Data, on a cluster or embedded. local: a loop in "
        "this process. auto: processes; ray with --address, for GPUs, or if RAY_ADDRESS is set.",
    )
    address = click.option(
        "--address", metavar="HOST:PORT", help="Ray cluster to join; --executor ray without it embeds Ray."
    )
    quiet = click.option("--quiet", is_flag=True, help="No progress.")
    return executor(address(quiet(scoring(body))))


@job_command(None)
def plan(job: JobSpec, window: str) -> None:
    """Show what a run would score: images, units, bytes. Changes nothing."""
    _plan(job, window, "due")


@job_command(None)
@runner
def run(job: JobSpec, window: str, **how: Any) -> None:
    """Score the open images of the window and publish every complete partition. Run it again to resume."""
    _run(job, window, "due", **how)


@job_command("all")
@click.option(
    "--select",
    type=click.Choice(SELECTIONS),
    show_default="missing",
    help="missing: partitions without published rows. failed: only rejections whose cause may be temporary. "
    "changed: published partitions whose model, settings or images have changed. all: all of these.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be scored; change nothing.")
@runner
def backfill(job: JobSpec, window: str, select: Select | None, dry_run: bool, scoring: Scoring, **how: Any) -> None:
    """Score many partitions with one pool of sessions; each is published when it is complete."""
    if scoring.rescore and select not in (None, "all"):
        raise JobError(f"--rescore scores every image of the window: remove --select {select}")
    if dry_run:
        _plan(job, window, select or "missing", rescore=scoring.rescore)
    _run(job, window, select or "missing", scoring=scoring, **how)


def _plan(job: JobSpec, window: str, select: Select, *, rescore: bool = False) -> NoReturn:
    from unet_batch.cli.terminal import print_table
    from unet_batch.decode.sizes import about_reduced_jpeg
    from unet_batch.job.cores import cores
    from unet_batch.planning.plan import units
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import planned, window_of
    from unet_batch.session.combined.mirroring import passes

    prepared = prepare(job)
    found = planned(prepared, window_of(window), select, rescore=rescore)
    work = found.work
    todo = [unit for p in work for unit in units(p, prepared.job, prepared.fingerprint, workers=cores())]
    print_table(
        f"plan of {job.name}: {select}",
        ["partition", "state", "images", "scored", "to score"],
        [[p.partition, p.state, len(p.sources), p.scored - len(p.retry), len(p.todo)] for p in work],
    )
    say(found.passed, found.problems)
    images, size = sum(len(p.todo) for p in work), sum(s.size_bytes for p in work for s in p.todo)
    click.echo(f"to score: {images} images of {size} bytes in {len(todo)} units", err=True)
    if (reduced := about_reduced_jpeg(prepared.model.contract.input)) is not None:
        click.echo(reduced, err=True)
    flips, models = passes(prepared.job), len(prepared.job.model.paths)
    if flips > 1:
        of = f"{flips} passes (tta: {job.tta}) of {f'each of {models} models' if models > 1 else 'the model'}"
        click.echo(f"each tile is scored {flips * models} times: {of}", err=True)
    finish(
        {
            "images": images,
            "units": len(todo),
            "bytes": size,
            "runs_per_tile": flips * models,
            "partitions": len(work),
            "select": select,
            "fingerprint": prepared.fingerprint,
            "window": window,
            "passed_over": found.passed.to_json(),
            "problems": found.problems,
        },
        exit_code=found.exit_code,
    )


def chosen(executor: str, address: str | None, job: JobSpec) -> str:
    """The executor that `auto` is: processes on this machine, but for what only Ray has. Others are what they say.

    RAY_ADDRESS, which Ray sets for its jobs, means that the cores of this machine are Ray's to give. A cluster is
    joined with --address only.
    """
    from unet_batch.planning.plan import only_on_ray

    if executor != "auto":
        return executor
    on_ray = address is not None or bool(os.environ.get("RAY_ADDRESS")) or only_on_ray(job) is not None
    return "ray" if on_ray else "processes"


def _run(
    job: JobSpec,
    window: str,
    select: Select,
    *,
    scoring: Scoring,
    executor: str,
    address: str | None,
    quiet: bool,
) -> None:
    summary = scored(job, window, select, scoring=scoring, executor=executor, address=address, quiet=quiet)
    result = asdict(summary)
    if scoring.with_report:
        recorded = (summary.planned or summary.published) and stopping.stopped_by() is None
        result["report"] = report_apart(job, summary.run) if recorded else None
    finish(result, exit_code=summary.exit_code)


def scored(
    job: JobSpec,
    window: str,
    select: Select,
    *,
    scoring: Scoring,
    executor: str = "auto",
    address: str | None = None,
    quiet: bool = False,
) -> Summary:
    """Score and publish a window, and say what was done; returns the summary of the run."""
    from unet_batch.cli.terminal import plain
    from unet_batch.job.reconcile import Executor
    from unet_batch.job.run import Choice
    from unet_batch.job.run import run as run_job
    from unet_batch.planning.prepare import prepare, without_recommendation
    from unet_batch.planning.survey import window_of
    from unet_batch.table.without_pandas import forgo_pandas
    from unet_batch.worker.worker import Settings

    if address is not None and executor not in ("auto", "ray"):
        raise JobError("--address needs --executor ray")
    if chosen(executor, address, job) != "ray":
        forgo_pandas()

    def make_executor(settings: Settings) -> Executor:
        kind = chosen(executor, address, settings.job)  # `engine: auto` may have chosen a GPU
        if kind == "processes":
            from unet_batch.job.process_executor import ProcessExecutor

            return ProcessExecutor(settings)
        if kind == "local":
            from unet_batch.job.local_executor import LocalExecutor

            return LocalExecutor(settings, threads=settings.job.session.threads or 1)
        from unet_batch.on_ray.executor import RayExecutor

        return RayExecutor(settings, address=address)

    choice = Choice(
        select,
        newest_first=scoring.newest_first,
        max_active=scoring.max_active,
        deadline=scoring.deadline,
        wait_s=scoring.wait_s,
        rescore=scoring.rescore,
    )
    prepared = prepare(job)
    try:
        summary = run_job(prepared, window_of(window), make_executor, choice=choice, quiet=quiet)
    except ModelRefused as error:
        prepared = without_recommendation(prepared, error)
        summary = run_job(prepared, window_of(window), make_executor, choice=choice, quiet=quiet)
    if prepared.job.output.mask_files and stopping.stopped_by() is None:
        _write_mask_files(prepared, window, summary)
    say(PassedOver.from_json(summary.passed_over), summary.problems)
    for hint in summary.hints:
        click.echo(f"warning: {plain(hint)}", err=True)
    if not summary.planned and not summary.published and not summary.problems:
        click.echo("nothing to do: every selected partition is published", err=True)
    for name in summary.partitions:
        click.echo(f"published {name}", err=True)
    for kind, count in summary.mask_files.items():
        click.echo(f"wrote {count} mask files ({kind}) beside the table", err=True)
    if summary.planned and not quiet:
        click.echo(
            f"scored {summary.ok + summary.rejected} of {summary.planned} images, {summary.rejected} rejected, "
            f"{summary.images_per_s} images/s",
            err=True,
        )
    return summary


def _write_mask_files(prepared: Prepared, window: str, summary: Summary) -> None:
    """Write the mask files that lie beside the table; what fails is a problem of the summary."""
    from unet_batch.job.publisher import ended_by
    from unet_batch.planning.survey import window_of
    from unet_batch.review.masks.beside import write_beside

    try:
        found = write_beside(prepared, window_of(window))
    except StorageError as error:
        advice, exit_code = ended_by(error)
        summary.problem(f"rows are published, but not all mask files are written: {error}{advice}", exit_code)
        return
    summary.mask_files = dict(found.written)
    for (kind, reason), count in found.without.items():
        text = f"{count} image(s) without a mask file ({kind}): {reason.why}"
        if reason.may_pass:
            summary.problem(text, ExitCode.UNFINISHED)
        else:
            summary.hints.append(text)
