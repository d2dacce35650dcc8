"""The command line: arguments in, library calls, one JSON object as the last line of stdout. People read stderr.

Library errors become exit codes here and nowhere else.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import FrameType
from typing import Any, NoReturn

import click

from unet_batch import __version__
from unet_batch.errors import JobError, UnetBatchError
from unet_batch.spec import JobSpec, load_job

log = logging.getLogger(__name__)

SET_HELP = "Override a field of the job file, e.g. --set limits.max_rejected=0.05. May be repeated."
WINDOW_HELP = "Partitions: A..B, A, last, all, today or yesterday (dates as 2026-11-21, UTC)."


def main() -> NoReturn:
    """Run the command line and leave the process with its exit code.

    The process leaves through os._exit: pyarrow can abort at interpreter exit after reading from a Python file object
    (24 of 25 runs of one script did), which would replace our exit code.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("unet_batch").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _stop)
    sys.stdout = sys.stderr  # Ray prints what its workers died of; stdout is for the result alone
    code = 1
    try:
        cli.main(standalone_mode=False)
        code = 0
    except _Exit as done:
        code = done.code
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, click.Abort):
        print("stopped; run the same command again to go on", file=sys.stderr)  # noqa: T201
        code = 3
    except UnetBatchError as error:
        print(f"error [{error.code}]: {error}", file=sys.stderr)  # noqa: T201
        code = error.exit_code
    except Exception:
        log.exception("unexpected error; this is a bug in unet-batch")
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()
    sys.stderr.flush()
    os._exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="unet-batch")
def cli() -> None:
    """Score archives of images with a U-Net in ONNX, and prove that every image has exactly one row.

    Exit codes: 0 complete, 1 unexpected, 2 job file or arguments, 3 finished but incomplete, 4 another run was first.
    """


def _job_command(window: str | None) -> Callable[[Callable[..., None]], click.Command]:
    """A command on a job file, with --set and --window. window: its default; None takes the job file's."""

    def decorate(body: Callable[..., None]) -> click.Command:
        @functools.wraps(body)
        def command(job: str, overrides: tuple[str, ...], window_text: str | None, **options: Any) -> None:
            spec = load_job(job, overrides)
            body(spec, window_text or window or spec.window, **options)

        command = click.option("--window", "window_text", metavar="A..B", help=WINDOW_HELP)(command)
        command = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET_HELP)(command)
        return cli.command()(click.argument("job", metavar="JOB", type=click.Path())(command))

    return decorate


