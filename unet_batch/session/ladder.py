"""The ladder: the allowed batch sizes of one input shape, their measured speed, and a cache of it on disk.

Sizes and seconds only; no arrays, no engine. The first real batches are the measurements.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unet_batch.session.machine import cache_folder

log = logging.getLogger(__name__)

TIMED_RUNS = 3
"""Timed runs after which a size counts as measured; its first run is not timed (plans, arena growth)."""
KEPT_RUNS = 9
"""Latest timed runs that are kept; the fastest counts, because other processes only slow a run down. On a busy machine,
medians of three runs chose sizes 1 and 8 for the same model (measured)."""
GAIN = 1.05
"""Smallest ratio of throughput by which a larger size must exceed the best smaller one to continue."""
PATIENCE = 3
"""Number of consecutive sizes without that gain that end the search; more than one, as curves may dip at 2 and 4."""
KNEE = 0.98
"""The chosen size is the smallest with this share of the best throughput. With GAIN and PATIENCE the result is within
3 % of the optimum for any curve n / (a + n)."""
CLEAN_RUNS = 200
"""Batches without an out-of-memory error after which a limit from an earlier process is tried again."""


def sizes_up_to(cap: int) -> tuple[int, ...]:
    """1, 2, 4, 8, …, and cap."""
    return (*(1 << n for n in range(cap.bit_length()) if 1 << n < cap), cap)


@dataclass(frozen=True, slots=True)
class Remembered:
    """The measurements of one ladder."""

    seconds: Mapping[int, float]
    """Measured batch size → seconds of the fastest batch."""
    limit: int | None = None
    """Largest size allowed after an out-of-memory error; None without one."""


class Ladder:
    """The allowed batch sizes of one input shape, measured on real batches. Not thread-safe: its Batcher locks."""

    def __init__(self, sizes: Sequence[int], remembered: Remembered | None = None) -> None:
        """sizes: ascending. remembered: measurements of an earlier run; discarded on an out-of-memory error."""
        self._sizes = tuple(sizes)
        self._seconds: dict[int, deque[float]] = {size: deque(maxlen=KEPT_RUNS) for size in sizes}
        self._warmed: set[int] = set()
        self._limit = math.inf
        self._from_memory = remembered is not None
        self._clean = 0
        if remembered is not None:
            self._limit = remembered.limit or math.inf
            for size in self._sizes:
                if size in remembered.seconds:
                    self._seconds[size].extend([remembered.seconds[size]] * TIMED_RUNS)

    @property
    def allowed(self) -> tuple[int, ...]:
        """Sizes that no out-of-memory error has excluded; never empty."""
        return tuple(s for s in self._sizes if s <= self._limit) or self._sizes[:1]

    @property
    def settled(self) -> bool:
        """Whether the search has ended."""
        return self._probing() is None

    def target(self) -> int:
        """The size of the next full batch: the size to measure next, else the best size."""
        return self._probing() or self._best()

    def fit(self, tiles: int) -> int:
        """The size of the next batch for this number of waiting tiles: full, else the largest that fits (17 → 16 + 1).

        Larger than `tiles` only if the ladder has a single size: a fixed batch axis, which is padded.
        """
        target = self.target()
        if tiles >= target:
            return target
        size = max((s for s in self.allowed if s <= tiles), default=self._sizes[0])
        return min(size, self._best()) if self._rate(size) else size

    def record(self, size: int, seconds: float) -> None:
        """Record the seconds of one batch."""
        self._clean += 1
        if size not in self._warmed:
            self._warmed.add(size)
        else:
            self._seconds[size].append(seconds)
        if self._from_memory and self._clean >= CLEAN_RUNS:
            self._from_memory = False
            self._limit = min((s for s in self._sizes if s > self._limit), default=math.inf)

    def out_of_memory(self, size: int) -> bool:
        """Record that a batch did not fit: half its size is the new limit. Returns False if no smaller size is left."""
        if self._from_memory:
            self._from_memory = False
            for seconds in self._seconds.values():
                seconds.clear()
        self._clean = 0
        self._limit = min(self._limit, max(size // 2, self._sizes[0]))
        return size > self._sizes[0]

    def snapshot(self) -> Remembered:
        """The measurements to store."""
        measured = {s: min(self._seconds[s]) for s in self.allowed if self._rate(s)}
        return Remembered(measured, None if math.isinf(self._limit) else int(self._limit))

    def _rate(self, size: int) -> float | None:
        """Tiles per second; None until measured."""
        seconds = self._seconds[size]
        return size / max(min(seconds), 1e-9) if len(seconds) >= TIMED_RUNS else None

    def _probing(self) -> int | None:
        """The size to measure next; None if the search has ended."""
        if len(self.allowed) == 1:
            return None
        top, without_gain = 0.0, 0
        for size in self.allowed:
            rate = self._rate(size)
            if rate is None:
                return size
            without_gain = 0 if rate > top * GAIN else without_gain + 1
            top = rate if without_gain == 0 else top
            if without_gain == PATIENCE:
                break
        return None

    def _best(self) -> int:
        """The smallest size with nearly the best throughput; the smallest size if none is measured yet."""
        rates = {size: rate for size in self.allowed if (rate := self._rate(size))}
        top = max(rates.values(), default=0.0)
        return next((size for size, rate in rates.items() if rate >= KNEE * top), self.allowed[0])


@dataclass(frozen=True, slots=True)
class LadderKey:
    """The conditions under which a ladder is valid."""

    model_sha256: str
    device_name: str
    provider: str
    precision: str
    height: int
    width: int
    dtype: str = "float32"
    """Of the tiles: a packed graph takes source pixels and has another speed."""
    threads: int = 1
    """Of the session; 1 on a GPU, where they have no effect."""
    passes: int = 1
    """Times that the session runs each tile (test-time augmentation)."""


class LadderMemory:
    """Ladders of earlier runs, one small JSON file each in a local cache folder. A lost file is measured again."""

    def __init__(self, precision: str, *, threads: int = 1, folder: Path | None = None) -> None:
        """precision: `model.precision` of the job. threads: of the session. folder: default
        `$XDG_CACHE_HOME/unet-batch/ladders`."""
        self.precision = precision
        self.threads = threads
        self._folder = folder or cache_folder("ladders")

    def recall(self, key: LadderKey) -> Remembered | None:
        """The measurements of an earlier run, or None. An unreadable file is ignored with a warning."""
        path = self._path(key)
        try:
            return _remembered(json.loads(path.read_bytes()), key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is ignored, and its batch sizes are measured again: %r", path, error)
            return None

    def keep(self, key: LadderKey, remembered: Remembered) -> None:
        """Write one ladder atomically. If the folder is not writable, log a warning."""
        tree = {"key": asdict(key), "limit": remembered.limit, "seconds": dict(remembered.seconds)}
        path = self._path(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(tree, file)
                os.replace(scratch, path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(scratch)
                raise
        except OSError as error:
            log.warning("%s cannot be written, so the next run measures again: %s", path, error)

    def _path(self, key: LadderKey) -> Path:
        text = json.dumps(asdict(key), sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _remembered(tree: Any, key: LadderKey) -> Remembered:
    """The measurements in a stored tree. Raises ValueError, KeyError, TypeError or AttributeError if it is invalid."""
    if tree["key"] != asdict(key):
        raise ValueError("it belongs to another key")
    limit = tree["limit"]
    seconds = {int(size): float(value) for size, value in tree["seconds"].items()}
    if not all(math.isfinite(value) and value > 0 for value in seconds.values()):
        raise ValueError("it holds impossible seconds")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"it holds the impossible limit {limit!r}")
    return Remembered(seconds, limit)
