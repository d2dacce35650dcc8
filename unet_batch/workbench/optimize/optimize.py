"""Measures every way to run a model on this machine, and writes the fastest that passes into one file.

Speeds are ratios of interleaved runs (`variants.measure`); threads and batch sizes of the winner are those of
`tune`. The gate is that of a job: held-out images of the archive, against fp32 in ONNX Runtime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import ModelRefused
from unet_batch.gate import pack_reference
from unet_batch.gate.parity import Tolerance, decide
from unet_batch.gate.resample import breaches_of
from unet_batch.gate.verdicts import versions
from unet_batch.imaging.preprocess import LARGEST, normalize, whole
from unet_batch.model import graph
from unet_batch.model.contract import METADATA_KEY
from unet_batch.model.model import Model
from unet_batch.model.optimized import OPTIMIZE_KEY, Recommendation, contract_digest
from unet_batch.model.packed import SourceType
from unet_batch.session.engines import on_cpu
from unet_batch.session.ladder import LadderMemory
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.workbench import graph_edit
from unet_batch.workbench.doctor import machine
from unet_batch.workbench.export.contract import contract_text
from unet_batch.workbench.optimize.candidates import Material, candidates
from unet_batch.workbench.quantize import split
from unet_batch.workbench.tune import Profile, remember, tune
from unet_batch.workbench.variants import HEADING, ROUNDS, Variant, VariantFigures, cells, measure

GAIN = 1.05
"""Smallest speed relative to fp32 for which another way is recommended."""
MEMORY_SHARE = 0.8
"""Share of the memory that one session per core may take; above it, sessions get more threads each."""
TUNE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Optimized:
    """The result: one file, and what was measured."""

    data: bytes
    """The winner's file with its contract, reference pictures and recommendation."""
    recommendation: Recommendation
    best: str
    """Name of the winner in `figures`."""
    figures: tuple[VariantFigures, ...]
    """Every way that runs; fp32 in ONNX Runtime first."""
    breaches: Mapping[str, tuple[str, ...]]
    """Name → exceeded tolerances; empty for ways that pass."""
    left_out: tuple[str, ...]
    """A sentence for each way that could not be built or does not run."""
    calibration_tiles: int
    held_out_tiles: int

    def to_json(self) -> dict[str, Any]:
        found = self.recommendation
        return {
            "best": self.best,
            "engine": found.engine,
            "precision": found.precision,
            "provider": found.provider,
            "threads": found.threads,
            "ladder": dict(found.ladder),
            "speed": round(found.speed, 3),
            "sha256": hashlib.sha256(self.data).hexdigest(),
            "source_sha256": found.source_sha256,
            "machine": found.machine,
            "calibration_tiles": self.calibration_tiles,
            "held_out_tiles": self.held_out_tiles,
            "candidates": [row.to_json() | {"breaches": list(self.breaches[row.name])} for row in self.figures],
            "left_out": list(self.left_out),
        }


def optimize(
    data: bytes,
    model: Model,
    tiles_nhwc: Sequence[NDArray[Any]],
    tolerance: Tolerance,
    *,
    batch_max: int = 8,
    rounds: int = ROUNDS,
    labels_suffice: bool = False,
    gate_images: int = 0,
) -> Optimized:
    """The fastest way to run a model here whose labels agree with fp32, in one file.

    data: the fp32 file of `model`. tiles_nhwc: tiles (H, W, C) of the archive as the model takes them, of one size;
    two thirds calibrate, the others are held out. labels_suffice: whether labels may be decided in the graph.
    gate_images: `check.images` of the job, whose gate must hardly ever refuse what is recommended.
    The measured ladder is also stored for jobs on this machine.
    Raises JobError for fewer than two tiles, ModelRefused if fp32 gives the same label in every pixel of the held-out
    tiles, because then agreement proves nothing.
    """
    tiles = list(tiles_nhwc)
    seen, judges = split(tiles)
    left_out: list[str] = []
    ways = candidates(Material(data, model, tiles, tolerance, labels_suffice, gate_images), left_out.append)
    figures = measure(ways, model, judges, rounds=rounds, leave_out=left_out.append)
    if _says_one_thing(figures[0]):
        raise ModelRefused(
            f"the fp32 file gives the same label in every pixel of {len(judges)} held-out tiles, so nothing can be "
            "compared: choose a --window with more than one class, or more --images"
        )
    breaches = {row.name: tuple(breaches_of(row.tiles, tolerance, gate_images)) for row in figures}
    best = fastest(figures, breaches)
    way = next(way for way in ways if way.name == best.name)
    return _written(way, model, best, figures, breaches, left_out, judges, len(seen), batch_max)


def fastest(figures: Sequence[VariantFigures], breaches: Mapping[str, Sequence[str]]) -> VariantFigures:
    """The fastest way within the tolerance; fp32, the first one, if none is faster by `GAIN`."""
    passed = [row for row in figures if not breaches[row.name]]
    best = max(passed, key=lambda row: row.speed, default=figures[0])
    return best if best.speed >= GAIN else figures[0]


