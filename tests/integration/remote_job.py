"""A job whose model, archive and output lie in S3, submitted to a cluster from processes of their own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from models import threshold_model
from project_fixture import SIZE, png
from small_cluster import SmallCluster

from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.run import run
from unet_batch.job.summary import Summary
from unet_batch.job.sweep import sweep
from unet_batch.job.verify import Disagreement, verify
from unet_batch.planning.prepare import prepare
from unet_batch.planning.survey import window_of
from unet_batch.spec import load_job

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "canary-4f1b8e6d90",
    "AWS_DEFAULT_REGION": "us-east-1",
}
DAY, NAME = "2026/11/21", "date=2026-11-21"
UNIT = 4
PATIENCE_S = 100


class RemoteJob:
    """A job file here; everything it names is there."""

    def __init__(
        self,
        cluster: SmallCluster,
        endpoint: str,
        store: Path,
        folder: Path,
        token: str,
        *,
        model: tuple[bytes, str] | None = None,
        more: str = f"limits: {{max_rejected: 0.5, unit_images: {UNIT}}}",
    ) -> None:
        """model: an ONNX file and its contract; default: the threshold model. more: further sections of the job."""
        import boto3

        self.cluster = cluster
        self._store = store
        self.token = token
        self._s3 = boto3.client("s3", endpoint_url=endpoint)
        self.bucket = f"bucket-{os.urandom(6).hex()}"
        self._s3.create_bucket(Bucket=self.bucket)
        made = threshold_model("nchw", 1, 2, size=SIZE)
        data, contract = model or (made.data, made.contract_yaml)
        self.put("model.onnx", data)
        self.put("model.yaml", contract.encode())
        self.file = folder / "job.yaml"
        options = f"{{endpoint_url: '{endpoint}'}}"
        self.file.write_text(
            f"""\
name: test
model: {{path: s3://{self.bucket}/model.onnx, options: {options}}}
input: {{uri: "s3://{self.bucket}/archive/{{date:%Y/%m/%d}}/", options: {options}}}
output: {{uri: s3://{self.bucket}/out, options: {options}}}
{more}
window: all
"""
        )
        self.slow(0)

    def put(self, name: str, data: bytes) -> None:
        self._s3.put_object(Bucket=self.bucket, Key=name, Body=data)

    def fill(self, count: int) -> None:
        for i in range(count):
            self.put(f"archive/{DAY}/{i:03}.png", png(i))

    def slow(self, delay_s: float) -> None:
        """How long the store takes for a picture from now on."""
        (self._store / "delay_s.txt").write_text(str(delay_s))

    def reads(self) -> Counter[str]:
        """How often each picture of this job was asked for, as the store counted."""
        lines = (self._store / "reads.txt").read_text().split() if (self._store / "reads.txt").exists() else []
        return Counter(line for line in lines if self.bucket in line)

    def parts(self) -> int:
        found = self._s3.list_objects_v2(Bucket=self.bucket, Prefix="out/_work/parts/")
        return sum(part["Key"].endswith(".part") for part in found.get("Contents", []))

    def left_after_sweep(self) -> list[str]:
        """Everything below the output but rows, records and indexes of tars that are there, after `sweep`."""
        sweep(prepare(load_job(self.file)), window_of("all"), keep_other_models=False, dry_run=False)
        listed = self._s3.list_objects_v2(Bucket=self.bucket, Prefix="out/").get("Contents", [])
        names = (found["Key"] for found in listed)
        kept = ("out/predictions/", "out/_work/runs/", "out/_work/index/")
        return [name for name in names if not name.startswith(kept)]

    def table(self, output: str = "out", name: str = NAME) -> bytes:
        key = f"{output}/predictions/{name}/data.parquet"
        return self._s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def rows(self, output: str = "out", name: str = NAME) -> list[dict]:
        """Published rows, but for the run that scored them."""
        return [{**row, "run_id": None} for row in pq.read_table(io.BytesIO(self.table(output, name))).to_pylist()]

    def run_here(self, *overrides: str) -> Summary:
        """The same job in a plain loop."""
        return run(prepare(load_job(self.file, overrides)), window_of("all"), LocalExecutor, quiet=True)

    def verify(self) -> list[Disagreement]:
        return verify(prepare(load_job(self.file)), window_of("all"))[1]

    def submit(self, *overrides: str, token: str | None = None, options: Sequence[str] = ()) -> Following:
        """Send the job with the command line, with the store's keys, and follow it there."""
        words = [str(self.file), "--address", self.cluster.address, "--follow", *options]
        words += [word for name in KEYS for word in ("--forward-env", name)]
        words += [word for override in overrides for word in ("--set", override)]
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token or self.token}
        return Following(
            subprocess.Popen(
                [sys.executable, "-m", "unet_batch", "submit", *words],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # Background jobs of a shell begin with Ctrl-C ignored, and their children inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )
        )

    def asked(self, path: str) -> Any:
        """What the cluster's dashboard says."""
        request = urllib.request.Request(
            f"{self.cluster.address}{path}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def stop(self, job_id: str) -> None:
        """What `ray job stop` asks for."""
        request = urllib.request.Request(
            f"{self.cluster.address}/api/jobs/{job_id}/stop",
            method="POST",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        urllib.request.urlopen(request, timeout=30).close()

    def running(self) -> str:
        """The id of the one job that runs."""
        [found] = [job["submission_id"] for job in self.asked("/api/jobs/") if job["status"] == "RUNNING"]
        return found

    def work(self, folder: str) -> list[bytes]:
        """The objects in a folder of the output's `_work`."""
        listed = self._s3.list_objects_v2(Bucket=self.bucket, Prefix=f"out/_work/{folder}/").get("Contents", [])
        return [self._s3.get_object(Bucket=self.bucket, Key=found["Key"])["Body"].read() for found in listed]

    def nodes_that_scored(self, job_id: str) -> set[str]:
        """Nodes that had an actor with a session for this submission."""
        mine = self.asked(f"/api/jobs/{job_id}")["job_id"]
        actors = self.asked("/api/v0/actors?detail=1&limit=1000")["data"]["result"]["result"]
        sessions = [actor for actor in actors if "ScoreActor" in (actor["repr_name"] or actor["class_name"])]
        return {actor["node_id"] for actor in sessions if actor["job_id"] == mine}

    def status(self, job_id: str) -> str:
        return self.asked(f"/api/jobs/{job_id}")["status"]


class Following:
    """A process that submitted a job."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ended(self, timeout_s: float = PATIENCE_S) -> tuple[int, dict, str]:
        """Exit code, last line, and what was said."""
        try:
            out, err = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"not ended in time; it said: {self.process.communicate()[1]}") from None
        lines = out.strip().splitlines()
        return self.process.returncode, json.loads(lines[-1]) if lines else {}, err

    def wait_until(self, what: Callable[[], bool]) -> None:
        """Wait for something to become true while the job runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert self.process.poll() is None, self.ended()
            assert time.monotonic() < deadline, "it never became true"
            time.sleep(0.05)
