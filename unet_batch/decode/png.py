"""PNGs through imagecodecs: 16 bits, which Pillow cannot keep, and ordinary 8-bit files, in less time than Pillow.

8-bit files are decoded by libspng only where both give the same pixels. Everything else is left to Pillow: palettes, 1
to 4 bits, interlaced files, transparent colours, animations, chunks behind the pixels, and what libspng refuses.
"""

from __future__ import annotations

import struct

import numpy as np

_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_HEADER_BYTES = 33
"""Signature and IHDR with its checksum (PNG specification, 5.2 and 11.2.1)."""
_END = b"\0\0\0\0IEND\xaeB`\x82"
_COLORS = (0, 2, 6)
"""Color types gray, RGB, and RGB with alpha. libspng does not return gray with alpha (4) in 8 bits."""
_LEFT_TO_PILLOW = (b"tRNS", b"acTL", b"fcTL", b"fdAT", b"CgBI")


def deep_samples(data: bytes) -> np.ndarray:
    """uint16 (H, W, samples) of a PNG of 16 bits, by libpng."""
    import imagecodecs  # imported late: few archives hold such files

    return np.atleast_3d(imagecodecs.png_decode(data))


def plain_samples(data: bytes) -> np.ndarray | None:
    """uint8 (H, W, 1, 3 or 4) of an ordinary PNG; None if Pillow must decide.

    data: of a file that Pillow has opened, so that its header and the chunks before the pixels are valid.
    """
    plain = _plain(data)
    if plain is None:
        return None
    import imagecodecs  # imported late: few archives hold PNGs

    try:
        samples = imagecodecs.spng_decode(plain)
    except Exception:  # noqa: BLE001 - any error: Pillow decides, and names the fault
        return None
    return np.asarray(samples)[..., None] if samples.ndim == 2 else np.asarray(samples)


def _plain(data: bytes) -> bytes | None:
    """The file with its header and pixels alone: no other chunk reaches the decoder."""
    if len(data) < _HEADER_BYTES or not data.startswith(_HEADER):
        return None
    depth, color, *methods = data[24:29]
    if depth != 8 or color not in _COLORS or any(methods):  # a method that is not 0: interlaced, or unknown
        return None
    place, pixels = _HEADER_BYTES, 0
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            return data[:_HEADER_BYTES] + data[pixels:place] + _END if pixels else None
        if kind == b"IDAT":
            pixels = pixels or place
        elif pixels or kind in _LEFT_TO_PILLOW:
            return None
        place += 12 + length
    return None
