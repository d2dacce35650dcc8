"""From a page of a loaded unit to its tiles: pixels, normalised and padded, and the boxes that are cut from them.

One way for scoring, for the gate and for samples, so that all of them see the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from unet_batch.errors import ImageError
from unet_batch.imaging.preprocess import Geometry, normalize
from unet_batch.imaging.tiling import Box, grid
from unet_batch.model.model import Model
from unet_batch.records import image_key
from unet_batch.spec import TilingSpec
from unet_batch.worker.loaded import Entry, Loaded, pixels_of


@dataclass(frozen=True, slots=True)
class Picture:
    """A page as the model is fed with it."""

    pixels_hwc: NDArray[Any]
    """(H, W, C) of the contract's dtype, normalised and padded to the fitted size."""
    tile_hw: tuple[int, int]
    boxes: tuple[Box, ...]
    """Where its tiles lie, in pixels of the fitted size, row by row."""


def picture(
    loaded: Loaded, entry: Entry, geometry: Geometry, model: Model, tiling: TilingSpec, *, largest_side: int | None
) -> Picture:
    """Normalises a page and lays the grid of tiles over it.

    geometry: of the entry. largest_side: in pixels, of a tile of a model that takes any size; None: the whole picture
    is one tile. Raises ImageError where the pixels do not fit into the contract's dtype, and MemoryError.
    """
    tile_hw = model.tile_hw or _tile_of_any_size(geometry.fitted_hw, model.contract.input.multiple, largest_side)
    boxes = grid(geometry.fitted_hw, tile_hw, tiling.overlap)
    pixels_hwc = normalize(pixels_of(loaded, entry), geometry, model.contract.input, largest=entry.largest)
    return Picture(pixels_hwc, tile_hw, tuple(boxes))


def spread_tiles(
    loaded: Loaded, model: Model, tiling: TilingSpec, *, most: int, largest_side: int | None = None
) -> Iterator[tuple[str, Box, NDArray[Any]]]:
    """The key, the box and the pixels, (H, W, C), of at most `most` tiles of every page that can be read.

    The tiles of a page lie at equal distances in the order of its grid; a single one is the middle one.
    """
    for entry in loaded.entries:
        if entry.geometry is None:
            continue
        try:
            found = picture(loaded, entry, entry.geometry, model, tiling, largest_side=largest_side)
        except ImageError:
            continue
        key = image_key(loaded.unit.sources[entry.source].key, entry.page)
        wanted = min(most, len(found.boxes))
        for n in range(wanted):
            box = found.boxes[(2 * n + 1) * len(found.boxes) // (2 * wanted)]
            yield key, box, found.pixels_hwc[box.slices]


def _tile_of_any_size(fitted_hw: tuple[int, int], multiple: int, largest_side: int | None) -> tuple[int, int]:
    """The whole picture, or a part of it that every machine has room for."""
    if largest_side is None:
        return fitted_hw
    most = max(largest_side // multiple, 1) * multiple
    return min(fitted_hw[0], most), min(fitted_hw[1], most)
