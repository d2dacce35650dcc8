"""What `model.engine: auto` runs: the recommendation of `model optimize`, if this machine agrees, else fp32.

The recommendation is in the model's file, or in the optimised file that lies beside it and was made from it. The
driver decides once, before it plans; workers get the decision as engine and precision, so all of them run the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import Denied, ModelRefused, NotFound, UnetBatchError
from unet_batch.gate.pack_reference import compare_pictures
from unet_batch.gate.parity import Tolerance
from unet_batch.gate.verdicts import keep, versions
from unet_batch.model.model import ModelFile
from unet_batch.model.optimized import (
    OPTIMIZE_KEY,
    Recommendation,
    contract_digest,
    holds_fp32,
    optimized_path,
    recommendation,
)
from unet_batch.session import gpu
from unet_batch.session.engines import TABLE, file_precision, on_gpu
from unet_batch.session.machine import cache_folder, instructions, processor_name
from unet_batch.session.model_files import MAX_MODEL_BYTES, in_precision, read_model, resolve_models
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import Engine, JobSpec, Precision
from unet_batch.store.storage import Storage

log = logging.getLogger(__name__)

TOLERANCE = Tolerance(max_flipped=0.01, min_dice=0.0)
"""For each reference picture, against what the same engine computed where the file was optimised. It finds an engine
that computes something else; the archive's images are compared with fp32 by the gate, within `check`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine in place of `auto`."""

    job: JobSpec
    """The job with engine and precision, and with threads, batches and provider if the recommendation is followed."""
    reason: str | None
    """Why the recommendation is not followed; None if it is."""


@dataclass(frozen=True, slots=True)
class _Advice:
    """Where a recommendation is."""

    job: JobSpec
    """The job with the file that holds the recommendation as its model."""
    file: ModelFile
    """That file; the model's own if none holds one."""
    found: Recommendation | None
    problem: str | None = None
    """Why the optimised file beside the model does not count, as a clause."""


def choose(job: JobSpec, file: ModelFile) -> Choice:
    """What a job with `model.engine: auto` runs on this machine. file: of `model.path`, as it was read.

    Raises ModelRefused under `session.strict` if no recommendation is followed, ContractError if the file's
    recommendation is damaged.
    """
    advice = _advice(job, file)
    reason = advice.problem or _why_not(advice)
    if reason is None and advice.found is not None:
        found = advice.found
        # fp32 in ONNX Runtime is the model's own graph: with its own file, published rows stay up to date.
        runs = job if (found.engine, found.precision) == ("onnxruntime", "fp32") else advice.job
        log.info("%s runs in %s in %s, as its file recommends", runs.model.path, found.engine, found.precision)
        return Choice(_followed(runs, found), None)
    return _without(job, file, reason or "", advised=advice.found is not None)


def refuse(job: JobSpec, file: ModelFile, error: ModelRefused) -> Choice:
    """What the job runs after the gate refused the recommended session on images of the archive.

    The refusal is remembered on this machine, so that later commands choose the same for this job. job: as written,
    with `engine: auto`. Raises ModelRefused under `session.strict`.
    """
    advice = _advice(job, file)
    if advice.found is not None:
        keep(_refusal(advice.job, advice.file, advice.found), {"refused": str(error)})
    return _without(job, file, f"the gate refused what its file recommends: {error}", advised=True)


def _advice(job: JobSpec, file: ModelFile) -> _Advice:
    """The recommendation in the model's file, else in the optimised file beside it."""
    own = recommendation(file.metadata, file.uri)
    beside = optimized_path(job.model.path)
    # A pinned digest allows no other file.
    looks = own is None and job.model.ensemble is None and job.model.sha256 is None and beside != job.model.path
    optimized = _optimized(job, beside) if looks else None
    if optimized is None:
        return _Advice(job, file, own)
    found = recommendation(optimized.metadata, beside)
    if found is None:
        return _Advice(job, file, None)
    # Its contract is in its metadata; `model.contract` is that of the file from which it was made.
    model = job.model.model_copy(update={"path": beside, "contract": None})
    advice = _Advice(job.model_copy(update={"model": model}), optimized, found)
    if found.source_sha256 != file.sha256:
        return replace(advice, problem=f"{beside} was made from another file: optimise the model again")
    in_fp32 = job.model_copy(update={"model": job.model.model_copy(update={"engine": "onnxruntime"})})
    if found.source_contract != contract_digest(resolve_models(in_fp32, [file])[0].contract):
        return replace(advice, problem=f"{beside} was made with another contract: optimise the model again")
    return advice


def _optimized(job: JobSpec, uri: str) -> ModelFile | None:
    """The file of `model optimize` beside the model; None if there is none."""
    store = Storage(job.model.options)
    try:
        data = store.read(uri, max_bytes=MAX_MODEL_BYTES)
    except NotFound:
        return None
    except Denied:  # S3 says this of a missing object, to those who may not list
        log.info("%s may not be read, so it is not looked at", uri)
        return None
    return read_model(data, uri, None, custom_ops=job.session.custom_ops) if OPTIMIZE_KEY.encode() in data else None


