"""The gate: before a session scores an archive, its results must agree with a trusted session on images of the archive.

It runs on the machine that scores, because results depend on the machine: in the first actor of each machine, or in the
plain loop. Verdicts are stored (`verdicts.py`), so a machine compares the same images only once. A packed file must
also give the labels that it gave when it was packed. An ensemble is one session.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import ContractError, JobError, ModelRefused, StorageError
from unet_batch.gate.check import check, labels, picture
from unet_batch.gate.pack_reference import digest, verify_references
from unet_batch.gate.parity import Tolerance, decide
from unet_batch.gate.verdicts import keep, verdict_path
from unet_batch.imaging.encode import encode_png
from unet_batch.imaging.postprocess import outside_of_contract
from unet_batch.imaging.preprocess import LARGEST, normalize, whole
from unet_batch.model.model import Model
from unet_batch.model.packed import PACK_KEY
from unet_batch.records import Source, Unit
from unet_batch.session.combined.mirroring import scoring_session
from unet_batch.session.model_files import bytes_for, trusted_models
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.spec import JobSpec, SessionSpec
from unet_batch.table.output import Output

log = logging.getLogger(__name__)

VALUE_IMAGES = 4
"""Most images whose values are held against the contract's activation: it is wrong on all of them, or on none."""


def needed(job: JobSpec) -> bool:
    """Whether this job needs the gate: its session is not fp32 in ONNX Runtime on the CPU."""
    trusted = job.model.engine == "onnxruntime" and job.session.providers == ("cpu",) and job.model.precision == "fp32"
    return job.check.images > 0 and (not trusted or bool(job.trusted_paths))


def check_unit(job: JobSpec, units: Sequence[Unit], *, proven: bool) -> bytes | None:
    """A unit (as JSON) of some images of the work, for the check of a session before its first unit.

    proven: whether the graph alone proves the contract's activation. None if the gate has nothing to check.
    """
    measured = job.check.images > 0 and not proven
    return check_images(job, units).to_json() if (needed(job) or measured) and units else None


def check_images(job: JobSpec, units: Sequence[Unit]) -> Unit:
    """An isolated unit with more images than the gate needs, because some may be unreadable or crash the decoder.

    Only as many are read as are needed: see `slices`.
    """
    first = units[0]
    alike = [unit for unit in units if (unit.partition, unit.format) == (first.partition, first.format)]
    sources = tuple(islice((source for unit in alike for source in unit.sources), 4 * job.check.images))
    return replace(first, sources=sources, isolate=True)


def slices(job: JobSpec, unit: Unit) -> Iterator[Unit]:
    """A unit for the gate in parts, of which the first one suffices if its images can be read and have two labels."""
    size = job.check.images if needed(job) else VALUE_IMAGES
    for begin in range(0, len(unit.sources), size):
        yield replace(unit, sources=unit.sources[begin : begin + size])


@dataclass(frozen=True, slots=True)
class SessionUnderTest:
    """The session that will score, and its files."""

    session: Session
    """The session of the single file or the ensemble, with the job's test-time augmentation."""
    files: tuple[tuple[bytes, Model], ...]
    """Every model file; the trusted session runs them if the job has no reference."""
    parts: tuple[Session, ...]
    """The session of each file, without augmentation."""