def threads_for(profile: Profile, way: Variant, cores: int, memory_bytes: int | None) -> int:
    """Threads of a session: 1, which is fastest where all cores have work, or more if the memory is too small.

    More are needed if one session of one thread for each core would take more than MEMORY_SHARE of the memory.
    """
    point = profile.knee(way.engine, 1)
    if point.peak_bytes is None or memory_bytes is None:
        return 1
    fitting = max(1, min(cores, int(MEMORY_SHARE * memory_bytes / point.peak_bytes)))
    return -(-cores // fitting)


def rows(found: Optimized) -> list[list[str]]:
    """The table as text, heading first: at most 80 columns with its frame."""
    table = [[*HEADING, ""]]
    for row in found.figures:
        verdict = "best" if row.name == found.best else "no" if found.breaches[row.name] else "ok"
        table.append([*cells(row), verdict])
    return table


def _written(
    way: Variant,
    model: Model,
    best: VariantFigures,
    figures: Sequence[VariantFigures],
    breaches: Mapping[str, tuple[str, ...]],
    left_out: Sequence[str],
    judges: Sequence[NDArray[Any]],
    calibrated: int,
    batch_max: int,
) -> Optimized:
    """The file of the winner, with its recommendation."""
    here = machine()
    own = replace(way.model or model, sha256=hashlib.sha256(way.data).hexdigest())
    spec = way.session.model_copy(update={"batch_max": batch_max})
    tile_hw = (judges[0].shape[0], judges[0].shape[1])
    profile = tune(
        way.data,
        own,
        spec,
        engines=[way.engine],
        precision=way.precision,
        rounds=TUNE_ROUNDS,
        threads=(1,),
        tile_hw=None if own.tile_hw is not None else tile_hw,
    )
    threads = threads_for(profile, way, here.cores, here.memory_bytes) if on_cpu(way.session.providers[0]) else 1
    knee = profile.knee(way.engine, 1)
    ladder = {str(p.batch): round(p.fastest_s, 6) for p in profile.curve(way.engine, 1) if p.batch <= knee.batch}
    session = open_session(way.data, own, spec, Device(1), engine=way.engine, precision=way.precision)
    found = Recommendation(
        engine=way.engine,
        precision=way.precision,
        provider=way.session.providers[0],
        provider_options=dict(way.session.provider_options.get(way.session.providers[0], {})),
        threads=threads,
        ladder=ladder,
        speed=best.speed,
        flipped_share=best.parity.flipped_share,
        min_dice=min(best.parity.dice),
        machine=session.device_name,
        versions={name: value for name, value in versions().items() if "," not in name},
        source_sha256=model.sha256,
        references=reference_pictures(session, tile_hw),
        source_contract=contract_digest(model.contract),
    )
    written = with_recommendation(way.data, own, found)
    remember(replace(profile, model_sha256=hashlib.sha256(written).hexdigest()), LadderMemory(way.precision))
    return Optimized(
        data=written,
        recommendation=found,
        best=best.name,
        figures=tuple(figures),
        breaches=breaches,
        left_out=(*left_out, *profile.left_out),
        calibration_tiles=calibrated,
        held_out_tiles=len(judges),
    )


def with_recommendation(data: bytes, model: Model, found: Recommendation) -> bytes:
    """The file with its contract and a recommendation in the metadata; the graph stays as it is."""
    made = graph.read(data, "the model")
    own = {METADATA_KEY: contract_text(model.contract), OPTIMIZE_KEY: found.to_text()}
    graph_edit.set_metadata(made, graph.metadata(made) | own)
    written: bytes = made.SerializeToString()
    return written


def reference_pictures(session: Session, tile_hw: tuple[int, int]) -> dict[str, Any]:
    """Synthetic pictures with the labels that a session gives for them, in the form that the gate reads."""
    spec, output, batch = session.model.contract.input, session.model.contract.output, session.model.batch or 1
    dtype: SourceType = "uint16" if spec.dtype == "uint16" else "uint8"

    def labels_of(pixels: NDArray[Any]) -> NDArray[np.uint8] | None:
        tile = normalize(pixels, whole(pixels.shape[:2]), spec, largest=LARGEST[dtype])
        values_khw = session.run(np.repeat(tile[None], batch, axis=0))[0]
        return decide(values_khw, output) if np.isfinite(values_khw).all() else None

    shape_hwc = (*tile_hw, spec.channels)
    made = pack_reference.references(labels_of, shape_hwc, dtype)
    return {"version": pack_reference.VERSION, "batch": batch, **made}


def _says_one_thing(row: VariantFigures) -> bool:
    """Whether fp32 gives one label in all pixels."""
    return all(count in (0, row.parity.pixels) for count in row.parity.reference_px)
