"""A unit between the stages: one row, with all images in one buffer in their source dtype.

Between processes it is an Arrow table of one row, whose pixels are read as a view, without a copy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from unet_batch.errors import ImageError, Reason
from unet_batch.imaging.preprocess import Geometry
from unet_batch.records import Unit

ALIGNMENT = 64
"""Every image starts at a multiple of this, so that its bytes can be viewed as any dtype."""


DIM = 0.05
"""Share of the declared range below which an image counts as dim: 8-bit values in a 16-bit file use 0.004 of it,
10-bit values 0.016, 12-bit values 0.06."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One page of a loaded unit: the place of its pixels in `Loaded.pixels`, or its rejection."""

    source: int
    """Position of its source in the unit."""
    page: int
    """Number of the page in its source, from 0."""
    pages: int
    """Number of pages of its source."""
    height: int
    """Rows of the oriented source image; 0 if unknown."""
    width: int
    """Columns of the oriented source image; 0 if unknown."""
    dtype: str = ""
    """NumPy's type string of the pixels, with byte order, e.g. `|u1`, `<u2`, `<f4`; empty for a rejection."""
    shape: tuple[int, ...] = ()
    """(H, W, C) of the fitted image, without padding; () for a rejection."""
    offset: int = 0
    """First byte of the pixels in `Loaded.pixels`, a multiple of ALIGNMENT."""
    geometry: Geometry | None = None
    """From the source image to the fitted one; None for a rejection."""
    largest: float | None = None
    """Largest value of the source's declared depth, as `Page.largest`."""
    range_used: float | None = None
    """Largest value of the image as a share of the normalisation's divisor; None if nothing is divided."""
    reason: str | None = None
    """Reason of the rejection; None for a page with pixels."""
    message: str = ""
    """Message of the rejection."""

    @property
    def is_dim(self) -> bool:
        """Whether the image uses so little of its range that the range may be wrong; black images do not count."""
        return self.range_used is not None and 0 < self.range_used < DIM

    @property
    def error(self) -> ImageError | None:
        """The rejection of a page without pixels, else None."""
        return None if self.reason is None else ImageError(Reason(self.reason), self.message)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A unit between the stages."""

    unit: Unit
    entries: tuple[Entry, ...]
    pixels: np.ndarray
    """uint8, one axis: the bytes of all fitted images, one after the other."""
    read_bytes: int = 0
    read_s: float = 0.0
    decode_s: float = 0.0
    failure: tuple[str, str] | None = None
    """Code and message if the unit as a whole could not be loaded."""


class PixelBuffer:
    """Collects the fitted images of one unit and joins them into one aligned buffer."""

    def __init__(self) -> None:
        self._pictures: list[tuple[int, np.ndarray]] = []
        self.size = 0

    def add(self, picture: np.ndarray) -> int:
        offset = self.size
        self._pictures.append((offset, picture))
        self.size = -(-(offset + picture.nbytes) // ALIGNMENT) * ALIGNMENT
        return offset

    def joined(self) -> np.ndarray:
        buffer = np.empty(self.size, np.uint8)
        for offset, picture in self._pictures:
            buffer[offset : offset + picture.nbytes] = np.ascontiguousarray(picture).view(np.uint8).ravel()
        return buffer


def to_arrow(loaded: Loaded) -> pa.Table:
    """The loaded unit as a table of one row with one buffer of pixels; no copy, and no Ray tensor type."""
    header = {
        "entries": [asdict(e) for e in loaded.entries],
        "read_bytes": loaded.read_bytes,
        "read_s": loaded.read_s,
        "decode_s": loaded.decode_s,
        "failure": loaded.failure,
    }
    offsets = np.array([0, loaded.pixels.nbytes], np.int64)
    pixels = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(loaded.pixels)]
    )
    return pa.table(
        {
            "unit": pa.array([loaded.unit.to_json()], pa.large_binary()),
            "header": pa.array([json.dumps(header).encode()], pa.large_binary()),
            "pixels": pixels,
        }
    )


def from_arrow(table: pa.Table) -> Loaded:
    """The loaded unit of a table of one row; its pixels are a read-only view into Arrow's buffer."""
    header = json.loads(table.column("header")[0].as_py())
    for entry in header["entries"]:
        entry["shape"] = tuple(entry["shape"])
        if entry["geometry"] is not None:
            fields: dict[str, Any] = entry["geometry"]
            pairs: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            entry["geometry"] = Geometry(**pairs)
    column = table.column("pixels").chunk(0)
    _, offsets, values = column.buffers()
    begin, end = np.frombuffer(offsets, np.int64)[column.offset : column.offset + 2]
    pixels = np.frombuffer(values, np.uint8)[begin:end] if values is not None else np.empty(0, np.uint8)
    return Loaded(
        unit=Unit.from_json(table.column("unit")[0].as_py()),
        entries=tuple(Entry(**e) for e in header["entries"]),
        pixels=pixels,
        read_bytes=header["read_bytes"],
        read_s=header["read_s"],
        decode_s=header["decode_s"],
        failure=tuple(header["failure"]) if header["failure"] else None,
    )


def pixels_of(loaded: Loaded, entry: Entry) -> np.ndarray:
    """The entry's fitted image, (H, W, C), as a view."""
    dtype = np.dtype(entry.dtype)
    count = int(np.prod(entry.shape)) * dtype.itemsize
    return loaded.pixels[entry.offset : entry.offset + count].view(dtype).reshape(entry.shape)
