"""The command that sends a job to a cluster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from unet_batch.cli.command import SET_HELP, WINDOW_HELP, Scoring, finish, scoring
from unet_batch.planning.selection import SELECTIONS


@click.command()
@click.argument("job", metavar="JOB", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET_HELP)
@click.option("--window", metavar="A..B", help=WINDOW_HELP)
@click.option("--address", metavar="URL", help="Job server; default: http://127.0.0.1:8265.")
@click.option("--backfill", "select", type=click.Choice(SELECTIONS), help="Backfill there with this selection.")
@click.option("--follow", is_flag=True, help="Show the job's output, end with its exit code; Ctrl-C leaves it running.")
@click.option(
    "--forward-env", multiple=True, metavar="NAME", help="Environment variable to send with its value. May be repeated."
)
@click.option("--image", "in_image", is_flag=True, help="The nodes' image contains this package, so it is not sent.")
@click.option("--trust-network", is_flag=True, help="Accept plain http to another machine without a token.")
@scoring
def submit(
    job: Path,
    overrides: tuple[str, ...],
    window: str | None,
    address: str | None,
    select: str | None,
    follow: bool,
    forward_env: tuple[str, ...],
    in_image: bool,
    trust_network: bool,
    scoring: Scoring,
) -> None:
    """Run the job on a cluster, as a Ray job. Submitting again resumes it."""
    from unet_batch.on_ray.submission import ADDRESS, Submission
    from unet_batch.on_ray.submit import submit as send

    command: tuple[str, ...] = ("run",) if select is None else ("backfill", "--select", select)
    submitted = send(
        Submission(
            job_file=job,
            overrides=overrides,
            command=command,
            options=scoring.words(),
            window=window,
            address=address or ADDRESS,
            forward_env=forward_env,
            in_image=in_image,
            trust_network=trust_network,
        ),
        show=(lambda text: click.echo(text, err=True, nl=False)) if follow else None,
    )
    finish(asdict(submitted), exit_code=submitted.exit_code)
