"""The samples of one plane of a TIFF, decoded strip by strip and tile by tile within bounds known beforehand.

Knows tifffile's decoders of a segment and what a segment's own header claims. Knows no colour and no contract; `tiff`
gives the samples their meaning.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from unet_batch.archive.tiff_planes import Plane
from unet_batch.errors import ImageError, Reason

JPEG = (6, 7, 33007, 34892)
JPEG_2000 = (33003, 33004, 33005, 34712)
PNG, WEBP, LERC = (34933,), (34927, 50001), (34887,)
PLAIN = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000)
"""None, CCITT, LZW, Deflate, PackBits, LZMA and Zstandard: their output is bounded by the segment's size."""
READ = (*PLAIN, *JPEG, *JPEG_2000, *PNG, *WEBP, *LERC)
"""Compressions that are read. Those with a header of their own are asked for their size before they are decoded."""
_NO_SIZE = (0xD8, 0x01, *range(0xD0, 0xD8))  # JPEG markers without a length: SOI, TEM, RSTn
_NO_FRAME = (0xC4, 0xC8, 0xCC)  # DHT, JPG and DAC, between the markers of frames (ITU-T T.81, table B.1)


def samples_of(page: Any, plane: Plane, data: bytes, *, most_pixels: int) -> np.ndarray:
    """All samples of a plane as its file declares them: (H, W, samples), native byte order, not yet turned.

    page: tifffile.TiffPage. most_pixels: no strip or tile may be larger, whatever it claims itself.
    Raises ImageError where the file ends too early, or a segment is not what the directory says.
    """
    check_readable(page, most_pixels)
    if plane.stacked or (page.imagedepth > 1 and page.is_contiguous and page.compression == 1 and page.shaped[0] == 1):
        return _contiguous(page, plane, data)
    planes, _, height, width, samples = page.shaped
    out = np.full((planes, height, width, samples), page.nodata if _is_sparse(page) else 0, page.dtype)
    missing = planes * height * width
    for index, offset in enumerate(page.dataoffsets):
        _, (band, depth, top, left, _), shape = page.decode(None, index)
        if band >= planes or not depth <= plane.depth < depth + shape[0]:
            continue
        rows, columns = min(shape[1], height - top), min(shape[2], width - left)
        if rows <= 0 or columns <= 0:
            continue
        missing -= rows * columns
        piece = _piece(page, index, offset, shape, data)
        if piece is None:
            continue
        part = page.decode(piece, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
        if part.dtype != page.dtype:
            what = f"a strip or tile holds {part.dtype} samples, the TIFF says {page.dtype}"
            raise ImageError(Reason.DECODE_CORRUPT, what)
        out[band, top : top + rows, left : left + columns] = part[plane.depth - depth, :rows, :columns]
    if missing > 0:
        raise ImageError(Reason.DECODE_TRUNCATED, "strips or tiles of the TIFF page are missing")
    return np.moveaxis(out, 0, 2).reshape(height, width, planes * samples)


def check_readable(page: Any, most_pixels: int) -> None:
    """Raises ImageError, from the directory alone, for a page that is not read: its type, compression or segments."""
    if 0 in page.shaped:
        raise ImageError(Reason.DECODE_CORRUPT, "the TIFF page says no size")
    if page.compression not in READ:
        name = getattr(page.compression, "name", page.compression)
        what = f"the TIFF compression {name} is not read: save it with LZW, Deflate or none"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
    if page.dtype is None or page.dtype.kind not in "uifb" or (page.dtype.itemsize == 8 and page.dtype.kind != "f"):
        what = f"a TIFF page of {page.bitspersample} bits and sample format {int(page.sampleformat)}"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"{what} is not read: save it with 8 to 32 bits")
    if page.compression in JPEG and page.bitspersample != 8 and page.samplesperpixel > 1 and page.planarconfig == 1:
        # libjpeg's conversion of 12-bit colours is off by up to 1,600 of 4,095 levels (imagecodecs 2026.3)
        what = "a JPEG-compressed TIFF page of 12-bit colours is not read: save it with LZW, Deflate or none"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
    area = page.tilelength * page.tilewidth * max(page.tiledepth, 1) if page.is_tiled else 0
    if area > most_pixels:
        what = (
            f"tiles of {page.tilelength} × {page.tilewidth} pixels are more than limits.max_image_pixels: {most_pixels}"
        )
        raise ImageError(Reason.DECODE_TOO_MANY_PIXELS, what)


