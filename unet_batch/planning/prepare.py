"""Prepares a job before the archive is read: model, contract, stores, fingerprint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from unet_batch.archive.discovery import reaches
from unet_batch.errors import JobError, ModelRefused
from unet_batch.gate.choice import choose, refuse
from unet_batch.gate.reference import check_reference
from unet_batch.model.against_graph import proven
from unet_batch.model.model import Model, ModelFile
from unet_batch.model.optimized import holds_fp32
from unet_batch.model.packed import PACK_KEY
from unet_batch.planning.fingerprint import fingerprint
from unet_batch.session.combined.ensemble import combined_model
from unet_batch.session.combined.mirroring import check_mirroring
from unet_batch.session.engines import check_choice, file_precision
from unet_batch.session.model_files import fetch_model_file, in_precision, resolve_models, trusted_models
from unet_batch.spec import JobSpec
from unet_batch.store.storage import Storage, canonical
from unet_batch.table.mask_files import SUFFIXES
from unet_batch.table.output import Output
from unet_batch.table.rows import COLUMNS


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job with its checked models and contracts, stores and fingerprint."""

    job: JobSpec
    model: Model
    """The model, or the combined model of the ensemble."""
    members: tuple[Model, ...]
    """The models of an ensemble in order; empty without an ensemble."""
    model_bytes: bytes
    """The file of the model, or of the ensemble's first member."""
    fingerprint: str
    archive: Storage
    output: Output
    proven: bool
    """Whether the graphs prove the contracts' activations."""
    recommended_for: JobSpec | None = None
    """The job as written, if `model.engine: auto` follows the recommendation of the model's file; else None."""


def prepare(job: JobSpec) -> Prepared:
    """Read and check everything except the archive, and resolve `model.engine: auto`.

    Raises JobError, ContractError, StorageError, and ModelRefused under `session.strict`.
    """
    _check_relative_paths(job)
    job = _with_canonical_uris(job)
    _check_partition_column(job)
    _check_output_is_apart(job)
    recommended_for = None
    if job.model.engine == "auto":
        choice = choose(job, fetch_model_file(job))
        recommended_for, job = (job if choice.reason is None else None), choice.job
    return _prepared(job, recommended_for)


def without_recommendation(prepared: Prepared, error: ModelRefused) -> Prepared:
    """The job in fp32 after the gate refused what `model.engine: auto` followed; a warning says so.

    Raises the error if the job did not follow a recommendation, and ModelRefused under `session.strict`.
    """
    if prepared.recommended_for is None:
        raise error
    choice = refuse(prepared.recommended_for, fetch_model_file(prepared.recommended_for), error)
    return _prepared(choice.job, None)


def _prepared(job: JobSpec, recommended_for: JobSpec | None) -> Prepared:
    """A job with absolute URIs and a named engine."""
    check_choice(job.model, job.session)
    fetched = [fetch_model_file(job, number) for number in range(len(job.model.paths))]
    files = [in_precision(file, job.model.precision) for file in fetched]
    models = resolve_models(job, files)
    ensemble = job.model.ensemble
    check_mirroring(job, models)
    model = models[0] if ensemble is None else combined_model(models, ensemble.combine)
    if job.output.mask_files and model.contract.output.classifies:
        raise JobError("output.mask_files: the model is a classifier, so its rows have no masks: remove the key")
    _check_references(job, files, models)
    return Prepared(
        job=job,
        model=model,
        members=() if ensemble is None else tuple(models),
        model_bytes=files[0].data,
        fingerprint=fingerprint(job, model),
        archive=Storage(job.input.options, threads=job.resources.fetch_threads),
        output=Output.of(job.output),
        # A packed file was proven by `model pack`, and the gate runs its reference pictures.
        proven=all(PACK_KEY.encode() in f.data or proven(m, f.data) for m, f in zip(models, files, strict=True)),
        recommended_for=recommended_for,
    )


