"""The batch size, engine and number of threads that pay on this machine, measured and left where a job looks them up.

Knows sessions, clocks and ladders. Knows no images: zeros cost what pixels cost. Matplotlib, which draws the curve, is
loaded when it is asked for one.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_batch.errors import JobError, OutOfMemory, ProviderMissing, UnetBatchError
from unet_batch.model.batching import CPU_BATCH_MAX
from unet_batch.model.contract import Model
from unet_batch.model.doctor import machine
from unet_batch.model.engines import on_cpu
from unet_batch.model.ladder import LadderKey, LadderMemory, Remembered, sizes_up_to
from unet_batch.model.peak import peak_bytes
from unet_batch.model.session import Device, Session, open_session
from unet_batch.model.variants import interleaved
from unet_batch.spec import Engine, Precision, SessionSpec

log = logging.getLogger(__name__)

KNEE = 0.95
"""The size that pays is the smallest with this share of the best throughput."""
ROUNDS = 5
SIDE = 256
"""Tile of a model that takes any, rounded up to its multiple."""


@dataclass(frozen=True, slots=True)
class Point:
    """One batch size of one way to run the model."""

    engine: Engine
    provider: str
    """What really ran."""
    threads: int
    batch: int
    seconds: float
    """Of one batch: the median over rounds of the faster of two runs."""
    fastest_s: float
    """The fastest run of all: what a ladder keeps."""
    peak_bytes: int | None
    """Of a process that holds nothing but this session; None where it was not asked for."""

    @property
    def tiles_per_s(self) -> float:
        return self.batch / self.seconds


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured on one machine for one model and one size of tile."""

    model_sha256: str
    device_name: str
    precision: Precision
    tile_hw: tuple[int, int]
    points: tuple[Point, ...]
    """By engine and threads, batches ascending."""
    limits: tuple[tuple[Engine, int, int], ...]
    """Engine, threads and the largest batch that fitted, where a larger one did not."""
    left_out: tuple[str, ...]
    """Engines that do not run here, and why."""

    @property
    def cores(self) -> int:
        return machine().cores

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
        """The table as text, the heading first; the knee of each curve is marked."""
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
    engines: Sequence[Engine] = ("onnxruntime", "openvino"),
    threads: Sequence[int] | None = None,
    precision: Precision = "fp32",
    rounds: int = ROUNDS,
    memory: bool = True,
) -> Profile:
    """Throughput and peak memory by engine, threads and batch size.

    threads: None means 1 and, where there are more, all cores. The batches are those of a job's ladder: up to
    `spec.batch_max`, on a CPU up to 8. For each batch size all sessions take turns, so that a busy machine slows all
    of them. An engine that is not installed is left out and named; an unknown combination of engine and provider too.
    memory: whether a process is started for each point to find its peak.
    Raises ProviderMissing where no engine runs, JobError for a number of threads below 1.
    """
    tried = tuple(threads) if threads is not None else tuple(dict.fromkeys((1, machine().cores)))
    if not tried or min(tried) < 1 or rounds < 1:
        raise JobError(f"threads {tried} and rounds {rounds} must be 1 or more")
    tile_hw = model.tile_hw or _any_size(model)
    opened: list[tuple[Engine, int, Session]] = []
    left_out = []
    for engine in dict.fromkeys(engines):
        try:
            for count in dict.fromkeys(tried):
                session = open_session(data, model, spec, Device(count), engine=engine, precision=precision)
                opened.append((engine, count, session))
        except (ProviderMissing, JobError) as error:
            left_out.append(f"{engine}: {error}")
    if not opened:
        raise ProviderMissing("; ".join(left_out))
    points, limits = _points(opened, model, spec, tile_hw=tile_hw, rounds=rounds)
    if memory:
        points = [_with_peak(point, data, model, spec, tile_hw=tile_hw, precision=precision) for point in points]
    order = [(engine, count) for engine, count, _ in opened]
    points.sort(key=lambda p: (order.index((p.engine, p.threads)), p.batch))
    return Profile(
        model.sha256, opened[0][2].device_name, precision, tile_hw, tuple(points), tuple(limits), tuple(left_out)
    )


