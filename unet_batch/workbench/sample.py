"""Tiles of real images from a job's archive, to calibrate, tune and compare models.

Reads, decodes, fits and normalises as in a run. Changes nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.archive.window import Window
from unet_batch.errors import JobError, UnetBatchError
from unet_batch.planning.plan import plan_partition, units
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.survey import archive_partitions
from unet_batch.records import Unit
from unet_batch.worker.load import Load
from unet_batch.worker.tiles import spread_tiles


@dataclass(frozen=True, slots=True)
class Sample:
    """Tiles of one size, and their places."""

    tiles_nhwc: NDArray[Any]
    """(N, H, W, C) of the contract's dtype, normalised."""
    places: tuple[str, ...]
    """For each tile: the image's key, and top and left in pixels of the fitted image."""


def archive_tiles(prepared: Prepared, window: Window, count: int, *, largest_side: int | None = None) -> Sample:
    """Up to `count` tiles from images spread evenly over a window.

    Images are chosen at equal distances in the order of their keys. Each gives its middle tile, or several tiles at
    equal distances if there are fewer images than `count`. Unreadable images are replaced by others. If tiles have
    several sizes (a model that takes any), those of the most frequent size are returned; if these are fewer than half,
    tiles are cropped to one size. largest_side: of a tile of such a model, in pixels; None: the whole image.
    Raises JobError if count is below 1 or no image could be read, and UnetBatchError if the store fails.
    """
    if count < 1:
        raise JobError(f"a sample of {count} tiles is empty: use 1 or more")
    singles = spread_units(prepared, window, count)
    load = Load(prepared.job, prepared.model)
    found: list[tuple[str, NDArray[Any]]] = []
    for single in singles:
        loaded = load(single)
        if loaded.failure is not None:
            raise UnetBatchError(f"{single.sources[0].key} cannot be read: {loaded.failure[1]}")
        for key, box, tile in spread_tiles(
            loaded,
            prepared.model,
            prepared.job.tiling,
            most=-(-count // len(singles)),
            largest_side=largest_side,
        ):
            found.append((f"{key} at {box.top},{box.left}", tile))
        if len(found) >= count:
            break
    if not found:
        raise JobError(
            f"none of {len(singles)} images of {prepared.job.input.uri} in this window could be read: write another "
            "--window"
        )
    kept = _of_one_size(found)[:count]
    return Sample(np.stack([tile for _, tile in kept]), tuple(place for place, _ in kept))


def _of_one_size(found: list[tuple[str, NDArray[Any]]]) -> list[tuple[str, NDArray[Any]]]:
    """The tiles of the most frequent size, or, if these are fewer than half, the large ones cropped to one size.

    Three quarters of the tiles are as high as the crop, and three quarters as wide.
    """
    common, times = Counter(tile.shape for _, tile in found).most_common(1)[0]
    if 2 * times >= len(found):
        return [(place, tile) for place, tile in found if tile.shape == common]
    height, width = (sorted(tile.shape[axis] for _, tile in found)[len(found) // 4] for axis in (0, 1))
    large = [(place, tile) for place, tile in found if tile.shape[0] >= height and tile.shape[1] >= width]
    return [(place, tile[:height, :width]) for place, tile in large]


def spread_units(prepared: Prepared, window: Window, count: int) -> list[Unit]:
    """Every image of a window as its own unit: first `count` at equal distances, then the others."""
    every: list[Unit] = []
    for partition, sources in archive_partitions(prepared, window, keep=False).partitions.items():
        plan = plan_partition(
            partition, sources, fingerprint=prepared.fingerprint, published=None, done=frozenset(), parts=()
        )
        for unit in units(plan, prepared.job, prepared.fingerprint, workers=1):
            every += [replace(unit, sources=(source,)) for source in unit.sources if source.problem is None]
    every.sort(key=lambda unit: unit.sources[0].key)
    first = sorted({n * len(every) // count for n in range(count)}) if every else []
    return [every[n] for n in (*first, *sorted(set(range(len(every))) - set(first)))]
