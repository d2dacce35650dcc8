"""The command that writes the report of a run."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import click

from unet_batch import lifeline
from unet_batch.cli.command import finish, job_command
from unet_batch.errors import JobError

if TYPE_CHECKING:
    from unet_batch.spec import JobSpec

PICTURES = 12
"""Default number of pictures of each kind: three rows on a wide screen."""
PATIENCE_S = 600.0
"""How long a run waits for its report: hundreds of times the normal duration."""


@job_command("all")
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--out", metavar="FILE", help="A local file, instead of reports/<run>.html below the output.")
@click.option(
    "--pictures",
    type=click.IntRange(min=0),
    default=PICTURES,
    show_default=True,
    metavar="N",
    help="Pictures of the least confident images, and the same number of a fixed sample; 0: none.",
)
def report(job: JobSpec, window: str, run: str | None, out: str | None, pictures: int) -> None:
    """Write the report of a run: partitions, rejections, speed, and images to review.

    RUN is the name of a run; default: the latest run that worked on the window.
    """
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.review.page import render
    from unet_batch.review.pictures import MOST_PICTURES
    from unet_batch.review.report import gather
    from unet_batch.review.run_records import newest_record, read_record
    from unet_batch.store.objects import canonical

    if pictures > MOST_PICTURES:
        raise JobError(f"--pictures {pictures}: a report has at most {MOST_PICTURES} of each kind")
    prepared = prepare(job)
    record = newest_record(prepared, window_of(window)) if run is None else read_record(prepared.output, run)
    found = gather(prepared, record, pictures=pictures)
    page = render(found)
    if out is None:
        uri = prepared.output.report(record.run)
        prepared.output.store.put(uri, page)
    else:
        uri = canonical(out)
        if not uri.startswith("file://"):
            raise JobError(f"--out {out} is not a local file: leave it out to write below the output")
        _write(uri.removeprefix("file://"), page)
    click.echo(f"wrote {uri}", err=True)
    counts = found.figures.counts
    finish(
        {
            "run": record.run,
            "report": uri,
            "partitions": len(found.partitions),
            "published": found.published,
            "images": counts.rows,
            "ok": counts.ok,
            "rejected": counts.rejected,
            "pictures": sum(picture.jpeg is not None for picture in (*found.queue, *found.sample)),
            "bytes": len(page),
        }
    )


def report_apart(job: JobSpec, run: str) -> str | None:
    """Write the report of a finished run in a child process; returns its URI, or None after a message.

    A child process, so that a crash, a slow store or Ctrl-C cannot change the result of the run.
    """
    from unet_batch.table.scratch import scratch_folder

    try:
        with scratch_folder() as folder:
            file = folder / "job.yaml"
            file.write_text(job.model_dump_json(exclude_unset=True), "utf-8")  # `engine: auto` heeds what is written
            done = lifeline.run("unet_batch", "report", str(file), run, stderr=None, timeout_s=PATIENCE_S)
        if done.returncode == 0:
            return str(json.loads(done.stdout.splitlines()[-1])["report"])
        why = f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        why = f"it took more than {PATIENCE_S:.0f} s"
    except KeyboardInterrupt:
        why = "it was stopped"
    except (OSError, ValueError, LookupError) as error:
        why = str(error)
    click.echo(f"the run has no report ({why}); `unet-batch report` may still write one", err=True)
    return None


def _write(path: str, page: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(page)
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror or error}") from error
