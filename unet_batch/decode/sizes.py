"""Sizes, without decoding: of a compressed picture by its header, for files and for the strips of a TIFF; and of a JPEG
that `input.reduced_jpeg` decodes at 1/2, 1/4 or 1/8.
"""

from __future__ import annotations

import math
import struct

from unet_batch.contract import ModelInput

_NO_SIZE = (0xD8, 0x01, *range(0xD0, 0xD8))  # JPEG markers without a length: SOI, TEM, RSTn
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # DHT, JPG and DAC, between the markers of frames (ITU-T T.81, table B.1)


def size_of(name: str, data: bytes) -> tuple[int, int] | None:
    """Rows and columns by the header of a picture; None if the header is not of this format.

    name: JPEG, JPEG2000, PNG, WEBP, LERC, GIF or BMP.
    """
    reader = {
        "JPEG": _jpeg,
        "JPEG2000": _jpeg_2000,
        "PNG": _png,
        "WEBP": _webp,
        "LERC": _lerc,
        "GIF": _gif,
        "BMP": _bmp,
    }
    try:
        return reader[name](data)
    except struct.error:
        return None


def _png(data: bytes) -> tuple[int, int] | None:
    """The IHDR chunk (PNG specification, 11.2.1)."""
    width, height = struct.unpack_from(">II", data, 16)
    return (height, width) if data[12:16] == b"IHDR" else None


def _gif(data: bytes) -> tuple[int, int]:
    """The logical screen (GIF89a, 18)."""
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width


def _bmp(data: bytes) -> tuple[int, int]:
    """BITMAPINFOHEADER; a negative height means top-down rows. The older header has 16 bits each."""
    if data[14:18] == b"\x0c\0\0\0":
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(height), abs(width)


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of the first frame header (ITU-T T.81, B.2.2)."""
    place = 0
    while place + 9 < len(data):
        if data[place] != 0xFF:
            place += 1
            continue
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _NO_SIZE:
            place += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return height, width
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None


def _jpeg_2000(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of the SIZ marker (ITU-T T.800, A.5.1)."""
    place = data.find(b"\xff\x4f\xff\x51")
    if place < 0 or place + 24 > len(data):
        return None
    width, height, left, top = struct.unpack_from(">IIII", data, place + 8)
    return max(height - top, 0), max(width - left, 0)


def _webp(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of the first chunk (WebP container specification)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind, body = data[12:16], data[20:]
    if kind == b"VP8X":
        return int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", body, 6)
    return height & 0x3FFF, width & 0x3FFF


def _lerc(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of a Lerc2 header (Esri's lerc, Lerc2.h: key, version, checksum from version 3, size)."""
    if data[:6] != b"Lerc2 " or len(data) < 22:
        return None
    version = struct.unpack_from("<i", data, 6)[0]
    height, width = struct.unpack_from("<ii", data, 14 if version >= 3 else 10)
    return height, width


# JPEGs at a part of their size ------------------------------------------------------------------------------------


def reduced_size(size: tuple[int, int], spec: ModelInput, *, turned: bool) -> tuple[int, int] | None:
    """Smallest (columns, rows) of a reduced JPEG, as stored; None if it may not be reduced.

    size: rows and columns after orientation. turned: whether the orientation swaps the axes.
    """
    if spec.height is None or spec.width is None or spec.fit not in ("stretch", "letterbox"):
        return None
    rows, columns = spec.height, spec.width
    if spec.fit == "letterbox":
        scale = min(rows / size[0], columns / size[1])
        rows, columns = math.ceil(size[0] * scale), math.ceil(size[1] * scale)
    return (rows, columns) if turned else (columns, rows)


def about_reduced_jpeg(spec: ModelInput) -> str | None:
    """What `reduced_jpeg` does with this contract, as a sentence; None if it is off."""
    if not spec.reduced_jpeg:
        return None
    if spec.fit not in ("stretch", "letterbox"):
        return f"input.reduced_jpeg has no effect, because fit {spec.fit} does not resize"
    return "input.reduced_jpeg: JPEGs of at least twice the model's size are decoded at a part of their size"
