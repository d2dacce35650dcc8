"""Builds the stages of a process from its settings; used by every executor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from unet_batch.decode.isolate import DECODER
from unet_batch.errors import ContractError
from unet_batch.gate.gate import SessionUnderTest, check_references, compare, slices
from unet_batch.model.model import Model
from unet_batch.records import Unit
from unet_batch.session.batching import Batcher
from unet_batch.session.combined.mirroring import passes, scoring_session
from unet_batch.session.ladder import LadderMemory
from unet_batch.session.model_files import bytes_for
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session, warm
from unet_batch.spec import JobSpec
from unet_batch.store.storage import Storage
from unet_batch.table.rows import Provenance
from unet_batch.worker.infer import Infer
from unet_batch.worker.load import Load
from unet_batch.worker.tiles import spread_tiles

LARGEST_COMPARED_SIDE = 1024
"""Largest side, in pixels, of a tile that the gate compares if the model takes any size."""

ModelBytes = tuple[bytes, Model]


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that are sent to a process: small texts; no model, session, file system or secret."""

    job_json: str
    model_json: bytes
    fingerprint: str
    run_id: str
    decoder: str = DECODER
    members: tuple[bytes, ...] = ()
    """The models of an ensemble, as JSON; empty without an ensemble."""
    check_unit: bytes | None = None
    """The gate's images, as a unit's JSON; None if no gate is needed."""
    stop_at_s: float | None = None
    """Seconds since 1970 after which no unit is started."""

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            **asdict(self),
            "model_json": self.model_json.decode(),
            "members": [member.decode() for member in self.members],
            "check_unit": None if self.check_unit is None else self.check_unit.decode(),
        }

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> Settings:
        """The inverse of `to_json`."""
        return Settings(
            **{
                **tree,
                "model_json": tree["model_json"].encode(),
                "members": tuple(member.encode() for member in tree["members"]),
                "check_unit": None if tree["check_unit"] is None else tree["check_unit"].encode(),
            }
        )

    @property
    def job(self) -> JobSpec:
        return JobSpec.model_validate_json(self.job_json)

    @property
    def model(self) -> Model:
        return Model.from_json(self.model_json)


def build_load(settings: Settings) -> Load:
    """The Load stage of this process."""
    return Load(settings.job, settings.model, decoder=settings.decoder, stop_at_s=settings.stop_at_s)


def build_infer(settings: Settings, device: Device) -> Infer:
    """The Infer stage of this process, with its session open. Raises ProviderMissing,
    ContractError, ModelRefused, StorageError."""
    job, model = settings.job, settings.model
    files = _files(settings)
    parts = _sessions(settings, files, device)
    session = scoring_session(parts, settings.model, job)
    if model.tile_hw is not None:  # shows before the first image whether the session runs
        warm(session, model.tile_hw, [model.batch or 1])
    tested = SessionUnderTest(session, tuple(files), tuple(parts))
    check_references(job, tested)
    if settings.check_unit is not None:
        unit = Unit.from_json(settings.check_unit)
        compare(job, tested, unit.sources, _one_tile_each(settings, unit), settings.run_id)
    memory = LadderMemory(job.model.precision, threads=device.threads)
    batcher = Batcher(session, batch_max=job.session.batch_max, passes=passes(job), memory=memory)
    provenance = Provenance(
        model_digest=model.sha256,
        fingerprint=settings.fingerprint,
        run_id=settings.run_id,
        provider=session.provider,
        precision=job.model.precision,
    )
    return Infer(job, session, batcher, provenance)


def _one_tile_each(settings: Settings, unit: Unit) -> Iterator[tuple[str, NDArray[Any]]]:
    """Key and middle tile, as input of the session, of every image of a unit; a part of the unit is read at a time."""
    load = build_load(settings)
    for part in slices(settings.job, unit):
        for key, _, tile in spread_tiles(
            load(part), settings.model, settings.job.tiling, most=1, largest_side=LARGEST_COMPARED_SIDE
        ):
            yield key, tile


def _sessions(settings: Settings, files: Sequence[ModelBytes], device: Device) -> list[Session]:
    """The session of each file."""
    job = settings.job
    return [
        open_session(
            data,
            model,
            job.session,
            device.divided(len(files)),
            engine=job.model.resolved_engine,
            precision=job.model.precision,
        )
        for data, model in files
    ]


def _files(settings: Settings) -> list[ModelBytes]:
    """The model, or every member of its ensemble. Raises ContractError if a file changed since the plan."""
    job, store = settings.job, Storage(settings.job.model.options)
    members = [Model.from_json(text) for text in settings.members] or [settings.model]
    files = []
    for path, member in zip(job.model.paths, members, strict=True):
        data = store.read(path)
        if hashlib.sha256(data).hexdigest() != member.sha256:
            raise ContractError(f"{path} has changed since the run was planned; run the same command again")
        files.append((bytes_for(data, job.model.precision), member))
    return files
