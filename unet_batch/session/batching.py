"""Dynamic batches: tiles of many images in one session, in efficient sizes that fit into memory.

Works on tiles, ladders and a session's `run`; independent of engines and images.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from unet_batch.errors import ImageError, OutOfMemory, Reason, SessionBroken
from unet_batch.imaging.tiling import Box
from unet_batch.model.tile_size import unplaceable
from unet_batch.session.engines import on_cpu, on_gpu
from unet_batch.session.ladder import Ladder, LadderKey, LadderMemory, Remembered, sizes_up_to
from unet_batch.session.session import Session, stacked

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Shape = tuple[int, int, str]
"""Rows, columns and dtype of a tile; all tiles of a batch have the same."""

CPU_BATCH_MAX = 8
"""On a CPU, throughput hardly depends on the batch size, and larger batches need more memory."""
GPU_BATCHES = 2
"""Batches in a session on a GPU at once: one computes, the other is copied in or out. The engine runs one at a time, so
the GPU's memory holds one."""
MANY_SHAPES = 4
"""Shapes from which a warning is logged: each needs its own plans, memory and measurements."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of an image, ready for the session."""

    image: int
    """The caller's number of the image."""
    box: Box
    """Place of the tile in the image."""
    pixels_hwc: Array
    """(H, W, C) of a dtype that the session takes."""


Scored = Array | OutOfMemory | ImageError
"""Logits of a tile, float32 (K, h, w), or the error of this tile."""


@dataclass(slots=True)
class BatchStats:
    """Figures of some batches."""

    batches: Counter[int] = field(default_factory=Counter)
    """Batch size → number of runs."""
    session_s: float = 0.0
    """Seconds inside `session.run`, failed runs included, without those in which it waited for another batch."""
    waited_s: float = 0.0
    """Seconds of waiting for batches of other threads."""
    out_of_memory: int = 0
    """Batches that did not fit."""
    padded: int = 0
    """Rows added to fill a fixed batch axis."""


