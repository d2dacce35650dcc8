"""The format of a file by its first bytes: formats that are read, and the names of known formats that are not.

A table of magic bytes; nothing is opened. File names do not count: an HTML error page saved as .jpg is not a JPEG.
"""

from __future__ import annotations

import zlib

from unet_batch.errors import ImageError, Reason

READ = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "NPY")
"""Formats that `decode` reads."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    *((0, magic, "TIFF") for magic in _TIFF),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"\x93NUMPY", "NPY"),
)

_TO_TIFF, _TO_PNG = "convert it to TIFF or .npy", "convert it to PNG, TIFF or JPEG"
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\xff\x0a", "JPEG XL", _TO_PNG),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", _TO_PNG),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 (JPEG2000)", _TO_TIFF),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000 (JPEG2000)", _TO_TIFF),
    (0, b"ZISRAWFILE", "CZI (Zeiss)", _TO_TIFF),
    (0, b"\xda\xce\xbe\x0a", "ND2 (Nikon)", _TO_TIFF),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an OLE file (OIB, ZVI, MIPS or an office document)", _TO_TIFF),
    (0, b"OLYMPUSRAWFORMAT", "OIR (Olympus)", _TO_TIFF),
    (0, b"\x76\x2f\x31\x01", "OpenEXR", _TO_TIFF),
    (0, b"#?RADIANCE", "Radiance HDR", _TO_TIFF),
    (0, b"#?RGBE", "Radiance HDR", _TO_TIFF),
    (0, b"8BPS", "PSD (Photoshop)", _TO_PNG),
    (0, b"DDS ", "DDS", _TO_PNG),
    (0, b"\xabKTX ", "KTX", _TO_PNG),
    (0, b"SIMPLE  =", "FITS", _TO_TIFF),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5", _TO_TIFF),
    (0, b"\x0e\x03\x13\x01", "HDF4", _TO_TIFF),
    (0, b"CDF\x01", "NetCDF", _TO_TIFF),
    (0, b"CDF\x02", "NetCDF", _TO_TIFF),
    (0, b"NRRD000", "NRRD", _TO_TIFF),
    (0, b"ObjectType = Image", "MetaImage", _TO_TIFF),
    (0, b"NDims = ", "MetaImage", _TO_TIFF),
    (208, b"MAP ", "MRC", _TO_TIFF),
    (0, b"GRIB", "GRIB", _TO_TIFF),
    (0, b"NITF0", "NITF", _TO_TIFF),
    (0, b"FUJIFILMCCD-RAW", "RAF (a camera raw)", _TO_PNG),
    (0, b"IIRO", "ORF (a camera raw)", _TO_PNG),
    (0, b"IIRS", "ORF (a camera raw)", _TO_PNG),
    (0, b"MMOR", "ORF (a camera raw)", _TO_PNG),
    (0, b"IIU\0", "RW2 (a camera raw)", _TO_PNG),
    (0, b"FOVb", "X3F (a camera raw)", _TO_PNG),
    (6, b"HEAPCCDR", "CRW (a camera raw)", _TO_PNG),
    (0, b"%PDF", "PDF", _TO_PNG),
    (0, b"%!PS", "EPS", _TO_PNG),
    (0, b"\xc5\xd0\xd3\xc6", "EPS", _TO_PNG),
    (0, b"\xd7\xcd\xc6\x9a", "WMF", _TO_PNG),
    (0, b"gimp xcf", "XCF (GIMP)", _TO_PNG),
    (0, b"FLIF", "FLIF", _TO_PNG),
    (0, b"BPG\xfb", "BPG", _TO_PNG),
    (0, b"qoif", "QOI", _TO_PNG),
    (0, b"\x97JB2\r\n\x1a\n", "JBIG2", _TO_PNG),
    (0, b"AT&TFORM", "DjVu", _TO_PNG),
    (0, b"II\xbc", "JPEG XR", _TO_PNG),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska (a video)", "extract its frames as PNG or JPEG"),
    (0, b"\0\0\x01\xba", "MPEG (a video)", "extract its frames as PNG or JPEG"),
    (0, b"OggS", "Ogg", "extract its frames as PNG or JPEG"),
    (0, b"\x1f\x8b", "gzip", "unpack it"),
    (0, b"BZh", "bzip2", "unpack it"),
    (0, b"\xfd7zXZ\0", "xz", "unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip", "unpack it"),
    (0, b"Rar!\x1a\x07", "RAR", "unpack it"),
    (0, b"PK\x03\x04", "zip", "unpack it"),
    (0, b"PK\x05\x06", "zip", "unpack it"),
    (257, b"ustar", "tar", "set input.format: webdataset"),
    (0, b"PAR1", "Parquet", "set input.format: parquet"),
    (0, b"\x93MAT", "MAT", _TO_TIFF),
    (0, b"MATLAB 5.0 MAT-file", "MAT (Matlab)", _TO_TIFF),
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer", "fetch the file itself with git lfs pull"),
    (0, b"\0\x05\x16\x07", "AppleDouble (metadata of macOS)", "leave it out with input.pattern"),
)
"""Offset of the bytes, the bytes, the name of the format, and what to do."""

_BRANDS = (
    (("heic", "heix", "heim", "heis", "hevc", "hevx"), "HEIC", _TO_PNG),
    (("avif", "avis"), "AVIF", _TO_PNG),
    (("mif1", "msf1"), "HEIF", _TO_PNG),
    (("jxl ",), "JPEG XL", _TO_PNG),
    (("crx ",), "CR3 (a camera raw)", _TO_PNG),
    (("qt  ",), "MOV (a video)", "extract its frames as PNG or JPEG"),
)
"""Brands of an ISO base media file (ISO/IEC 14496-12, `ftyp`); other brands are videos."""

_TEXTS = (
    ("<!doctype html", "an HTML page"), ("<html", "an HTML page"), ("<svg", "SVG"), ("<?xml", "an XML file"),
    ("<error", "an XML error message"), ("{", "JSON text"), ("[{", "JSON text"),
)  # fmt: skip


def format_of(data: bytes) -> str:
    """One of READ. Raises ImageError for other formats, with the format's name and what to do if it is known."""
    # Before TIFF: the 128 free bytes of a DICOM file may hold a TIFF's header (DICOM PS3.10, 7.1)
    if data[128:132] == b"DICM":
        raise refused("DICOM", _TO_TIFF)
    for place, magic, name in _MAGIC:
        if data.startswith(magic, place):
            if name == "TIFF" and data[8:10] == b"CR":
                raise refused("CR2 (a camera raw)", _TO_PNG)
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] == b"RIFF":
        raise refused("RIFF (a video or sound)", "extract its frames as PNG or JPEG")
    if data[:2] == b"\x1f\x8b" and _is_nifti(_unpacked(data)):
        raise refused("NIfTI (.nii.gz)", _TO_TIFF)
    for place, magic, name, remedy in _FOREIGN:
        if data.startswith(magic, place):
            raise refused(name, remedy)
    if data[4:8] == b"ftyp":
        raise _of_brand(data)
    if data[4:8] in (b"moov", b"mdat", b"wide", b"skip"):
        raise refused("MOV (a video)", "extract its frames as PNG or JPEG")
    if data[:4] == b"\x70\0\0\0" and data[8:9] == b"\x2a":
        raise refused("LIF (Leica)", _TO_TIFF)
    if _is_nifti(data):
        raise refused("NIfTI", _TO_TIFF)
    if _is_tga(data):
        raise refused("TGA", _TO_PNG)
    if name := _text(data):
        raise refused(name, "check the program that wrote it" if name != "SVG" else _TO_PNG)
    raise ImageError(Reason.DECODE_UNRECOGNIZED, "the bytes are not an image" if data else "there are no bytes")


