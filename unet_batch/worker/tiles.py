"""From a page of a loaded unit to its tiles: normalised and padded pixels, and the boxes of the tiles.

Scoring, the gate and samples all use it, so they get the same values.
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
class ModelImage:
    """A page as input of the model."""

    pixels_hwc: NDArray[Any]
    """(H, W, C) of the contract's dtype, normalised and padded to the fitted size."""
    tile_hw: tuple[int, int]
    boxes: tuple[Box, ...]
    """Places of its tiles, in pixels of the fitted size, row by row."""


def picture(
    loaded: Loaded, entry: Entry, geometry: Geometry, model: Model, tiling: TilingSpec, *, largest_side: int | None
) -> ModelImage:
    """Normalise a page and compute its grid of tiles.

    geometry: of the entry. largest_side: in pixels, of a tile of a model that takes any size; None: the whole image is
    one tile. Raises ImageError if the pixels do not fit into the contract's dtype, and MemoryError.
    """
    tile_hw = model.tile_hw or _tile_of_any_size(geometry.fitted_hw, model.contract.input.multiple, largest_side)
    boxes = grid(geometry.fitted_hw, tile_hw, tiling.overlap, tiling.placement)
    pixels_hwc = normalize(pixels_of(loaded, entry), geometry, model.contract.input, largest=entry.largest)
    return ModelImage(pixels_hwc, tile_hw, tuple(boxes))


def spread_tiles(
    loaded: Loaded, model: Model, tiling: TilingSpec, *, most: int, largest_side: int | None = None
) -> Iterator[tuple[str, Box, NDArray[Any]]]:
    """Key, box and pixels (H, W, C) of at most `most` tiles of every readable page.

    The tiles of a page are at equal distances in the order of its grid; a single tile is the middle one.
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
    """The size of the whole image, or at most largest_side."""
    if largest_side is None:
        return fitted_hw
    most = max(largest_side // multiple, 1) * multiple
    return min(fitted_hw[0], most), min(fitted_hw[1], most)
