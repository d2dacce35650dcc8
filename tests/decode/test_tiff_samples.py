"""TIFF samples: every layout gives the written values. Oracles: the values, tifffile's reader, Pillow."""

from __future__ import annotations

import io
import itertools
import random
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from encoded import GRAY, RGB, only
from PIL import Image

from unet_batch.contract import ModelInput
from unet_batch.errors import ImageError, Reason


def saved(array: np.ndarray, **how: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"metadata": None, **how})
    return file.getvalue()


def content(data: bytes, spec: ModelInput) -> np.ndarray:
    page = only(data, spec)
    assert not isinstance(page.content, ImageError), page.content
    return page.content


def bands(channels: int) -> ModelInput:
    return ModelInput(color="bands", channels=channels)


def noise(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Every value of an integer type, or floats of both signs; the seed is the shape's."""
    rng = np.random.default_rng(sum(shape))
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if kind.kind == "f":
        return (rng.normal(size=shape) * 1000).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)


# Layouts -----------------------------------------------------------------------------------------------------------

DTYPES = ["bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"]
COMPRESSIONS = [None, "lzw", "zlib", "packbits", "zstd", "lzma"]
PREDICTORS = [None, 2, 3]
SAMPLES = [1, 3, 5]
SIZES = [(19, 33), (1, 7), (32, 16)]


def layouts(dtype: str) -> list[tuple[Any, ...]]:
    """Every combination that tifffile writes with samples of a type."""
    kind = np.dtype(dtype).kind
    every = itertools.product(
        SAMPLES,
        ["contig", "separate"],
        ["<", ">"],
        COMPRESSIONS,
        PREDICTORS,
        [None, (16, 16), "rows"],
        [False, True],
    )
    found = []
    for samples, planar, order, compression, predictor, segments, white in every:
        if predictor and (compression in (None, "packbits", "lzma") or (predictor == 3) != (kind == "f")):
            continue
        if (samples == 1 and planar == "separate") or (white and samples > 1) or (kind == "b" and samples > 1):
            continue
        if predictor and kind == "b":
            continue
        found.append((samples, planar, order, compression, predictor, segments, white))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_are_those_that_were_written(dtype: str) -> None:
    """Types × samples × planes × byte order × compression × predictor × strips and tiles × WhiteIsZero.

    Each in one of the sizes, drawn with a seed: an odd one, a single row, and whole tiles.
    """
    compared, draw = 0, random.Random(0)
    for layout in layouts(dtype):
        height, width = draw.choice(SIZES)
        samples, planar, order, compression, predictor, segments, white = layout
        shape = {"contig": (height, width, samples), "separate": (samples, height, width)}[planar]
        values = noise(dtype, shape if samples > 1 else (height, width))
        how: dict[str, Any] = {"byteorder": order, "compression": compression, "predictor": predictor}
        how |= {"tile": segments} if isinstance(segments, tuple) else {"rowsperstrip": 3} if segments else {}
        how |= {"planarconfig": planar, "extrasamples": ["unspecified"] * (samples - 1)} if samples > 1 else {}
        data = saved(values, photometric="miniswhite" if white else "minisblack", **how)
        written = tifffile.imread(io.BytesIO(data))
        assert np.array_equal(written, values, equal_nan=True), layout
        expected_hwc = np.moveaxis(values, 0, 2) if planar == "separate" else values.reshape(height, width, samples)
        found = content(data, bands(samples))
        np.testing.assert_array_equal(found, as_read(expected_hwc, white=white), str(layout))
        compared += 1
    print(f"{compared} files of {dtype}")
    assert compared > 50


def as_read(values: np.ndarray, *, white: bool) -> np.ndarray:
    """uint8, uint16 or float32; unsigned WhiteIsZero inverted by the largest value of its depth."""
    if values.dtype.kind == "b":
        return ((values ^ white) * 255).astype(np.uint8)
    if values.dtype.kind == "u" and white:
        values = np.iinfo(values.dtype).max - values
    return values if values.dtype in (np.uint8, np.uint16) else values.astype(np.float32)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_packed_samples_keep_their_values_and_their_depth(bits: int, white: bool, order: str) -> None:
    """Rows of an odd width end at a byte; below 8 bits values are scaled to 255, from 8 bits on they stay."""
    top = (1 << bits) - 1
    values = np.random.default_rng(bits).integers(0, top, (5, 7), endpoint=True)
    values[0, :2] = 0, top
    page = only(packed_tiff(values, bits, 0 if white else 1, order), GRAY)
    kept = top - values if white else values
    expected = np.floor(kept * 255 / top + 0.5) if bits < 8 else kept
    assert not isinstance(page.content, ImageError), page.content
    assert page.content[..., 0].tolist() == expected.tolist()
    assert page.largest == (255 if bits < 8 else top)


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_samples_beyond_their_declared_depth_are_refused(white: bool, order: str) -> None:
    """tifffile 2026.3 unpacks big-endian 24 bits to numbers of 32; scaled by 2^24 − 1, every pixel would be white."""
    top = (1 << 24) - 1
    values = np.array([[0, 1 << 20], [1 << 23, top]], np.uint32)
    page = only(packed_tiff(values, 24, 0 if white else 1, order), GRAY)
    if isinstance(page.content, ImageError):
        assert (page.content.reason, "24 bits" in page.content.message) == (Reason.IMAGE_MODE_NOT_SUPPORTED, True)
    else:
        assert page.content[..., 0].tolist() == (top - values if white else values).tolist()