def _runner(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that score."""
    executor = click.option(
        "--executor",
        type=click.Choice(["ray", "local"]),
        default="ray",
        show_default=True,
        help="Ray, or a plain loop.",
    )
    address = click.option("--address", metavar="HOST:PORT", help="Ray cluster to join; without it Ray is embedded.")
    quiet = click.option("--quiet", is_flag=True, help="No progress.")
    return executor(address(quiet(command)))


@_job_command(None)
def plan(job: JobSpec, window: str) -> None:
    """Say what a run would score: images, units, bytes. Changes nothing."""
    from unet_batch.job.plan import selected, units
    from unet_batch.job.prepare import prepare
    from unet_batch.job.survey import survey, window_of

    prepared = prepare(job)
    plans = survey(prepared, window_of(window), repair=False)
    work = selected(plans, "all")
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    todo = [unit for p in work for unit in units(p, prepared.job, prepared.fingerprint, workers=workers)]
    _partition_table(
        f"plan of {job.name}",
        ["partition", "state", "images", "scored", "to score"],
        [[p.partition, p.state, len(p.sources), p.scored, len(p.open)] for p in plans],
    )
    _finish(
        {
            "images": sum(len(p.open) for p in work),
            "units": len(todo),
            "bytes": sum(s.size_bytes for p in work for s in p.open),
            "partitions": len(work),
            "fingerprint": prepared.fingerprint,
            "window": window,
        }
    )


@_job_command(None)
@_runner
def run(job: JobSpec, window: str, executor: str, address: str | None, quiet: bool) -> None:
    """Score what the window still needs and publish every complete partition. Resuming is running again."""
    _run(job, window, "all", executor=executor, address=address, quiet=quiet)


@_job_command("all")
@click.option(
    "--select",
    type=click.Choice(["missing", "all"]),
    default="missing",
    show_default=True,
    help="missing: partitions without published rows. all: also those that are out of date.",
)
@_runner
def backfill(job: JobSpec, window: str, select: str, executor: str, address: str | None, quiet: bool) -> None:
    """Score many partitions: those that are missing, or all that are not up to date."""
    _run(job, window, select, executor=executor, address=address, quiet=quiet)


@_job_command("all")
def status(job: JobSpec, window: str) -> None:
    """Say of each partition whether it is published, partial, missing or stale."""
    from unet_batch.job.prepare import prepare
    from unet_batch.job.survey import window_of
    from unet_batch.job.verify import status as partition_status

    found = partition_status(prepare(job), window_of(window))
    _partition_table(
        f"status of {job.name}",
        ["partition", "state", "images", "rows", "rejected", "staged"],
        [[s.partition, s.state, s.images, s.rows, s.rejected, s.staged] for s in found],
    )
    _finish({"partitions": [asdict(s) for s in found]})


@_job_command("all")
def verify(job: JobSpec, window: str) -> None:
    """Hold published rows against the archive as it is now; exit code 3 when they disagree."""
    from unet_batch.job.prepare import prepare
    from unet_batch.job.survey import window_of
    from unet_batch.job.verify import verify as compare

    partitions, findings = compare(prepare(job), window_of(window))
    for finding in findings:
        click.echo(f"disagreement: {finding}", err=True)
    if not findings:
        click.echo(f"{partitions} partition(s) agree with the archive: every image has exactly one row", err=True)
    _finish(
        {"partitions": partitions, "disagreements": len(findings), "findings": [asdict(f) for f in findings]},
        exit_code=3 if findings else 0,
    )


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="JSON Schema instead of a table.")
def schema(as_json: bool) -> None:
    """Print the reference of the job file and the contract."""
    from unet_batch.reference import json_schema, markdown

    click.echo(json.dumps(json_schema(), indent=1) if as_json else markdown(), file=sys.__stdout__)


def _run(job: JobSpec, window: str, select: str, *, executor: str, address: str | None, quiet: bool) -> None:
    from unet_batch.job.prepare import prepare
    from unet_batch.job.run import run as run_job
    from unet_batch.job.survey import window_of
    from unet_batch.job.worker import Settings

    if address is not None and executor == "local":
        raise JobError("--address goes with --executor ray")

    def make_executor(settings: Settings) -> Any:
        if executor == "local":
            from unet_batch.job.local_executor import LocalExecutor

            return LocalExecutor(settings)
        from unet_batch.job.ray_executor import RayExecutor

        return RayExecutor(settings, address=address)

    summary = run_job(
        prepare(job), window_of(window), make_executor, select="missing" if select == "missing" else "all", quiet=quiet
    )
    for problem in summary.problems:
        click.echo(f"problem: {problem}", err=True)
    if not summary.planned and not summary.published and not summary.problems:
        click.echo("nothing to do: every selected partition is published", err=True)
    for name in summary.partitions:
        click.echo(f"published {name}", err=True)
    _finish(asdict(summary), exit_code=summary.exit_code)


class _Exit(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _finish(result: dict[str, Any], *, exit_code: int = 0) -> NoReturn:
    sys.stderr.flush()
    click.echo(json.dumps(result, default=str), file=sys.__stdout__)
    raise _Exit(exit_code)


def _partition_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in ("partition", "state") else "right")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(stderr=True).print(table)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """A polite kill ends a run as Ctrl-C does: records are written, and staged parts stay."""
    raise KeyboardInterrupt
