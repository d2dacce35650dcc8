"""Ordinary JPEGs at full size through imagecodecs, which writes their samples where they are used.

Pillow and imagecodecs both contain libjpeg-turbo; Pillow keeps four bytes for each pixel and packs them again. Only
where both give the same pixels: 8-bit gray and colour, sequential or progressive, with all of its segments up to the
end of the file. Everything else is left to Pillow, which knows what is missing.
"""

from __future__ import annotations

import re

import numpy as np

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker after entropy-coded data: no stuffed byte, no restart, no fill byte (ITU-T T.81, B.1.1)."""
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended sequential and progressive, with Huffman coding (table B.1)."""
_SEGMENTS = (0xC4, 0xDA, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))
"""DHT, SOS, DQT, DRI, COM and the application segments."""
_START, _SCAN = b"\xff\xd8", 0xDA


def plain_samples(data: bytes, size_hw: tuple[int, int], samples: int) -> np.ndarray | None:
    """uint8 (H, W, samples) of an ordinary JPEG; None if Pillow must decide.

    size_hw, samples: as stored, by Pillow, which has opened the file.
    """
    if not _is_whole(data):
        return None
    import imagecodecs  # imported late: as in `png`

    try:
        decoded = np.asarray(imagecodecs.jpeg8_decode(data))
    except Exception:  # noqa: BLE001 - any error: Pillow decides, and names the fault
        return None
    decoded = decoded[..., None] if decoded.ndim == 2 else decoded
    return decoded if decoded.shape == (*size_hw, samples) and decoded.dtype == np.uint8 else None


def _is_whole(data: bytes) -> bool:
    """Whether the file is one frame whose segments follow each other up to an end marker in its last two bytes."""
    if not data.startswith(_START):
        return False
    place, frames = 2, 0
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return False
        marker = data[place + 1]
        if marker in _FRAMES:
            frames += 1
        elif marker not in _SEGMENTS:
            return False
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if length < 2:
            return False
        place += 2 + length
        if marker == _SCAN:
            found = _MARKER.search(data, place)
            if found is None:
                return False
            place = found.start()
        if place + 2 == len(data) and data[place:] == b"\xff\xd9":
            return frames == 1
    return False
