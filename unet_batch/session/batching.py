"""Dynamic batches: tiles of many images through one session, in sizes that pay and fit into memory.

Knows tiles, ladders and a session's `run`. Knows no engine, no images and no logits beyond their first axis.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_batch.errors import ImageError, OutOfMemory, Reason
from unet_batch.imaging.tiling import Box
from unet_batch.model.tile_size import unplaceable
from unet_batch.session.engines import on_cpu, on_gpu
from unet_batch.session.ladder import Ladder, LadderKey, LadderMemory, Remembered, sizes_up_to
from unet_batch.session.session import Session

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Shape = tuple[int, int, str]
"""Rows, columns and type of a tile: tiles of different shapes or types never share a batch."""

CPU_BATCH_MAX = 8
"""On a CPU throughput is flat from 1 on, and a batch only costs memory."""
MANY_SHAPES = 4
"""Every shape costs plans, memory and a climb of its own."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A cut of one image, ready for the session."""

    image: int
    """The caller's number of the image."""
    box: Box
    """Where the tile lies in it."""
    pixels_hwc: Array
    """(H, W, C) of a type that the session takes."""


Scored = Array | OutOfMemory | ImageError
"""Logits of a tile, float32 (K, h, w), or why there are none."""


@dataclass(slots=True)
class BatchStats:
    """Figures of some batches."""

    batches: Counter[int] = field(default_factory=Counter)
    """How often each batch size ran."""
    session_s: float = 0.0
    """Seconds inside `session.run`, failed runs included."""
    out_of_memory: int = 0
    """Batches that did not fit."""
    padded: int = 0
    """Rows added to fill a fixed batch axis."""


class Batcher:
    """Runs tiles through one session. Threads may share it: while one batch runs, the others prepare theirs."""

    def __init__(
        self,
        session: Session,
        *,
        batch_max: int,
        memory: LadderMemory | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """batch_max: largest batch; a batch axis that the model fixes wins over it. clock: seconds."""
        self.stats = BatchStats()
        self._session = session
        self._memory = memory
        self._clock = clock
        cap = min(batch_max, CPU_BATCH_MAX) if on_cpu(session.provider) else batch_max
        self._sizes = sizes_up_to(cap) if session.model.batch is None else (session.model.batch,)
        self._ladders: dict[Shape, Ladder] = {}
        self._kept: dict[Shape, Remembered | None] = {}
        self._running = threading.Lock()  # around session.run; taken before the other, never after it
        self._counting = threading.Lock()  # around ladders and figures, held for microseconds

    def run(self, tiles: Iterable[Tile], *, stats: BatchStats | None = None) -> Iterator[tuple[Tile, Scored]]:
        """Every tile once, with its float32 (K, h, w) logits, in the order in which batches finish.

        tiles: pulled only as far as the next batch needs; per shape no more than one batch waits.
        stats: receives this call's figures (`self.stats` sums up all calls).
        A tile that does not fit into memory even alone comes back with the OutOfMemory, and one whose output cannot be
        laid over it with an ImageError: another size of tile may be right. Raises what the session raises otherwise.
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
        """The tiles of one shape, to the last, in as many batches as it takes."""
        while tiles:
            with self._counting:
                size = self._ladders[shape].fit(len(tiles))
            batch, rest = tiles[:size], tiles[size:]
            try:
                logits_nkhw = self._run_batch(shape, batch, size=size, mine=mine)
            except OutOfMemory as error:
                if self._shorten(shape, size, mine):
                    log.warning("%d tiles of %dx%d did not fit; smaller batches follow: %s", size, *shape[:2], error)
                    continue
                yield from ((tile, error) for tile in batch)
            else:
                strange = unplaceable(shape[:2], (logits_nkhw.shape[2], logits_nkhw.shape[3]))
                if strange is None:
                    yield from zip(batch, logits_nkhw, strict=True)
                else:
                    text = f"{strange}; where some sizes fit, write what they are a multiple of as input.multiple"
                    yield from ((tile, ImageError(Reason.MODEL_OUTPUT_OUT_OF_RANGE, text)) for tile in batch)
            tiles = rest

    def _run_batch(self, shape: Shape, batch: list[Tile], *, size: int, mine: BatchStats) -> Array:
        """Logits of one batch, (N, K, h, w); rows that only fill a fixed batch axis are cut off."""
        padding = size - len(batch)
        try:
            pixels_nhwc = np.stack([tile.pixels_hwc for tile in batch] + [batch[-1].pixels_hwc] * padding)
        except MemoryError as error:
            raise OutOfMemory(f"no memory to put {size} tiles of {shape[0]}x{shape[1]} side by side") from error
        with self._running:
            start = self._clock()
            try:
                logits_nkhw = self._session.run(pixels_nhwc)
            finally:
                seconds = self._clock() - start
                with self._counting:
                    for stats in (mine, self.stats):
                        stats.session_s += seconds
        with self._counting:
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
                        "more than %d tile shapes reach one session, and each needs batches and memory of its own: "
                        "write tiling.size, or resize with input.fit",
                        MANY_SHAPES,
                    )
            return self._ladders[shape].target()

    def _shorten(self, shape: Shape, size: int, mine: BatchStats) -> bool:
        with self._counting:
            for stats in (mine, self.stats):
                stats.out_of_memory += 1
            return self._ladders[shape].out_of_memory(size)

    def _remember(self) -> None:
        """Keeps each settled ladder whose choice differs from what is kept already."""
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
        )


def _differs(new: Remembered, old: Remembered | None) -> bool:
    """Whether new sizes were measured or ruled out; a few per cent of other seconds are no news."""
    return old is None or new.limit != old.limit or set(new.seconds) != set(old.seconds)
