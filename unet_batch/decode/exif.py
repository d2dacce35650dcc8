"""Exif: how a picture wants to be turned. Knows Pillow's metadata, never a pixel."""

from __future__ import annotations

import struct

from PIL import Image

_EXIF_ORIENTATION = 274


def orientation_of(image: Image.Image, data: bytes) -> int:
    """EXIF orientation, 1..8, without decoding a pixel; 1 where there is none or it cannot be read, as in browsers.

    Of a PNG, an eXIf chunk counts wherever it lies, EXIF or XMP in text chunks only before the pixels.
    """
    try:
        if image.format == "PNG":
            if "exif" not in image.info and (chunk := _png_exif(data)):
                image.info["exif"] = b"Exif\0\0" + chunk
            exif = Image.Image.getexif(image)  # PngImageFile's own would decode the picture to look behind it
        else:
            exif = image.getexif()
        value = exif.get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged metadata is no damage to the picture
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
