"""From a job file to all a run must know before it touches the archive: model, contract, stores, fingerprint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from unet_batch.archive.storage import Storage, canonical
from unet_batch.errors import ContractError, JobError, NotFound, StorageError
from unet_batch.job.plan import fingerprint
from unet_batch.model.contract import Model, ModelFile, find_contract, read_model, resolve
from unet_batch.spec import JobSpec
from unet_batch.table.layout import Layout
from unet_batch.table.rows import COLUMNS

MAX_MODEL_BYTES = 2 << 30
"""protobuf's own limit for one message."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job whose model and contract were read and held against each other."""

    job: JobSpec
    model: Model
    model_bytes: bytes
    fingerprint: str
    archive: Storage
    output: Storage
    layout: Layout


def prepare(job: JobSpec) -> Prepared:
    """Read and check everything but the archive. Raises JobError, ContractError or StorageError."""
    job = _with_canonical_uris(job)
    _check_partition_column(job)
    file = read_model_file(job)
    contract, where = _contract_text(job)
    model = resolve(find_contract(file, contract, where), file, job.tiling)
    output = Storage(job.output.options)
    return Prepared(
        job=job,
        model=model,
        model_bytes=file.data,
        fingerprint=fingerprint(job, model),
        archive=Storage(job.input.options, threads=job.resources.fetch_threads),
        output=output,
        layout=Layout(job.output.uri),
    )


def read_model_file(job: JobSpec) -> ModelFile:
    """The model's bytes, checked against the pinned digest, and what the file says of itself."""
    try:
        data = Storage(job.model.options).read(job.model.path, max_bytes=MAX_MODEL_BYTES)
    except NotFound as error:
        raise JobError(f"model.path: there is no {job.model.path}; write the path of an ONNX file") from error
    return read_model(data, job.model.path, job.model.sha256)


def new_run_id(job: JobSpec) -> str:
    """Sortable and unique: time of start, name and process."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{job.name}-{os.getpid():x}{os.urandom(2).hex()}"


def _check_partition_column(job: JobSpec) -> None:
    taken = {name for name, _, _ in COLUMNS} - {"date"} | {"bucket"}
    if job.input.partition_column in taken:
        raise JobError(
            f"input.partition_column: {job.input.partition_column} is a column of the output already; rename it in the "
            "manifest, e.g. to site or date"
        )


def _with_canonical_uris(job: JobSpec) -> JobSpec:
    """The job with absolute URIs, so that actors in other folders mean the same objects."""
    model = job.model.model_copy(
        update={
            "path": canonical(job.model.path),
            "contract": None if job.model.contract is None else canonical(job.model.contract),
        }
    )
    return job.model_copy(
        update={
            "model": model,
            "input": job.input.model_copy(update={"uri": canonical(job.input.uri)}),
            "output": job.output.model_copy(update={"uri": canonical(job.output.uri).rstrip("/")}),
        }
    )


def _contract_text(job: JobSpec) -> tuple[bytes | None, str]:
    """The contract beside the model, or the one the job names; None where neither is there."""
    storage = Storage(job.model.options)
    uri = job.model.contract or str(job.model.path).removesuffix(PurePosixPath(job.model.path).suffix) + ".yaml"
    try:
        return storage.read(uri, max_bytes=1 << 20), uri
    except NotFound as error:
        if job.model.contract is not None:
            raise ContractError(f"model.contract: there is no {uri}") from error
        return None, uri
    except StorageError as error:
        raise ContractError(f"the contract {uri} cannot be read: {error}") from error