def _without(job: JobSpec, file: ModelFile, reason: str, *, advised: bool) -> Choice:
    """The job in ONNX Runtime: the fp32 network of the file, else its reference, else the file as it is.

    advised: whether there is a recommendation. Without one the file runs as it is, and nobody is warned.
    """
    if job.session.strict:
        raise ModelRefused(
            f"{job.model.path} does not run as recommended ({reason}), and session.strict allows nothing else: write "
            "model.engine and model.precision, or session.strict: false"
        )
    held = cast(Precision, file_precision(file.data, file.uri))
    model: dict[str, Any] = {"engine": "onnxruntime", "precision": "fp32" if holds_fp32(file.data) else held}
    changed: dict[str, Any] = {}
    if advised and model["precision"] != "fp32" and job.check.reference is not None:
        model |= {"path": job.check.reference, "precision": "fp32", "sha256": None, "contract": None}
        changed["check"] = job.check.model_copy(update={"reference": None})
    log.log(
        logging.WARNING if advised else logging.DEBUG,
        "model.engine auto: %s runs in onnxruntime in %s, because %s",
        model.get("path", job.model.path),
        model["precision"],
        reason,
    )
    return Choice(job.model_copy(update={"model": job.model.model_copy(update=model), **changed}), reason)


def _why_not(advice: _Advice) -> str | None:
    """Why this machine cannot follow the recommendation, as a clause; None if it can."""
    job, file, found = advice.job, advice.file, advice.found
    if job.model.ensemble is not None:
        return "a recommendation is for a single model, not for an ensemble"
    if found is None:
        return "it has no recommendation: `unet-batch model optimize JOB` finds one"
    rows = [row for row in TABLE if (row.engine, row.name) == (found.engine, found.provider)]
    if not rows or found.precision not in rows[0].precisions:
        return f"this version does not know {found.engine} on {found.provider} in {found.precision}"
    asked = job.session.providers
    if "providers" in job.session.model_fields_set and asked[0] != found.provider:
        return f"session.providers says {asked[0]}, and the recommendation was measured on {found.provider}"
    refused = _refusal(job, file, found)
    if refused.exists():
        return (
            f"the gate refused {found.engine} in {found.precision} on images of this archive before (optimise the "
            "model again, or change `check`)"
        )
    kept = _verdict(_key(file, found))
    if kept.exists():
        return None
    try:
        problems = _tried(_followed(job, found), file, found)
    except UnetBatchError as error:
        return str(error)
    if problems:
        return f"{found.engine} in {found.precision} computes other labels here: {problems[0]}"
    keep(kept, {"problems": []})
    return None


def _followed(job: JobSpec, found: Recommendation) -> JobSpec:
    """The job with everything that the recommendation says and the job file does not."""
    written = job.session.model_fields_set
    session: dict[str, Any] = {}
    if "providers" not in written:
        session["providers"] = (found.provider,)
    if found.provider_options and "provider_options" not in written:
        session["provider_options"] = {found.provider: dict(found.provider_options)}
    if found.threads > 1 and "threads" not in written:
        session["threads"] = min(found.threads, os.cpu_count() or 1)
    if "batch_max" not in written:
        session["batch_max"] = found.batch_max
    model = {"engine": found.engine, "precision": found.precision}
    return job.model_copy(
        update={
            "model": job.model.model_copy(update=model),
            "session": job.session.model_copy(update=session),
        }
    )


def _tried(job: JobSpec, file: ModelFile, found: Recommendation) -> list[str]:
    """Open the session and run the reference pictures; returns the differences. Raises the errors of sessions."""
    engine, precision = cast(Engine, found.engine), cast(Precision, found.precision)
    ready = in_precision(file, precision)
    [model] = resolve_models(job, [ready])
    shape = found.references.get("shape_hwc")
    if model.tile_hw is not None and shape is not None and [*model.tile_hw] != [*shape][:2]:
        # `tiling.size` cuts tiles of its own size from a model that takes any.
        job = job.model_copy(update={"tiling": job.tiling.model_copy(update={"size": None})})
        [model] = resolve_models(job, [ready])
    session = open_session(ready.data, model, job.session, Device(threads=1), engine=engine, precision=precision)
    if not job.check.images:
        session.run(_blank(model.batch or 1, shape, model.contract.input.dtype))
        return []
    text = json.dumps(dict(found.references))
    try:
        return compare_pictures(text, model.contract, file.uri, session.run, TOLERANCE)
    except ModelRefused as error:
        raise ModelRefused(f"the recommendation in {file.uri} is damaged: optimise the model again") from error


def _blank(batch: int, shape: Any, dtype: str) -> NDArray[Any]:
    return np.zeros((batch, *shape), dtype)


def _key(file: ModelFile, found: Recommendation) -> dict[str, Any]:
    """All that the session of a recommendation depends on, on this machine."""
    return {
        "model": file.sha256,
        "engine": found.engine,
        "precision": found.precision,
        "provider": found.provider,
        "device": gpu.ask_driver().name if on_gpu(found.provider) else processor_name(),
        "instructions": sorted(instructions()),
        "versions": {name: value for name, value in versions().items() if "," not in name},
    }


def _refusal(job: JobSpec, file: ModelFile, found: Recommendation) -> Path:
    check = job.check.model_dump(mode="json")
    return _verdict(_key(file, found) | {"refused": [job.input.uri, job.tiling.model_dump(mode="json"), check]})


def _verdict(key: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder("choices") / f"{name}.json"
