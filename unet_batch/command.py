"""What all commands share: a job file with its overrides, the one line of JSON, and the exit code."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from unet_batch.errors import ExitCode
from unet_batch.records import PassedOver
from unet_batch.spec import load_job

SET_HELP = "Override a field of the job file, e.g. --set limits.max_rejected=0.05. May be repeated."
WINDOW_HELP = "Partitions: A..B, A, last, all, today or yesterday (days as 2026-11-21, UTC; months as 2026-11)."


def job_command(window: str | None) -> Callable[[Callable[..., None]], click.Command]:
    """A command on a job file, with --set and --window. window: its default; None takes the job file's."""

    def decorate(body: Callable[..., None]) -> click.Command:
        @functools.wraps(body)
        def command(job: str, overrides: tuple[str, ...], window_text: str | None, **options: Any) -> None:
            spec = load_job(job, overrides)
            body(spec, window_text or window or spec.window, **options)

        command = click.option("--window", "window_text", metavar="A..B", help=WINDOW_HELP)(command)
        command = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET_HELP)(command)
        return click.command()(click.argument("job", metavar="JOB", type=click.Path())(command))

    return decorate


def runner(command: Callable[..., None]) -> Callable[..., None]:
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
    return executor(address(wait(report(quiet(command)))))


def report(command: Callable[..., None]) -> Callable[..., None]:
    """The option of commands that may leave a page about what they did."""
    text = "Write the page about the run at its end; whatever becomes of it, the exit code is the run's."
    return click.option("--report", "with_report", is_flag=True, help=text)(command)


def wait(command: Callable[..., None]) -> Callable[..., None]:
    """The option of commands that may meet the leases of a run that died."""
    option = click.option(
        "--wait",
        "wait_s",
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="Wait so long for the leases of a run that may have died; one that renews them is never waited for.",
    )
    return option(command)


def say(passed: PassedOver, problems: Sequence[str] = ()) -> None:
    """What lies in the archive and does not count, in one line, and what keeps a run from being complete."""
    if passed.total:
        click.echo(str(passed), err=True)
    for problem in problems:
        click.echo(f"problem: {problem}", err=True)


class Exit(Exception):
    """Leaves the command line with an exit code, after the result was printed."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def finish(result: dict[str, Any], *, exit_code: int = ExitCode.COMPLETE) -> NoReturn:
    """Print the result, with the exit code and its name, as the last line of stdout, and leave."""
    print_result(result, ExitCode(exit_code))
    raise Exit(exit_code)


def print_result(result: dict[str, Any], exit_code: ExitCode) -> None:
    """The result as one line of JSON on stdout, with the exit code and its name."""
    sys.stderr.flush()
    ending = {"exit_code": int(exit_code), "exit": exit_code.label}
    click.echo(json.dumps(result | ending, default=str), file=sys.__stdout__)
