"""What a job packs by itself, and the session that runs it.

The network's normalisation goes into the graph wherever that leaves every row exactly as it is, so that source pixels
cross to the session instead of floats; the decision goes in too where nothing behind the session needs a score. Knows
the job, its models and the cache of packed graphs. Knows no archive, and opens no file itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unet_batch import __version__
from unet_batch.contract import Percentile, ZScore
from unet_batch.errors import ModelRefused, UnetBatchError
from unet_batch.imaging.preprocess import LARGEST, normalize
from unet_batch.model.contract import Model
from unet_batch.model.engines import find, on_cpu, on_gpu
from unet_batch.model.pack import PackSpec, packed_model, reference_shape
from unet_batch.model.pack_cache import cache_folder, folded, keep
from unet_batch.model.pack_nodes import SourceType
from unet_batch.model.pack_pictures import synthetic
from unet_batch.model.pack_reference import decide, whole
from unet_batch.model.packed_session import PackedSession
from unet_batch.model.session import Device, Session
from unet_batch.spec import JobSpec

log = logging.getLogger(__name__)

SOURCES: tuple[SourceType, ...] = ("uint8", "uint16")
"""Types of source pixels that a graph can normalise; float pictures are divided by nothing and may hold NaN."""

ModelBytes = tuple[bytes, Model]
OpenFiles = Callable[[Sequence[ModelBytes], Device], Session]


@dataclass(frozen=True, slots=True)
class Packing:
    """What a job packs by itself."""

    dtypes: tuple[SourceType, ...]
    """Types of source pixels that cross to the session as they are."""
    labels: bool
    """Whether labels come back instead of scores."""
    why: str
    """A sentence for people."""

    @property
    def anything(self) -> bool:
        return bool(self.dtypes) or self.labels


def packing(job: JobSpec, model: Model) -> Packing:
    """What can be packed without a change in any row, by the job file and the contract alone.

    model: what scores, an ensemble included. The graph has the last word when it is packed (`pack.fold`).
    """
    for reason in _nothing(job):
        return Packing((), labels=False, why=f"nothing is packed: {reason}")
    taken = model.contract.input
    inside = taken.dtype == "float32" and not isinstance(taken.normalize, Percentile | ZScore)
    labels = _only_labels(job, model)
    if not inside and not labels:
        kept = f"takes {taken.dtype} as it is" if taken.dtype != "float32" else f"normalises by {taken.normalize.kind}"
        return Packing((), labels=False, why=f"nothing is packed: the model {kept}")
    parts = []
    if inside:
        parts.append(f"{' and '.join(SOURCES)} pixels are normalised ({taken.normalize.kind}) inside the graph")
    if labels:
        parts.append("labels come out of it instead of scores")
    return Packing(SOURCES if inside else (), labels=labels, why=f"packed by the job: {', and '.join(parts)}")


def open_packed(
    model: Model, files: Sequence[ModelBytes], device: Device, *, plan: Packing, first: str, open_files: OpenFiles
) -> Session:
    """The session of a job, packed as far as `plan` says and the graphs allow.

    model: what everything behind the session sees. files: of the model, or of every member of its ensemble; members are
    packed all or none. first: the type of tiles that is expected first. open_files: opens the files as one session.
    Raises what opening a session raises.
    """
    if not plan.anything:
        session = open_files(files, device)
        log.info("%s", plan.why)
        return session
    labels = plan.labels and _labels_come_out(files, plan)

    def open_for(dtype: str, share: Device) -> Session:
        inside = next((source for source in plan.dtypes if source == dtype), None)
        if inside is None and dtype != model.contract.input.dtype:
            raise ModelRefused(f"the model takes {model.contract.input.dtype} pixels, not {dtype}")
        if inside is None and not labels:
            return open_files(files, share)
        spec = PackSpec(pre=inside is not None, post=labels, source_dtype=inside or "uint8")
        session = open_files(_folded(files, spec), share)
        if not on_cpu(session.provider):  # the graph was proven on the CPU
            demand_same_bits(session, lambda: open_files(files, share), model, spec)
        return session

    seen = packed_model(model, PackSpec(pre=False), model.sha256) if labels else model
    packed = PackedSession(seen, open_for, device, first=first)
    log.info("%s", plan.why)
    return packed


def demand_same_bits(packed: Session, network: Callable[[], Session], model: Model, spec: PackSpec) -> None:
    """The proof of a packed graph on the device that runs it: one picture through it and through the network there.

    network: opens the unpacked one; called only where this machine has no proof yet. model: the unpacked one.
    Raises ModelRefused where a bit of a score, or a label, differs.
    """
    marks = [model.to_json().decode(), asdict(spec), packed.provider, packed.device_name, __version__]
    proven = cache_folder() / f"{hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:32]}.proven"
    if proven.exists():
        return
    pixels = synthetic(0, reference_shape(model), spec.source_dtype)
    tile = normalize(pixels, whole(pixels.shape[:2]), model.contract.input)
    count = model.batch or 1
    expected = network().run(np.repeat(tile[None], count, axis=0))
    found = packed.run(np.repeat((pixels if spec.pre else tile)[None], count, axis=0))
    if spec.post and np.isfinite(expected).all():
        expected = np.stack([decide(scores, model.contract.output) for scores in expected])
    if not np.array_equal(found, expected, equal_nan=True):
        raise ModelRefused(f"{packed.provider} computes other last bits with other nodes around the network")
    keep(proven, b"")


def expected_dtype(job: JobSpec, model: Model) -> str:
    """The type of tiles that is expected first, so that their session is open before the first image.

    What an earlier process saw of this archive, kept beside the packed graphs; else that of normalised pixels.
    """
    with contextlib.suppress(OSError):
        if (found := _seen_path(job, model).read_text(errors="replace")) in LARGEST:
            return found
    return model.contract.input.dtype


def remember_dtype(job: JobSpec, model: Model, dtype: str) -> None:
    """Leaves the type of an archive's pixels to later processes; the first one that is seen stays."""
    path = _seen_path(job, model)
    if not path.exists():
        keep(path, dtype.encode())