def compare(
    job: JobSpec,
    tested: SessionUnderTest,
    sources: Sequence[Source],
    pictures: Iterable[tuple[str, NDArray[Any]]],
    run_id: str,
) -> None:
    """Compare the session with the trusted one on tiles of the archive, and write a report.

    sources: the sources of the tiles. pictures: image key and one tile (H, W, C) of every readable image; consumed only
    if this machine has no verdict about these images. With a verdict, nothing is compared.
    In all other cases the values must match the contract's activation, even if nothing is compared.
    Raises ContractError if they do not; ModelRefused beyond the tolerances of `check`, with the URI of a picture of the
    worst tile, and if the comparison is not conclusive.
    """
    session = tested.session
    believed = _reference_files(job, tested) if needed(job) else []
    kept = verdict_path(job, session, [model for _, model in believed], sources, "images")
    if kept.exists():
        return
    later = iter(pictures)
    first = list(islice(later, min(VALUE_IMAGES, job.check.images)))
    if not first:
        raise ModelRefused(
            f"the gate cannot judge {session.provider}: none of {len(sources)} images could be read and "
            "scored. Choose another --window, or set check.images=0 to score without the gate"
        )
    _check_values(tested, [tile for _, tile in first])
    if not needed(job):
        keep(kept, {"values": "as the contract says"})
        return
    what = f"{job.model.engine} on {session.provider} in {job.model.precision}"
    trusted = _Trusted(_trusted(job, believed, session.model), session.model)
    chosen = _conclusive(job, trusted, chain(first, later))
    if not chosen:
        raise ModelRefused(
            f"the gate cannot judge {what}: the trusted session scores none of {len(sources)} images. "
            "Choose another --window, or set check.images=0 to score without the gate"
        )
    tolerance = Tolerance(job.check.max_flipped, job.check.min_dice, job.check.max_abs_error)
    report = check(session, trusted, np.stack([tile for _, tile in chosen]), tolerance)
    name, worst = chosen[report.worst]
    _write(job, run_id, "json", json.dumps({"session": what, **report.to_json()}).encode())
    if report.breaches:
        where = _write(job, run_id, "png", encode_png(picture(_inner(worst, session.model), report)))
        raise ModelRefused(
            f"{what} does not agree with {_named(job)} on "
            f"{len(chosen)} images of the archive: {'; '.join(report.breaches)}; the largest difference is on {name}"
            f"{f', see {where}' if where else ''}. Correct the model, or the tolerances in `check`"
        )
    if not report.is_conclusive:
        raise ModelRefused(
            f"the gate cannot judge {what}: {_named(job)} gives the same label in every pixel of "
            f"{len(chosen)} images, and the scores are not correlated. Choose a --window with more than one class, "
            "or set check.images=0 to score without the gate"
        )
    keep(kept, report.to_json())
    log.info("%s agrees on %d images: %.4f%% of labels differ", what, len(chosen), 100 * report.parity.flipped_share)


def _inner(tile_hwc: NDArray[Any], model: Model) -> NDArray[Any]:
    """The part of a tile that has an output."""
    margin, (height, width) = model.contract.output.margin, tile_hwc.shape[:2]
    return tile_hwc[margin : height - margin, margin : width - margin]


def _named(job: JobSpec) -> str:
    return " and ".join(job.trusted_paths) or "the same file in fp32 on the CPU"


def _check_values(tested: SessionUnderTest, tiles: Sequence[NDArray[Any]]) -> None:
    """Raise ContractError if the values of most tiles do not match the contract; a single tile may be a bad image."""
    for part, (_, model) in zip(tested.parts, tested.files, strict=True):
        strange = []
        for tile in tiles:
            values_khw = part.run(np.repeat(tile[None], model.batch or 1, axis=0))[0]
            if np.isfinite(values_khw).all() and (said := outside_of_contract(values_khw, part.model.contract.output)):
                strange.append(said)
        if 2 * len(strange) > len(tiles):
            raise ContractError(
                f"the model {model.sha256[:12]} does not do what its contract says, on {len(strange)} of {len(tiles)} "
                f"images of the archive: {strange[0]}"
            )


def _conclusive(
    job: JobSpec, trusted: _Trusted, tiles: Iterable[tuple[str, NDArray[Any]]]
) -> list[tuple[str, NDArray[Any]]]:
    """Tiles of one shape to compare: enough of them that the trusted session gives two labels, if possible."""
    chosen: list[tuple[str, NDArray[Any]]] = []
    seen: set[int] = set()
    for name, tile in tiles:
        if chosen and (tile.shape, tile.dtype) != (chosen[0][1].shape, chosen[0][1].dtype):
            continue
        # An image with NaN in fp32 is rejected when it is scored; it is of no use here.
        if not trusted.is_finite(tile):
            continue
        found = trusted.labels(tile)
        if len(chosen) < job.check.images:
            chosen.append((name, tile))
            seen |= found
        elif len(seen) < 2 and found - seen:
            chosen[-1] = name, tile
            seen |= found
        if len(chosen) == job.check.images and len(seen) > 1:
            break
    return chosen


def has_references(job: JobSpec, data: bytes) -> bool:
    """Whether the gate must run reference pictures of this file, because it is packed."""
    return job.check.images > 0 and PACK_KEY.encode() in data


def check_references(job: JobSpec, tested: SessionUnderTest) -> None:
    """Check that packed files still give the labels that they gave when they were packed; skips other files.

    Raises ModelRefused if one does not: its channel order, normalisation or weights were changed.
    """
    for session, (data, model), path in zip(tested.parts, tested.files, job.model.paths, strict=True):
        if has_references(job, data):
            _check_packed(job, session, data, model, path)


