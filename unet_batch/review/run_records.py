"""The records of runs: found by name or window, parsed as untrusted input.

Reads the records of `publisher.Record`, of this version and earlier ones. The record of a killed run has no end.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import groupby
from typing import Any

from unet_batch.archive.window import Window
from unet_batch.errors import JobError
from unet_batch.job.summary import Summary
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.scope import resolved
from unet_batch.planning.survey import archive_partitions
from unet_batch.records import PassedOver
from unet_batch.table.output import Output

EXAMPLES = 3
STAMP_CHARACTERS = len("20261121T233000")
"""Length of the time stamp in a run's name, to the second; the records decide between runs of the same second."""


@dataclass(frozen=True, slots=True)
class WorkedOn:
    """A partition at the start of a run."""

    partition: str
    state: str
    """missing, partial, stale, or published (if rejections were retried)."""
    images: int
    """Sources of its inventory."""
    open: int
    """Number of these without a row."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The plan of a run, and what it did."""

    run: str
    started: datetime | None
    ended: datetime | None
    """None if the run was killed, is still running, or was recorded by an earlier version."""
    select: str
    version: str
    """Of this package."""
    versions: Mapping[str, str]
    """Of others; empty in older records."""
    fingerprint: str
    model: str
    job: Mapping[str, Any]
    """The job at that time; secrets are references."""
    partitions: tuple[WorkedOn, ...]
    passed: PassedOver
    """Names in the archive that were passed over; empty in older records."""
    did: Summary | None
    """None if the record has no end."""


def read_record(output: Output, run: str) -> RunRecord:
    """The record of a run. Raises JobError if there is none (with the nearest names), and if it is damaged."""
    runs = run_names(output)
    if run not in runs:
        near = difflib.get_close_matches(run, runs, n=EXAMPLES, cutoff=0.5) or runs[:EXAMPLES]
        instead = f"similar names are {', '.join(near)}" if near else "it has no records of runs yet"
        raise JobError(f"no run of {output.uri} is called {run}: {instead}")
    return listed_record(output, run)


def newest_record(prepared: Prepared, window: Window) -> RunRecord:
    """The record of the latest run that worked on a partition of the window. Raises JobError."""
    # Only the archive can resolve `last`.
    found_now = archive_partitions(prepared, window, keep=False).partitions if window.kind == "last" else ()
    scope = resolved(window, found_now)
    for _, runs in groupby(run_names(prepared.output), key=lambda run: run[:STAMP_CHARACTERS]):
        records = [listed_record(prepared.output, run) for run in runs]
        found = [r for r in records if any(scope.holds(worked.partition) for worked in r.partitions)]
        if found:
            return max(found, key=lambda record: record.started.timestamp() if record.started else 0.0)
    where = prepared.output.uri
    raise JobError(f"{where} has no record of a run that worked on this window: run the job, or write --window all")


def run_names(output: Output) -> list[str]:
    """Names of all runs with a record, newest first: names begin with the start time."""
    uris = (found.uri for found in output.store.list(output.runs))
    names = (uri.rpartition("/")[2] for uri in uris)
    return sorted((name.removesuffix(".json") for name in names if name.endswith(".json")), reverse=True)


def listed_record(output: Output, run: str) -> RunRecord:
    """The record of one of `run_names`. Raises JobError where it is damaged."""
    uri = output.run(run)
    try:
        tree = json.loads(output.store.read(uri))
        return RunRecord(
            run=run,
            started=_moment(tree.get("started")),
            ended=_moment(tree.get("ended")),
            select=str(tree.get("select", "")),
            version=str(tree.get("version", "")),
            versions={str(name): str(text) for name, text in tree.get("versions", {}).items()},
            fingerprint=str(tree["fingerprint"]),
            model=str(tree["model"]),
            job=dict(tree["job"]),
            partitions=tuple(
                WorkedOn(str(name), str(found["state"]), int(found["images"]), int(found["open"]))
                for name, found in sorted(tree["partitions"].items())
            ),
            passed=PassedOver.from_json(tree.get("passed_over", ())),
            did=_summary(tree.get("did")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"the record {uri} is damaged ({type(error).__name__}: {error}): name another run") from error


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _summary(did: Mapping[str, Any] | None) -> Summary | None:
    """The summary in a record, with the fields that this version knows."""
    if did is None:
        return None
    known = {field.name for field in fields(Summary)}
    found = {name: value for name, value in did.items() if name in known}
    found["batches"] = {int(tiles): int(count) for tiles, count in found.get("batches", {}).items()}
    return Summary(**found)
