"""Formats by first bytes: read, named, or unknown. Oracles: the specifications and other writers."""

from __future__ import annotations

import gzip
import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from encoded import LIMITS, RGB
from PIL import Image

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import Page, decode
from unet_batch.errors import ImageError, Reason
from unet_batch.spec import LimitsSpec


def only(data: bytes, limits: LimitsSpec = LIMITS) -> Page:
    (page,) = decode(data, RGB, limits)
    return page


def nifti(magic: bytes = b"n+1\0") -> bytes:
    return struct.pack("<I", 348) + bytes(340) + magic + bytes(4) + bytes(200)


def written(form: str, **options: str) -> bytes:
    """A picture as Pillow writes it."""
    file = io.BytesIO()
    Image.new("RGB", (16, 9), "white").save(file, form, **options)
    return file.getvalue()


FOREIGN = {
    "JPEG XL": b"\xff\x0a" + bytes(200),
    "JPEG XL, boxed": b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl " + bytes(200),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200),
    "JPEG 2000, codestream": b"\xff\x4f\xff\x51" + bytes(200),
    "DICOM": bytes(128) + b"DICM" + bytes(200),
    "NIfTI": nifti(),
    "NIfTI, packed": gzip.compress(nifti()),
    "NIfTI, pair": nifti(b"ni1\0"),
    "gzip": gzip.compress(b"something else"),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "HEIC, by its brands": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(200),
    "HEIF": b"\0\0\0\x14ftypmif1\0\0\0\0mif1" + bytes(200),
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200),
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(200),
    "MP4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(200),
    "MOV": b"\0\0\0\x14ftypqt  \0\0\2\0qt  " + bytes(200),
    "CZI": b"ZISRAWFILE\0\0\0\0\0\0" + bytes(200),
    "ND2": b"\xda\xce\xbe\x0a" + bytes(200),
    "LIF": b"\x70\0\0\0\x10\0\0\0\x2a" + bytes(200),
    "OIB": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(200),
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(200),
    "PSD": b"8BPS\0\1" + bytes(200),
    "DDS": b"DDS \x7c\0\0\0" + bytes(200),
    "KTX": b"\xabKTX 11\xbb\r\n\x1a\n" + bytes(200),
    "FITS": b"SIMPLE  =                    T" + bytes(200),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(200),
    "NRRD": b"NRRD0004\n" + bytes(200),
    "MetaImage": b"ObjectType = Image\nNDims = 3\n" + bytes(200),
    "MRC": bytes(208) + b"MAP DD\0\0" + bytes(900),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(200),
    "ORF": b"IIRO\x08\0\0\0" + bytes(200),
    "RW2": b"IIU\0\x08\0\0\0" + bytes(200),
    "CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(200),
    "WebM": b"\x1a\x45\xdf\xa3" + bytes(200),
    "RIFF": b"RIFF\0\0\0\0AVI LIST" + bytes(200),
    "zip": b"PK\x03\x04" + bytes(200),
    "PDF": b"%PDF-1.7\n" + bytes(200),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "SVG": b"<?xml version='1.0'?>\n<!-- a comment -->\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "SVG, bare": b"\xef\xbb\xbf  <svg xmlns='http://www.w3.org/2000/svg'/>",
    "HTML": b"<!DOCTYPE html><html></html>",
    "HTML, bare": b"\n<HTML><body>not here</body></HTML>",
    "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "JSON": b'{"error": "not found"}',
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "Parquet": b"PAR1" + bytes(200),
    "TGA": written("TGA"),
    "TGA, packed": written("TGA", compression="tga_rle"),
    "CUR": b"\0\0\2\0\1\0" + bytes(200),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_format_that_is_not_read_is_named_with_what_to_do(name: str) -> None:
    """The reason is not damage, and the sentence ends with what to do."""
    content = only(FOREIGN[name]).content
    assert isinstance(content, ImageError)
    assert content.reason == Reason.DECODE_FORMAT_NOT_ALLOWED, content
    assert name.partition(",")[0].lower() in content.message.lower()
    assert len(content.message.partition(": ")[2]) > 5


@pytest.mark.parametrize("name", ["NIfTI", "JPEG XL", "PNG", "DICOM"])
def test_a_single_byte_is_not_a_format(name: str) -> None:
    """Empty and truncated files are not named as a format."""
    whole = {**FOREIGN, "PNG": b"\x89PNG\r\n\x1a\n"}[name]
    content = only(whole[:1]).content
    assert isinstance(content, ImageError)
    assert content.reason == Reason.DECODE_UNRECOGNIZED


def test_a_tar_is_not_an_image() -> None:
    """The message names the setting that reads it."""
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    content = only(file.getvalue()).content
    assert isinstance(content, ImageError)
    assert "webdataset" in content.message


def raw(tags: list[Any], **how: Any) -> bytes:
    """A preview, and mosaic samples in its SubIFD, as DNG and NEF have them."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        small = np.zeros((8, 8, 3), np.uint8)
        writer.write(small, photometric="rgb", subfiletype=1, subifds=1, extratags=tags, metadata=None)
        writer.write(np.zeros((32, 32), np.uint16), photometric="cfa", subfiletype=0, metadata=None, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    ("tags", "name"),
    [([(50706, "B", 4, (1, 4, 0, 0), True)], "DNG"), ([(271, "s", 0, "NIKON CORPORATION", True)], "NIKON CORPORATION")],
)
def test_a_camera_raw_in_a_tiff_is_named_and_its_preview_is_not_an_image(tags: list[Any], name: str) -> None:
    """By the tags of its first page."""
    content = only(raw(tags)).content
    assert isinstance(content, ImageError)
    assert content.reason == Reason.DECODE_FORMAT_NOT_ALLOWED
    assert f"camera raw ({name})" in content.message


# The pixel limit -----------------------------------------------------------------------------------------------------


def png_header(height: int, width: int) -> bytes:
    import zlib

    body = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    data = file.getvalue()
    return data[:16] + body + struct.pack(">I", zlib.crc32(b"IHDR" + body)) + data[33:]


@pytest.mark.parametrize(("height", "width", "said"), [(9000, 9001, "9000 × 9001"), (40_000, 30_000, "40000 × 30000")])
def test_the_pixel_limit_says_what_was_found_its_name_and_the_remedy(height: int, width: int, said: str) -> None:
    """Also if Pillow's own check fires first, which knows only the product of the sides."""
    content = only(png_header(height, width)).content
    assert isinstance(content, ImageError)
    assert content.reason == Reason.DECODE_TOO_MANY_PIXELS
    assert content.message.startswith(f"{said} pixels are more than limits.max_image_pixels: 50000000")
    assert "raise it" in content.message


@pytest.mark.parametrize("how", [
    {"imagej": True, "truncate": True, "metadata": {"axes": "ZYX"}},
    {"volumetric": True, "tile": (3, 16, 16), "photometric": "minisblack"},
    {"truncate": True, "metadata": {"axes": "ZYX"}, "photometric": "minisblack"},
])  # fmt: skip
def test_the_pixel_limit_counts_a_plane_and_not_a_stack(how: dict[str, Any]) -> None:
    """Three planes of 256 pixels under a limit of 800 are three images, under 200 three rejections."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((3, 16, 16), np.uint16), **how)
    for limit, expected in ((800, None), (200, Reason.DECODE_TOO_MANY_PIXELS)):
        pages = list(decode(file.getvalue(), ModelInput(color="gray", channels=1), LimitsSpec(max_image_pixels=limit)))
        reasons = [page.content.reason if isinstance(page.content, ImageError) else None for page in pages]
        assert reasons == [expected] * 3