def packed_tiff(values: np.ndarray, bits: int, photometric: int, order: str) -> bytes:
    """A TIFF written tag by tag: unsigned samples of any depth, the highest bit first, each row ended at a byte.

    Samples of 16 bits are words in the file's byte order; packed ones are a stream of bits in either (TIFF 6.0).
    """
    if bits == 16:
        body = values.astype(f"{order}u2").tobytes()
    else:
        rows = [np.array(list("".join(f"{value:0{bits}b}" for value in row))).astype(np.uint8) for row in values]
        body = b"".join(np.packbits(row).tobytes() for row in rows)
    height, width = values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(body))]
    body += b"\0" * (len(body) % 2)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    ifd = struct.pack(f"{order}H", len(tags))
    for tag, kind, value in tags:
        packed = struct.pack(f"{order}I", value) if kind == 4 else struct.pack(f"{order}HH", value, 0)
        ifd += struct.pack(f"{order}HHI", tag, kind, 1) + packed
    return head + body + ifd + bytes(4)


@pytest.mark.parametrize(
    "compression", ["group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw", "tiff_adobe_deflate"]
)
def test_fax_and_bilevel_pages_equal_pillow(compression: str) -> None:
    """Pillow writes and reads them by libtiff."""
    values = np.random.default_rng(1).integers(0, 2, (33, 41)).astype(bool)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", compression=compression)
    np.testing.assert_array_equal(content(file.getvalue(), GRAY)[..., 0], values * 255)


# Codecs with a header of their own -----------------------------------------------------------------------------------