def _check_packed(job: JobSpec, session: Session, data: bytes, model: Model, path: str) -> None:
    kept = verdict_path(job, session, [], [], "references")
    if kept.exists():
        return
    any_size: list[Session] = []

    def run(tiles: NDArray[Any]) -> NDArray[Any]:
        tile_hw = tiles.shape[1:3]
        if session.model.tile_hw not in (None, tile_hw) and not any_size:  # `tiling.size` cuts tiles of its own size
            any_size.append(_of_any_size(job, data, model))
        return (any_size or [session])[0].run(tiles)

    try:
        problems = verify_references(data, path, run, Tolerance(job.check.max_flipped, 0.0))
    except ContractError:
        raise
    except JobError as error:  # TensorRT has one size of tile
        log.warning("the reference pictures of %s were not run: %s", path, error)
        return
    if problems:
        raise ModelRefused(
            f"{path} no longer gives the labels that it gave when it was packed ({'; '.join(problems)}): its "
            "channel order, normalisation or weights were changed. Pack it again from its network"
        )
    keep(kept, {"problems": []})
    log.info("%s gives the labels that it gave when it was packed", path)


class _Trusted:
    """The trusted session with the interface of the tested one: the same tiles in, the same kind of results out."""

    def __init__(self, inner: Session, model: Model) -> None:
        """model: of the tested session. If it is packed with its decision, results are converted to labels."""
        self._inner = inner
        self.model = model if model.contract.output.decided else inner.model
        self.provider = inner.provider
        self.device_name = inner.device_name
        self._said: dict[str, NDArray[Any]] = {}

    def is_finite(self, tile_hwc: NDArray[Any]) -> bool:
        """Whether all its values for a tile are finite."""
        return bool(np.isfinite(self.run(np.repeat(tile_hwc[None], self.model.batch or 1, axis=0))).all())

    def labels(self, tile_hwc: NDArray[Any]) -> set[int]:
        """The set of labels of a tile."""
        values_khw = self.run(np.repeat(tile_hwc[None], self.model.batch or 1, axis=0))[0]
        return set(np.unique(labels(values_khw, self.model.contract.output)).tolist())

    def run(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """The results of a batch, cached, because `is_finite` and the check need the same ones."""
        key = digest(tiles)
        if key not in self._said:
            self._said[key] = self._answer(tiles)
        return self._said[key]

    def _answer(self, tiles: NDArray[Any]) -> NDArray[Any]:
        spec, output = self._inner.model.contract.input, self._inner.model.contract.output
        if tiles.dtype.name != spec.dtype:
            largest = LARGEST[tiles.dtype.name]  # a packed model accepts only this depth
            tiles = np.stack([normalize(tile, whole(tile.shape[:2]), spec, largest=largest) for tile in tiles])
        scores = self._inner.run(tiles)
        if output.decided or not self.model.contract.output.decided:
            return scores
        ill = ~np.isfinite(scores).all(axis=(1, 2, 3))
        decided = np.stack([decide(one, output) for one in np.nan_to_num(scores)]).astype(np.float32)
        decided[ill] = np.nan
        return decided


def _reference_files(job: JobSpec, tested: SessionUnderTest) -> list[tuple[bytes, Model]]:
    """The files that the trusted session runs, with their models."""
    return trusted_models(job) or list(tested.files)


def _trusted(job: JobSpec, files: Sequence[tuple[bytes, Model]], tested: Model) -> Session:
    """A session of the files in fp32 in ONNX Runtime on the CPU. tested: the model of the tested session."""
    on_cpu = SessionSpec(custom_ops=job.session.custom_ops)
    sessions = [open_session(bytes_for(data, "fp32"), model, on_cpu, Device(threads=1)) for data, model in files]
    return scoring_session(sessions, tested, job)


def _of_any_size(job: JobSpec, data: bytes, model: Model) -> Session:
    """Another session of the file, for tiles of any size."""
    return open_session(
        data,
        replace(model, tile_hw=None),
        job.session,
        Device(threads=1),
        engine=job.model.resolved_engine,
        precision=job.model.precision,
    )


def _write(job: JobSpec, run_id: str, suffix: str, body: bytes) -> str | None:
    """Write a report of the gate; returns its URI, or None if the store refused it (the verdict still counts)."""
    output = Output.of(job.output)
    uri = f"{output.reports}/check-{run_id}.{suffix}"
    try:
        output.store.put(uri, body)
    except StorageError as error:
        log.warning("the report %s could not be written: %s", uri, error)
        return None
    return uri
