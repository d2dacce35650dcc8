"""Writes what was drafted: job file, contract and contact sheet, never over a file that is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unet_batch.errors import JobError
from unet_batch.spec import JobSpec, load_job
from unet_batch.store.objects import canonical
from unet_batch.workbench.draft.contact_sheet import contact_sheet
from unet_batch.workbench.draft.drafted_from import check_same
from unet_batch.workbench.draft.explore import Explored
from unet_batch.workbench.draft.new_files import check_new, write_new
from unet_batch.workbench.draft.source import ModelRequest
from unet_batch.workbench.draft.texts import EVERY, contract_yaml, job_tree, job_yaml
from unet_batch.workbench.files import replace_file

JOB, SHEET = "job.yaml", "choices.png"


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of a draft's files."""

    job: Path
    contract: Path
    sheet: Path
    contract_is_new: bool
    """Whether the contract is written; it is not where it is the one that was read."""


def reserve(request: ModelRequest) -> None:
    """Raise JobError before any work if the folder holds files of these names."""
    check_new([request.out / JOB, request.out / SHEET], force=request.force)


def files_of(explored: Explored, out: Path) -> Files:
    """Where the files of a draft go: into the job's folder."""
    contract = out / f"{explored.source_model.stem}.yaml"
    beside = canonical(explored.source_model.path).removesuffix(".onnx") + ".yaml"
    same = canonical(str(contract)) == beside
    untouched = all(known.origin in ("read", "default") for known in explored.draft.fields.values())
    return Files(out / JOB, contract, out / SHEET, not (same and contract.exists() and untouched))


def write_sheet(explored: Explored, files: Files, *, force: bool) -> None:
    """The contact sheet alone, so that a person can look at it before choosing."""
    write_new(files.sheet, contact_sheet(explored), force=force)


def check_files(files: Files, *, force: bool) -> None:
    """Raise JobError before the first file is written if one of the draft's files is there already."""
    check_new([files.job, files.sheet, *([files.contract] if files.contract_is_new else [])], force=force)


def earlier_job(request: ModelRequest, archive: str) -> JobSpec | None:
    """The job that an earlier `score` left in the folder; None if there is none, or if it has to be drafted again.

    Raises JobError if it is about another model or archive, or was drafted with other options.
    """
    path = request.out / JOB
    if request.force or not path.exists():
        return None
    check_same(request)
    job = load_job(path)
    scored = Path(job.model.path)
    made_here = re.sub("-(sigmoid|softmax)$", "", scored.stem) in (
        Path(request.model).stem,
        request.model.rpartition(":")[2].lower(),
        Path(request.model).name,
    )
    in_out = canonical(str(scored)) == canonical(str(request.out / scored.name))
    same_model = job.model.path == request.model or (in_out and made_here)
    if canonical(job.input.uri) != canonical(archive) or not same_model:
        raise JobError(
            f"{path} scores {job.input.uri} with {job.model.path}, not {archive} with {request.model}: choose another "
            "--out, or say --force to draft it again"
        )
    return job


def write_job(
    explored: Explored,
    files: Files,
    *,
    output: str,
    providers: Sequence[str],
    force: bool,
    publish_all: bool = False,
) -> JobSpec:
    """Write contract and job file; returns the job as it is read back. Raises JobError for files that are there.

    publish_all: whether images are published whatever number is rejected.
    """
    new = [files.job, *([files.contract] if files.contract_is_new else [])]
    check_new(new, force=force)
    if files.contract_is_new:
        replace_file(files.contract, contract_yaml(explored, str(files.sheet)).encode())
    beside = canonical(explored.source_model.path).removesuffix(".onnx") + ".yaml"
    contract = None if canonical(str(files.contract)) == beside else str(files.contract)
    tree = job_tree(explored, output=output, contract=contract, providers=tuple(providers))
    if publish_all:
        tree["limits"]["max_rejected"] = EVERY
    replace_file(files.job, job_yaml(tree, explored).encode())
    return load_job(files.job)