def _check_references(job: JobSpec, files: Sequence[ModelFile], models: Sequence[Model]) -> None:
    """Check the reference models of the gate. Raises JobError."""
    if not job.check.images:
        return
    trusted = trusted_models(job)
    for number, (file, model) in enumerate(zip(files, models, strict=True)):
        key = f"check.references[{number}]" if job.check.references else "check.reference"
        if trusted:
            check_reference((file.data, model), trusted[number], key)
        elif (held := file_precision(file.data, file.uri)) != "fp32" and not holds_fp32(file.data):
            wanted = "check.reference" if len(files) == 1 else "check.references (one for each file)"
            raise JobError(
                f"{file.uri} is a model in {held} and cannot be its own reference: write the fp32 file that it was "
                f"made from in {wanted}, or check.images: 0 to score without a comparison"
            )


def new_run_id(job: JobSpec) -> str:
    """A sortable, unique id: start time, name and process."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{job.name}-{os.getpid():x}{os.urandom(2).hex()}"


def _check_relative_paths(job: JobSpec) -> None:
    """Raise JobError for a missing file with a relative path; the message names the working directory."""
    files: list[tuple[str, str | None]] = [("model.path", job.model.path), ("model.contract", job.model.contract)]
    members = job.model.ensemble.members if job.model.ensemble else ()
    files += [(f"model.ensemble.members[{number}]", member) for number, member in enumerate(members)]
    files.append(("check.reference", job.check.reference))
    files += [(f"check.references[{number}]", path) for number, path in enumerate(job.check.references)]
    files += [("session.custom_ops", library) for library in job.session.custom_ops]
    for key, path in files:
        if path and "://" not in path and not os.path.isabs(os.path.expanduser(path)) and not os.path.exists(path):
            what = "library " if key == "session.custom_ops" else ""
            raise JobError(
                f"{key}: there is no {what}{path} in {os.getcwd()}; relative paths are relative to the working "
                "directory, not to the job file"
            )


def _check_partition_column(job: JobSpec) -> None:
    taken = {name for name, _, _ in COLUMNS} - {"date"} | {"bucket"}
    if job.input.partition_column in taken:
        raise JobError(
            f"input.partition_column: {job.input.partition_column} is already a column of the output; rename it in the "
            "manifest, e.g. to site or date"
        )


def _check_output_is_apart(job: JobSpec) -> None:
    """Raise JobError if the output is inside the archive: the next run would read it as images."""
    output = Output.of(job.output)
    files = [f"{output.mask_folder(kind, 'all')}/image{SUFFIXES[kind]}" for kind in job.output.mask_files]
    for uri in (output.published("all"), output.run("run"), output.part("0" * 64, "all", "unit"), *files):
        if reaches(job.input, uri):
            raise JobError(
                f"output.uri {job.output.uri} is inside the archive {job.input.uri}, so the next run would read the "
                "output as images: choose a folder outside, or narrow input.pattern"
            )


def _with_canonical_uris(job: JobSpec) -> JobSpec:
    """The job with absolute URIs, because actors have other working directories."""
    ensemble = job.model.ensemble
    if ensemble is not None:
        ensemble = ensemble.model_copy(update={"members": tuple(canonical(path) for path in ensemble.members)})
    model = job.model.model_copy(
        update={
            "path": canonical(job.model.path),
            "contract": None if job.model.contract is None else canonical(job.model.contract),
            "ensemble": ensemble,
        }
    )
    reference = None if job.check.reference is None else canonical(job.check.reference)
    references = tuple(canonical(path) for path in job.check.references)
    libraries = tuple(os.path.abspath(os.path.expanduser(path)) for path in job.session.custom_ops)
    return job.model_copy(
        update={
            "model": model,
            "check": job.check.model_copy(update={"reference": reference, "references": references}),
            "session": job.session.model_copy(update={"custom_ops": libraries}),
            "input": job.input.model_copy(update={"uri": canonical(job.input.uri)}),
            "output": job.output.model_copy(update={"uri": canonical(job.output.uri).rstrip("/")}),
        }
    )
