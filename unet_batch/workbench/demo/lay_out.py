"""Lays the demo out in a folder: model, contract, archive and job file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unet_batch.errors import JobError
from unet_batch.workbench.demo import drawn as drawn_demo
from unet_batch.workbench.demo import published
from unet_batch.workbench.files import replace_file

MARK = "# The job of `unet-batch demo`."
JOB = """\
{mark} Relative paths are relative to the folder in which unet-batch runs.
name: demo
model: {{path: {model}}}
input: {{uri: "{folder}/archive/{{date:%Y/%m/%d}}/"}}     # each day is a partition; a tar among the images is read, too
output: {{uri: {folder}/output}}
limits: {{max_rejected: 0.3}}          # files of 2026-11-{broken} are broken on purpose; the default is 0.01
session: {{providers: [cpu], batch_max: 2}}
"""


def lay_out(folder: Path, *, drawn: bool, say: Callable[[str], None]) -> dict[str, str]:
    """Make the demo in a folder that is new, or that an earlier call made; returns what each day holds.

    Files that are there already with the same bytes stay untouched, so that nothing is scored twice.
    Raises JobError for a folder with other files, and as `published.lay_out` does.
    """
    job = folder / "job.yaml"
    if folder.exists() and not folder.is_dir():
        raise JobError(f"{folder} is a file: choose another --out")
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder, job):
        raise JobError(f"{folder} holds files that are not of the demo: choose another --out")
    model = f"{folder}/model/{'bright' if drawn else 'nuclei'}.onnx"
    if job.exists() and model not in job.read_text(encoding="utf-8"):
        raise JobError(f"{folder} holds the demo with the other pictures: choose another --out")
    days = drawn_demo.lay_out(folder) if drawn else published.lay_out(folder, say)
    broken = "20" if drawn else "18"
    text = JOB.format(mark=MARK, model=model, folder=folder, broken=broken)
    if not job.exists():
        replace_file(job, text.encode())
    return days


def _is_ours(folder: Path, job: Path) -> bool:
    """Whether an earlier call made the folder: also one that was stopped during the download."""
    if job.exists():
        return job.read_text(encoding="utf-8", errors="replace").startswith(MARK)
    return {entry.name for entry in folder.iterdir()} <= {"parts", "model", "archive"}
