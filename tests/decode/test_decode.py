"""Decoding of valid files: depth, channels, alpha, orientation and pages. Oracles: Pillow, tifffile and NumPy."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from encoded import GRAY, LIMITS, RGB, npy, only, saved, tiff
from PIL import Image, ImageOps

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import decode
from unet_batch.decode.sizes import about_reduced_jpeg
from unet_batch.errors import ImageError, ShapeMismatch
from unet_batch.imaging.encode import encode_png
from unet_batch.imaging.preprocess import fit

BGR = ModelInput(color="bgr")

DEEP = np.array([[0, 255, 256], [1000, 32768, 65535]], np.uint16)
"""A conversion to 8 bits would lose all values except the first two."""
DEEP_RGB = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], axis=2)
COLORS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], np.uint8)


def bands(channels: int) -> ModelInput:
    return ModelInput(color="bands", channels=channels)


def deep_png(array: np.ndarray, color_type: int, *extra: tuple[bytes, bytes], after: bool = False) -> bytes:
    """A 16-bit PNG written chunk by chunk (PNG specification, section 11), so that no codec under test wrote it."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, color_type, 0, 0, 0)
    pixels = (b"IDAT", zlib.compress(rows))
    return chunked_png((b"IHDR", header), *((pixels, *extra) if after else (*extra, pixels)))


def chunked_png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (*chunks, (b"IEND", b""))
    )


def pixels(data: bytes, spec: ModelInput) -> np.ndarray:
    content = only(data, spec).content
    assert not isinstance(content, ImageError), content
    assert content.flags.c_contiguous
    assert content.dtype.isnative
    return content


# Formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "BMP"])
def test_a_lossless_picture_keeps_every_value(format_: str) -> None:
    """8-bit RGB goes through unchanged."""
    assert np.array_equal(pixels(saved(Image.fromarray(COLORS), format_), RGB), COLORS)


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "GIF"])
def test_a_lossy_picture_equals_pillow(format_: str) -> None:
    """Pixels that depend on the decoder are those of Pillow."""
    data = saved(Image.fromarray(COLORS).resize((32, 32)), format_)
    assert np.array_equal(pixels(data, RGB), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "MPO"])
def test_only_the_first_frame_of_an_animation_is_an_image(format_: str) -> None:
    """GIF, APNG, WebP and MPO give one page: the first frame."""
    first, second = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    page = only(saved(first, format_, save_all=True, append_images=[second]), RGB)
    assert (page.page, page.pages) == (0, 1)
    assert page.content[8, 8, 0] > 250 > 5 > page.content[8, 8, 2]


def test_every_page_of_a_tiff_is_an_image() -> None:
    """Pages come in order, each with its own size, and say how many there are."""
    first, second = Image.new("L", (3, 2), 7), Image.new("L", (5, 4), 9)
    pages = list(decode(saved(first, "TIFF", save_all=True, append_images=[second]), GRAY, LIMITS))
    assert [(p.page, p.pages, p.height, p.width, int(p.content[0, 0, 0])) for p in pages] == [
        (0, 2, 2, 3, 7),
        (1, 2, 4, 5, 9),
    ]


