"""The command line: arguments, library calls, and one JSON object as the last line of stdout. Messages go to stderr.

Only this module converts library errors to exit codes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections import Counter
from dataclasses import asdict
from time import gmtime
from typing import TYPE_CHECKING, NoReturn

import click

from unet_batch import __version__
from unet_batch.cli.cluster import submit
from unet_batch.cli.command import Exit, finish, job_command, print_result, say, with_json
from unet_batch.cli.examples import with_examples
from unet_batch.cli.importers import import_model
from unet_batch.cli.model import doctor, model
from unet_batch.cli.report import report
from unet_batch.cli.review import compare, evaluate, masks
from unet_batch.cli.run import backfill, plan, run
from unet_batch.cli.start import demo, init, score
from unet_batch.errors import ExitCode, JobError, UnetBatchError
from unet_batch.job import stopping
from unet_batch.on_ray import forwarded

if TYPE_CHECKING:
    from unet_batch.spec import JobSpec

log = logging.getLogger(__name__)


def main() -> NoReturn:
    """Run the command line and end the process with its exit code.

    The process ends with os._exit: pyarrow may abort at interpreter exit after reading from a Python file object (24 of
    25 runs of one script), which would replace our exit code.
    """
    _log_to_stderr()
    stopping.install()
    if not _only_prints():
        sys.stdout = sys.stderr  # Ray prints messages; stdout is only for the result
    code: int = ExitCode.UNEXPECTED
    try:
        forwarded.take_in_driver()
        cli.main(standalone_mode=False)
        code = ExitCode.COMPLETE
    except Exit as done:
        code = done.code
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.ClickException as error:
        error.show()
        code = ExitCode.SETUP
    except (KeyboardInterrupt, click.Abort) as error:
        ended = "the end of the input (Ctrl-D)" if isinstance(error, click.Abort) else "Ctrl-C"
        signal = stopping.stopped_by() or ended
        code = _ended(
            "run.stopped", f"stopped by {signal}; run the same command again to continue", ExitCode.UNFINISHED
        )
    except UnetBatchError as error:
        code = _ended(error.code, str(error), error.exit_code)
    except Exception:
        log.exception("unexpected error; this is a bug in unet-batch")
    forwarded.forget()
    for stream in (sys.__stdout__, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a closed pipe or terminal, or none at all
            stream.flush()  # type: ignore[union-attr]
    os._exit(code)


def _only_prints() -> bool:
    """Whether the process was asked for a help, its version or a completion, which belong to stdout."""
    return "_UNET_BATCH_COMPLETE" in os.environ or not {"-h", "--help", "--version"}.isdisjoint(sys.argv[1:])


def _log_to_stderr() -> None:
    """Log to stderr with times in UTC, as in windows, runs and leases."""
    shape = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    shape.converter = gmtime
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(shape)
    logging.basicConfig(level=logging.WARNING, handlers=[lines])
    logging.getLogger("unet_batch").setLevel(logging.INFO)


EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {code:d}  {code.meaning}" for code in ExitCode)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="unet-batch")
def cli() -> None:
    """Score archives of images with a U-Net in ONNX, and prove that every image has exactly one row.

    If several exit codes apply, it is the first of 3, 5, 4; the JSON line also has its name.
    """


@job_command("all")
@click.option("--list", "every", is_flag=True, help="List every partition.")
def status(job: JobSpec, window: str, every: bool) -> None:
    """Show for each partition whether it is published, partial, missing, stale or held by a run."""
    from unet_batch.cli.terminal import print_status
    from unet_batch.job.verify import overview
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of

    found = overview(prepare(job), window_of(window))
    print_status(f"status of {job.name}", found.partitions, every=every)
    say(found.passed, found.problems)
    finish(
        {
            "partitions": [asdict(s) for s in found.partitions],
            "passed_over": found.passed.to_json(),
            "problems": found.problems,
        }
    )


@job_command("all")
@click.option("--keep-other-models", is_flag=True, help="Keep other models' parts: a rollback then needs no scoring.")
@click.option("--dry-run", is_flag=True, help="Show what would be removed; remove nothing.")
@click.option(
    "--vanished",
    metavar="A..B",
    help="Remove nothing but published days of which the archive holds no image: rows, staged parts, mask files. Only "
    "with --yes; without it they are shown.",
)
@click.option("--yes", is_flag=True, help="With --vanished: these days were deleted on purpose.")
def sweep(job: JobSpec, window: str, keep_other_models: bool, dry_run: bool, vanished: str | None, yes: bool) -> None:
    """Remove leftovers of runs: parts with published rows, dead leases, markers, indexes of deleted tars.

    Published rows stay, except with --vanished and --yes.
    """
    from unet_batch.job.sweep import sweep as remove
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of

    if vanished is not None:
        _remove_vanished(job, vanished, yes=yes and not dry_run)
        return
    if yes:
        raise JobError("--yes belongs to --vanished: name the days that were deleted, or leave it out")
    found = remove(prepare(job), window_of(window), keep_other_models=keep_other_models, dry_run=dry_run)
    size = sum(litter.size_bytes for litter in found)
    click.echo(f"{'would remove' if dry_run else 'removed'} {len(found)} objects of {size} bytes", err=True)
    finish({"removed": 0 if dry_run else len(found), "found": dict(Counter(f.kind for f in found)), "bytes": size})


def _remove_vanished(job: JobSpec, days: str, *, yes: bool) -> None:
    """Show the published days that the archive no longer holds; with yes, remove them."""
    from unet_batch.cli.terminal import plain
    from unet_batch.job.vanished import remove, vanished
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of

    prepared = prepare(job)
    found = vanished(prepared, window_of(days))
    going = [some for some in found if not some.kept]
    objects = 0
    for some in going:
        objects += remove(prepared.output, some) if yes else 0
        click.echo(f"{'removed' if yes else 'would remove'} {plain(str(some))}", err=True)
    for some in found:
        if some.kept:
            click.echo(f"problem: {plain(f'{some} stay: {some.kept}')}", err=True)
    code = ExitCode.HELD if any(some.holder for some in found) else ExitCode.COMPLETE
    if any(some.owner for some in found):
        code = ExitCode.NEEDS_ACTION
    if going and not yes:
        click.echo("nothing was removed: if these days were deleted on purpose, add --yes", err=True)
    if not found:
        click.echo("the archive holds images of every published day of this window", err=True)
    finish(
        {
            "vanished": [{"partition": some.partition, "images": some.images, "rows": some.rows} for some in going],
            "kept": {some.partition: some.kept for some in found if some.kept},
            "removed": objects,
        },
        exit_code=code,
    )


@job_command("all")
def verify(job: JobSpec, window: str) -> None:
    """Compare published rows with the current archive; exit code 3 if they disagree."""
    from unet_batch.cli.terminal import plain
    from unet_batch.job.verify import verify as compare
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of

    partitions, findings, passed = compare(prepare(job), window_of(window))
    say(passed)
    for finding in findings:
        click.echo(f"disagreement: {plain(finding)}", err=True)
    if not findings:
        click.echo(f"{partitions} partition(s) agree with the archive: every image has exactly one row", err=True)
    finish(
        {
            "partitions": partitions,
            "disagreements": len(findings),
            "findings": [asdict(f) for f in findings],
            "passed_over": passed.to_json(),
        },
        exit_code=ExitCode.UNFINISHED if findings else ExitCode.COMPLETE,
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON Schema instead of a table.")
def schema(as_json: bool) -> None:
    """Print the reference of the job file and the contract."""
    from unet_batch.cli.reference import json_schema, markdown

    click.echo(json.dumps(json_schema(), indent=1) if as_json else markdown(), file=sys.__stdout__)


for _command in (
    init,
    score,
    demo,
    plan,
    run,
    backfill,
    submit,
    status,
    verify,
    report,
    masks,
    evaluate,
    compare,
    sweep,
    schema,
    model,
    doctor,
):
    cli.add_command(_command)
model.add_command(import_model)
with_json(cli)
with_examples(cli)


def _ended(code: str, message: str, exit_code: ExitCode) -> ExitCode:
    """Report an error on stderr; also as JSON on stdout, unless it is a wrong set-up or a bug."""
    from unet_batch.cli.terminal import plain

    print(f"error [{code}]: {plain(message)}", file=sys.stderr)  # noqa: T201
    if exit_code not in (ExitCode.UNEXPECTED, ExitCode.SETUP):
        print_result({"error": code, "message": message}, exit_code)
    return exit_code
