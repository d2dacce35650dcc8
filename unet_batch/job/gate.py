"""The gate: before a session scores an archive it must say what a trusted one says, on images of that archive.

It runs where the session runs, because what is to be found out is what that very machine computes: in the first actor
of each machine as in a plain loop. The verdict is kept beside the ladders, so that one machine asks once. A packed file
must also give the labels that it gave when it was packed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch import __version__
from unet_batch.archive.decode import encode_png
from unet_batch.archive.storage import Storage
from unet_batch.errors import ContractError, ImageError, JobError, ModelRefused, NotFound, StorageError
from unet_batch.imaging.preprocess import LARGEST, normalize, whole
from unet_batch.imaging.tiling import grid
from unet_batch.job.loaded import Loaded, pixels_of
from unet_batch.job.prepare import model_at
from unet_batch.model.check import check, picture
from unet_batch.model.contract import Model
from unet_batch.model.engines import file_precision
from unet_batch.model.pack_reference import PACK_KEY, digest, verify_references
from unet_batch.model.parity import Tolerance, decide
from unet_batch.model.session import Device, Session, open_session
from unet_batch.records import Unit
from unet_batch.spec import JobSpec, Precision, SessionSpec
from unet_batch.table.layout import Layout

log = logging.getLogger(__name__)

LARGEST_SIDE = 1024
"""Pixels of a tile's side that is compared, where the model takes whole pictures."""


def needed(job: JobSpec) -> bool:
    """Whether this job's session is not the trusted one: fp32 in ONNX Runtime on the CPU."""
    trusted = job.model.engine == "onnxruntime" and job.session.providers == ("cpu",) and job.model.precision == "fp32"
    return job.check.images > 0 and (not trusted or job.check.reference is not None)


def check_unit(job: JobSpec, units: Sequence[Unit]) -> bytes | None:
    """Some images of the work as a unit's JSON, for a session that is checked before its first unit.

    None where the gate has nothing to check then.
    """
    return check_images(job, units).to_json() if needed(job) and units else None


def check_images(job: JobSpec, units: Sequence[Unit]) -> Unit:
    """More images than the gate needs, because some may be unreadable; one that kills its decoder kills no actor."""
    first = units[0]
    alike = [unit for unit in units if (unit.partition, unit.format) == (first.partition, first.format)]
    sources = tuple(islice((source for unit in alike for source in unit.sources), 4 * job.check.images))
    return replace(first, sources=sources, isolate=True)


@dataclass(frozen=True, slots=True)
class SessionUnderTest:
    """The session that will score, with the planned model and its bytes."""

    session: Session
    model: Model
    """As planned: what the trusted session runs, where the job names no reference."""
    data: bytes
    """The file of that model."""


def compare(job: JobSpec, tested: SessionUnderTest, loaded: Loaded, run_id: str) -> None:
    """Compare the session with the trusted one on the pictures of a unit, and write a report.

    Does nothing where this job needs no gate, or where this machine has kept a verdict.
    Raises ModelRefused beyond `check`'s tolerances, with the place of a picture of the worst tile.
    """
    if not needed(job):
        return
    session = tested.session
    kept = _verdict_path(job, tested, "images")
    if kept.exists():
        return
    trusted = _Trusted(_trusted(job, tested), session.model)
    tiles: list[tuple[str, NDArray[Any]]] = []
    for name, tile in _tiles(job, session, loaded):
        # A picture on which the fp32 network returns NaN is rejected when it is scored, and compares nothing here.
        fits = not tiles or (tile.shape, tile.dtype) == (tiles[0][1].shape, tiles[0][1].dtype)
        if fits and (job.model.precision != "fp32" or trusted.is_finite(tile)):
            tiles.append((name, tile))
        if len(tiles) == job.check.images:
            break
    if not tiles:
        raise ModelRefused(
            f"the gate cannot judge {session.provider}: none of {len(loaded.unit.sources)} images could be read and "
            "scored. Choose another --window, or set check.images=0 to score without the gate"
        )
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
    _keep(kept, report.to_json())
    log.info("%s agrees on %d images: %.4f%% of labels differ", what, len(tiles), 100 * report.parity.flipped_share)


def has_references(job: JobSpec, data: bytes) -> bool:
    """Whether the gate has to run the reference pictures of this file: it was packed."""
    return job.check.images > 0 and PACK_KEY.encode() in data


def check_references(job: JobSpec, tested: SessionUnderTest) -> None:
    """Check that a packed file still gives the labels that it gave when it was packed; other files are not checked.

    Raises ModelRefused where it does not: channel order, normalisation or weights inside it were changed.
    """
    if not has_references(job, tested.data):
        return
    kept = _verdict_path(job, tested, "references")
    if kept.exists():
        return
    session = tested.session
    any_size: list[Session] = []

    def run(tiles: NDArray[Any]) -> NDArray[Any]:
        tile_hw = tiles.shape[1:3]
        if session.model.tile_hw not in (None, tile_hw) and not any_size:  # `tiling.size` cuts tiles of its own size
            any_size.append(_of_any_size(job, tested))
        return (any_size or [session])[0].run(tiles)

    try:
        problems = verify_references(tested.data, run, Tolerance(job.check.max_flipped, 0.0))
    except ContractError:
        raise
    except JobError as error:  # TensorRT has one size of tile
        log.warning("the reference pictures of %s were not run: %s", job.model.path, error)
        return
    if problems:
        raise ModelRefused(
            f"{job.model.path} does not give the labels that it gave when it was packed ({'; '.join(problems)}): its "
            "channel order, its normalisation or its weights were changed. Pack it again from its network"
        )
    _keep(kept, {"problems": []})
    log.info("%s gives the labels that it gave when it was packed", job.model.path)


