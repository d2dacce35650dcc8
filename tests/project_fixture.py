"""A small job on disk: an archive that is written image by image, a model whose masks are known, and a job file."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import forked
import numpy as np
import pyarrow.parquet as pq
import pytest
from models import threshold_model
from PIL import Image

from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.run import Choice, run
from unet_batch.job.summary import Summary
from unet_batch.job.verify import Disagreement, PartitionStatus, status, verify
from unet_batch.planning.prepare import Prepared, prepare
from unet_batch.planning.survey import window_of
from unet_batch.spec import JobSpec, load_job

SIZE = 32


def png(level: int, *, bright_rows: int = 8) -> bytes:
    """A gray PNG of 32², dark but for its first rows: the threshold model's mask is those rows."""
    image = np.full((SIZE, SIZE), level % 100, np.uint8)
    image[:bright_rows] = 255
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@dataclass
class Project:
    """A job file, its archive and its output below one folder."""

    folder: Path

    def put(self, name: str, data: bytes | None = None, *, level: int = 0) -> Path:
        path = self.folder / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(level) if data is None else data)
        return path

    def fill(self, day: str, count: int) -> None:
        for i in range(count):
            self.put(f"{day}/{i:03}.png", level=i)

    def job(self, *overrides: str) -> JobSpec:
        return load_job(self.folder / "job.yaml", overrides)

    def prepared(self, *overrides: str) -> Prepared:
        return prepare(self.job(*overrides))

    def run(self, *overrides: str, window: str = "all", select: str = "due", executor=None, **choice) -> Summary:
        return run(
            self.prepared(*overrides),
            window_of(window),
            executor or LocalExecutor,
            choice=Choice(select, **choice),
            quiet=True,
        )

    def status(self, *overrides: str, window: str = "all") -> list[PartitionStatus]:
        return status(self.prepared(*overrides), window_of(window))

    def verify(self, *overrides: str, window: str = "all") -> list[Disagreement]:
        return verify(self.prepared(*overrides), window_of(window)).findings

    def data(self, day: str) -> Path:
        return self.folder / "out" / "predictions" / f"date={day}" / "data.parquet"

    def rows(self, day: str) -> list[dict]:
        return pq.ParquetFile(self.data(day)).read().to_pylist()

    def parts(self) -> list[Path]:
        return sorted((self.folder / "out" / "_work" / "parts").rglob("*.part"))

    def command(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own, in this folder."""
        return forked.command(forked.PROGRAM, *arguments, folder=self.folder, environment=env)


def last_json(result: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(result.stdout.strip().splitlines()[-1])


def new_project(folder: Path) -> Project:
    """A project with a model and a job file, and no images yet."""
    made = threshold_model("nchw", 1, 2, size=SIZE)
    (folder / "model.onnx").write_bytes(made.data)
    (folder / "model.yaml").write_text(made.contract_yaml)
    (folder / "job.yaml").write_text(
        f"""\
name: test
model: {{path: {folder}/model.onnx}}
input: {{uri: "{folder}/archive/{{date:%Y/%m/%d}}/"}}
output: {{uri: {folder}/out}}
limits: {{max_rejected: 0.5}}
"""
    )
    return Project(folder)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return new_project(tmp_path)
