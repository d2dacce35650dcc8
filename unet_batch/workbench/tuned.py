"""The model that `model tune` measures: of a file, or of a job with what the job does to each tile."""

from __future__ import annotations

from dataclasses import dataclass

from unet_batch.errors import JobError
from unet_batch.model.model import Model
from unet_batch.session.combined.mirroring import check_mirroring
from unet_batch.session.model_files import model_at
from unet_batch.spec import TilingSpec, Tta, load_job


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model to measure."""

    path: str
    """Of the file, as the user or the job names it."""
    data: bytes
    model: Model
    tta: Tta
    """Passes of each tile, as the job has them."""


def model_to_tune(path: str, contract: str | None) -> TunedModel:
    """The model of an ONNX file, or of a job file, which ends in .yaml or .yml.

    contract: of an ONNX file, as in `model_at`. Raises JobError for an ensemble, whose members have ladders of no file,
    and for a contract that is given beside a job; ContractError and StorageError as `model_at` does.
    """
    if not path.endswith((".yaml", ".yml")):
        return TunedModel(path, *model_at(path, contract, TilingSpec()), "none")
    job = load_job(path)
    if contract is not None:
        raise JobError(f"{path} is a job, which names its contract itself: leave --contract out")
    if job.model.ensemble is not None:
        raise JobError(f"{path} scores an ensemble, which is not measured as one: write one of its model files")
    data, model = model_at(job.model.path, job.model.contract, job.tiling, job.model.options)
    check_mirroring(job, [model])
    return TunedModel(job.model.path, data, model, job.tta)