class _Trusted:
    """The trusted session, fed with what the tested one is fed and answering in its words."""

    def __init__(self, inner: Session, model: Model) -> None:
        """model: of the tested session, whose results are labels where its decision is packed."""
        self._inner = inner
        self.model = model if model.contract.output.decided else inner.model
        self.provider = inner.provider
        self.device_name = inner.device_name
        self._said: dict[str, NDArray[Any]] = {}

    def is_finite(self, tile_hwc: NDArray[Any]) -> bool:
        """Whether everything that it says about a tile is finite."""
        return bool(np.isfinite(self.run(np.repeat(tile_hwc[None], self.model.batch or 1, axis=0))).all())

    def run(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """Each batch once: `is_finite` and the check ask for the same ones."""
        key = digest(tiles)
        if key not in self._said:
            self._said[key] = self._answer(tiles)
        return self._said[key]

    def _answer(self, tiles: NDArray[Any]) -> NDArray[Any]:
        spec, output = self._inner.model.contract.input, self._inner.model.contract.output
        if tiles.dtype.name != spec.dtype:
            largest = LARGEST[tiles.dtype.name]  # a packed model takes no other sources
            tiles = np.stack([normalize(tile, whole(tile.shape[:2]), spec, largest=largest) for tile in tiles])
        scores = self._inner.run(tiles)
        if output.decided or not self.model.contract.output.decided:
            return scores
        ill = ~np.isfinite(scores).all(axis=(1, 2, 3))
        labels = np.stack([decide(one, output) for one in np.nan_to_num(scores)]).astype(np.float32)
        labels[ill] = np.nan
        return labels


def _trusted(job: JobSpec, tested: SessionUnderTest) -> Session:
    on_cpu = SessionSpec(custom_ops=job.session.custom_ops)
    data, model = tested.data, tested.model
    if job.check.reference is not None:
        data, model = model_at(job.check.reference, None, job.tiling, job.model.options)
    held = file_precision(data)
    precision: Precision = "int8" if held == "int8" else "fp16" if held == "fp16" else "fp32"
    return open_session(data, model, on_cpu, Device(threads=1), precision=precision)


def _of_any_size(job: JobSpec, tested: SessionUnderTest) -> Session:
    """The session once more, for tiles of every size."""
    return open_session(
        tested.data,
        replace(tested.model, tile_hw=None),
        job.session,
        Device(threads=1),
        engine=job.model.engine,
        precision=job.model.precision,
    )


def _tiles(job: JobSpec, session: Session, loaded: Loaded) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and middle tile, (H, W, C), of every picture, as the session is fed with it."""
    model = session.model
    for entry in loaded.entries:
        if entry.geometry is None:
            continue
        try:
            source, largest = pixels_of(loaded, entry), entry.largest
            pixels = normalize(source, entry.geometry, model.contract.input, largest=largest)
        except ImageError:
            continue
        tile_hw = model.tile_hw or _cut(entry.geometry.fitted_hw, model.contract.input.multiple)
        boxes = grid(entry.geometry.fitted_hw, tile_hw, job.tiling.overlap)
        yield loaded.unit.sources[entry.source].key, pixels[boxes[len(boxes) // 2].slices]


def _cut(size_hw: tuple[int, int], multiple: int) -> tuple[int, int]:
    """A tile for a model that takes any size: the picture, or a part of it that every machine has room for twice."""
    most = max(LARGEST_SIDE // multiple, 1) * multiple
    return min(size_hw[0], most), min(size_hw[1], most)


def _write(job: JobSpec, run_id: str, suffix: str, body: bytes) -> str | None:
    """Where a report of the gate lies; None where the store would not have it, which must not hide the verdict."""
    uri = f"{Layout(job.output.uri).reports}/check-{run_id}.{suffix}"
    try:
        Storage(job.output.options).put(uri, body)
    except StorageError as error:
        log.warning("the report %s could not be written: %s", uri, error)
        return None
    return uri


def _verdict_path(job: JobSpec, tested: SessionUnderTest, subject: str) -> Path:
    """One file per subject, model, machine, arithmetic and tolerance, in the cache folder that ladders lie in."""
    reference = None
    if job.check.reference is not None:
        try:
            reference = Storage(job.model.options).read(job.check.reference)
        except NotFound as error:
            raise ModelRefused(f"check.reference: there is no {job.check.reference}") from error
    key = {
        "subject": subject,
        "model": tested.model.sha256,
        "contract": tested.session.model.contract.model_dump(mode="json"),
        "reference": None if reference is None else hashlib.sha256(reference).hexdigest(),
        "engine": job.model.engine,
        "precision": job.model.precision,
        "provider": tested.session.provider,
        "device": tested.session.device_name,
        "options": job.session.model_dump(mode="json"),
        "check": job.check.model_dump(mode="json"),
        "version": __version__,
    }
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return Path(cache) / "unet-batch" / "checks" / f"{name}.json"


def _keep(path: Path, verdict: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(verdict))
    except OSError as error:
        log.warning("%s cannot be written, so the next run checks again: %s", path, error)
