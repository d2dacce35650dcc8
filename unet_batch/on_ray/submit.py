"""Submits a run as a Ray job to a cluster's job server, and follows it, with Ray's job client.

The cluster runs a command of our command line; this module reports its exit code. Nothing is stored on this side: the
same submission is refused while it runs, and resumes after it has ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from unet_batch.errors import ExitCode, Held, Incomplete, JobError
from unet_batch.on_ray import forwarded
from unet_batch.on_ray.submission import JOB_FILE, Request, Submission, compose
from unet_batch.table.scratch import scratch_folder

log = logging.getLogger(__name__)

ANSWER_S = 60.0
"""Time limit for one answer of the job server; Ray's client has none."""
PATIENCE_S = 180.0
"""Longest time without an answer of the job server while a job is followed."""
ASK_EVERY_S = 5.0
"""Interval of status requests for a job without new output."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Submitted:
    """The result of a submission; its JSON is the last line of stdout."""

    id: str
    status: str
    """Ray's status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    exit_code: int
    """0 if the job was not followed; else that of the command, and 3 if it was stopped or killed."""
    result: dict[str, Any] | None = None
    """The command's last line of output."""


def submit(submission: Submission, *, show: Callable[[str], None] | None = None) -> Submitted:
    """Send a job to a cluster. With `show`, follow it to its end and pass its output to `show`.

    Ctrl-C while following leaves the job running. Raises JobError if the job file, the arguments or the address are
    wrong, Held while the same submission runs, and Incomplete if the cluster is lost while the job is followed.
    """
    request = compose(submission)
    server = _Server(submission.address)
    job_id = _send(server, request)
    log.info("submitted as %s. %s", job_id, server.ways(job_id))
    if show is None:
        return Submitted(job_id, "PENDING", 0)
    follower = _Follower(server, job_id, show)
    try:
        details = follower.to_the_end()
    except KeyboardInterrupt:
        log.warning("%s continues to run. %s", job_id, server.ways(job_id))
        return Submitted(job_id, "RUNNING", ExitCode.UNFINISHED)
    return Submitted(job_id, details.status.value, _exit_code(job_id, details), _last_json(follower.tail))


def _send(server: _Server, request: Request) -> str:
    """Send the request; returns its job id. Raises Held while the same request runs."""
    count = 0
    for job_id, status in server.jobs().items():
        same = re.fullmatch(re.escape(request.name) + r"-(\d+)", job_id)
        if same is None:
            continue
        if not status.is_terminal():
            raise Held(f"{job_id} is already {status.value} on {server.address}. {server.ways(job_id)}")
        count = max(count, int(same[1]))
    job_id = f"{request.name}-{count + 1}"
    with scratch_folder() as folder:
        (folder / JOB_FILE).write_bytes(request.job_file)
        server.send(job_id, request, str(folder))
    return job_id


def _exit_code(job_id: str, details: Any) -> int:
    """The command's exit code, if Ray knows it; otherwise from the job's status."""
    code: int | None = details.driver_exit_code
    if code is not None and code in list(ExitCode):
        return code
    again = "its finished units are staged: submit the same job again to continue"
    if details.status.value == "STOPPED":
        log.warning("%s was stopped; %s", job_id, again)
        return ExitCode.UNFINISHED
    message = " ".join((details.message or "").split())[:500]
    if code == 127:
        log.error("%s: there is no `python` in the PATH with which Ray was started", job_id)
        return ExitCode.UNEXPECTED
    if (code is not None and (code < 0 or code > 128)) or details.error_type == "JOB_SUPERVISOR_ACTOR_DIED":
        log.error("%s was killed; %s (%s)", job_id, again, message)
        return ExitCode.UNFINISHED
    log.error("%s did not run: %s", job_id, message)
    return ExitCode.UNEXPECTED


