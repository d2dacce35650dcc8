"""Sending a job and following it, with Ray's own client against a job server that behaves as a test wishes."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from unet_batch.errors import ExitCode, Held, Incomplete, JobError
from unet_batch.on_ray import forwarded
from unet_batch.on_ray import submit as submitting
from unet_batch.on_ray.submission import Submission, compose
from unet_batch.on_ray.submit import Submitted, submit

pytest.importorskip("aiohttp", reason="ray[default] is not installed")

from fake_job_server import FakeJobServer, Served

SECRET = "canary-7d0e41b2"
JOB = """\
name: nightly
model: {path: s3://models/m.onnx}
input: {uri: "s3://archive/{date:%Y/%m/%d}/"}
output: {uri: s3://tables/out}
window: last
"""


@pytest.fixture
def server() -> Iterator[FakeJobServer]:
    with Served(FakeJobServer()) as served:
        yield served


@pytest.fixture
def submission(server: FakeJobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # what is set meanwhile is taken back
    monkeypatch.setattr(submitting, "ASK_EVERY_S", 0.2)
    path = tmp_path / "nightly.yaml"
    path.write_text(JOB)
    return Submission(path, address=server.url)


def shown(submission: Submission) -> tuple[Submitted, str]:
    """Follow a submission; what became of it, and what was shown."""
    pieces: list[str] = []
    return submit(submission, show=pieces.append), "".join(pieces)


def test_the_job_file_and_the_package_travel(server, submission):
    """As they are here, without caches; the driver takes no core."""
    submit(submission)
    [sent] = server.requests
    environment = sent["runtime_env"]
    with server.package(environment["working_dir"]) as folder:
        assert folder.namelist() == ["job.yaml"]
        assert folder.read("job.yaml") == submission.job_file.read_bytes()
    with server.package(environment["py_modules"][0]) as package:
        assert "unet_batch/__main__.py" in package.namelist()
        assert [name for name in package.namelist() if "__pycache__" in name] == []
    assert sent["entrypoint_num_cpus"] == 0
    assert sent["entrypoint"] == compose(submission).entrypoint


def test_a_forwarded_value_is_in_one_package_alone(server, submission, monkeypatch, caplog):
    """Not in the runtime environment, which Ray logs, not in metadata, entry point or anything that is said."""
    monkeypatch.setenv("STORE_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    submit(Submission(submission.job_file, address=server.url, forward_env=("STORE_KEY",)))
    [sent] = server.requests
    name = sent["runtime_env"]["env_vars"][forwarded.VARIABLE]
    assert re.fullmatch(r"unet_batch_[0-9a-f]{32}\.zip", name)
    assert [package for package, data in server.packages.items() if SECRET.encode() in data] == [name]
    assert SECRET not in repr(sent)
    assert sent["runtime_env"]["worker_process_setup_hook"] == forwarded.HOOK
    assert b"STORE" not in server.packages[name][:15]  # Ray quotes them where it cannot keep a package
    assert SECRET not in "".join(r.getMessage() for r in caplog.records if r.name.startswith("unet_batch"))


def test_without_forwarded_variables_nothing_is_kept_and_nothing_is_called(server, submission):
    """The hook of Ray's workers is for those alone."""
    submit(submission)
    [sent] = server.requests
    assert forwarded.VARIABLE not in sent["runtime_env"]["env_vars"]
    assert "worker_process_setup_hook" not in sent["runtime_env"]


def test_ray_address_does_not_lead_elsewhere(server, submission, monkeypatch):
    """Ray's client prefers its environment to what it is told; people mean what they write."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    submit(submission)
    assert len(server.requests) == 1


def test_without_following_nothing_is_waited_for(server, submission, caplog):
    """The id, and how to follow and to end it."""
    caplog.set_level(logging.INFO, logger="unet_batch")
    done = submit(submission)
    assert (done.id, done.status, done.exit_code) == (f"{compose(submission).name}-1", "PENDING", 0)
    assert f"ray job logs --follow --address {server.url} {done.id}" in caplog.text
    assert f"ray job stop --address {server.url} {done.id}" in caplog.text
    assert [path for path in server.asked if "tail" in path] == []


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_the_same_submission_is_refused_while_it_runs(server, submission, status):
    """Exit code 4, and the name of the one that runs."""
    name = compose(submission).name
    server.job(f"{name}-1", "FAILED")
    server.job(f"{name}-2", status)
    with pytest.raises(Held, match=f"{name}-2 is already {status}") as held:
        submit(submission)
    assert held.value.exit_code == 4
    assert server.requests == []


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_a_submission_that_has_ended_is_sent_again(server, submission, status):
    """Which resumes it; jobs of other names do not count."""
    name = compose(submission).name
    server.job(f"{name}-9", status)
    server.job(f"{name}-x", "RUNNING")
    server.job("other-1", "RUNNING")
    assert submit(submission).id == f"{name}-10"


def test_of_two_at_the_same_moment_one_is_told(server, submission, monkeypatch):
    """Neither listing shows the other; the server takes one."""
    monkeypatch.setattr(submitting._Server, "jobs", lambda self: {})
    submit(submission)
    with pytest.raises(Held, match="at this moment"):
        submit(submission)


@pytest.mark.parametrize("code", list(ExitCode))
def test_the_exit_code_is_the_commands_own(server, submission, code):
    """Ray itself only knows SUCCEEDED and FAILED."""
    server.ending = {"status": "FAILED" if code else "SUCCEEDED", "driver_exit_code": code}
    done, _ = shown(submission)
    assert (done.exit_code, done.result) == (code, {"ok": 3})


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ({"status": "FAILED", "driver_exit_code": -9}, 3, "was killed"),
        ({"status": "FAILED", "driver_exit_code": 137}, 3, "was killed"),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "node died"}, 3, "node died"),
        ({"status": "STOPPED"}, 3, "was stopped"),
        ({"status": "FAILED", "driver_exit_code": 127}, 1, "no `python`"),
        ({"status": "FAILED", "driver_exit_code": 50, "message": "odd"}, 1, "did not run: odd"),
        (
            {"status": "FAILED", "error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": "no\ndisk"},
            1,
            "did not run: no disk",
        ),
    ],
)
def test_an_end_that_is_no_exit_code_of_ours_is_explained(server, submission, caplog, ending, code, said):
    """3 if another submission continues, 1 if a person must act."""
    server.ending, server.output = ending, []
    done, _ = shown(submission)
    assert (done.status, done.exit_code, done.result) == (ending["status"], code, None)
    assert said in caplog.text


@pytest.mark.slow
def test_output_is_shown_once_though_its_stream_breaks(server, submission):
    """A stream begins anew with the first line; what was shown is left out."""
    server.output, server.breaks_after = [f"line {i}\n" for i in range(9)], 4
    done, text = shown(submission)
    assert text == "".join(server.output)
    assert done.exit_code == 0
    assert sum("tail" in path for path in server.asked) == 2


@pytest.mark.slow
def test_output_that_no_stream_brought_is_fetched_at_the_end(server, submission, monkeypatch):
    """The stream of a job whose node answers no more may end early."""
    server.output = ["first\n", "second\n", '{"ok": 1}\n']
    server.breaks_after = 1
    ended = server._details

    async def details(request):
        server.jobs[request.match_info["id"]].update(server.ending)
        return await ended(request)

    monkeypatch.setattr(FakeJobServer, "_details", lambda self, request: details(request))
    done, text = shown(submission)
    assert text == "".join(server.output)
    assert done.result == {"ok": 1}


def test_a_cluster_that_was_restarted_is_said(server, submission):
    """Its job is gone with it; exit code 3, because submitting again goes on."""
    server.breaks_after, server.forgets = 1, True
    with pytest.raises(Incomplete, match="no longer knows the job"):
        shown(submission)


@pytest.mark.slow
def test_a_cluster_that_falls_silent_is_said_in_the_end(server, submission, monkeypatch):
    """After some patience, in which it may come back."""
    monkeypatch.setattr(submitting, "PATIENCE_S", 0.5)

    def fall_silent(_: str) -> None:
        server.hangs = True
        monkeypatch.setattr(submitting, "ANSWER_S", 0.3)  # not before: a busy machine is slow to send the job

    server.breaks_after = 1
    with pytest.raises(Incomplete, match="has not answered"):
        submit(submission, show=fall_silent)


def test_ctrl_c_leaves_the_job_running(server, submission, caplog):
    """Following ends; the job on the cluster goes on."""

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    done = submit(submission, show=interrupt)
    assert (done.status, done.exit_code) == ("RUNNING", 3)
    assert "continues to run" in caplog.text
    assert [path for path in server.asked if "stop" in path] == []


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((401, "Unauthorized: Missing authentication token"), "asks for a token: set RAY_AUTH_MODE=token"),
        ((403, "Forbidden: Invalid authentication token"), "refuses this token"),
        ((404, "not here"), "refuses the job: Version check returned 404"),
        ((500, "sorry"), "no job server answers"),
        ((200, "<html>"), "no job server answers|refuses the job"),
    ],
)
def test_a_refusal_is_one_sentence(server, submission, answer, sentence):
    """Exit code 2, for any answer."""
    server.refuses_with = answer
    with pytest.raises(JobError, match=sentence) as refused:
        submit(submission)
    assert "\n" not in str(refused.value)


def test_a_server_that_does_not_answer_in_time_is_given_up(server, submission, monkeypatch):
    """Ray's client would wait for ever."""
    monkeypatch.setattr(submitting, "ANSWER_S", 0.3)
    server.hangs = True
    with pytest.raises(JobError, match="no job server answers"):
        submit(submission)


def test_nobody_at_the_address_is_one_sentence(submission):
    """Exit code 2."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(JobError, match=f"no job server answers at {address}") as refused:
        submit(Submission(submission.job_file, address=address))
    assert refused.value.exit_code == 2


def test_composing_loads_no_ray():
    """A wrong job file is refused in a moment."""
    code = "import sys, unet_batch.on_ray.submission, unet_batch.on_ray.submit; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 0


def test_the_command_line_sends_the_time_to_wait_and_the_wish_for_a_page(server, submission):
    """The driver there meets the leases of the one that was lost with its head, and knows what to leave."""
    from click.testing import CliRunner

    from unet_batch.cli.main import cli

    words = ["submit", str(submission.job_file), "--address", server.url, "--wait", "600"]
    CliRunner().invoke(cli, words)
    CliRunner().invoke(cli, [*words, "--backfill", "missing", "--report"])
    first, second = (sent["entrypoint"] for sent in server.requests)
    assert " run --wait 600 job.yaml " in first
    assert " backfill --select missing --wait 600 --report job.yaml " in second


def test_every_option_of_a_run_travels_with_a_submission(server, submission):
    """By one table: an option that `run` gets is an option of `submit`, and of the command that it sends."""
    from click.testing import CliRunner

    from unet_batch.cli.command import OPTIONS
    from unet_batch.cli.main import cli

    given = {"--newest-first": [], "--max-active": ["3"], "--deadline": ["2099-11-22T06:00+01:00"], "--wait": ["60"]}
    given |= {"--rescore": [], "--report": []}
    assert set(given) == {option.opts[0] for option in OPTIONS}
    assert all(option in command.params for option in OPTIONS for command in map(cli.commands.get, ("run", "backfill")))
    words = [word for name, value in given.items() for word in (name, *value)]
    done = CliRunner().invoke(cli, ["submit", str(submission.job_file), "--address", server.url, *words])
    assert "Error" not in done.output
    sent = server.requests[-1]["entrypoint"]
    assert (
        " run --newest-first --max-active 3 --deadline 2099-11-22T06:00:00+01:00 --wait 60 --rescore --report job.yaml"
        in sent
    )


def test_a_time_of_day_is_that_of_whoever_submits(server, submission, monkeypatch):
    """The cluster's clock may stand in another zone, and the job may begin tomorrow."""
    from click.testing import CliRunner

    from unet_batch.cli.main import cli

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        CliRunner().invoke(cli, ["submit", str(submission.job_file), "--address", server.url, "--deadline", "06:00"])
    finally:
        monkeypatch.undo()
        time.tzset()
    sent = server.requests[-1]["entrypoint"].split()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT06:00:00\+09:00", sent[sent.index("--deadline") + 1])
    assert datetime.fromisoformat(sent[sent.index("--deadline") + 1]) > datetime.now(UTC)


def test_another_time_to_wait_is_the_same_submission(submission):
    """What is asked for is the same work: it is refused while it runs."""
    assert compose(replace(submission, options=("--wait", "60"))).name == compose(submission).name
