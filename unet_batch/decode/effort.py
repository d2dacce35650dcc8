"""Limits for decoding one image, from its encoded bytes and the pixels in its header: seconds and address space.

Pure functions; nothing is opened. The limits are far above the needs of any allowed format: an image that decodes
without isolation must also decode in isolation, even on a busy machine.
"""

from __future__ import annotations

import struct

from unet_batch.contract import ModelInput
from unet_batch.spec import LimitsSpec

SECONDS_PER_PIXEL = 2e-6
"""Processor time. JPEG and PNG take 10 to 30 ns per pixel, JPEG 2000 and LZMA a few hundred (measured)."""
SECONDS_PER_BYTE = 1e-6
"""Processor time per encoded byte: a hundredth of zlib's speed."""
COPIES = 4
"""Copies of all samples in float32 that one decode may hold: decoded, converted, oriented, sent."""

_SIZED_LATER = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF", b"\x93NUMPY", b"\xff\xd8\xff", b"BM")
"""First bytes of formats without a size at a fixed place. Their size counts as the largest that the job allows."""


def header_pixels(data: bytes, limits: LimitsSpec) -> int:
    """Pixels according to the header, at most limits.max_image_pixels; 0 for bytes that are not an image."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        columns, rows = struct.unpack(">II", data[16:24])
        return int(min(rows * columns, limits.max_image_pixels))
    if data[:4] == b"GIF8" and len(data) >= 10:
        columns, rows = struct.unpack("<HH", data[6:10])
        return int(min(rows * columns, limits.max_image_pixels))
    if data.startswith(_SIZED_LATER):
        return limits.max_image_pixels
    return 0


def processor_s(data: bytes, limits: LimitsSpec) -> float:
    """Seconds of processor time that one page may take."""
    work_s = len(data) * SECONDS_PER_BYTE + header_pixels(data, limits) * SECONDS_PER_PIXEL
    return limits.image_timeout_s + work_s


def pixels_s(pixels: int) -> float:
    """Seconds that one pass over this number of pixels may take on a busy machine."""
    return pixels * SECONDS_PER_PIXEL


def address_space_bytes(data: bytes, spec: ModelInput, limits: LimitsSpec) -> int:
    """Address space that a decode may take: limits.decode_memory_bytes, or more if its size needs more."""
    samples = max(4, spec.channels)
    return max(limits.decode_memory_bytes, header_pixels(data, limits) * samples * 4 * COPIES + 4 * len(data))