def _piece(page: Any, index: int, offset: int, shape: tuple[int, ...], data: bytes) -> bytes | None:
    """The encoded bytes of a segment; None where GDAL left it out because it holds nothing. Raises ImageError."""
    count = page.databytecounts[index] if index < len(page.databytecounts) else 0
    if page.compression == 1:  # counts of uncompressed strips are often wrong, and never needed
        bits = page.bitspersample if isinstance(page.bitspersample, int) else sum(page.bitspersample) // shape[3]
        needed = shape[0] * shape[1] * -(-shape[2] * shape[3] * bits // 8)
        count = needed if count else 0
    if not (offset and count):
        if _is_sparse(page):
            return None
        raise ImageError(Reason.DECODE_TRUNCATED, f"strip or tile {index} of the TIFF page has no bytes")
    if offset + count > len(data):
        raise ImageError(Reason.DECODE_TRUNCATED, "the TIFF page's strips or tiles end behind the file's end")
    piece = data[offset : offset + count]
    if page.compression not in PLAIN:
        _check_claim(page, piece, shape)
    return piece


def _is_sparse(page: Any) -> bool:
    """Whether tiles may be left out: GDAL's SPARSE_OK."""
    return bool(page.is_gdal or page.is_geotiff)


def _contiguous(page: Any, plane: Plane, data: bytes) -> np.ndarray:
    """One plane of a stack or volume whose uncompressed planes follow each other."""
    planes, depth, height, width, samples = page.shaped
    if page.bitspersample not in (8, 16, 32, 64) or page.fillorder != 1 or page.predictor != 1:
        what = f"a stack of {page.bitspersample}-bit planes with one directory is not read: save its planes as pages"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
    count = planes * height * width * samples
    one = count * page.dtype.itemsize
    begin = page.dataoffsets[0] + one * (plane.stacked * depth + plane.depth)
    if begin + one > len(data):
        raise ImageError(Reason.DECODE_TRUNCATED, "the file ends inside this plane")
    flat = np.frombuffer(data, page.dtype.newbyteorder(page.parent.byteorder), count, begin)
    image = np.moveaxis(flat.reshape(planes, height, width, samples), 0, 2)
    return image.reshape(height, width, planes * samples).astype(page.dtype)


# What a segment claims itself --------------------------------------------------------------------------------------


def _check_claim(page: Any, piece: bytes, shape: tuple[int, ...]) -> None:
    """Raises ImageError where a segment's own header claims more pixels than the directory has room for."""
    if page.compression in JPEG:
        size = _jpeg_size(page.jpegheader or piece)
    elif page.compression in JPEG_2000:
        size = _jpeg_2000_size(piece)
    elif page.compression in PNG:
        size = struct.unpack(">II", piece[16:24]) if len(piece) >= 24 else None
    elif page.compression in WEBP:
        size = _webp_size(piece)
    else:
        size = _lerc_size(piece)
    if size is None:
        raise ImageError(Reason.DECODE_CORRUPT, "a strip or tile of the TIFF page is not of the compression it claims")
    if size[0] * size[1] > 4 * shape[1] * shape[2]:  # writers pad tiles at the edge, never by so much
        what = f"a strip or tile claims {size[0]} × {size[1]} pixels where {shape[1]} × {shape[2]} have room"
        raise ImageError(Reason.DECODE_CORRUPT, what)


def _jpeg_size(piece: bytes) -> tuple[int, int] | None:
    """Rows and columns of the first frame header (ITU-T T.81, B.2.2)."""
    place = 0
    while place + 9 < len(piece):
        if piece[place] != 0xFF:
            place += 1
            continue
        marker = piece[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _NO_SIZE:
            place += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width = struct.unpack_from(">HH", piece, place + 5)
            return height, width
        else:
            place += 2 + struct.unpack_from(">H", piece, place + 2)[0]
    return None


def _jpeg_2000_size(piece: bytes) -> tuple[int, int] | None:
    """Rows and columns of the SIZ marker (ITU-T T.800, A.5.1)."""
    place = piece.find(b"\xff\x4f\xff\x51")
    if place < 0 or place + 24 > len(piece):
        return None
    width, height, left, top = struct.unpack_from(">IIII", piece, place + 8)
    return max(height - top, 0), max(width - left, 0)


def _webp_size(piece: bytes) -> tuple[int, int] | None:
    """Rows and columns of the first chunk (WebP container specification)."""
    if piece[:4] != b"RIFF" or piece[8:12] != b"WEBP" or len(piece) < 30:
        return None
    kind, body = piece[12:16], piece[20:]
    if kind == b"VP8X":
        return int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", body, 6)
    return height & 0x3FFF, width & 0x3FFF


def _lerc_size(piece: bytes) -> tuple[int, int] | None:
    """Rows and columns of a Lerc2 header (Esri's lerc, Lerc2.h: key, version, checksum from version 3, size)."""
    if piece[:6] != b"Lerc2 " or len(piece) < 22:
        return None
    version = struct.unpack_from("<i", piece, 6)[0]
    height, width = struct.unpack_from("<ii", piece, 14 if version >= 3 else 10)
    return height, width