def remember(profile: Profile, memory: LadderMemory, *, threads: int = 1) -> int:
    """Leaves the curves of sessions with so many threads where a job's ladders begin; returns how many.

    A ladder that finds them chooses its batch size without climbing. `memory.precision` must be the profile's.
    Raises JobError where it is another.
    """
    if memory.precision != profile.precision:
        raise JobError(f"ladders in {memory.precision} cannot begin with what was measured in {profile.precision}")
    kept = 0
    for engine in dict.fromkeys(point.engine for point in profile.points):
        curve = profile.curve(engine, threads)
        if not curve:
            continue
        limit = next((size for name, count, size in profile.limits if (name, count) == (engine, threads)), None)
        key = LadderKey(
            profile.model_sha256, profile.device_name, curve[0].provider, profile.precision, *profile.tile_hw
        )
        memory.keep(key, Remembered({point.batch: point.fastest_s for point in curve}, limit))
        kept += 1
    return kept


def draw(profile: Profile, path: Path) -> None:
    """Writes the curves as a PNG: throughput above, peak memory below, knees marked.

    Raises JobError where Matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise JobError("a curve needs Matplotlib: run `pip install unet-batch[export]`, or leave the picture out")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    speed, memory = figure.subplots(2, 1, sharex=True)
    for engine, threads in dict.fromkeys((p.engine, p.threads) for p in profile.points):
        curve, knee = profile.curve(engine, threads), profile.knee(engine, threads)
        label = f"{engine}, {threads} thread{'s' if threads > 1 else ''}"
        (line,) = speed.plot([p.batch for p in curve], [p.tiles_per_s for p in curve], marker="o", label=label)
        speed.plot(
            [knee.batch], [knee.tiles_per_s], marker="o", markersize=12, fillstyle="none", color=line.get_color()
        )
        known = [p for p in curve if p.peak_bytes is not None]
        memory.plot([p.batch for p in known], [(p.peak_bytes or 0) / 1e6 for p in known], marker="o", label=label)
    speed.set(ylabel="tiles/s", ylim=(0, None), title=f"{profile.device_name}, {profile.precision}")
    memory.set(ylabel="peak memory, MB", ylim=(0, None), xlabel="batch size (circle: smallest within 5 % of the best)")
    memory.set_xscale("log", base=2)
    speed.legend()
    figure.savefig(path, format="png", dpi=120)


def _points(
    opened: Sequence[tuple[Engine, int, Session]],
    model: Model,
    spec: SessionSpec,
    *,
    tile_hw: tuple[int, int],
    rounds: int,
) -> tuple[list[Point], list[tuple[Engine, int, int]]]:
    """Every batch size that fits, and the limits of those that ran out of memory."""
    cap = min(spec.batch_max, CPU_BATCH_MAX) if all(on_cpu(s.provider) for _, _, s in opened) else spec.batch_max
    sizes = sizes_up_to(cap) if model.batch is None else (model.batch,)
    points: list[Point] = []
    limits: list[tuple[Engine, int, int]] = []
    running = list(opened)
    for size in sizes:
        shape = (size, *tile_hw, model.contract.input.channels)
        batch_nhwc = np.zeros(shape, model.contract.input.dtype)
        fitting = []
        for way in running:
            try:
                way[2].run(batch_nhwc)
            except OutOfMemory as error:
                if size == sizes[0]:
                    raise
                limits.append((way[0], way[1], max(s for s in sizes if s < size)))
                log.warning("%s with %d threads does not fit a batch of %d: %s", *way[:2], size, error)
            else:
                fitting.append(way)
        running = fitting
        seconds = interleaved([session for _, _, session in running], batch_nhwc, rounds=rounds)
        points += [
            Point(engine, session.provider, count, size, statistics.median(mine), min(mine), None)
            for (engine, count, session), mine in zip(running, seconds, strict=True)
        ]
    return points, limits


def _with_peak(
    point: Point, data: bytes, model: Model, spec: SessionSpec, *, tile_hw: tuple[int, int], precision: Precision
) -> Point:
    shape = (point.batch, *tile_hw, model.contract.input.channels)
    try:
        peak, _ = peak_bytes(
            data,
            model,
            spec,
            shape_nhwc=shape,
            threads=point.threads,
            engine=point.engine,
            precision=precision,
        )
    except UnetBatchError as error:
        log.warning("%s", error)
        return point
    return replace(point, peak_bytes=peak)


def _any_size(model: Model) -> tuple[int, int]:
    side = -(-SIDE // model.contract.input.multiple) * model.contract.input.multiple
    return side, side
