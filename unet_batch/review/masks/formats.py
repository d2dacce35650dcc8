"""One image's masks as the bytes of a file: indexed PNG, TIFF, overlay, GeoJSON.

Pure functions of a row's masks (and, for an overlay, its image). COCO JSON is one file for many images: `coco.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.imaging.contours import Polygon, Ring, polygons
from unet_batch.imaging.encode import encode_indexed_png, encode_jpeg, encode_png, encode_tiff
from unet_batch.imaging.overlay import displayed, full_size, label_color
from unet_batch.review.masks.rows import Labels, Masked
from unet_batch.table.mask_files import SUFFIXES

OVERLAY_QUALITY = 92


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format with one file for each image."""

    extension: str
    encode: Callable[[Masked, NDArray[Any] | None, str], bytes]
    """Takes the masks, the image where the format needs one (as `originals` gives it), and the contract's `color`."""
    needs_image: bool = False
    one_class_per_pixel: bool = False
    """Whether it keeps one of the classes that overlap in a pixel."""


def palette(labels: Labels) -> list[tuple[int, int, int]]:
    """The colour of each pixel value from 0 to 255; the background is black."""
    return [(0, 0, 0) if value == labels.background else label_color(value) for value in range(256)]


def as_png(image: Masked, _original: NDArray[Any] | None, _color: str) -> bytes:
    """A label map whose pixel values are classes, with a palette; without one where values go beyond 255."""
    labels_hw, _ = image.label_map()
    return (
        encode_indexed_png(labels_hw, palette(image.labels)) if labels_hw.dtype == np.uint8 else encode_png(labels_hw)
    )


def as_tiff(image: Masked, _original: NDArray[Any] | None, _color: str) -> bytes:
    """A label map whose pixel values are classes; ImageJ shows the last class as white."""
    return encode_tiff(image.label_map()[0], max((*image.labels.names, 1)))


def as_overlay(image: Masked, original: NDArray[Any] | None, color: str) -> bytes:
    """The image at its own size with its masks filled and outlined, as JPEG."""
    if original is None:
        raise ValueError("an overlay needs its image")
    drawn = [(mask.pixels_hw, label_color(mask.value)) for mask in image.masks]
    return encode_jpeg(full_size(displayed(original, color), drawn), OVERLAY_QUALITY)


def as_geojson(image: Masked, _original: NDArray[Any] | None, _color: str) -> bytes:
    """A FeatureCollection as QuPath reads it: one annotation for each connected region, with its class.

    Coordinates are pixels of the source image, x to the right and y down, with vertices at the corners of pixels.
    """
    scale = image.row["width"] / image.size_hw[1], image.row["height"] / image.size_hw[0]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": _coordinates(polygon, scale)},
            "properties": {
                "objectType": "annotation",
                "classification": {"name": mask.name, "color": list(label_color(mask.value))},
            },
        }
        for mask in image.masks
        for polygon in polygons(mask.pixels_hw)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")).encode()


FORMATS = {
    "png": FileFormat(SUFFIXES["png"], as_png, one_class_per_pixel=True),
    "overlay": FileFormat(SUFFIXES["overlay"], as_overlay, needs_image=True),
    "geojson": FileFormat(SUFFIXES["geojson"], as_geojson),
    "tiff": FileFormat(SUFFIXES["tiff"], as_tiff, one_class_per_pixel=True),
}
"""By the name that `--to` has."""


def _coordinates(polygon: Polygon, scale: tuple[float, float]) -> list[list[list[float]]]:
    return [_closed(ring, scale) for ring in (polygon.outside, *polygon.holes)]


def _closed(ring: Ring, scale: tuple[float, float]) -> list[list[float]]:
    points: list[list[float]] = (ring if scale == (1, 1) else ring * np.array(scale)).tolist()
    return [*points, points[0]]
