"""One model in several precisions and engines: time, memory and labels against fp32 in ONNX Runtime.

Speeds are ratios of interleaved runs, because absolute speeds drift on a shared machine.

Legend: N tiles, C channels, H, W pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.errors import UnetBatchError
from unet_batch.gate.parity import Parity, decide
from unet_batch.gate.resample import total
from unet_batch.model.model import Model
from unet_batch.session.engines import TABLE
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.spec import Engine, Precision, SessionSpec
from unet_batch.workbench.doctor import machine
from unet_batch.workbench.peak import peak_bytes

log = logging.getLogger(__name__)

ROUNDS = 7
"""Rounds in which every variant runs; the ratio is the median over them."""
RUNS = 2
"""Consecutive batches of one variant; the faster counts."""
BATCH_PX = 1 << 18
"""Pixels of a batch: 4 tiles of 256², one of 512² or more."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a model."""

    name: str
    data: bytes
    engine: Engine
    precision: Precision
    session: SessionSpec = field(default_factory=SessionSpec)
    """Providers and their options."""
    model: Model | None = None
    """The model of the file if its contract differs from the first variant's, as of a packed file."""


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """The cost of one variant, and its difference to the first one, fp32 in ONNX Runtime."""

    name: str
    file_bytes: int
    peak_bytes: int
    """Peak of a process with only this session."""
    model_bytes: int
    """The part of it that the session added, without the interpreter and the libraries."""
    tiles_per_s: float
    """Median, one thread."""
    speed: float
    """Speed relative to fp32: the median over rounds of the ratio to fp32's time in the same round."""
    tiles: tuple[Parity, ...]
    """The difference in each tile."""

    @property
    def parity(self) -> Parity:
        """The difference over all tiles."""
        return total(self.tiles)

    def to_json(self) -> dict[str, Any]:
        tree = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tiles"}
        return tree | {"parity": self.parity.to_json()}


def variants(source: bytes, quantised: bytes | None) -> list[Variant]:
    """fp32 and int8 in ONNX Runtime, then fp32, bf16 and int8 of every other engine that is installed.

    quantised: None leaves int8 out. bf16 is left out if the processor does not have it.
    """
    found = [Variant("fp32", source, "onnxruntime", "fp32")]
    if quantised is not None:
        found.append(Variant("int8", quantised, "onnxruntime", "int8"))
    for row in TABLE:
        if row.engine != "onnxruntime" and importlib.util.find_spec(row.engine) is not None:
            files: list[tuple[Precision, bytes | None]] = [("fp32", source), ("bf16", source), ("int8", quantised)]
            found += [
                Variant(f"{row.engine} {precision}", data, row.engine, precision)
                for precision, data in files
                if data is not None and precision in row.precisions and (precision != "bf16" or machine().bf16)
            ]
    return found


def _log_reason(sentence: str) -> None:
    log.warning("left out: %s", sentence)