def test_tiff_pages_of_different_kinds_are_read() -> None:
    """An 8-bit page and a 16-bit RGB page of one file are both exact."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(COLORS, photometric="rgb")
        writer.write(DEEP_RGB, photometric="rgb")
    shallow, deep = decode(file.getvalue(), RGB, LIMITS)
    assert np.array_equal(shallow.content, COLORS)
    assert np.array_equal(deep.content, DEEP_RGB)


# Depth -------------------------------------------------------------------------------------------------------------


def test_a_16_bit_png_keeps_every_level() -> None:
    """Gray 16-bit PNGs are exact uint16."""
    content = pixels(deep_png(DEEP, 0), GRAY)
    assert content.dtype == np.uint16
    assert np.array_equal(content[..., 0], DEEP)


def test_a_16_bit_rgb_png_keeps_every_level() -> None:
    """Pillow alone would keep the high byte."""
    assert np.array_equal(pixels(deep_png(DEEP_RGB, 2), RGB), DEEP_RGB)


def test_a_16_bit_png_with_alpha_keeps_every_level() -> None:
    """RGBA and gray + alpha are exact, as bands with the alpha and as colours without it."""
    rgba = np.concatenate([DEEP_RGB, DEEP[..., None]], axis=2)
    assert np.array_equal(pixels(deep_png(rgba, 6), bands(4)), rgba)
    assert np.array_equal(pixels(deep_png(rgba, 6), RGB), DEEP_RGB)
    assert np.array_equal(pixels(deep_png(rgba[..., 2:], 4), bands(2)), rgba[..., 2:])
    assert np.array_equal(pixels(deep_png(rgba[..., 2:], 4), GRAY), rgba[..., 2:3])


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_16_bit_tiffs_are_exact_in_both_byte_orders(byteorder: str, compression: str | None) -> None:
    """Gray (by Pillow) and RGB (by tifffile) come as native uint16."""
    gray = tiff(DEEP, byteorder=byteorder, compression=compression, photometric="minisblack")
    color = tiff(DEEP_RGB, byteorder=byteorder, compression=compression, photometric="rgb")
    assert np.array_equal(pixels(gray, GRAY)[..., 0], DEEP)
    assert np.array_equal(pixels(color, RGB), DEEP_RGB)


def test_a_planar_tiff_equals_an_interleaved_one() -> None:
    """PlanarConfiguration changes the file, not the picture."""
    planar = tiff(np.moveaxis(DEEP_RGB, 2, 0), photometric="rgb", planarconfig="separate")
    assert np.array_equal(pixels(planar, RGB), DEEP_RGB)


def test_a_white_is_zero_tiff_is_turned_to_black_is_zero() -> None:
    """TIFF 6.0: photometric interpretation 0 means that 0 is white."""
    assert np.array_equal(pixels(tiff(DEEP, photometric="miniswhite"), GRAY)[..., 0], 65535 - DEEP)


def test_a_float_tiff_stays_float() -> None:
    """Values outside [0, 1] are kept."""
    values = np.array([[-1000.5, 0.0], [0.25, 3e30]], np.float32)
    content = pixels(tiff(values, photometric="minisblack"), GRAY)
    assert content.dtype == np.float32
    assert np.array_equal(content[..., 0], values)


def test_signed_tiffs_become_float() -> None:
    """int16 CT values keep their sign as float32."""
    values = np.array([[-1024, 0], [1, 3071]], np.int16)
    content = pixels(tiff(values, photometric="minisblack"), GRAY)
    assert content.dtype == np.float32
    assert np.array_equal(content[..., 0], values)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("1", [[0, 255], [255, 0]]), ("P", [[0, 255], [255, 0]])],
)
def test_1_bit_and_palette_pictures_become_8_bit(mode: str, expected: list[list[int]]) -> None:
    """Bits become 0 and 255; palette entries become their colours."""
    picture = Image.fromarray(np.array(expected, np.uint8)).convert(mode)
    assert pixels(saved(picture, "PNG"), GRAY)[..., 0].tolist() == expected


@pytest.mark.parametrize("bits", [2, 4])
def test_small_depths_are_spread_over_8_bits(bits: int) -> None:
    """The largest sample of a 2- or 4-bit gray PNG is 255, as the PNG specification says."""
    rows = b"\0" + (b"\x1b" if bits == 2 else b"\x05\xaf")  # 0 1 2 3, and 0 5 10 15
    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    data = chunked_png((b"IHDR", header), (b"IDAT", zlib.compress(rows)))
    assert pixels(data, GRAY).ravel().tolist() == [0, 85, 170, 255]


# Channels ----------------------------------------------------------------------------------------------------------


def test_bgr_is_rgb_reversed() -> None:
    """The contract decides the order."""
    assert np.array_equal(pixels(saved(Image.fromarray(COLORS), "PNG"), BGR), COLORS[..., ::-1])


def test_gray_becomes_three_equal_channels() -> None:
    """A gray picture for an RGB model is replicated, at any depth."""
    assert np.array_equal(pixels(deep_png(DEEP, 0), RGB), np.stack([DEEP] * 3, axis=2))


def test_rgb_to_gray_equals_pillow() -> None:
    """The NumPy formula and Pillow's convert("L") agree on every one of 4,096 colours; seed 1."""
    colors = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colors).convert("L"))
    assert np.array_equal(pixels(saved(Image.fromarray(colors), "PNG"), GRAY)[..., 0], expected)
    assert np.array_equal(pixels(npy(colors), GRAY)[..., 0], expected)


