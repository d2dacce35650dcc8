"""The gate: before a session scores an archive it must say what a trusted one says, on images of that archive.

It runs where the session runs, because what is to be found out is what that very machine computes: in the first actor
of each machine as in a plain loop. The verdict is kept beside the ladders, so that one machine asks once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch import __version__
from unet_batch.archive.decode import encode_png
from unet_batch.archive.storage import Storage
from unet_batch.errors import ImageError, ModelRefused, NotFound, StorageError
from unet_batch.imaging.preprocess import normalize
from unet_batch.imaging.tiling import grid
from unet_batch.job.loaded import Loaded, pixels_of
from unet_batch.job.prepare import model_at
from unet_batch.model.check import CheckReport, check, picture
from unet_batch.model.contract import Model
from unet_batch.model.parity import Tolerance
from unet_batch.model.session import Device, Session, open_session
from unet_batch.records import Unit
from unet_batch.spec import JobSpec, SessionSpec
from unet_batch.table.layout import Layout

log = logging.getLogger(__name__)


def needed(job: JobSpec) -> bool:
    """Whether this job's session is anything else than the trusted one: fp32 in ONNX Runtime on the CPU."""
    trusted = job.model.engine == "onnxruntime" and job.session.providers == ("cpu",) and job.model.precision == "fp32"
    return job.check.images > 0 and (not trusted or job.check.reference is not None)


def check_unit(job: JobSpec, units: Sequence[Unit]) -> bytes | None:
    """Some images of the work as a unit's JSON: more than the gate needs, because some may be unreadable.

    None where the gate has nothing to check.
    """
    if not needed(job) or not units:
        return None
    return replace(units[0], sources=units[0].sources[: 4 * job.check.images]).to_json()


def pass_gate(job: JobSpec, session: Session, loaded: Loaded, data: bytes, run_id: str) -> None:
    """Compare the session with the trusted one on the images of a unit, and write down what was found.

    data: the file that the session was opened from; it is the reference where the job names none.
    Raises ModelRefused beyond `check`'s tolerances, with the place of a picture of the worst tile.
    """
    kept = _verdict_path(job, session)
    if kept.exists():
        return
    tiles = list(_tiles(job, session.model, loaded))[: job.check.images]
    if not tiles:
        log.warning("the gate found no image that it could read, so %s was not checked", session.provider)
        return
    shape = tiles[0][1].shape
    tiles = [tile for tile in tiles if tile[1].shape == shape]
    trusted = _trusted(job, session.model, data)
    tolerance = Tolerance(job.check.max_flipped, job.check.min_dice, job.check.max_abs_error)
    report = check(session, trusted, np.stack([tile for _, tile in tiles]), tolerance)
    name, worst = tiles[report.worst]
    what = f"{job.model.engine} on {session.provider} in {job.model.precision}"
    _write(job, run_id, "json", json.dumps({"session": what, **report.to_json()}).encode())
    if report.breaches:
        where = _write(job, run_id, "png", encode_png(picture(worst, report)))
        raise ModelRefused(
            f"{what} does not give what {job.check.reference or 'the same file in fp32 on the CPU'} gives on "
            f"{len(tiles)} images of the archive: {'; '.join(report.breaches)}; it is worst on {name}"
            f"{f', pictured in {where}' if where else ''}. Correct the model, or the tolerances in `check`"
        )
    _keep(kept, report)
    log.info("%s agrees on %d images: %.4f%% of labels differ", what, len(tiles), 100 * report.parity.flipped_share)


def _trusted(job: JobSpec, model: Model, data: bytes) -> Session:
    on_cpu = SessionSpec(custom_ops=job.session.custom_ops)
    if job.check.reference is not None:
        data, model = model_at(job.check.reference, None, job.tiling, job.model.options)
    precision = job.model.precision if job.model.precision in ("int8", "fp16") and not job.check.reference else "fp32"
    return open_session(data, model, on_cpu, Device(threads=1), precision=precision)


def _tiles(job: JobSpec, model: Model, loaded: Loaded) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and middle tile, (H, W, C), of every picture that could be read."""
    for entry in loaded.entries:
        if entry.geometry is None:
            continue
        try:
            whole = normalize(pixels_of(loaded, entry), entry.geometry, model.contract.input)
        except ImageError:
            continue
        boxes = grid(entry.geometry.fitted_hw, model.tile_hw or entry.geometry.fitted_hw, job.tiling.overlap)
        yield loaded.unit.sources[entry.source].key, whole[boxes[len(boxes) // 2].slices]


def _write(job: JobSpec, run_id: str, suffix: str, body: bytes) -> str | None:
    """Where a report of the gate lies; None where the store would not have it, which must not hide the verdict."""
    uri = f"{Layout(job.output.uri).reports}/check-{run_id}.{suffix}"
    try:
        Storage(job.output.options).put(uri, body)
    except StorageError as error:
        log.warning("the report %s could not be written: %s", uri, error)
        return None
    return uri


def _verdict_path(job: JobSpec, session: Session) -> Path:
    """One file per model, machine, arithmetic and tolerance, in the cache folder that ladders lie in."""
    reference = None
    if job.check.reference is not None:
        try:
            reference = Storage(job.model.options).read(job.check.reference)
        except NotFound as error:
            raise ModelRefused(f"check.reference: there is no {job.check.reference}") from error
    key = {
        "model": session.model.sha256,
        "contract": session.model.contract.model_dump(mode="json"),
        "reference": None if reference is None else hashlib.sha256(reference).hexdigest(),
        "engine": job.model.engine,
        "precision": job.model.precision,
        "provider": session.provider,
        "device": session.device_name,
        "options": job.session.model_dump(mode="json"),
        "check": job.check.model_dump(mode="json"),
        "version": __version__,
    }
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return Path(cache) / "unet-batch" / "checks" / f"{name}.json"


def _keep(path: Path, report: CheckReport) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report.to_json()))
    except OSError as error:
        log.warning("%s cannot be written, so the next run checks again: %s", path, error)