def refused(name: str, remedy: str = _TO_PNG) -> ImageError:
    """The rejection of a file in a known format that is not read."""
    what = f"{name} is not among JPEG, PNG, TIFF, WebP, BMP, GIF and .npy: {remedy}"
    return ImageError(Reason.DECODE_FORMAT_NOT_ALLOWED, what)


def _of_brand(data: bytes) -> ImageError:
    """The rejection for the first format of the table among the file's brands: HEIC files also carry brands of HEIF."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[place : place + 4] for place in range(16, size, 4))]
    for known, name, remedy in _BRANDS:
        if any(brand.decode("latin-1") in known for brand in brands):
            return refused(name, remedy)
    return refused("MP4 (a video)", "extract its frames as PNG or JPEG")


def _is_nifti(data: bytes) -> bool:
    """Whether it is NIfTI-1 or -2, or a header of a file pair: the header's length and the magic word."""
    first = data[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and data[344:348] in (b"n+1\0", b"ni1\0")
    return first or (data[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and data[4:7] in (b"n+2", b"ni2"))


def _is_tga(data: bytes) -> bool:
    """Whether it is Truevision TGA 2.0: its footer, or a header without a colour map (which begins like a cursor)."""
    if data[-18:] == b"TRUEVISION-XFILE.\0":
        return True
    kind, sizes = data[2:3], (data[12:14], data[14:16])
    plain = data[:2] == b"\0\0" and kind in (b"\2", b"\3", b"\n", b"\x0b") and not any(data[3:8])
    return plain and all(map(any, sizes)) and data[16] in (8, 15, 16, 24, 32)


def _unpacked(data: bytes) -> bytes:
    """The first bytes of a gzip's content; empty if it is damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data[:4096], 540)
    except zlib.error:
        return b""


def _text(data: bytes) -> str:
    """The format of a text; empty if the bytes are not a text."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").decode("latin-1").lstrip().lower()
    if head.startswith("<?xml") and "<svg" in head:
        return "SVG"
    return next((name for start, name in _TEXTS if head.startswith(start)), "")
