"""What is sent to a cluster: the same command, a name derived from it, and only the secrets that the user named."""

from __future__ import annotations

import logging
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import unet_batch
from unet_batch.errors import JobError
from unet_batch.on_ray.submission import Submission, compose
from unet_batch.spec import load_job

SECRET = "canary-7d0e41b2"
JOB = """\
name: nightly
model: {path: s3://models/m.onnx}
input: {uri: "s3://archive/{date:%Y/%m/%d}/", options: {key: {env: STORE_KEY}}}
output: {uri: s3://tables/out, options: {client_kwargs: {aws_session_token: {env: STORE_TOKEN}}}}
window: yesterday
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "nightly.yaml"
    path.write_text(JOB)
    return path


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What people are told; and no token mode from outside."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    caplog.set_level(logging.INFO, logger="unet_batch")
    return caplog


def test_the_command_there_is_the_command_here(job_file):
    """The shell of the cluster gets it word by word, with any text in an override."""
    overrides = ("input.pattern=a/[!b] 'c\"$HOME`*.png", "limits.max_rejected=0.5")
    command = ("backfill", "--select", "missing")
    request = compose(Submission(job_file, overrides, command, window="2026-11-01..2026-11-21"))
    words = shlex.split(request.entrypoint)
    assert words[:3] == ["python", "-m", "unet_batch"]
    assert words[3:7] == [*command, "job.yaml"]
    assert words[7:9] == ["--window", "2026-11-01..2026-11-21"]
    assert words[9:13] == ["--set", overrides[0], "--set", overrides[1]]
    assert words[13:] == ["--address", "auto"]
    assert request.job_file == job_file.read_bytes()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2026-11-21", "2026-11-21"),
        ("2026-11-21..2026-11-21", "2026-11-21"),
        ("last", "last"),
        ("all", "all"),
    ],
)
def test_a_window_travels_as_it_was_meant(job_file, text, written):
    """In days, or as a word that means the archive's own days."""
    assert f" --window {written} " in compose(Submission(job_file, window=text)).entrypoint


def test_yesterday_is_the_day_before_the_submission(job_file):
    """A job that waits for nodes until after midnight still scores the day that was meant; the file's window counts."""
    before = datetime.now(UTC).date() - timedelta(days=1)
    request = compose(Submission(job_file))
    after = datetime.now(UTC).date() - timedelta(days=1)
    assert request.metadata["window"] in (str(before), str(after))
    assert f" --window {request.metadata['window']} " in request.entrypoint


def test_a_backfill_without_a_window_is_of_everything(job_file):
    """As it is here: the job file's window is that of the nightly run."""
    assert " --window all " in compose(Submission(job_file, command=("backfill", "--select", "missing"))).entrypoint


def test_a_name_follows_from_what_is_asked_for(job_file, tmp_path):
    """The same job under another file name, or with an override that says what it says anyway, is the same."""
    copy = tmp_path / "copy.yaml"
    copy.write_text("# a comment\n" + JOB)
    name = compose(Submission(job_file, window="last")).name
    assert name.startswith("nightly-")
    assert len(name) == len("nightly-") + 12
    assert compose(Submission(copy, ("limits.max_rejected=0.01",), window=" last ")).name == name


@pytest.mark.parametrize(
    "other",
    [
        {"window": "all"},
        {"window": "last", "command": ("backfill",)},
        {"window": "last", "overrides": ("limits.max_rejected=0.5",)},
    ],
)
def test_another_request_has_another_name(job_file, other):
    """Two of them may run at the same time."""
    assert compose(Submission(job_file, **other)).name != compose(Submission(job_file, window="last")).name


@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("model.path", "model.path=models/m.onnx"),
        ("model.contract", "model.contract=m.yaml"),
        ("model.ensemble.members[0]", "model.ensemble={members: [b.onnx]}"),
        ("check.reference", "check.reference=fp32.onnx"),
        ("session.custom_ops[0]", "session.custom_ops=[libfoo.so]"),
        ("input.uri", "input.uri=archive/"),
        ("input.roots[1]", "input.roots=[s3://other, pictures]"),
        ("output.uri", "output.uri=./out"),
    ],
)
def test_a_relative_path_is_refused_by_its_key(job_file, key, override):
    """On the cluster it would lie in a folder that Ray removes."""
    with pytest.raises(JobError) as refused:
        compose(Submission(job_file, (override,)))
    assert str(refused.value).startswith(f"{key}: a cluster cannot see the relative path")


