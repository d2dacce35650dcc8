"""EXIF orientation, from Pillow's metadata, without decoding pixels."""

from __future__ import annotations

import struct

from PIL import Image

_EXIF_ORIENTATION = 274


def orientation_of(image: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1..8; 1 if it is missing or unreadable, as in browsers.

    In a PNG, an eXIf chunk counts at any place, EXIF or XMP in text chunks only before the pixels.
    """
    try:
        if image.format == "PNG":
            if "exif" not in image.info and (chunk := _png_exif(data)):
                image.info["exif"] = b"Exif\0\0" + chunk
            exif = Image.Image.getexif(image)  # PngImageFile.getexif would decode the pixels first
        else:
            exif = image.getexif()
        value = exif.get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - the pixels may be intact although the metadata is damaged
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _png_exif(data: bytes) -> bytes:
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"eXIf":
            return data[place + 8 : place + 8 + length]
        place += 12 + length
    return b""
