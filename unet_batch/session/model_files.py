"""The ONNX files of a job: fetched, opened once to read their declarations, and checked against their contracts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from unet_batch.contract import Contract
from unet_batch.errors import ContractError, JobError, ModelRefused, NotFound, StorageError
from unet_batch.model import graph
from unet_batch.model.contract import METADATA_KEY, find_contract, resolve
from unet_batch.model.model import Model, ModelFile, Tensor
from unet_batch.model.optimized import OPTIMIZE_KEY, fp32_network
from unet_batch.options import Options
from unet_batch.session.engines import check_file, check_model, find
from unet_batch.session.onnxruntime_session import describe
from unet_batch.spec import JobSpec, Precision, TilingSpec
from unet_batch.store.storage import Storage, canonical

MAX_MODEL_BYTES = 2 << 30
"""Protobuf's limit for one message."""
_DTYPES = {"float": "float32", "double": "float64"}


def read_model(data: bytes, uri: str, pinned_sha256: str | None, *, custom_ops: Sequence[str] = ()) -> ModelFile:
    """The declarations of an ONNX file. custom_ops: libraries with operators of the file.

    Raises ContractError for another digest than the pinned one, and for bytes that are not a model or refer to external
    data.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise ContractError(f"{uri} has {len(data)} bytes; a model has at most {MAX_MODEL_BYTES}")
    sha256 = hashlib.sha256(data).hexdigest()
    if pinned_sha256 is not None and sha256 != pinned_sha256:
        raise ContractError(
            f"{uri} has the SHA-256 {sha256}, but model.sha256 is {pinned_sha256}: "
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


def fetch_model_file(job: JobSpec, number: int = 0) -> ModelFile:
    """A model's bytes, checked against the pinned digest, and its declarations.

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
    return read_model(data, path, pinned, custom_ops=job.session.custom_ops)


def in_precision(file: ModelFile, precision: Precision) -> ModelFile:
    """The file with the bytes that run in a precision. Raises ContractError if it does not have them."""
    data = bytes_for(file.data, precision)
    check_file(data, precision, file.uri)
    return replace(file, data=data)


def bytes_for(data: bytes, precision: Precision) -> bytes:
    """The bytes that run in a precision: the fp32 network of an optimised file for fp32, else the file."""
    wants_fp32 = precision != "int8" and OPTIMIZE_KEY.encode() in data
    return (fp32_network(data) if wants_fp32 else None) or data


def resolve_models(job: JobSpec, files: Sequence[ModelFile]) -> list[Model]:
    """The models of all files. A member without a contract uses the contract of the first."""
    models: list[Model] = []
    shared: Contract | None = None
    for file in files:
        text, where = contract_text(Storage(job.model.options), file.uri, named=None if shared else job.model.contract)
        inherits = shared is not None and text is None and METADATA_KEY not in file.metadata
        contract = shared if shared is not None and inherits else find_contract(file, text, where)
        shared = shared or contract
        models.append(resolve(contract, file, job.tiling))
        for name in job.session.providers:
            check_model(find(job.model.resolved_engine, name), models[-1])
    return models


def trusted_models(job: JobSpec) -> list[tuple[bytes, Model]]:
    """The references of a job, one for each model file; empty if the job has none. Raises JobError."""
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
    """A model file and its model, without a job. Raises JobError, ContractError or StorageError.

    contract: URI of a YAML file; None: the one beside the model, else the one in its metadata. options: of the store
    with both files.
    """
    storage, uri = Storage(options or {}), canonical(path)
    file = read_model(storage.read(uri, max_bytes=MAX_MODEL_BYTES), uri, None)
    text, where = contract_text(storage, uri, named=None if contract is None else canonical(contract))
    return file.data, resolve(find_contract(file, text, where), file, tiling)


def _why_unopened(data: bytes, uri: str, custom_ops: Sequence[str]) -> str | None:
    """A clearer reason, from the graph, why ONNX Runtime cannot open a file; None if there is none."""
    try:
        model = graph.read(data, uri)
    except ModelRefused as error:
        return f"{uri} cannot be opened as an ONNX model: {error}"
    if outside := graph.external(model):
        return (
            f"{uri} cannot be opened as an ONNX model: {len(outside)} tensors ({outside[0]}) are in another file; "
            "external data is not supported: export it as one file"
        )
    strange = sorted(graph.domains(model) - graph.DOMAINS)
    if strange and not custom_ops:
        return (
            f"{uri} has operators of {', '.join(strange)}, which are not part of ONNX Runtime: write their library "
            "in session.custom_ops, or export the model without them"
        )
    return None


def _dtype(kind: str) -> str:
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(inner, inner)


def contract_text(storage: Storage, path: str, *, named: str | None) -> tuple[bytes | None, str]:
    """The text of the job's contract or of the one beside the model, and its URI; None if there is no file."""
    uri = named or path.removesuffix(PurePosixPath(path).suffix) + ".yaml"
    try:
        return storage.read(uri, max_bytes=1 << 20), uri
    except NotFound as error:
        if named is not None:
            raise ContractError(f"model.contract: there is no {uri}") from error
        return None, uri
    except StorageError as error:
        raise ContractError(f"the contract {uri} cannot be read: {error}") from error