class Batcher:
    """Runs tiles through one session. Thread-safe: while one batch runs, other threads prepare theirs."""

    def __init__(
        self,
        session: Session,
        *,
        batch_max: int,
        passes: int = 1,
        memory: LadderMemory | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """batch_max: largest batch; ignored if the model fixes the batch axis. passes: times that the session runs each
        tile (`Mirrored`): a batch of n tiles is one of n · passes. clock: returns seconds."""
        self.stats = BatchStats()
        self._session = session
        self._memory = memory
        self._clock = clock
        cap = min(batch_max, CPU_BATCH_MAX) if on_cpu(session.provider) else batch_max
        self._passes = passes
        self._sizes = sizes_up_to(max(cap // passes, 1)) if session.model.batch is None else (session.model.batch,)
        self._ladders: dict[Shape, Ladder] = {}
        self._kept: dict[Shape, Remembered | None] = {}
        # For session.run; always taken before _counting.
        self._running = threading.Semaphore(GPU_BATCHES if on_gpu(session.provider) else 1)
        self._counting = threading.Lock()  # for ladders and figures, held for microseconds
        self._ended = -math.inf  # when the latest batch came back
        self._doubted: int | None = None  # size of the latest batch that failed for lack of memory or for a lost device

    def run(self, tiles: Iterable[Tile], *, stats: BatchStats | None = None) -> Iterator[tuple[Tile, Scored]]:
        """Every tile once, with its float32 (K, h, w) logits, in the order of the batches.

        tiles: read only as far as the next batch needs; at most one batch per shape waits.
        stats: receives the figures of this call (`self.stats` has the sums of all calls).
        The result of a tile that does not fit into memory alone is an OutOfMemory; if its output size is not allowed
        (`unplaceable`), it is an ImageError, because other tile sizes may work. Raises the session's other errors, and
        SessionBroken.
        """
        mine = stats if stats is not None else BatchStats()
        waiting: dict[Shape, list[Tile]] = {}
        for tile in tiles:
            shape = (*tile.pixels_hwc.shape[:2], tile.pixels_hwc.dtype.name)
            queue = waiting.setdefault(shape, [])
            queue.append(tile)
            if len(queue) >= self._target(shape):
                del waiting[shape]
                yield from self._score(shape, queue, mine)
        for shape, queue in waiting.items():
            yield from self._score(shape, queue, mine)
        self._remember()

    def _score(self, shape: Shape, tiles: list[Tile], mine: BatchStats) -> Iterator[tuple[Tile, Scored]]:
        """All tiles of one shape, in one or more batches."""
        while tiles:
            with self._counting:
                size = self._ladders[shape].fit(len(tiles))
            batch, rest = tiles[:size], tiles[size:]
            try:
                logits_nkhw = self._run_batch(shape, batch, size=size, mine=mine)
            except OutOfMemory as error:
                if self._shorten(shape, size, mine, error):
                    log.warning("%d tiles of %dx%d did not fit; smaller batches follow: %s", size, *shape[:2], error)
                    continue
                yield from ((tile, error) for tile in batch)
            else:
                margin = self._session.model.contract.output.margin
                strange = unplaceable(shape[:2], (logits_nkhw.shape[2], logits_nkhw.shape[3]), margin)
                if strange is None:
                    yield from zip(batch, logits_nkhw, strict=True)
                else:
                    text = f"{strange}; if sizes of a certain multiple work, write it as input.multiple"
                    yield from ((tile, ImageError(Reason.MODEL_OUTPUT_OUT_OF_RANGE, text)) for tile in batch)
            tiles = rest

    def _run_batch(self, shape: Shape, batch: list[Tile], *, size: int, mine: BatchStats) -> Array:
        """Logits of one batch, (N, K, h, w), without rows that only fill a fixed batch axis."""
        padding = size - len(batch)
        try:
            rows = [tile.pixels_hwc for tile in batch] + [batch[-1].pixels_hwc] * padding
            pixels_nhwc = stacked(self._session.model, rows)
        except MemoryError as error:
            raise OutOfMemory(f"no memory for a batch of {size} tiles of {shape[0]}x{shape[1]}") from error
        asked = self._clock()
        with self._running:
            start = self._clock()
            try:
                logits_nkhw = self._session.run(pixels_nhwc)
            finally:
                with self._counting:
                    end = self._clock()
                    seconds, self._ended = end - max(start, self._ended), end
                    for stats in (mine, self.stats):
                        stats.session_s += seconds
                        stats.waited_s += end - asked - seconds
        with self._counting:
            self._doubted = None
            self._ladders[shape].record(size, seconds)
            for stats in (mine, self.stats):
                stats.batches[size] += 1
                stats.padded += padding
        return logits_nkhw[: len(batch)]

    def _target(self, shape: Shape) -> int:
        with self._counting:
            if shape not in self._ladders:
                remembered = self._memory.recall(self._key(self._memory, shape)) if self._memory else None
                self._ladders[shape] = Ladder(self._sizes, remembered)
                self._kept[shape] = remembered
                if len(self._ladders) == MANY_SHAPES + 1:
                    log.warning(
                        "more than %d tile shapes in one session, and each needs its own batches and memory: "
                        "write tiling.size, or resize with input.fit",
                        MANY_SHAPES,
                    )
            return self._ladders[shape].target()

    def _shorten(self, shape: Shape, size: int, mine: BatchStats, error: OutOfMemory) -> bool:
        """Exclude a size that did not fit; returns False if no smaller size is left.

        Raises SessionBroken for a doubtful error if a smaller batch failed alike, or there is none.
        """
        with self._counting:
            for stats in (mine, self.stats):
                stats.out_of_memory += 1
            smaller = self._ladders[shape].out_of_memory(size)
            if not error.doubtful:
                return smaller
            lost = not smaller or (self._doubted is not None and size < self._doubted)
            self._doubted = size
        if lost:
            raise SessionBroken(f"smaller batches fail too, so only a new process can continue: {error}") from error
        return True

    def _remember(self) -> None:
        """Store each settled ladder that differs from the stored one."""
        if self._memory is None:
            return
        with self._counting:
            settled = {shape: ladder.snapshot() for shape, ladder in self._ladders.items() if ladder.settled}
            changed = {shape: new for shape, new in settled.items() if _differs(new, self._kept[shape])}
            self._kept.update(changed)
        for shape, remembered in changed.items():
            self._memory.keep(self._key(self._memory, shape), remembered)

    def _key(self, memory: LadderMemory, shape: Shape) -> LadderKey:
        session = self._session
        return LadderKey(
            session.model.sha256,
            session.device_name,
            session.provider,
            memory.precision,
            *shape,
            threads=1 if on_gpu(session.provider) else memory.threads,
            passes=self._passes,
        )


def _differs(new: Remembered, old: Remembered | None) -> bool:
    """Whether new sizes were measured or excluded; small differences in seconds do not count."""
    return old is None or new.limit != old.limit or set(new.seconds) != set(old.seconds)
