"""Shared parts of all commands: a job file with its overrides, the line of JSON, and the exit code."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, NoReturn

import click

from unet_batch.errors import ExitCode, JobError
from unet_batch.records import PassedOver

SET_HELP = "Override a field of the job file, e.g. --set limits.max_rejected=0.05. May be repeated."
WINDOW_HELP = "Partitions: A..B, A, last, all, today or yesterday (days as 2026-11-21, UTC; months as 2026-11)."


def job_command(window: str | None) -> Callable[[Callable[..., None]], click.Command]:
    """A command on a job file, with --set and --window. window: its default; None: the job file's."""

    def decorate(body: Callable[..., None]) -> click.Command:
        @functools.wraps(body)
        def command(job: str, overrides: tuple[str, ...], window_text: str | None, **options: Any) -> None:
            from unet_batch.spec import load_job  # it builds models, which help and mistakes need not wait for

            spec = load_job(job, overrides)
            body(job=spec, window=(window or spec.window) if window_text is None else window_text, **options)

        command = click.option("--window", "window_text", metavar="A..B", help=WINDOW_HELP)(command)
        command = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET_HELP)(command)
        return click.command()(click.argument("job", metavar="JOB", type=click.Path())(command))

    return decorate


OPTIONS: tuple[click.Option, ...] = (
    click.Option(["--newest-first"], is_flag=True, help="Begin with the latest partition."),
    click.Option(
        ["--max-active"],
        type=click.IntRange(min=1),
        metavar="N",
        help="Hold and score at most N partitions at a time (each group starts new sessions); default: all.",
    ),
    click.Option(
        ["--deadline"],
        metavar="TIME",
        help="06:00 (the next one, local time) or 2026-11-22T06:00: start no unit that may end after it, and publish "
        "the partitions that are complete by then.",
    ),
    click.Option(
        ["--wait", "wait_s"],
        type=click.FloatRange(min=0),
        default=0.0,
        metavar="SECONDS",
        help="Seconds to wait for the leases of a run that may have died; a run that renews its leases is not waited "
        "for.",
    ),
    click.Option(
        ["--rescore"],
        is_flag=True,
        help="Score every image of the window again, even if its rows are published and up to date; the old rows "
        "stay until the new ones replace them.",
    ),
    click.Option(
        ["--report", "with_report"],
        is_flag=True,
        help="Write the report at the end of the run; it does not change the exit code.",
    ),
)
"""Options of every command that scores: `run`, `backfill` and `submit`."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """The values of OPTIONS."""

    newest_first: bool = False
    max_active: int | None = None
    deadline: datetime | None = None
    """With its time zone."""
    wait_s: float = 0.0
    rescore: bool = False
    with_report: bool = False

    def words(self) -> tuple[str, ...]:
        """The same options for the command line of another machine: a time of day has its date and zone."""
        said: list[str] = []
        for option in OPTIONS:
            value = getattr(self, str(option.name))
            if option.is_flag:
                said += [option.opts[0]] if value else []
            elif value not in (None, option.default):
                shown = value.isoformat() if isinstance(value, datetime) else f"{value:g}"
                said += [option.opts[0], shown]
        return tuple(said)


def scoring(body: Callable[..., None]) -> Callable[..., None]:
    """Decorator: adds OPTIONS to a command; the body gets them as `scoring`."""

    @functools.wraps(body)
    def command(**given: Any) -> None:
        chosen = {str(option.name): given.pop(str(option.name)) for option in OPTIONS}
        if chosen["deadline"] is not None:
            chosen["deadline"] = parse_deadline(chosen["deadline"], datetime.now().astimezone())
        body(scoring=Scoring(**chosen), **given)

    command.__click_params__ = [*getattr(body, "__click_params__", []), *reversed(OPTIONS)]  # type: ignore[attr-defined]
    return command


def parse_deadline(text: str, now: datetime) -> datetime:
    """A time of day (the next one) or a date and time, in the time zone of `now`. Raises JobError."""
    try:
        if "-" in text:
            moment = datetime.fromisoformat(text)
            return moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)
        moment = datetime.combine(now.date(), time.fromisoformat(text), now.tzinfo)
    except ValueError as error:
        raise JobError(f"--deadline {text!r} is not a time such as 06:00 or 2026-11-22T06:00") from error
    return moment if moment > now else moment + timedelta(days=1)


def say(passed: PassedOver, problems: Sequence[str] = ()) -> None:
    """Print what was passed over in the archive, in one line, and the problems of a run."""
    from unet_batch.cli.terminal import plain

    if passed.total:
        click.echo(plain(passed), err=True)
    for problem in problems:
        click.echo(f"problem: {plain(problem)}", err=True)


class Exit(Exception):
    """Ends the command line with an exit code, after the result was printed."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


_json_wanted: list[bool] = []
"""Not empty if --json was given; one state for all commands of the process."""


def with_json(command: click.Command) -> None:
    """Add --json to a command, or to every command of a group, unless it has its own."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            with_json(inner)
        return
    if all("--json" not in option.opts for option in command.params):
        text = "Print the result as one line of JSON on stdout, even if stdout is a terminal."
        command.params.append(click.Option(["--json"], is_flag=True, expose_value=False, callback=_want, help=text))


def _want(_context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    _json_wanted[:] = [wanted] * wanted


def finish(result: dict[str, Any], *, exit_code: int = ExitCode.COMPLETE) -> NoReturn:
    """End a command with its result; without a terminal, it is the last line of stdout."""
    print_result(result, ExitCode(exit_code))
    raise Exit(exit_code)


def print_result(result: dict[str, Any], exit_code: ExitCode) -> None:
    """Print the result as one line of JSON on stdout, with the exit code and its name.

    On a terminal only with --json, because the messages on stderr are enough there.
    """
    sys.stderr.flush()
    if sys.__stdout__ is None or (sys.__stdout__.isatty() and not _json_wanted):
        return
    ending = {"exit_code": int(exit_code), "exit": exit_code.label}
    click.echo(json.dumps(result | ending, default=str), file=sys.__stdout__)
