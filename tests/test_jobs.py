"""The shipped job files and entry points work, and the README agrees with them."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from models import threshold_model
from project_fixture import last_json, png

from unet_batch.cli.main import cli
from unet_batch.spec import load_job

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
DAYS = 3
IMAGES_A_DAY = 4


def overrides(path: Path, folder: Path) -> list[str]:
    """Make a small archive and a small model for a job file below a folder; returns the options that name them.

    A job with days finds an old one, yesterday and today (which is yesterday where midnight falls into the test).
    """
    job, today = load_job(path), datetime.now(UTC).date()
    made = threshold_model("nchw", 1, 2, size=32)
    (folder / "model.onnx").write_bytes(made.data)
    (folder / "model.yaml").write_text(made.contract_yaml)
    dated = "{date:%Y/%m/%d}" in job.input.uri
    for day in [today.replace(year=2020, day=1), today - timedelta(days=1), today] if dated else [None]:
        place = folder / "archive" / (f"{day:%Y/%m/%d}" if day else "")
        place.mkdir(parents=True)
        suffix = Path(job.input.pattern).suffix or ".png"  # the content decides, not the name
        pictures = {f"{i}{suffix}": png(i) for i in range(IMAGES_A_DAY)}
        if job.input.format == "webdataset":
            with tarfile.open(place / "shard.tar", "w") as tar:
                for name, data in pictures.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        else:
            for name, data in pictures.items():
                (place / name).write_bytes(data)
    words = [
        f"model.path={folder}/model.onnx",
        f"input.uri={folder}/archive/{'{date:%Y/%m/%d}/' if dated else ''}",
        "input.options={}",
        f"output.uri={folder}/out",
        "session.providers=[cpu]",
    ]
    return [option for word in words for option in ("--set", word)]


def python(*words: object, ray_address: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in the root of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment if ray_address is None else {**environment, "RAY_ADDRESS": ray_address},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def published(folder: Path) -> dict[str, int]:
    """Rows of each partition below a folder."""
    files = sorted(folder.rglob("data.parquet"))
    return {str(file.relative_to(folder).parent): pq.ParquetFile(file).metadata.num_rows for file in files}


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_a_job_file_that_ships_is_valid(path):
    """Users can copy it."""
    assert load_job(path).name == path.stem


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_a_job_file_that_ships_can_be_planned(path, tmp_path):
    """Its format, patterns and settings find every image of a small archive."""
    options = overrides(path, tmp_path)
    result = python("-m", "unet_batch", "plan", path, *options, "--window", "all")
    assert result.returncode == 0, result.stderr
    days = DAYS if "{date" in load_job(path).input.uri else 1
    plan = last_json(result)
    assert (plan["images"], plan["partitions"]) == (days * IMAGES_A_DAY, days)


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda p: p.name)
def test_an_entry_point_is_thin_and_has_its_job_file(path):
    """It adds nothing to the command line but its defaults."""
    assert len(path.read_text().splitlines()) <= 25
    assert path.with_suffix(".yaml") in JOBS


def test_nightly_scores_yesterday_alone(tmp_path):
    """Not older days, and not today, which is incomplete."""
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    options = overrides(ROOT / "jobs/nightly.yaml", tmp_path)
    result = python("jobs/nightly.py", "jobs/nightly.yaml", *options, "--executor", "local")
    assert result.returncode == 0, result.stderr
    possible = [{f"date={day}": IMAGES_A_DAY} for day in (yesterday, yesterday + timedelta(days=1))]
    assert published(tmp_path / "out/predictions") in possible


def test_nightly_takes_another_window_and_joins_the_cluster_that_is_named(tmp_path):
    """Options after the job file take precedence; RAY_ADDRESS, which Ray's job server sets, means --address auto."""
    options = [*overrides(ROOT / "jobs/nightly.yaml", tmp_path), "--executor", "local"]
    result = python("jobs/nightly.py", "jobs/nightly.yaml", *options, "--window", "all")
    assert result.returncode == 0, result.stderr
    assert len(published(tmp_path / "out/predictions")) == DAYS
    joins = python("jobs/nightly.py", "jobs/nightly.yaml", *options, ray_address="127.0.0.1:1")
    assert (joins.returncode, "--address needs --executor ray" in joins.stderr) == (2, True)


def test_backfill_scores_what_is_missing(tmp_path):
    """Every day of the archive; the second time nothing."""
    options = [*overrides(ROOT / "jobs/backfill.yaml", tmp_path), "--executor", "local"]
    first = python("jobs/backfill.py", "jobs/backfill.yaml", *options)
    assert first.returncode == 0, first.stderr
    assert list(published(tmp_path / "out/predictions").values()) == [IMAGES_A_DAY] * DAYS
    again = python("jobs/backfill.py", "jobs/backfill.yaml", *options)
    assert (again.returncode, last_json(again)["planned"]) == (0, 0)


def test_smoke_scores_everything_each_time_and_verifies_its_rows(tmp_path):
    """Into a folder of its own below the scratch output; the last line is that of `verify`."""
    options = [*overrides(ROOT / "jobs/smoke.yaml", tmp_path), "--executor", "local"]
    first = python("jobs/smoke.py", "jobs/smoke.yaml", *options)
    again = python("jobs/smoke.py", "jobs/smoke.yaml", *options)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    proof = last_json(again)
    assert (proof["partitions"], proof["disagreements"], proof["findings"], proof["exit"]) == (1, 0, [], "complete")
    assert list(published(tmp_path / "out").values()) == [IMAGES_A_DAY] * 2
    (tmp_path / "archive/0.png").write_bytes(b"no image")
    assert python("jobs/smoke.py", "jobs/smoke.yaml", *options).returncode == 5


def test_every_command_in_the_readme_exists():
    """`unet-batch X` is a command for every X that the README names."""
    named = set(re.findall(r"`(?:unet-batch )?([a-z]+)(?: JOB\b[^`]*| [^`]*)?`", README)) & set(cli.commands)
    named |= set(re.findall(r"`unet-batch ([a-z]+)", README))
    assert named <= set(cli.commands)
    assert set(cli.commands) <= named


def test_the_readme_is_short_and_its_links_lead_somewhere():
    """150 lines at most; no dead file names."""
    assert len(README.splitlines()) <= 150
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
