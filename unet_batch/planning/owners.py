"""Whose rows are published in a partition, and whether an ordinary run of this job may replace them.

Two jobs may share one output: one scores the nights, the other the years before. An ordinary run replaces rows of its
own job, because another model makes them stale. Rows of another job are replaced where the user asked for it:
`backfill --select changed` or `all`, or `--rescore`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from unet_batch.records import Source
from unet_batch.spec import JobSpec
from unet_batch.table.parts import RowKey
from unet_batch.table.publish import Commit

_RUN = re.compile(r"\d{8}T\d{6}-(?P<job>.+)-[0-9a-f]+")
"""Names of runs, as `new_run_id` makes them."""


def job_of(run_id: str) -> str | None:
    """The name of the job of a run; None for a run that is called otherwise."""
    found = _RUN.fullmatch(run_id)
    return found["job"] if found else None


def of_another_job(partition: str, job: JobSpec, commit: Commit, fingerprint: str) -> str | None:
    """Why rows of another job with another fingerprint stay; None if they are of this job or of its fingerprint."""
    owner = _owner(job, commit)
    if owner is None or commit.fingerprint == fingerprint:
        return None
    return _sentence(partition, job, commit, owner, "has another model or other settings")


def of_other_images(
    partition: str, job: JobSpec, commit: Commit, visible: Iterable[RowKey], sources: Sequence[Source]
) -> str | None:
    """Why rows of another job stay that hold none of this job's images; None if they hold one, or are of this job.

    visible: the published rows, of this job's fingerprint.
    """
    owner = _owner(job, commit)
    if owner is None:
        return None
    keys = {source.key for source in sources}
    if any(row.source_key in keys for row in visible):
        return None
    return _sentence(partition, job, commit, owner, "has other images")


def _owner(job: JobSpec, commit: Commit) -> str | None:
    """The name of the other job that published rows; None if it is this one, unknown, or if there are no rows."""
    owner = job_of(commit.run_id)
    return owner if owner != job.name and commit.rows else None


def _sentence(partition: str, job: JobSpec, commit: Commit, owner: str, differs: str) -> str:
    return (
        f"{partition}: its {commit.rows} rows were published by the job {owner} (run {commit.run_id}), and this job, "
        f"{job.name}, {differs}; the rows stay: write another output.uri, or, if {job.name} takes over, run "
        "`unet-batch backfill` with --select changed once"
    )