def test_16_bit_rgb_to_gray_uses_the_same_weights_in_16_bits() -> None:
    """0.299 R + 0.587 G + 0.114 B, rounded."""
    expected = DEEP_RGB @ np.array([0.299, 0.587, 0.114])
    gray = pixels(deep_png(DEEP_RGB, 2), GRAY)
    assert gray.dtype == np.uint16
    assert np.abs(gray[..., 0] - expected).max() <= 1


def test_float_rgb_to_gray_stays_float() -> None:
    """Floats are weighted, not rounded."""
    gray = pixels(npy(np.array([[[1.0, 2.0, 4.0]], [[0.0, 0.0, 0.0]]], np.float32)), GRAY)
    assert gray[0, 0, 0] == pytest.approx(0.299 + 2 * 0.587 + 4 * 0.114, abs=1e-6)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    """CMYK, YCbCr and CIELAB mean colours: a gray of 50 % lightness stays gray."""
    middle = {"CMYK": (0, 0, 0, 136), "YCbCr": (119, 128, 128), "LAB": (127, 128, 128)}[mode]
    content = pixels(saved(Image.new(mode, (4, 4), middle), "TIFF"), RGB)
    assert np.abs(content.astype(int) - 119).max() <= 2


def test_six_bands_keep_their_order() -> None:
    """A multispectral TIFF keeps its bands and their order."""
    cube = np.arange(2 * 3 * 6, dtype=np.uint16).reshape(2, 3, 6) * 1000
    data = tiff(cube, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(pixels(data, bands(6)), cube)


def test_a_near_infrared_band_is_not_a_colour() -> None:
    """RGB + an unspecified fourth sample: four bands for bands, three for rgb."""
    cube = np.arange(2 * 2 * 4, dtype=np.uint8).reshape(2, 2, 4)
    data = tiff(cube, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(pixels(data, bands(4)), cube)
    assert np.array_equal(pixels(data, RGB), cube[..., :3])


def test_bands_drop_an_alpha_only_if_the_number_of_channels_requires_it() -> None:
    """RGBA is four bands, or three colours."""
    rgba = np.dstack([COLORS, np.full((2, 2), 128, np.uint8)])
    data = saved(Image.fromarray(rgba), "PNG")
    assert np.array_equal(pixels(data, bands(4)), rgba)
    assert np.array_equal(pixels(data, bands(3)), COLORS)


# Alpha -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "background"), [("black", 0), ("white", 255)])
def test_alpha_is_composed_as_pillow_composes(alpha: str, background: int) -> None:
    """8-bit "over" on black or white equals Image.paste with a mask; seed 2."""
    rgba = Image.fromarray(np.random.default_rng(2).integers(0, 256, (32, 32, 4), dtype=np.uint8))
    expected = Image.new("RGB", rgba.size, (background,) * 3)
    expected.paste(rgba, mask=rgba.getchannel("A"))
    content = pixels(saved(rgba, "PNG"), ModelInput(alpha=alpha))
    assert np.array_equal(content, np.asarray(expected))


def test_a_dropped_alpha_leaves_the_colours() -> None:
    """Also where they are invisible."""
    rgba = np.dstack([COLORS, np.zeros((2, 2), np.uint8)])
    assert np.array_equal(pixels(saved(Image.fromarray(rgba), "PNG"), RGB), COLORS)


def test_16_bit_alpha_is_composed_in_16_bits() -> None:
    """Half-transparent 1000 over white is (1000 · 32768 + 65535 · 32767) / 65535."""
    gray_alpha = np.array([[[1000, 32768], [1000, 0], [1000, 65535]]], np.uint16)
    content = pixels(deep_png(gray_alpha, 4), ModelInput(color="gray", channels=1, alpha="white"))
    assert content.ravel().tolist() == [33267, 65535, 1000]


def test_premultiplied_colours_are_divided_by_their_alpha() -> None:
    """TIFF's associated alpha: dropping it gives the colours back; composing does not multiply again."""
    rgba = np.array([[[100, 200, 0, 32768], [0, 0, 0, 0]]], np.uint16)
    data = tiff(rgba, photometric="rgb", extrasamples=["assocalpha"])
    assert pixels(data, RGB).tolist() == [[[200, 400, 0], [0, 0, 0]]]
    assert pixels(data, ModelInput(alpha="black")).tolist() == [[[100, 200, 0], [0, 0, 0]]]


def test_a_transparent_palette_entry_is_an_alpha() -> None:
    """Palette + transparency goes through RGBA."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    data = saved(picture, "PNG", transparency=0)
    assert pixels(data, ModelInput(alpha="white")).tolist() == [[[255, 255, 255], [200, 100, 50]]]
    assert pixels(data, RGB).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("deep", [False, True])
def test_a_colour_declared_transparent_is_an_alpha(deep: bool) -> None:
    """PNG's tRNS of a gray picture, in 8 and 16 bits."""
    data = deep_png(DEEP, 0, (b"tRNS", struct.pack(">H", 1000)))
    shallow = saved(Image.fromarray(np.array([[5, 6]], np.uint8)), "PNG", transparency=5)
    spec = ModelInput(color="gray", channels=1, alpha="white")
    expected = np.where(DEEP == 1000, 65535, DEEP) if deep else np.array([[255, 6]])
    assert np.array_equal(pixels(data if deep else shallow, spec)[..., 0], expected)


# Orientation -------------------------------------------------------------------------------------------------------


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied_as_in_pillow(format_: str, orientation: int) -> None:
    """All eight orientations equal ImageOps.exif_transpose, and size is that of the displayed picture."""
    picture = Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14)
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = saved(picture, format_, exif=exif(orientation), **options)
    page = only(data, RGB)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(page.content, expected)
    assert (page.height, page.width) == expected.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_an_ignored_orientation_changes_nothing(format_: str, orientation: int) -> None:
    """`exif: ignore` gives the stored rows and columns, also where Pillow turns by itself."""
    stored = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    page = only(saved(Image.fromarray(stored), format_, exif=exif(orientation)), ModelInput(exif="ignore"))
    assert np.array_equal(page.content, stored)
    assert (page.height, page.width) == (2, 3)


@pytest.mark.parametrize("after", [False, True])
def test_a_16_bit_rgb_png_is_turned_too(after: bool) -> None:
    """Orientation 6 turns clockwise; the eXIf chunk may be before or after the pixels."""
    data = deep_png(DEEP_RGB, 2, (b"eXIf", exif(6).tobytes().removeprefix(b"Exif\0\0")), after=after)
    assert np.array_equal(pixels(data, RGB), np.rot90(DEEP_RGB, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_16_bit_rgb_tiff_is_turned_as_pillow_turns(orientation: int) -> None:
    """tifffile's pages obey the orientation that Pillow's do."""
    data = tiff(DEEP_RGB, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    page = only(data, RGB)
    assert np.array_equal(page.content >> 8, np.asarray(turned))
    assert (page.height, page.width) == page.content.shape[:2]


def test_exif_in_the_text_of_a_png_turns_too() -> None:
    """ImageMagick writes EXIF as hexadecimal text under "Raw profile type exif"."""
    body = b"Exif\0\0" + exif(6).tobytes().removeprefix(b"Exif\0\0")
    text = b"Raw profile type exif\0\nexif\n%8d\n" % len(body) + body.hex().encode()
    assert np.array_equal(pixels(deep_png(DEEP_RGB, 2, (b"tEXt", text)), RGB), np.rot90(DEEP_RGB, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_gray_picture_is_contiguous(orientation: int) -> None:
    """A turned view is copied: `pixels` asserts that memory follows the rows."""
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    data = saved(picture, "PNG", exif=exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(pixels(data, GRAY)[..., 0], expected)


def test_a_picture_with_damaged_exif_is_decoded() -> None:
    """Unreadable metadata is ignored."""
    page = only(saved(Image.new("RGB", (4, 2)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), RGB)
    assert (page.height, page.width) == (2, 4)
    assert page.content.shape == (2, 4, 3)


# Reduced JPEGs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit", "orientation", "decoded"),
    [
        ("stretch", 1, (100, 200)),  # 1/4 of the rows is 100 ≥ 100, of the columns 200 ≥ 100; 1/8 is too small
        ("letterbox", 1, (50, 100)),  # the fitted picture is 50 × 100
        ("letterbox", 6, (100, 50)),
        ("tile", 1, (400, 800)),
        ("none", 1, (400, 800)),
    ],
)
def test_a_jpeg_is_reduced_no_further_than_its_fit(fit: str, orientation: int, decoded: tuple[int, int]) -> None:
    """1/2, 1/4 or 1/8, at least the fitted size; the page still says the whole picture's size."""
    data = saved(Image.new("RGB", (800, 400), (9, 99, 199)), "JPEG", exif=exif(orientation))
    page = only(data, ModelInput(reduced_jpeg=True, fit=fit, height=100, width=100, kernel="triangle_f32"))
    assert page.content.shape[:2] == decoded
    assert (page.height, page.width) == ((800, 400) if orientation == 6 else (400, 800))


def test_a_contract_with_reduced_jpegs_is_told_what_that_does() -> None:
    """`plan` and `doctor` say it; where nothing is resized, that it does nothing."""
    assert about_reduced_jpeg(ModelInput(fit="stretch", height=100, width=100)) is None
    assert "decoded at a part" in str(about_reduced_jpeg(ModelInput(fit="letterbox", reduced_jpeg=True)))
    assert "no effect" in str(about_reduced_jpeg(ModelInput(fit="tile", reduced_jpeg=True)))


def test_a_jpeg_is_decoded_at_full_scale_by_default() -> None:
    """Reduced decoding changes pixels, so the contract must ask for it."""
    data = saved(Image.new("RGB", (800, 400)), "JPEG")
    spec = ModelInput(fit="stretch", height=100, width=100, kernel="triangle_f32")
    assert pixels(data, spec).shape == (400, 800, 3)


# NumPy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        ("bool", "uint8"), ("uint8", "uint8"), ("uint16", "uint16"), (">u2", "uint16"), ("int16", "float32"),
        ("int32", "float32"), ("float16", "float32"), ("float32", "float32"), (">f8", "float32"),
    ],
)  # fmt: skip
def test_npy_values_survive(dtype: str, becomes: str) -> None:
    """Each dtype becomes uint8, uint16 or float32, in native byte order, with its values."""
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    content = pixels(npy(values), GRAY)
    assert content.dtype == np.dtype(becomes)
    assert content[..., 0].tolist() == [[0, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_channel_axis_of_npy_is_the_one_with_the_contracts_channels(order: str) -> None:
    """(H, W, C) and (C, H, W) give the same picture, in either memory order."""
    last = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(pixels(npy(np.asarray(last, order=order)), RGB), last)
    assert np.array_equal(pixels(npy(np.asarray(np.moveaxis(last, 2, 0), order=order)), RGB), last)


def test_an_ambiguous_npy_has_its_channels_last() -> None:
    """(3, 4, 3) is three rows of four pixels."""
    array = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    assert np.array_equal(pixels(npy(array), RGB), array)


# Writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "mode"), [("uint8", "L"), ("uint16", "I;16")])
def test_a_label_map_survives_its_png(dtype: str, mode: str) -> None:
    """8 and 16 bits, gray and never a palette, read back by Pillow."""
    labels = np.array([[0, 1, 2], [3, 250, np.iinfo(dtype).max]], dtype)
    picture = Image.open(io.BytesIO(encode_png(labels)))
    assert picture.mode == mode
    assert np.array_equal(np.asarray(picture), labels)


@pytest.mark.parametrize("labels", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8)])
def test_arrays_that_are_not_label_maps_are_refused(labels: np.ndarray) -> None:
    """A wrong dtype or rank is a bug, with a clear message."""
    with pytest.raises(ShapeMismatch, match="label map"):
        encode_png(labels)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("color", ["gray", "rgb", "bgr"])
def test_a_picture_stretched_while_it_is_decoded_equals_one_stretched_afterwards(mode, color):
    """The fast path for the most common contract changes no bit."""
    levels = np.random.default_rng(7).integers(0, 256, (37, 53, 3), np.uint8)
    image = Image.fromarray(levels).convert(mode)
    data = io.BytesIO()
    image.save(data, "PNG")
    channels = 1 if color == "gray" else 3
    late = ModelInput(color=color, channels=channels, fit="none")
    early = ModelInput(color=color, channels=channels, fit="stretch", height=16, width=24)
    [whole], [small] = decode(data.getvalue(), late, LIMITS), decode(data.getvalue(), early, LIMITS)
    expected, _ = fit(whole.content, early, tile_hw=None, source_hw=(37, 53))
    found, geometry = fit(small.content, early, tile_hw=None, source_hw=(small.height, small.width))
    np.testing.assert_array_equal(found, expected)
    assert geometry.source_hw == (37, 53)
