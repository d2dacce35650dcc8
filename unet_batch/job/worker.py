"""How a process builds its stages from settings alone: what every executor, local or remote, starts with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from unet_batch.archive.isolate import DECODER
from unet_batch.archive.storage import Storage
from unet_batch.errors import ContractError
from unet_batch.job.stages import Infer, Load
from unet_batch.model.batching import Batcher
from unet_batch.model.contract import Model
from unet_batch.model.ladder import LadderMemory
from unet_batch.model.session import Device, open_session, warm
from unet_batch.spec import JobSpec
from unet_batch.table.rows import Provenance


@dataclass(frozen=True, slots=True)
class Settings:
    """What travels to a process: small text, never a model, a session, a file system or a secret."""

    job_json: str
    model_json: bytes
    fingerprint: str
    run_id: str
    decoder: str = DECODER

    @property
    def job(self) -> JobSpec:
        return JobSpec.model_validate_json(self.job_json)

    @property
    def model(self) -> Model:
        return Model.from_json(self.model_json)


def build_load(settings: Settings) -> Load:
    """The Load stage of this process."""
    return Load(settings.job, settings.model, decoder=settings.decoder)


def build_infer(settings: Settings, device: Device, model_bytes: bytes | None = None) -> Infer:
    """The Infer stage of this process, with its session open. Raises ProviderMissing, ContractError, StorageError."""
    job, model = settings.job, settings.model
    data = model_bytes if model_bytes is not None else Storage(job.model.options).read(job.model.path)
    if hashlib.sha256(data).hexdigest() != model.sha256:
        raise ContractError(f"{job.model.path} changed since the run was planned; run the same command again")
    session = open_session(data, model, job.session, device)
    if model.tile_hw is not None:
        warm(session, model.tile_hw, [model.batch or 1])  # a session that cannot run says so before the first image
    batcher = Batcher(session, batch_max=job.session.batch_max, memory=LadderMemory(job.session.precision))
    provenance = Provenance(
        model_digest=model.sha256,
        fingerprint=settings.fingerprint,
        run_id=settings.run_id,
        provider=session.provider,
        precision=job.session.precision,
    )
    return Infer(job, session, batcher, provenance)