def _last_json(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None


class _Server:
    """A cluster's job server."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # otherwise RAY_ADDRESS takes precedence
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise JobError(f"submit needs Ray's job client ({error}): pip install 'ray[default]'") from error
        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        self.client: Any = self._asked(lambda: JobSubmissionClient(self.address))

    def ways(self, job_id: str) -> str:
        """How to follow and how to stop a running job."""
        where = f"--address {self.address} {job_id}"
        return f"Follow it with `ray job logs --follow {where}`, end it with `ray job stop {where}`"

    def jobs(self) -> dict[str, Any]:
        """The status of every job on this cluster."""
        return {job.submission_id: job.status for job in self._asked(self.client.list_jobs) if job.submission_id}

    def send(self, job_id: str, request: Request, folder: str) -> None:
        """Upload the files, and start the job on the head node without a CPU reservation."""
        environment: dict[str, Any] = {"working_dir": folder, "env_vars": request.environment}
        if request.forwarded:
            name = forwarded.new_name()
            self._upload(name, forwarded.packed(request.forwarded))
            environment["env_vars"] = request.environment | {forwarded.VARIABLE: name}
            environment["worker_process_setup_hook"] = forwarded.HOOK
        if request.package is not None:
            environment |= {"py_modules": [str(request.package)], "excludes": ["__pycache__"]}
        self._asked(
            lambda: self.client.submit_job(
                entrypoint=request.entrypoint,
                submission_id=job_id,
                runtime_env=environment,
                metadata=request.metadata,
                entrypoint_num_cpus=0,
            )
        )

    def _upload(self, name: str, data: bytes) -> None:
        """Put a package into the memory of the cluster's control plane, as Ray's client does."""

        def put() -> None:
            answer = self.client._do_request("PUT", f"/api/packages/gcs/{name}", data=data)
            if answer.status_code != 200:
                raise RuntimeError(f"it does not store the package (status {answer.status_code})")

        self._asked(put)

    def answer(self, ask: Callable[[], T]) -> T:
        """The job server's answer, within ANSWER_S. Raises JobError for a wrong token, and Ray's errors."""
        from ray.exceptions import AuthenticationError

        try:
            return _within(ANSWER_S, ask)
        except AuthenticationError as error:
            raise JobError(_refusal(self.address, str(error))) from None

    def _asked(self, ask: Callable[[], T]) -> T:
        """The answer. Raises JobError, and Held if another submission has just taken the id."""
        try:
            return self.answer(ask)
        except OSError as error:  # includes the errors of requests
            raise JobError(
                f"no job server answers at {self.address} ({type(error).__name__}): check the address, the forwarded "
                "port, and that the cluster's head node has ray[default]"
            ) from error
        except (RuntimeError, ValueError, KeyError) as error:
            text = " ".join(str(error).split())
            if "already exists" in text:
                raise Held(f"the same was submitted to {self.address} at this moment; run the command again") from error
            raise JobError(f"the job server at {self.address} refuses the job: {text[-500:]}") from error


class _Follower:
    """Shows a job's output until the job has ended; reconnects after broken connections."""

    def __init__(self, server: _Server, job_id: str, show: Callable[[str], None]) -> None:
        self._server = server
        self._job_id = job_id
        self._show = show
        self._shown = 0
        self.tail = ""
        """The last output."""

    def to_the_end(self) -> Any:
        """Ray's JobDetails, once the job has ended and all its output was shown."""
        while True:
            self._stream()
            details = self._details()
            if details.status.is_terminal():
                self._show_rest()
                return details
            time.sleep(1)

    def _stream(self) -> None:
        """Show output until the stream ends or breaks, or until the job has ended without more output."""
        pieces: queue.Queue[str | None] = queue.Queue()
        skip = self._shown  # a stream begins with the first line
        threading.Thread(target=self._listen, args=(pieces,), daemon=True).start()
        ended = False
        while True:
            try:
                piece = pieces.get(timeout=ASK_EVERY_S)
            except queue.Empty:
                if ended:
                    return
                ended = self._details().status.is_terminal()
                continue
            if piece is None:
                return
            self._take(piece[skip:])
            skip = max(0, skip - len(piece))

    def _listen(self, pieces: queue.Queue[str | None]) -> None:
        async def listen() -> None:
            async for piece in self._server.client.tail_job_logs(self._job_id):
                pieces.put(piece)

        try:
            asyncio.run(listen())
        except Exception as error:  # noqa: BLE001 - for any error, the status decides what to do next
            log.debug("the output of %s broke off: %r", self._job_id, error)
        pieces.put(None)

    def _details(self) -> Any:
        """The job's details. Raises Incomplete if there is no answer for PATIENCE_S, or if the cluster was replaced."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._server.answer(lambda: self._server.client.get_job_info(self._job_id))
            except (OSError, RuntimeError, ValueError) as error:
                gone = "status code 404" in str(error)
                if gone or time.monotonic() > give_up:
                    what = "no longer knows the job" if gone else f"has not answered for {PATIENCE_S:.0f} s"
                    raise Incomplete(
                        f"the job server at {self._server.address} {what}: a job ends with its cluster; what "
                        f"{self._job_id} finished is staged, so submit the same job again to continue"
                    ) from error
                time.sleep(1)

    def _show_rest(self) -> None:
        """Show the output that a broken stream did not deliver; not available without the driver's node."""
        try:
            text: str = self._server.answer(lambda: self._server.client.get_job_logs(self._job_id))
        except (OSError, RuntimeError, ValueError) as error:
            log.debug("the rest of the output of %s is not available: %r", self._job_id, error)
            return
        self._take(text[self._shown :])

    def _take(self, text: str) -> None:
        if text:
            self._shown += len(text)
            self.tail = (self.tail + text)[-(1 << 20) :]
            self._show(text)


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """The result of `ask`. Raises TimeoutError after `seconds`; the call continues in its thread."""
    answers: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def wait() -> None:
        try:
            answers.put((ask(), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            answers.put((None, error))

    threading.Thread(target=wait, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:.0f} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _refusal(address: str, text: str) -> str:
    if "Authentication required" in text:
        return f"{address} asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    return f"{address} refuses this token: check RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
