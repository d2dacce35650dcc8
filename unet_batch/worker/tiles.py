"""From a page of a loaded unit to its tiles: normalised and padded pixels, and the boxes of the tiles.

Scoring, the gate and samples all use it, so they get the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from unet_batch.contract import ModelInput
from unet_batch.errors import ImageError, Reason
from unet_batch.imaging.preprocess import Geometry, normalize
from unet_batch.imaging.tiling import Box, Halo, grid
from unet_batch.model.model import Model
from unet_batch.records import image_key
from unet_batch.spec import TilingSpec
from unet_batch.worker.loaded import Entry, Loaded, pixels_of


@dataclass(frozen=True, slots=True)
class ModelImage:
    """A page as input of the model."""

    pixels_hwc: NDArray[Any]
    """(H, W, C) of the contract's dtype, normalised, padded to the fitted size and with its border."""
    output_hw: tuple[int, int]
    """Size of a tile without its halo."""
    halo: Halo
    boxes: tuple[Box, ...]
    """Places of the outputs of its tiles, in pixels of the fitted size, row by row."""

    def tile(self, box: Box) -> NDArray[Any]:
        """The pixels of a tile with its halo, (H, W, C), a view."""
        pixels_hwc: NDArray[Any] = self.pixels_hwc[box.with_border(self.halo.margin)]
        return pixels_hwc


def picture(
    loaded: Loaded, entry: Entry, geometry: Geometry, model: Model, tiling: TilingSpec, *, largest_side: int | None
) -> ModelImage:
    """Normalise a page and compute its grid of tiles.

    geometry: of the entry. largest_side: in pixels, of a tile of a model that takes any size; None: the whole image is
    one tile. Raises ImageError if the pixels do not fit into the contract's dtype, and MemoryError.
    """
    spec, margin = model.contract.input, geometry.margin
    tile_hw = model.tile_hw or _tile_of_any_size(geometry.padded_hw, spec, margin, largest_side)
    output_hw, halo = (tile_hw[0] - 2 * margin, tile_hw[1] - 2 * margin), Halo(margin, spec.multiple)
    if model.contract.output.classifies and geometry.padded_hw != tile_hw:
        (height, width), (most_h, most_w) = geometry.padded_hw, tile_hw
        message = (
            f"the picture is {height} x {width} for a classifier that takes {most_h} x {most_w}: it scores whole "
            "images, so write input.fit: stretch or letterbox"
        )
        raise ImageError(Reason.IMAGE_SIZE_MISMATCH, message)
    boxes = grid(geometry.fitted_hw, output_hw, tiling.overlap, tiling.placement, halo)
    pixels_hwc = normalize(pixels_of(loaded, entry), geometry, spec, largest=entry.largest)
    return ModelImage(pixels_hwc, output_hw, halo, tuple(boxes))


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
            yield key, box, found.tile(box)


def _tile_of_any_size(
    padded_hw: tuple[int, int], spec: ModelInput, margin: int, largest_side: int | None
) -> tuple[int, int]:
    """The size of the whole image with its border, or at most largest_side."""
    if largest_side is None:
        return padded_hw
    most = max(spec.side(largest_side - spec.multiple + 1), spec.side(2 * margin + 1))
    return min(padded_hw[0], most), min(padded_hw[1], most)
