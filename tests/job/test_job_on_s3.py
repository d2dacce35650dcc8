"""Whole jobs whose archive and output lie in S3: what a resume reads, what a store in trouble means, and secrets."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from project_fixture import Project, last_json, png
from remote_project import DAY, Remote, meanwhile

from unet_batch.errors import JobError, StorageError
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.store.s3 import S3Store
from unet_batch.store.storage import Storage

pytestmark = pytest.mark.s3

RESUME_READS_AT_MOST = 0.015
"""Of the archive's bytes, when 2 of 202 images are new."""


@pytest.fixture
def remote(project: Project, s3_options: dict[str, object], new_bucket: Callable[[], str]) -> Remote:
    bucket, options = new_bucket(), f"{{endpoint_url: '{s3_options['endpoint_url']}'}}"
    overrides = (
        f"input.uri={bucket}/archive/{{date:%Y/%m/%d}}/",
        f"output.uri={bucket}/out",
        f"input.options={options}",
        f"output.options={options}",
    )
    return Remote(project, bucket, Storage(s3_options), overrides)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all bodies that this process gets from the archive, counted where they arrive."""
    sizes: list[int] = []
    inner = S3Store.read

    def watched(self: S3Store, uri: str, **how) -> bytes:
        body = inner(self, uri, **how)
        if "/archive/" in uri:
            sizes.append(len(body))
        return body

    monkeypatch.setattr(S3Store, "read", watched)
    return sizes


def test_the_same_bytes_put_again_are_the_same_version(remote):
    """Versions are ETags, which S3 takes from the bytes."""
    remote.fill(5)
    remote.run()
    remote.fill(2)
    assert remote.run().planned == 0
    assert remote.findings() == []


def test_two_runs_of_the_same_work_end_alike(remote):
    """The rival published the very same generation: there is nothing to hold against it."""
    remote.fill(3)
    late = remote.run(executor=meanwhile(remote.run))
    assert (late.exit_code, late.problems) == (0, [])
    assert len(remote.rows()) == 3
    assert remote.findings() == []


def test_resuming_a_nearly_finished_day_reads_next_to_nothing(remote, fetched):
    """200 images are published, 2 arrive: their bytes are read and no others'."""
    noise = np.random.default_rng(1)
    pictures = [noise.integers(0, 255, (32, 32), np.uint8) for _ in range(202)]
    files = []
    for picture in pictures:
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "BMP")
        files.append(out.getvalue())
    assert len({len(data) for data in files}) == 1
    for i, data in enumerate(files[:200]):
        remote.put(f"{DAY}/{i:03}.bmp", data)
    first = remote.run()
    assert (first.ok, first.read_bytes, sum(fetched)) == (200, sum(map(len, files[:200])), first.read_bytes)
    fetched.clear()
    for i, data in enumerate(files[200:]):
        remote.put(f"{DAY}/{i:03}-late.bmp", data)
    second = remote.run()
    assert (second.ok, second.published) == (2, 1)
    assert second.read_bytes == sum(fetched)
    assert 0 < sum(fetched) <= RESUME_READS_AT_MOST * sum(map(len, files))
    assert len(remote.rows()) == 202
    assert remote.findings() == []


def test_a_resumed_run_after_a_stop_scores_only_what_left_no_part(remote, fetched):
    """Counted where the archive is read, not where the run counts."""
    remote.fill(100)

    class Stops(LocalExecutor):
        def run(self, units) -> Iterator:
            for count, receipt in enumerate(super().run(units), start=1):
                yield receipt
                if count == 99:
                    raise KeyboardInterrupt

    first = remote.run("limits.unit_images=1", executor=Stops)
    assert (first.exit_code, first.ok, first.remaining, first.published) == (3, 99, 1, 0)
    fetched.clear()
    second = remote.run()
    assert (second.ok, second.published) == (1, 1)
    assert len(fetched) == 1
    assert remote.findings() == []


def test_verify_sees_a_cut_part_and_a_run_replaces_it(remote):
    """A part that is not whole is no part."""
    remote.fill(3)
    remote.run()
    [part] = [uri for uri in remote.objects("out/_work/parts") if uri.endswith(".part")]
    remote.store.put(part, remote.store.read(part)[:-20])
    assert remote.findings() == ["staged parts that are truncated or damaged"]
    remote.store.delete(remote.published)
    summary = remote.run()
    assert (summary.planned, summary.published) == (3, 1)
    assert remote.findings() == []


def in_the_clear(body: bytes) -> str:
    """An object's text; a Parquet object's rows and metadata too, which compression would hide."""
    text = body.decode("latin-1")
    if body.startswith(b"PAR1") and body.endswith(b"PAR1"):
        file = pq.ParquetFile(io.BytesIO(body))
        text += repr(file.read().to_pylist()) + repr(file.metadata.metadata)
    return text