def _seen_path(job: JobSpec, model: Model) -> Path:
    parts = [job.input.model_dump_json(include={"uri", "pattern", "members", "column"}), model.contract.input.color]
    return cache_folder() / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.dtype"


def _nothing(job: JobSpec) -> Iterator[str]:
    """Why nothing at all is packed."""
    if job.model.pack == "off":
        yield "model.pack is off"
    if job.model.precision != "fp32":
        yield f"in {job.model.precision}, other nodes around the network change its last bits"
    for name in job.session.providers:
        if not find(job.model.engine, name).packs:
            yield f"{job.model.engine} on {name} computes other last bits with other nodes around the network"
    if job.session.custom_ops:
        yield "the proof has no session.custom_ops"


def _only_labels(job: JobSpec, model: Model) -> bool:
    """Whether nothing behind the session needs a score: no blending, no way back to another size, no confidence.

    Of several classes that may overlap, a label map shows the most probable one, which masks cannot tell. On a CPU
    there is no way back to save, and ONNX Runtime's argmax takes longer than ours: 0.4 to 0.8 ms for a tile of 256².
    """
    if job.model.pack != "labels" and not all(on_gpu(name) for name in job.session.providers):
        return False
    output = model.contract.output
    one_tile = model.contract.input.fit == "stretch" and job.output.geometry == "model" and model.tile_hw is not None
    several = output.multi_label and len(output.classes) > 1
    return one_tile and not (job.output.confidence or output.decided or several or job.model.ensemble)


def _labels_come_out(files: Sequence[ModelBytes], plan: Packing) -> bool:
    """Whether every graph that the session may need can be packed so: rows of one job have one kind of result."""
    specs = [PackSpec(source_dtype=dtype) for dtype in plan.dtypes] + [PackSpec(pre=False)]
    try:
        for spec in specs:
            _folded(files, spec)
    except ModelRefused as error:
        log.info("scores come out of the graph, because %s", error)
        return False
    return True


def _folded(files: Sequence[ModelBytes], spec: PackSpec) -> list[ModelBytes]:
    """Every file packed. Raises ModelRefused where one cannot be."""
    try:
        return [folded(data, model, spec) for data, model in files]
    except ModelRefused:
        raise
    except UnetBatchError as error:  # a model that contradicts its contract: unpacked, the job says it as it always did
        raise ModelRefused(f"its proof failed: {error}") from error