@pytest.mark.parametrize("path", ["/data/m.onnx", "file:///data/m.onnx"])
def test_a_local_path_that_may_exist_on_every_node_is_said(job_file, told, path):
    """One sentence; URIs of stores need none."""
    compose(Submission(job_file, (f"model.path={path}",)))
    [said] = [r.getMessage() for r in told.records if "same files" in r.getMessage()]
    assert said == f"every node of the cluster must see the same files under model.path ({path})"


def test_uris_of_stores_need_no_word(job_file, told):
    """No message if there is nothing to do."""
    compose(Submission(job_file, ("input.options={}", "output.options={}")))
    assert told.records == []


def test_variables_that_stay_here_are_named(job_file, told, monkeypatch):
    """The job file refers to two; one of them travels."""
    monkeypatch.setenv("STORE_KEY", SECRET)
    request = compose(Submission(job_file, forward_env=("STORE_KEY",)))
    said = [r.getMessage() for r in told.records]
    assert said == [
        "users who may run code on the cluster can read STORE_KEY while the job runs",
        "every node of the cluster must have set STORE_TOKEN, or use --forward-env",
    ]
    assert request.forwarded == {"STORE_KEY": SECRET}
    assert request.environment.keys() & {"STORE_KEY", "STORE_TOKEN"} == set()


def test_a_variable_that_nobody_asked_to_send_stays(job_file, monkeypatch):
    """Not even one that the job file names."""
    monkeypatch.setenv("STORE_KEY", SECRET)
    monkeypatch.setenv("STORE_TOKEN", SECRET)
    request = compose(Submission(job_file))
    assert (SECRET in request.environment.values(), request.forwarded) == (False, {})


def test_the_value_of_a_forwarded_variable_is_written_nowhere(job_file, told, monkeypatch):
    """Only what is uploaded apart holds it; the name does not depend on it."""
    monkeypatch.setenv("STORE_KEY", SECRET)
    request = compose(Submission(job_file, forward_env=("STORE_KEY",)))
    assert (
        SECRET
        not in repr(request)
        + repr(request.environment)
        + repr(request.metadata)
        + request.entrypoint
        + request.name
        + told.text
    )
    assert SECRET.encode() not in request.job_file
    assert request.name == compose(Submission(job_file)).name


def test_a_value_given_instead_of_a_name_is_not_repeated(job_file):
    """NAME=value would be in the shell's history already; not in our message too."""
    with pytest.raises(JobError, match="without its value") as refused:
        compose(Submission(job_file, forward_env=(f"STORE_KEY={SECRET}",)))
    assert SECRET not in str(refused.value)


def test_a_variable_that_is_not_set_cannot_travel(job_file, monkeypatch):
    """Said before anything is sent."""
    monkeypatch.delenv("STORE_KEY", raising=False)
    with pytest.raises(JobError, match="STORE_KEY: the variable is not set here"):
        compose(Submission(job_file, forward_env=("STORE_KEY",)))


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8265",
        "http://127.0.0.9:1",
        "http://[::1]:8265",
        "http://localhost:8265",
        "https://ray.example",
    ],
)
def test_this_machine_and_https_are_trusted(job_file, address):
    """A forwarded port is this machine's."""
    assert compose(Submission(job_file, address=address)).name


@pytest.mark.parametrize("address", ["http://10.0.0.5:8265", "http://ray.example:8265", "http://localhost.example:1"])
def test_another_machine_without_a_token_needs_a_word(job_file, address, monkeypatch):
    """Ray runs every job that it receives: plain http to another machine is refused, unless the user allows it."""
    with pytest.raises(JobError, match="without a token"):
        compose(Submission(job_file, address=address))
    assert compose(Submission(job_file, address=address, trust_network=True)).name
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert compose(Submission(job_file, address=address)).name


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "http://me:pw@h:1"])
def test_an_address_that_is_no_job_servers_is_refused(job_file, address):
    """Ray would import a module named like the scheme, or take another cluster; and credentials are never repeated."""
    with pytest.raises(JobError, match="must be the URL of a job server") as refused:
        compose(Submission(job_file, address=address))
    assert "pw" not in str(refused.value)


def test_the_package_travels_unless_the_image_has_it(job_file):
    """The folder that is imported here."""
    assert compose(Submission(job_file)).package == Path(unet_batch.__file__).parent
    assert compose(Submission(job_file, in_image=True)).package is None


def test_a_wrong_job_file_is_refused_here(job_file):
    """With the sentence that `run` has for it."""
    with pytest.raises(JobError) as there:
        load_job(job_file, ["modle.path=x"])
    with pytest.raises(JobError) as refused:
        compose(Submission(job_file, ("modle.path=x",)))
    assert str(refused.value) == str(there.value)