def waves(height: int, width: int, dtype: str = "uint8", samples: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [(np.sin(x / (5 + c)) + np.cos(y / (7 + c)) + 2) / 4 for c in range(samples)]
    image = np.stack(planes, axis=2) * np.iinfo(dtype).max
    return image.astype(dtype) if samples > 1 else image.astype(dtype)[..., 0]


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("tile", [None, (32, 32)])
@pytest.mark.parametrize("size", [(37, 53), (64, 64), (33, 17)])
def test_jpeg_in_tiff_equals_pillow(subsampling: tuple[int, int], tile: Any, size: tuple[int, int]) -> None:
    """YCbCr with subsampled colours, in strips and tiles of odd sizes: libjpeg's RGB in both."""
    data = saved(waves(*size), photometric="ycbcr", compression="jpeg", subsampling=subsampling, tile=tile)
    np.testing.assert_array_equal(content(data, RGB), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("width", range(1, 40))
@pytest.mark.parametrize("tile", [None, (16, 32)])
def test_12_bit_jpeg_in_tiff_keeps_its_last_column(width: int, tile: Any) -> None:
    """Gray, every width: within 3 of 4,095 levels of the written values."""
    values = waves(21, width, "uint16", 1) >> 4
    how = {"compression": "jpeg", "compressionargs": {"level": 100, "bitspersample": 12}, "tile": tile}
    page = only(saved(values, photometric="minisblack", **how), GRAY)
    assert np.abs(page.content[..., 0].astype(int) - values).max() <= 3
    assert page.largest == 4095


@pytest.mark.parametrize(
    ("compression", "dtype", "samples"),
    [("jpeg2000", "uint8", 3), ("jpeg2000", "uint16", 1), ("png", "uint8", 3), ("png", "uint16", 1),
     ("webp", "uint8", 3), ("lerc", "uint8", 1), ("lerc", "uint16", 1), ("lerc", "float32", 1)],
)  # fmt: skip
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_picture_codecs_in_tiff_are_read(compression: str, dtype: str, samples: int, tile: Any) -> None:
    """WebP in TIFF and similar codecs; lossless ones exactly."""
    values = waves(37, 53, "uint16" if dtype == "float32" else dtype, samples).astype(dtype)
    options = {"webp": {"lossless": True}, "jpeg2000": {"level": 0}}.get(compression, {})
    how = {"photometric": "rgb" if samples == 3 else "minisblack", "compression": compression, "tile": tile}
    data = saved(values, compressionargs=options, **how)
    np.testing.assert_array_equal(content(data, bands(samples)), values.reshape(37, 53, samples))


def test_a_compression_that_is_not_read_is_named() -> None:
    """It is not damage: the sentence names the compression and what to do."""
    page = only(saved(waves(16, 16), photometric="rgb", compression="jpegxr"), RGB)
    assert isinstance(page.content, ImageError)
    assert page.content.reason == Reason.IMAGE_MODE_NOT_SUPPORTED
    assert "JPEGXR" in page.content.message


@pytest.mark.parametrize("compression", ["jpeg", "png", "jpeg2000", "webp"])
def test_a_tile_that_declares_too_many_pixels_is_not_decoded(compression: str) -> None:
    """A tile of 16 × 16 whose header declares thousands of pixels on each side is a bomb."""
    big = saved(np.zeros((4096, 4096, 3), np.uint8), photometric="rgb", compression=compression, rowsperstrip=4096)
    with tifffile.TiffFile(io.BytesIO(big)) as tiff:
        ifd = tiff.pages[0]
        bomb = big[ifd.dataoffsets[0] : ifd.dataoffsets[0] + ifd.databytecounts[0]]
    small = bytearray(saved(np.zeros((16, 16, 3), np.uint8), photometric="rgb", compression=compression))
    with tifffile.TiffFile(io.BytesIO(bytes(small))) as tiff:
        tags = tiff.pages[0].tags
        places = tags[273].valueoffset, tags[279].valueoffset
    struct.pack_into("<I", small, places[0], len(small))
    struct.pack_into("<I", small, places[1], len(bomb))
    page = only(bytes(small) + bomb, RGB)
    assert isinstance(page.content, ImageError)
    assert page.content.reason == Reason.DECODE_CORRUPT
    assert "declares" in page.content.message


def test_tiles_larger_than_the_limit_are_never_decoded() -> None:
    """A picture of one pixel in a tile of 65,520² bytes."""
    data = bytearray(saved(np.zeros((16, 16), np.uint8), tile=(16, 16), photometric="minisblack", compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tiff:
        tags = tiff.pages[0].tags
        for tag in (322, 323):
            struct.pack_into("<H" if tags[tag].dtype == 3 else "<I", data, tags[tag].valueoffset, 65520)
    page = only(bytes(data), GRAY)
    assert isinstance(page.content, ImageError)
    assert page.content.reason == Reason.DECODE_TOO_MANY_PIXELS
    assert "limits.max_image_pixels" in page.content.message


# Colours -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("shift", [257, 256, 1])
def test_palettes_become_their_colours(bits: int, shift: int) -> None:
    """Entries have 16 bits, and the upper 8 count; if none is above 255, they have 8 bits (libtiff)."""
    entries = 1 << bits
    palette = np.random.default_rng(bits).integers(0, 256, (3, entries)).astype(np.uint16)
    palette[:, 0] = 255
    index = np.random.default_rng(2).integers(0, entries, (9, 13))
    data = palette_tiff(index, bits, palette * np.uint16(shift))
    np.testing.assert_array_equal(content(data, RGB), np.moveaxis(palette, 0, 1)[index])


def palette_tiff(index: np.ndarray, bits: int, palette: np.ndarray) -> bytes:
    plain = packed_tiff(index, bits, 3, "<")
    ifd = struct.unpack_from("<I", plain, 4)[0]
    (count,) = struct.unpack_from("<H", plain, ifd)
    entries = plain[ifd + 2 : ifd + 2 + 12 * count]
    where = ifd + 2 + 12 * (count + 1) + 4
    tag = struct.pack("<HHII", 320, 3, palette.size, where)
    return plain[:ifd] + struct.pack("<H", count + 1) + entries + tag + bytes(4) + palette.astype("<u2").tobytes()


def test_a_palette_of_16_bit_indices_is_read() -> None:
    """65,536 entries."""
    palette = np.random.default_rng(1).integers(0, 65536, (3, 65536)).astype(np.uint16)
    index = np.random.default_rng(2).integers(0, 65536, (9, 13)).astype(np.uint16)
    data = saved(index, photometric="palette", colormap=palette)
    np.testing.assert_array_equal(content(data, RGB), np.moveaxis(palette >> 8, 0, 1)[index])


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_colour_spaces_become_pillows_rgb(mode: str, compression: str | None) -> None:
    """CMYK to the value; YCbCr within a level, since Pillow computes in fixed point; CIELAB by the same library."""
    picture = Image.frombytes(mode, (13, 9), noise("uint8", (9, 13, len(mode) if mode == "CMYK" else 3)).tobytes())
    file = io.BytesIO()
    picture.save(file, "TIFF", compression=compression)
    data = file.getvalue()
    reread = Image.open(io.BytesIO(data))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        expected = np.asarray(ImageCms.profileToProfile(reread, *profiles, outputMode="RGB"))
    else:
        expected = np.asarray(reread.convert("RGB"))
    off = np.abs(content(data, RGB).astype(int) - expected).max()
    assert off <= (1 if mode == "YCbCr" else 0)


def test_deep_cmyk_keeps_its_depth() -> None:
    """16 bits: (1 − ink) · (1 − black)."""
    values = noise("uint16", (9, 13, 4))
    page = only(saved(values, photometric="separated"), RGB)
    share = 1 - values / 65535
    expected = np.rint(share[..., :3] * share[..., 3:] * 65535)
    assert np.abs(page.content - expected).max() <= 1
    assert (page.content.dtype, page.largest) == (np.uint16, 65535)


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_fourth_sample_is_what_the_file_says(extra: str, dtype: str) -> None:
    """An alpha is composed once or divided out; a sample without a meaning is not an alpha."""
    top = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    values = (np.array([[[0.5, 0.25, 0.125, 0.5], [0.2, 0.1, 0.0, 1.0]]]) * top).astype(dtype)
    data = saved(values, photometric="rgb", extrasamples=[extra])
    dropped = content(data, RGB) / top
    over = content(data, ModelInput(alpha="white")) / top
    plain = np.array([[[0.5, 0.25, 0.125], [0.2, 0.1, 0.0]]])
    expected = {
        "unassalpha": (plain, [[[0.75, 0.625, 0.5625], [0.2, 0.1, 0.0]]]),
        "assocalpha": ([[[1.0, 0.5, 0.25], [0.2, 0.1, 0.0]]], [[[1.0, 0.75, 0.625], [0.2, 0.1, 0.0]]]),
        "unspecified": (plain, plain),
    }[extra]
    np.testing.assert_allclose(dropped, expected[0], atol=2 / 255)  # both were cut to 8 bits before
    np.testing.assert_allclose(over, expected[1], atol=2 / 255)


@pytest.mark.parametrize("spec", [GRAY, RGB], ids=["gray", "rgb"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("samples", [2, 5])
def test_gray_bands_are_neither_gray_nor_colour(spec: ModelInput, planar: str, samples: int) -> None:
    """Multi-band files need a contract of bands: with gray or rgb, other bands would be lost silently."""
    shape = (samples, 9, 13) if planar == "separate" else (9, 13, samples)
    data = saved(noise("uint8", shape), photometric="minisblack", planarconfig=planar)
    page = only(data, spec)
    assert isinstance(page.content, ImageError)
    assert page.content.reason == Reason.IMAGE_CHANNELS_MISMATCH


def test_a_page_without_a_photometric_interpretation_has_libtiffs_default() -> None:
    """Gray from black, or RGB."""
    data = saved(np.full((4, 4), 9, np.uint8), photometric="minisblack")
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        place = tiff.pages[0].tags[262].offset
    changed = data[:place] + struct.pack("<H", 65000) + data[place + 2 :]
    assert content(changed, GRAY)[0, 0, 0] == 9


def test_tiles_that_gdal_left_out_hold_what_it_says() -> None:
    """SPARSE_OK: no bytes, and the declared value for missing samples; from other writers the tile is lost."""
    values = np.full((32, 32), 5, np.uint8)
    told = [(42113, "s", 0, "7", True)]
    for tags, expected in ((told, 7), ([], "decode.truncated")):
        data = bytearray(saved(values, tile=(16, 16), photometric="minisblack", compression="zlib", extratags=tags))
        with tifffile.TiffFile(io.BytesIO(bytes(data))) as tiff:
            for tag in (324, 325):
                struct.pack_into("<I", data, tiff.pages[0].tags[tag].valueoffset, 0)
        page = only(bytes(data), GRAY)
        found = page.content.reason.value if isinstance(page.content, ImageError) else page.content[0, 0, 0]
        assert found == expected