def test_no_secret_leaves_the_environment(remote, s3_options, monkeypatch, caplog, capfd):
    """A canary in the store's options is in no object, record, log, message or repr; not even where a run fails."""
    canary = "canary-5b1d9c0f7e"
    monkeypatch.setenv("CANARY_SECRET", canary)
    options = f"{{endpoint_url: '{s3_options['endpoint_url']}', key: {{env: CANARY_SECRET}}, "
    options += "secret: {env: CANARY_SECRET}}"
    secret = (f"input.options={options}", f"output.options={options}")
    caplog.set_level(logging.DEBUG, logger="unet_batch")
    remote.fill(3)
    remote.put(f"{DAY}/bad.png", b"no image")
    done = remote.run(*secret)
    assert (done.ok, done.published) == (3, 1)
    remote.put(f"{DAY}/late.png", png(8))
    rival = b"no Parquet"
    failed = remote.run(*secret, executor=meanwhile(partial(remote.store.put, remote.published, rival)))
    assert failed.exit_code != 0
    prepared = remote.project.prepared(*remote.overrides, *secret)
    arguments = [word for override in (*remote.overrides, *secret) for word in ("--set", override)]
    command = remote.project.command("status", "job.yaml", *arguments)
    assert "damaged" in command.stdout
    report = remote.project.command("report", "job.yaml", *arguments)
    assert last_json(report)["report"].startswith(f"{remote.bucket}/out/reports/")
    written = {uri: in_the_clear(body) for uri, body in remote.objects("out").items()}
    assert all(any(place in uri for uri in written) for place in ("/_work/runs/", "/reports/"))
    said = [repr(done), repr(failed), repr(prepared.job), repr(prepared.output.store), prepared.job.model_dump_json()]
    said += [caplog.text, *capfd.readouterr(), command.stdout, command.stderr, report.stdout, report.stderr]
    assert [uri for uri, body in written.items() if canary in body or canary in uri] == []
    assert [text for text in said if canary in text] == []
    assert any("CANARY_SECRET" in body for body in written.values())  # the reference is recorded, so the test sees


CANARIES = {
    "CANARY_KEY": "canary-key-5b1d9c0f7e",
    "CANARY_SECRET": "canary-secret-8e02d7",
    "CANARY_SAS": "sv=2026&sig=canary-sas-77ab31%3D",
}
"""Secrets, given to jobs by the names of variables."""
USER_INFO = "canary-user:canary-password-c41f@"
PLANTED = ("canary-key-5b1d9c0f7e", "canary-secret-8e02d7", "canary-sas-77ab31", "canary-password-c41f")
IN_THE_MANIFEST = ("canary-row-user-9d", "canary-row-sas-2c")


