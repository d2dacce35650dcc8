"""Composes a request to a cluster: a job file, the command to run, its environment, and a name.

Checks a submission without contacting the cluster; `submit` sends the request. The name depends on the content, so that
the same request is recognised.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel

import unet_batch
from unet_batch.archive.window import parse_window
from unet_batch.errors import JobError
from unet_batch.options import EnvRef
from unet_batch.spec import JobSpec, job_digest, load_job
from unet_batch.store.objects import canonical, scheme_of
from unet_batch.worker.environment import KEEP_PAGES

log = logging.getLogger(__name__)

ADDRESS = "http://127.0.0.1:8265"
"""Default address of `ray start --head`, and of a port forwarded to a cluster."""
JOB_FILE = "job.yaml"
DRIVER_STOP_S = 60
"""How long a stopped driver may take to write its record; Ray's default is 3 s."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Submission:
    """The settings of a submission."""

    job_file: Path
    overrides: tuple[str, ...] = ()
    """`section.key=value`, as for `--set`."""
    command: tuple[str, ...] = ("run",)
    """The command with its selection, e.g. `backfill --select missing`."""
    options: tuple[str, ...] = ()
    """Its other options: when and how it scores, not what. They do not change the identity of the request."""
    window: str | None = None
    """None: the command's default, `all` for a backfill, else the job file's. `today` and `yesterday` refer to the time
    of the submission."""
    address: str = ADDRESS
    """URL of the job server."""
    forward_env: tuple[str, ...] = ()
    """Environment variables to send with their values."""
    in_image: bool = False
    """Whether the nodes have this package, so that it is not sent."""
    trust_network: bool = False
    """Accept plain http to another machine without a token."""


@dataclass(frozen=True, slots=True)
class Request:
    """A checked submission, for the job server."""

    name: str
    """The job id without its counter."""
    job_file: bytes
    entrypoint: str
    metadata: dict[str, str]
    package: Path | None
    """Folder of the package to send."""
    environment: dict[str, str]
    """Environment variables of the driver and its workers; every user of the cluster can read them."""
    forwarded: dict[str, str] = field(repr=False)
    """More variables of the driver and its workers, with secret values."""


def compose(submission: Submission) -> Request:
    """Check a submission and compose the request. Raises JobError; logs warnings about the cluster's requirements."""
    job = load_job(submission.job_file, submission.overrides)
    _check_address(submission)
    _check_places(job)
    window = _in_days(submission.window or ("all" if submission.command[0] == "backfill" else job.window))
    words = ["python", "-m", "unet_batch", *submission.command, *submission.options, JOB_FILE, "--window", window]
    for override in submission.overrides:
        words += ["--set", override]
    mark = json.dumps([job_digest(job), window, submission.command])
    return Request(
        name=f"{job.name}-{hashlib.sha256(mark.encode()).hexdigest()[:12]}",
        job_file=submission.job_file.read_bytes(),
        entrypoint=shlex.join([*words, "--address", "auto"]),
        metadata={"job": job.name, "window": window, "unet_batch": unet_batch.__version__},
        package=None if submission.in_image else Path(unet_batch.__file__).parent,
        environment={**KEEP_PAGES, "RAY_JOB_STOP_WAIT_TIME_S": str(DRIVER_STOP_S)},
        forwarded=_forwarded(submission, job),
    )


def _check_address(submission: Submission) -> None:
    url = urlsplit(submission.address)
    if url.scheme not in ("http", "https") or not url.hostname or url.username is not None:
        raise JobError(
            "--address must be the URL of a job server, such as http://127.0.0.1:8265 or https://ray.example"
        )
    if url.scheme == "https" or _is_loopback(url.hostname):
        return
    if os.environ.get("RAY_AUTH_MODE") != "token" and not submission.trust_network:
        raise JobError(
            f"{submission.address} is another machine, and without a token anyone who reaches it can run code there: "
            "forward its port to this machine, use https, set RAY_AUTH_MODE=token, or add --trust-network"
        )
    if submission.forward_env:
        log.warning("the forwarded variables are sent to %s unencrypted", submission.address)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_places(job: JobSpec) -> None:
    """Raise JobError for relative paths, which a cluster cannot see; log a warning about absolute local paths."""
    local: list[str] = []
    for key, place in _places(job):
        if scheme_of(canonical(place)) != "file":
            continue
        if "://" not in place and not os.path.isabs(place):
            raise JobError(
                f"{key}: a cluster cannot see the relative path {place}; write a URI, or an absolute path that is the "
                "same file on every node"
            )
        local.append(f"{key} ({place})")
    if local:
        log.warning("every node of the cluster must see the same files under %s", ", ".join(local))


def _places(job: JobSpec) -> Iterator[tuple[str, str]]:
    """Every path and URI of a job, with its key."""
    yield "model.path", job.model.path
    if job.model.contract is not None:
        yield "model.contract", job.model.contract
    for i, member in enumerate(job.model.ensemble.members if job.model.ensemble else ()):
        yield f"model.ensemble.members[{i}]", member
    if job.check.reference is not None:
        yield "check.reference", job.check.reference
    for i, path in enumerate(job.check.references):
        yield f"check.references[{i}]", path
    for i, library in enumerate(job.session.custom_ops):
        yield f"session.custom_ops[{i}]", library
    yield "input.uri", job.input.uri
    for i, root in enumerate(job.input.roots):
        yield f"input.roots[{i}]", root
    yield "output.uri", job.output.uri


def _in_days(text: str) -> str:
    """A window with explicit days: a job may start tomorrow, and its `yesterday` must stay the same."""
    window = parse_window(text, datetime.now(UTC).date())
    if window.first is None or window.last is None:
        return text.strip()
    return f"{window.first}" if window.first == window.last else f"{window.first}..{window.last}"


def _forwarded(submission: Submission, job: JobSpec) -> dict[str, str]:
    names = dict.fromkeys(submission.forward_env)
    for name in names:
        if not VARIABLE.fullmatch(name):  # not repeated in the message: it may be NAME=secret
            raise JobError("--forward-env takes the name of a variable without its value, e.g. AWS_SECRET_ACCESS_KEY")
        if name not in os.environ:
            raise JobError(f"--forward-env {name}: the variable is not set here")
    if names:
        log.warning("users who may run code on the cluster can read %s while the job runs", ", ".join(names))
    needed = sorted(set(_references(job)) - names.keys())
    if needed:
        log.warning("every node of the cluster must have set %s, or use --forward-env", ", ".join(needed))
    return {name: os.environ[name] for name in names}


def _references(value: object) -> Iterator[str]:
    """The names of variables in settings, from `{env: NAME}`."""
    if isinstance(value, EnvRef):
        yield value.env
    elif isinstance(value, BaseModel):
        for _, inner in value:
            yield from _references(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _references(inner)
