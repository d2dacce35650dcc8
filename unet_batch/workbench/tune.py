"""Measures batch sizes, engines and numbers of threads on this machine, and stores the result for the ladders of jobs.

The tiles are zeros: the time does not depend on the pixels.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import JobError, OutOfMemory, ProviderMissing, UnetBatchError
from unet_batch.model.model import Model
from unet_batch.session.batching import CPU_BATCH_MAX
from unet_batch.session.combined.mirroring import FLIPS, Mirrored, check_mirroring
from unet_batch.session.engines import on_cpu, on_gpu
from unet_batch.session.ladder import LadderKey, LadderMemory, Remembered, sizes_up_to
from unet_batch.session.model_files import model_at
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.spec import Engine, Precision, SessionSpec, TilingSpec, Tta, load_job
from unet_batch.workbench.doctor import machine
from unet_batch.workbench.peak import crash_message, peak_bytes
from unet_batch.workbench.variants import RUNS, interleaved

log = logging.getLogger(__name__)

KNEE = 0.95
"""The recommended batch is the smallest with this share of the best throughput."""
ROUNDS = 5
BUDGET_S = 60.0
"""Time for one batch size in all sessions; slow models get fewer rounds, at least two."""
MEMORY_SHARE = 0.5
"""Largest share of the machine's memory for all open sessions together, as expected."""
TILE_TYPES = ("float32", "float16", "uint8", "uint16")
"""Dtypes of tiles for which a curve is stored: a packed graph takes as long as the network, within 3 %."""
SIDE = 256
"""Side of the tile for a model that takes any size, rounded up to its multiple."""


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model to measure."""

    path: str
    """Of the file, as the user or the job names it."""
    data: bytes
    model: Model
    tta: Tta
    """Passes of each tile, as the job has them."""


@dataclass(frozen=True, slots=True)
class Point:
    """The measurement of one batch size with one engine and number of threads."""

    engine: Engine
    provider: str
    """The provider that really ran."""
    threads: int
    batch: int
    seconds: float
    """Seconds of one batch: the median over rounds of the faster of two runs."""
    fastest_s: float
    """Seconds of the fastest run; the ladder stores it."""
    peak_bytes: int | None
    """Peak of a process with only this session; None if not measured."""

    @property
    def tiles_per_s(self) -> float:
        return self.batch / self.seconds


@dataclass(frozen=True, slots=True)
class Profile:
    """The measurements on one machine for one model and one tile size."""

    model_sha256: str
    device_name: str
    precision: Precision
    tile_hw: tuple[int, int]
    points: tuple[Point, ...]
    """Sorted by engine, threads and batch size."""
    limits: tuple[tuple[Engine, int, int], ...]
    """(engine, threads, largest batch that fits), if a larger one did not fit."""
    left_out: tuple[str, ...]
    """Engines and batch sizes that were not measured, and why."""
    passes: int = 1
    """Times that a session runs each tile (`tta`): its time is that of all passes."""

    def curve(self, engine: Engine, threads: int) -> tuple[Point, ...]:
        """The points of one engine and number of threads."""
        return tuple(p for p in self.points if p.engine == engine and p.threads == threads)

    def knee(self, engine: Engine, threads: int) -> Point:
        """The smallest batch within 5 % of the best throughput."""
        curve = self.curve(engine, threads)
        top = max(point.tiles_per_s for point in curve)
        return next(point for point in curve if point.tiles_per_s >= KNEE * top)

    def to_json(self) -> dict[str, Any]:
        tree = asdict(self)
        tree["knees"] = [asdict(self.knee(engine, threads)) for engine, threads in self._curves()]
        return tree

    def rows(self) -> list[list[str]]:
        """The table as text, heading first; the knee of each curve is marked."""
        found = [["engine", "threads", "batch", "tiles/s", "ms per tile", "peak MB", ""]]
        for point in self.points:
            knee = point == self.knee(point.engine, point.threads)
            found.append(
                [
                    f"{point.engine} {point.provider}" if point.engine != point.provider else point.engine,
                    str(point.threads),
                    str(point.batch),
                    f"{point.tiles_per_s:.1f}",
                    f"{1000 / point.tiles_per_s:.1f}",
                    "" if point.peak_bytes is None else f"{point.peak_bytes / 1e6:.0f}",
                    "← knee" if knee else "",
                ]
            )
        return found

    def _curves(self) -> list[tuple[Engine, int]]:
        return list(dict.fromkeys((point.engine, point.threads) for point in self.points))


def tune(
    data: bytes,
    model: Model,
    spec: SessionSpec,
    *,
    engines: Sequence[Engine] = get_args(Engine),
    threads: Sequence[int] | None = None,
    precision: Precision = "fp32",
    rounds: int = ROUNDS,
    tile_hw: tuple[int, int] | None = None,
    memory: bool = True,
    tta: Tta = "none",
) -> Profile:
    """Throughput and peak memory by engine, threads and batch size.

    threads: None means 1 and all cores. The batches are those of a job's ladder: up to `spec.batch_max`, on a CPU up to
    8. For each batch size all sessions run in turn, so that a busy machine slows all of them. Engines that are not
    installed, and impossible combinations of engine and provider, are listed in `left_out`.
    tile_hw: for a model that takes any size; None means 256, rounded up to its multiple. memory: whether a process is
    started for each point to measure its peak; only then are batches left out that would fill the memory, or crash.
    tta: of the job; a batch is then one of the caller's tiles, with the time of all their passes.
    Raises ProviderMissing if no engine runs, JobError for a number of threads below 1 or a tile size that the model
    does not take.
    """
    tried = tuple(threads) if threads is not None else tuple(dict.fromkeys((1, machine().cores)))
    if not tried or min(tried) < 1 or rounds < 1:
        raise JobError(f"threads {tried} and rounds {rounds} must be 1 or more")
    tile_hw = tile_of(model, tile_hw)
    smallest = (model.batch or 1, *tile_hw, model.contract.input.channels)
    opened: list[tuple[Engine, int, Session]] = []
    left_out = []
    for engine in dict.fromkeys(engines):
        if memory and engine != "onnxruntime":
            crash = crash_message(data, model, spec, shape_nhwc=smallest, engine=engine, precision=precision)
            if crash is not None:
                left_out.append(crash)
                continue
        try:
            for count in dict.fromkeys(tried):
                session = open_session(data, model, spec, Device(count), engine=engine, precision=precision)
                mirrored = session if tta == "none" else Mirrored(session, tta, spec.batch_max)
                opened.append((engine, count, mirrored))
        except (ProviderMissing, JobError) as error:
            left_out.append(f"{engine}: {error}")
    if not opened:
        raise ProviderMissing("; ".join(left_out))
    found = _Measuring(data, model, spec, precision, tile_hw, rounds, memory=memory, passes=len(FLIPS[tta]))
    found.measure(opened)
    order = [(engine, count) for engine, count, _ in opened]
    found.points.sort(key=lambda p: (order.index((p.engine, p.threads)), p.batch))
    return Profile(
        model.sha256,
        opened[0][2].device_name,
        precision,
        tile_hw,
        tuple(found.points),
        tuple(found.limits),
        (*left_out, *found.left_out),
        found.passes,
    )


def remember(profile: Profile, memory: LadderMemory, *, threads: int = 1) -> int:
    """Store the curves of sessions with this many threads for the ladders of jobs; returns the number of curves.

    A ladder with stored curves chooses its batch size without measuring. Raises JobError if `memory.precision` is not
    the profile's.
    """
    if memory.precision != profile.precision:
        raise JobError(f"ladders in {memory.precision} cannot use measurements in {profile.precision}")
    kept = 0
    for engine in dict.fromkeys(point.engine for point in profile.points):
        curve = profile.curve(engine, threads)
        if not curve:
            continue
        limit = next((size for name, count, size in profile.limits if (name, count) == (engine, threads)), None)
        for dtype in TILE_TYPES:
            key = LadderKey(
                profile.model_sha256,
                profile.device_name,
                curve[0].provider,
                profile.precision,
                *profile.tile_hw,
                dtype=dtype,
                threads=1 if on_gpu(curve[0].provider) else threads,
                passes=profile.passes,
            )
            memory.keep(key, Remembered({point.batch: point.fastest_s for point in curve}, limit))
        kept += 1
    return kept


@dataclass(slots=True)
class _Measuring:
    """The measurement of one profile: batch sizes ascending, until they no longer fit."""

    data: bytes
    model: Model
    spec: SessionSpec
    precision: Precision
    tile_hw: tuple[int, int]
    rounds: int
    _: KW_ONLY
    memory: bool
    passes: int
    points: list[Point] = field(default_factory=list)
    limits: list[tuple[Engine, int, int]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def measure(self, opened: Sequence[tuple[Engine, int, Session]]) -> None:
        """Measure every batch size that fits, and record the limits."""
        on_cpus = all(on_cpu(session.provider) for _, _, session in opened)
        cap = min(self.spec.batch_max, CPU_BATCH_MAX) if on_cpus else self.spec.batch_max
        sizes = sizes_up_to(max(cap // self.passes, 1)) if self.model.batch is None else (self.model.batch,)
        running = list(opened)
        for size in sizes:
            if on_cpus and (needed := self._expected_bytes(size)) > MEMORY_SHARE * (machine().memory_bytes or needed):
                self.left_out.append(
                    f"batches from {size} on: {len(running)} sessions at once would need about "
                    f"{needed / 1e9:.0f} GB, a large part of this machine's memory"
                )
                break
            started = time.perf_counter()
            batch_nhwc = np.zeros((size, *self.tile_hw, self.model.contract.input.channels), self._dtype)
            running = self._fitting(running, batch_nhwc, smallest=size == sizes[0])
            once_s = time.perf_counter() - started
            rounds = min(self.rounds, max(2, int(BUDGET_S / (RUNS * once_s))))
            seconds = interleaved([session for _, _, session in running], batch_nhwc, rounds=rounds, warm=False)
            for (engine, count, session), mine in zip(running, seconds, strict=True):
                point = Point(engine, session.provider, count, size, statistics.median(mine), min(mine), None)
                self.points.append(self._with_peak(point) if self.memory else point)
            log.info("batches of %d: %d rounds in %.0f s", size, rounds, time.perf_counter() - started)

    @property
    def _dtype(self) -> str:
        return self.model.contract.input.dtype

    def _fitting(
        self, running: Sequence[tuple[Engine, int, Session]], batch_nhwc: NDArray[Any], *, smallest: bool
    ) -> list[tuple[Engine, int, Session]]:
        """Run the batch once in each session; returns the sessions in which it fits, and records limits for others."""
        fitting = []
        for way in running:
            try:
                way[2].run(batch_nhwc)
            except OutOfMemory as error:
                if smallest:
                    raise
                fitted = max(p.batch for p in self.points if (p.engine, p.threads) == way[:2])
                self.limits.append((way[0], way[1], fitted))
                log.warning("%s with %d threads does not fit a batch of %d: %s", *way[:2], len(batch_nhwc), error)
            else:
                fitting.append(way)
        return fitting

    def _expected_bytes(self, size: int) -> float:
        """Memory of all sessions at this batch size, extrapolated from the two sizes before; 0 where unknown."""
        total = 0.0
        for engine, threads in dict.fromkeys((p.engine, p.threads) for p in self.points):
            known = [(p.batch, p.peak_bytes) for p in self.points if (p.engine, p.threads) == (engine, threads)]
            peaks = [(batch, peak) for batch, peak in known if peak is not None][-2:]
            if len(peaks) == 2:
                (small, low), (large, high) = peaks
                total += high + max(0.0, (high - low) / (large - small)) * (size - large)
        return total

    def _with_peak(self, point: Point) -> Point:
        # Passes that fit into batch_max are one batch of the engine, as in `Mirrored`.
        together = min(self.passes, max(1, self.spec.batch_max // point.batch)) if self.model.batch is None else 1
        try:
            peak, _ = peak_bytes(
                self.data,
                self.model,
                self.spec,
                shape_nhwc=(point.batch * together, *self.tile_hw, self.model.contract.input.channels),
                threads=point.threads,
                engine=point.engine,
                precision=self.precision,
            )
        except UnetBatchError as error:
            log.warning("%s", error)
            return point
        return replace(point, peak_bytes=peak)


def tile_of(model: Model, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """The tile size for the measurement. Raises JobError if the model does not take the wanted one."""
    spec = model.contract.input
    if wanted is None:
        side = spec.side(SIDE + 2 * model.contract.output.margin)
        return model.tile_hw or (side, side)
    if model.tile_hw not in (None, wanted):
        raise JobError(f"the model fixes its tiles at {model.tile_hw[0]}x{model.tile_hw[1]}: leave the size out")
    if not spec.takes(wanted):
        raise JobError(f"a side of tiles of {wanted[0]}x{wanted[1]} is not {spec.sides}")
    return wanted


def model_to_tune(path: str, contract: str | None) -> TunedModel:
    """The model of an ONNX file, or of a job file, which ends in .yaml or .yml.

    contract: of an ONNX file, as in `model_at`. Raises JobError for an ensemble, whose members have ladders of no file,
    and for a contract that is given beside a job; ContractError and StorageError as `model_at` does.
    """
    if not path.endswith((".yaml", ".yml")):
        return TunedModel(path, *model_at(path, contract, TilingSpec()), "none")
    job = load_job(path)
    if contract is not None:
        raise JobError(f"{path} is a job, which names its contract itself: leave --contract out")
    if job.model.ensemble is not None:
        raise JobError(f"{path} scores an ensemble, which is not measured as one: write one of its model files")
    data, model = model_at(job.model.path, job.model.contract, job.tiling, job.model.options)
    check_mirroring(job, [model])
    return TunedModel(job.model.path, data, model, job.tta)