@pytest.mark.ray
def test_no_planted_secret_is_in_anything_that_a_whole_job_leaves(remote, s3_options, tmp_path):
    """Keys, a signed token and a URL with user info, in the environment, in options, in URIs and in a manifest's rows.

    Looked for in stdout, stderr, the rows and metadata of every object (parts, published Parquet, records, leases), and
    in every file that Ray's session and this package's cache leave on the disk; the job runs on Ray, fails, and is
    asked about by every command that reads.
    """
    url = s3_options["endpoint_url"]
    with_user = url.replace("//", f"//{USER_INFO}")  # requests to it succeed, and it must be in no row and no record
    scratch = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))  # Ray's sockets lie below, and their names are limited
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    environment = {
        **kept, **CANARIES, "CANARY_URL": url, "AWS_DEFAULT_REGION": "us-east-1",
        "RAY_TMPDIR": str(scratch), "XDG_CACHE_HOME": str(scratch / "cache"), "TMPDIR": str(scratch),
    }  # fmt: skip
    options = "{endpoint_url: {env: CANARY_URL}, key: {env: CANARY_KEY}, secret: {env: CANARY_SECRET}, "
    options += "client_kwargs: {aws_session_token: {env: CANARY_SAS}}}"
    for i in range(6):
        remote.put(f"{DAY}/{i:03}.png", png(i))
    remote.put(f"{DAY}/bad.png", b"no image")
    lines = [f"{DAY}/{i:03}.png" for i in range(6)]
    lines += [f"{DAY}/bad.png", f"s3://me:{IN_THE_MANIFEST[0]}@bucket/a.png", f"{DAY}/missing.png"]
    lines += [f"https://account.blob/a.png?sv=1&sig={IN_THE_MANIFEST[1]}", f"az://c/a.png?sig={IN_THE_MANIFEST[1]}"]
    remote.put("list.csv", "\n".join(["uri", *lines, ""]).encode())
    words = [
        *remote.overrides[1:2], f"input.uri={remote.bucket}/archive/list.csv", "input.format=manifest",
        f"input.options={options}", f"output.options={options}", "limits.max_rejected=0.9", "limits.unit_images=2",
    ]  # fmt: skip

    def command(name: str, *more: str, **changed: str) -> subprocess.CompletedProcess[str]:
        sets = [part for word in words for part in ("--set", word)]
        return remote.project.command(name, "job.yaml", *sets, *more, env={**environment, **changed})

    try:
        done = command("run", "--window", "all", "--executor", "ray")
        assert (done.returncode, last_json(done)["ok"], last_json(done)["rejected"]) == (0, 6, 5), done.stderr
        remote.put("list.csv", "\n".join(["uri", *lines, f"{DAY}/late.png", ""]).encode())
        remote.put(f"{DAY}/late.png", png(9))
        said = [done, command("plan"), command("status"), command("verify"), command("doctor")]
        said += [command("compare", "published", "job"), command("sweep", "--dry-run"), command("report")]
        said += [command("run", CANARY_URL=with_user)]
        said += [command("run", CANARY_URL=f"http://{USER_INFO}127.0.0.1:1")]
        said += [command("run", "--set", f"output.uri=s3://me:{PLANTED[1]}@bucket/out")]
        said += [command("run", "--set", f"input.uri={remote.bucket}/list.csv?{CANARIES['CANARY_SAS']}")]
        said += [command("run", "--set", f"output.options={{secret: {PLANTED[1]}}}")]
        assert [result.returncode for result in said[-5:]] == [0, 3, 2, 2, 2]
        remote.put("list.csv", "\n".join(["uri", *lines, f"{DAY}/late.png", f"{DAY}/later.png", ""]).encode())
        remote.put(f"{DAY}/later.png", png(8))
        last = command("run", "--window", "all", "--executor", "processes")
        assert (last.returncode, last_json(last)["published"]) == (0, 1)
        outputs = {f"{' '.join(r.args[1:3])} said": r.stdout + r.stderr for r in (*said, last)}
        outputs |= {uri: uri + in_the_clear(body) for uri, body in remote.objects("out").items()}
        files = [path for path in scratch.rglob("*") if path.is_file()]
        outputs |= {str(path): f"{path} {path.read_bytes().decode('latin-1')}" for path in files}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found = {(name, word) for name, text in outputs.items() for word in (*PLANTED, *IN_THE_MANIFEST) if word in text}
    assert found == set()
    # The places that were looked into are the ones where it could be: the names of the variables are in some of them.
    assert any("/_work/runs/" in name and "CANARY_SAS" in text for name, text in outputs.items())
    assert [name for name in outputs if name.startswith(str(scratch)) and "/logs/" in name]
    assert [name for name, text in outputs.items() if name.endswith(".html") and "bad.png" in text]
    assert {name.rpartition("/")[2] for name in outputs} >= {"data.parquet"}
    assert sum("bad.png" in text for name, text in outputs.items() if name.endswith(".part")) == 1


@pytest.mark.slow
def test_no_command_says_the_user_info_of_an_endpoint(remote, s3_options):
    """The URL works, here from the environment alone; where a command fails, no message shows the password."""
    url = s3_options["endpoint_url"]
    with_user = url.replace("//", f"//{USER_INFO}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = {**kept, "AWS_DEFAULT_REGION": "us-east-1", **CANARIES}
    options = "{key: {env: CANARY_KEY}, secret: {env: CANARY_SECRET}}"
    words = [*remote.overrides, f"input.options={options}", f"output.options={options}"]
    remote.fill(2)

    def command(name: str, *more: str) -> subprocess.CompletedProcess[str]:
        sets = [part for word in words for part in ("--set", word)]
        return remote.project.command(
            name, "job.yaml", *sets, *more, env={**environment, "AWS_ENDPOINT_URL_S3": with_user}
        )

    whole = [command("run", "--executor", "local"), command("plan", "--json"), command("doctor"), command("report")]
    whole += [command("masks", "--to", "coco", f"{remote.bucket}/masks")]
    failed = [command("evaluate", "--truth", f"{remote.bucket}/out/{{stem}}.png")]
    failed += [command("plan", "--json", "--set", "input.uri=s3://no-such-bucket-5b1d9c/in")]
    assert [done.returncode for done in whole] == [0] * len(whole), [done.stderr for done in whole if done.returncode]
    assert 0 not in [done.returncode for done in failed]
    texts = {" ".join(done.args[1:3]): done.stdout + done.stderr for done in (*whole, *failed)}
    texts |= {uri: uri + in_the_clear(body) for uri, body in remote.objects("out").items()}
    texts |= {uri: uri + in_the_clear(body) for uri, body in remote.objects("masks").items()}
    assert [name for name, text in texts.items() if any(word in text for word in PLANTED)] == []


def test_a_bucket_that_is_not_there_is_said_in_a_sentence(remote):
    """The output's store is asked before anything is scored."""
    remote.fill(1)
    with pytest.raises((JobError, StorageError), match="no-such-bucket"):
        remote.run("output.uri=s3://no-such-bucket-5b1d9c/out")
