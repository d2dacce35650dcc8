"""The samples of one plane of a TIFF, decoded by strip or tile (segment), within limits that are checked first.

Uses tifffile's segment decoders and checks the sizes in the segments' headers. `tiff` interprets the samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unet_batch.decode.sizes import size_of
from unet_batch.decode.tiff_planes import Plane
from unet_batch.errors import ImageError, Reason

JPEG = (6, 7, 33007, 34892)
JPEG_2000 = (33003, 33004, 33005, 34712)
PNG, WEBP, LERC = (34933,), (34927, 50001), (34887,)
PLAIN = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000)
"""None, CCITT, LZW, Deflate, PackBits, LZMA and Zstandard: the segment's size limits their output."""
HEADERS = {"JPEG": JPEG, "JPEG2000": JPEG_2000, "PNG": PNG, "WEBP": WEBP, "LERC": LERC}
READ = (*PLAIN, *(code for codes in HEADERS.values() for code in codes))
"""Compressions that are read. For those with headers, the size in the header is checked before decoding."""
GDAL_NODATA = 42113


def samples_of(page: Any, plane: Plane, data: bytes, *, most_pixels: int) -> np.ndarray:
    """All samples of a plane in the file's dtype: (H, W, samples), native byte order, not oriented.

    page: tifffile.TiffPage. most_pixels: limit for every strip or tile.
    Raises ImageError if the file ends too early, or a segment does not match its directory.
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
        if page.dtype == np.bool_ and part.dtype == np.uint8:  # CCITT
            part = part.astype(np.bool_)
        if part.dtype != page.dtype:
            what = f"a strip or tile holds {part.dtype} samples, the TIFF says {page.dtype}"
            raise ImageError(Reason.DECODE_CORRUPT, what)
        out[band, top : top + rows, left : left + columns] = part[plane.depth - depth, :rows, :columns]
    if missing > 0:
        raise ImageError(Reason.DECODE_TRUNCATED, "strips or tiles of the TIFF page are missing")
    return np.moveaxis(out, 0, 2).reshape(height, width, planes * samples)


def check_readable(page: Any, most_pixels: int) -> None:
    """Raise ImageError for a page whose type, compression or segments are not supported; reads only the directory."""
    if 0 in page.shaped:
        raise ImageError(Reason.DECODE_CORRUPT, "the TIFF page has no size")
    if page.compression not in READ:
        name = getattr(page.compression, "name", page.compression)
        what = f"the TIFF compression {name} is not read: save it with LZW, Deflate or none"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
    if page.dtype is None or page.dtype.kind not in "uifb" or (page.dtype.itemsize == 8 and page.dtype.kind != "f"):
        what = f"a TIFF page of {page.bitspersample} bits and sample format {int(page.sampleformat)}"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, f"{what} is not read: save it with 8 to 32 bits")
    if page.compression in JPEG and page.bitspersample != 8 and page.samplesperpixel > 1 and page.planarconfig == 1:
        # libjpeg's conversion of 12-bit colours is wrong by up to 1,600 of 4,095 levels (imagecodecs 2026.3)
        what = "a JPEG-compressed TIFF page of 12-bit colours is not read: save it with LZW, Deflate or none"
        raise ImageError(Reason.IMAGE_MODE_NOT_SUPPORTED, what)
    area = page.tilelength * page.tilewidth * max(page.tiledepth, 1) if page.is_tiled else 0
    if area > most_pixels:
        what = (
            f"tiles of {page.tilelength} × {page.tilewidth} pixels are more than limits.max_image_pixels: {most_pixels}"
        )
        raise ImageError(Reason.DECODE_TOO_MANY_PIXELS, what)


def _piece(page: Any, index: int, offset: int, shape: tuple[int, ...], data: bytes) -> bytes | None:
    """The encoded bytes of a segment; None if GDAL left an empty one out. Raises ImageError."""
    count = page.databytecounts[index] if index < len(page.databytecounts) else 0
    if page.compression == 1:  # counts of uncompressed strips are often wrong and not needed
        bits = page.bitspersample if isinstance(page.bitspersample, int) else sum(page.bitspersample) // shape[3]
        needed = shape[0] * shape[1] * -(-shape[2] * shape[3] * bits // 8)
        count = needed if count else 0
    if not (offset and count):
        if _is_sparse(page):
            return None
        raise ImageError(Reason.DECODE_TRUNCATED, f"strip or tile {index} of the TIFF page has no bytes")
    if offset + count > len(data):
        raise ImageError(Reason.DECODE_TRUNCATED, "the TIFF page's strips or tiles extend beyond the file's end")
    piece = data[offset : offset + count]
    if page.compression not in PLAIN:
        _check_claim(page, piece, shape)
    return piece


def _is_sparse(page: Any) -> bool:
    """Whether tiles may be left out: GDAL's SPARSE_OK."""
    return bool(page.is_gdal or page.is_geotiff or GDAL_NODATA in page.tags)


def _contiguous(page: Any, plane: Plane, data: bytes) -> np.ndarray:
    """One plane of an uncompressed stack or volume with consecutive planes."""
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


# Headers of segments -----------------------------------------------------------------------------------------------


def _check_claim(page: Any, piece: bytes, shape: tuple[int, ...]) -> None:
    """Raise ImageError if a segment's header has more pixels than its directory allows."""
    name = next(name for name, codes in HEADERS.items() if page.compression in codes)
    size = size_of(name, page.jpegheader or piece)
    if size is None:
        raise ImageError(Reason.DECODE_CORRUPT, "a strip or tile does not match the compression of its TIFF page")
    if size[0] * size[1] > 4 * shape[1] * shape[2]:  # writers pad tiles at the edge, but not by this much
        what = f"a strip or tile declares {size[0]} × {size[1]} pixels in place of {shape[1]} × {shape[2]}"
        raise ImageError(Reason.DECODE_CORRUPT, what)
