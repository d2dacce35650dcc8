"""The ONNX files of a job: fetched, opened once to learn what they declare, and held against their contracts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

from unet_batch.contract import Contract
from unet_batch.errors import ContractError, JobError, ModelRefused, NotFound, StorageError
from unet_batch.model import graph
from unet_batch.model.contract import METADATA_KEY, find_contract, resolve
from unet_batch.model.model import Model, ModelFile, Tensor
from unet_batch.options import Options
from unet_batch.session.engines import check_file, check_model, find
from unet_batch.session.onnxruntime_session import describe
from unet_batch.spec import JobSpec, TilingSpec
from unet_batch.store.storage import Storage, canonical

MAX_MODEL_BYTES = 2 << 30
"""Protobuf's own limit of one message."""
_DTYPES = {"float": "float32", "double": "float64"}


def read_model(data: bytes, uri: str, pinned_sha256: str | None, *, custom_ops: Sequence[str] = ()) -> ModelFile:
    """What an ONNX file declares. custom_ops: libraries that hold operators of the file.

    Raises ContractError for another digest than the pinned one, and for bytes that are no model or that point to
    external data.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise ContractError(f"{uri} has {len(data)} bytes; a model has at most {MAX_MODEL_BYTES}")
    sha256 = hashlib.sha256(data).hexdigest()
    if pinned_sha256 is not None and sha256 != pinned_sha256:
        raise ContractError(
            f"{uri} has the SHA-256 {sha256}, but model.sha256 demands {pinned_sha256}: "
            "the file was replaced, or the job file is older than the model"
        )
    try:
        inputs, outputs, metadata = describe(data, uri, custom_ops)
    except ContractError as error:
        raise ContractError(_why_unopened(data, uri, custom_ops) or str(error)) from error
    return ModelFile(
        data=data,
        sha256=sha256,
        uri=uri,
        inputs=tuple(Tensor(name, _dtype(kind), shape) for name, kind, shape in inputs),
        outputs=tuple(Tensor(name, _dtype(kind), shape) for name, kind, shape in outputs),
        metadata=metadata,
    )


def read_model_file(job: JobSpec, number: int = 0) -> ModelFile:
    """A model's bytes, checked against the pinned digest and the precision, and what the file says of itself.

    number: 0 is `model.path`, the others are the members of its ensemble.
    """
    path, ensemble = job.model.paths[number], job.model.ensemble
    pins = (job.model.sha256, *(ensemble.sha256 if ensemble else ()))
    try:
        data = Storage(job.model.options).read(path, max_bytes=MAX_MODEL_BYTES)
    except NotFound as error:
        key = f"model.ensemble.members[{number - 1}]" if number else "model.path"
        raise JobError(f"{key}: there is no {path}; write the path of an ONNX file") from error
    pinned = pins[number] if number < len(pins) else None
    file = read_model(data, path, pinned, custom_ops=job.session.custom_ops)
    check_file(data, job.model.precision, path)
    return file


def resolve_models(job: JobSpec, files: Sequence[ModelFile]) -> list[Model]:
    """Every file held against its contract; a member that has none of its own has the first one's."""
    models: list[Model] = []
    shared: Contract | None = None
    for file in files:
        text, where = _contract_text(Storage(job.model.options), file.uri, named=None if shared else job.model.contract)
        inherits = shared is not None and text is None and METADATA_KEY not in file.metadata
        contract = shared if shared is not None and inherits else find_contract(file, text, where)
        shared = shared or contract
        models.append(resolve(contract, file, job.tiling))
        for name in job.session.providers:
            check_model(find(job.model.engine, name), models[-1])
    return models


def trusted_models(job: JobSpec) -> list[tuple[bytes, Model]]:
    """The references of a job, one for each file that scores; none where it names none. Raises JobError."""
    found = []
    for number, path in enumerate(job.trusted_paths):
        try:
            found.append(model_at(path, None, job.tiling, job.model.options))
        except NotFound as error:
            key = f"check.references[{number}]" if job.check.references else "check.reference"
            raise JobError(f"{key}: there is no {path}") from error
    return found


def model_at(
    path: str, contract: str | None, tiling: TilingSpec, options: Options | None = None
) -> tuple[bytes, Model]:
    """A model file and what it resolves to, outside of any job. Raises JobError, ContractError or StorageError.

    contract: the URI of a YAML file; left out, the one beside the model, else the one in its metadata. options: of the
    store that holds both.
    """
    storage, uri = Storage(options or {}), canonical(path)
    file = read_model(storage.read(uri, max_bytes=MAX_MODEL_BYTES), uri, None)
    text, where = _contract_text(storage, uri, named=None if contract is None else canonical(contract))
    return file.data, resolve(find_contract(file, text, where), file, tiling)


def _why_unopened(data: bytes, uri: str, custom_ops: Sequence[str]) -> str | None:
    """Why ONNX Runtime opens no session of a file, where the graph says it in plainer words; None where it does not."""
    try:
        model = graph.read(data, uri)
    except ModelRefused as error:
        return f"{uri} cannot be opened as an ONNX model: {error}"
    if outside := graph.external(model):
        return (
            f"{uri} cannot be opened as an ONNX model: {len(outside)} tensors ({outside[0]}) lie in another file; "
            "a model has no external data here: export it as one file"
        )
    strange = sorted(graph.domains(model) - graph.DOMAINS)
    if strange and not custom_ops:
        return (
            f"{uri} has operators of {', '.join(strange)}, which ONNX Runtime does not bring: name the library that "
            "holds them in session.custom_ops, or export the model without them"
        )
    return None


def _dtype(kind: str) -> str:
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(inner, inner)


def _contract_text(storage: Storage, path: str, *, named: str | None) -> tuple[bytes | None, str]:
    """The contract beside a model, or the one the job names; None where neither is there."""
    uri = named or path.removesuffix(PurePosixPath(path).suffix) + ".yaml"
    try:
        return storage.read(uri, max_bytes=1 << 20), uri
    except NotFound as error:
        if named is not None:
            raise ContractError(f"model.contract: there is no {uri}") from error
        return None, uri
    except StorageError as error:
        raise ContractError(f"the contract {uri} cannot be read: {error}") from error