def measure(
    ways: Iterable[Variant],
    model: Model,
    tiles_nhwc: Sequence[NDArray[Any]],
    *,
    rounds: int = ROUNDS,
    leave_out: Callable[[str], object] = _log_reason,
) -> list[VariantFigures]:
    """VariantFigures of every variant that runs on this machine. The first variant must be fp32 in ONNX Runtime.

    tiles_nhwc: real images, (H, W, C) of the contract's dtype and of one size, preferably not used for calibration.
    Variants run in turn, `rounds` times, on one thread. leave_out: gets the name of each variant that does not run,
    with the reason; by default they are logged.
    Raises the errors of the first variant.
    """
    opened: list[tuple[Variant, Session]] = []
    peaks: list[tuple[int, int]] = []
    pixels = tiles_nhwc[0].shape[0] * tiles_nhwc[0].shape[1]
    size = model.batch or max(1, min(BATCH_PX // pixels, 8))
    for way in ways:
        own = replace(way.model or model, sha256=hashlib.sha256(way.data).hexdigest())
        try:
            # First in a child process: an engine may crash on a file.
            shape = (size, *tiles_nhwc[0].shape)
            peak = peak_bytes(way.data, own, way.session, shape_nhwc=shape, engine=way.engine, precision=way.precision)
            session = open_session(way.data, own, way.session, Device(1), engine=way.engine, precision=way.precision)
            session.run(np.repeat(tiles_nhwc[0][None], model.batch or 1, axis=0))
        except UnetBatchError as error:
            if not opened:
                raise
            leave_out(f"{way.name}: {error}")
            continue
        opened.append((way, session))
        peaks.append(peak)
    batch_nhwc = np.stack([tiles_nhwc[n % len(tiles_nhwc)] for n in range(size)])
    seconds = interleaved([session for _, session in opened], batch_nhwc, rounds=rounds)
    expected = _outputs(opened[0][1], tiles_nhwc)
    found = []
    for (way, session), mine, (peak_now, before) in zip(opened, seconds, peaks, strict=True):
        found.append(
            VariantFigures(
                name=way.name,
                file_bytes=len(way.data),
                peak_bytes=peak_now,
                model_bytes=peak_now - before,
                tiles_per_s=size / statistics.median(mine),
                speed=statistics.median(a / b for a, b in zip(seconds[0], mine, strict=True)),
                tiles=_parities(expected, model, session, tiles_nhwc),
            )
        )
    return found


def interleaved(
    sessions: Sequence[Session], batch_nhwc: NDArray[Any], *, rounds: int, warm: bool = True
) -> list[list[float]]:
    """For each session, the seconds of its fastest run in each round; within a round the sessions run in turn.

    warm: whether each session runs the batch once before, to prepare plans and memory for the shape.
    """
    seconds: list[list[float]] = [[] for _ in sessions]
    for session in sessions if warm else ():
        session.run(batch_nhwc)
    for _ in range(rounds):
        for mine, session in zip(seconds, sessions, strict=True):
            runs = []
            for _ in range(RUNS):
                start = time.perf_counter()
                session.run(batch_nhwc)
                runs.append(time.perf_counter() - start)
            mine.append(min(runs))
    return seconds


HEADING = ("engine", "× fp32", "tiles\nper s", "peak\nMB", "file\nMB", "labels\nflipped", "least\nDice")


def rows(figures: Sequence[VariantFigures]) -> list[list[str]]:
    """The table as text, heading first: at most 80 columns with its frame."""
    return [list(HEADING), *(cells(row) for row in figures)]


def cells(row: VariantFigures) -> list[str]:
    """The cells below `HEADING`."""
    return [
        row.name,
        f"{row.speed:.2f}",
        _short(row.tiles_per_s),
        f"{row.peak_bytes / 1e6:.0f}",
        _short(row.file_bytes / 1e6),
        f"{row.parity.flipped_share:.3%}",
        f"{min(row.parity.dice):.4f}",
    ]


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _parities(
    expected_nkhw: NDArray[Any], model: Model, session: Session, tiles_nhwc: Sequence[NDArray[Any]]
) -> tuple[Parity, ...]:
    """The parity of each tile with the first variant, whose values become labels if the session returns labels.

    model: of the expected values.
    """
    output = session.model.contract.output
    if output.decided and not model.contract.output.decided:
        expected_nkhw = np.stack([decide(one, model.contract.output) for one in expected_nkhw]).astype(np.float32)
    found_nkhw = _outputs(session, tiles_nhwc)
    return tuple(Parity.of(a[None], b[None], output) for a, b in zip(expected_nkhw, found_nkhw, strict=True))


def _outputs(session: Session, tiles_nhwc: Sequence[NDArray[Any]]) -> NDArray[Any]:
    size = session.model.batch or 1
    return np.concatenate([session.run(np.repeat(tile[None], size, axis=0))[:1] for tile in tiles_nhwc])
