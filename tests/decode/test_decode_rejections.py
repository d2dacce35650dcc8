"""Decoding of bad bytes: one page with a reason; no exception, no output, and no decompression bomb is decoded."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from encoded import GRAY, LIMITS, RGB, npy, only, saved, tiff
from PIL import Image, ImageFile

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import decode
from unet_batch.errors import ImageError, Reason
from unet_batch.spec import LimitsSpec

SMALL = LimitsSpec(max_image_pixels=99)


def noise(mode: str = "RGB", side: int = 64) -> Image.Image:
    """A picture of noise: half of its file holds half of its pixels; seed 3."""
    values = np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def reason(data: bytes, spec: ModelInput = RGB, limits: LimitsSpec = LIMITS) -> Reason:
    content = only(data, spec, limits).content
    assert isinstance(content, ImageError)
    assert 0 < len(content.message) <= 240
    assert "\n" not in content.message
    assert " at 0x" not in content.message
    return content.reason


# Formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"\0" * 400, b"hello", b"\xff", b"RIFF"[:3]])
def test_bytes_that_are_not_an_image_are_unrecognized(data: bytes) -> None:
    """Empty files and unknown bytes."""
    assert reason(data) == Reason.DECODE_UNRECOGNIZED


@pytest.mark.parametrize("format_", ["EPS", "PDF", "PPM", "ICO", "PCX", "SGI", "JPEG2000", "AVIF"])
def test_formats_outside_the_allow_list_are_named_and_refused(format_: str) -> None:
    """All other formats that Pillow could read."""
    page = only(saved(Image.new("RGB", (16, 16)), format_))
    assert isinstance(page.content, ImageError)
    assert page.content.reason == Reason.DECODE_FORMAT_NOT_ALLOWED
    assert format_ in page.content.message


def test_a_refused_format_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS would start an interpreter. Only the first bytes decide."""
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == Reason.DECODE_FORMAT_NOT_ALLOWED


def test_a_magic_without_an_image_is_unrecognized() -> None:
    """The magic bytes alone are not a picture."""
    assert reason(b"GIF89a") == Reason.DECODE_UNRECOGNIZED
    assert reason(b"\xff\xd8\xff") == Reason.DECODE_UNRECOGNIZED


# Damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_cut_picture_is_truncated(format_: str, share: float) -> None:
    """A picture with missing rows is not scored."""
    data = saved(noise(), format_)
    assert reason(data[: int(len(data) * share)]) == Reason.DECODE_TRUNCATED


@pytest.mark.parametrize("format_", ["WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_cut_webp_or_tiff_is_rejected(format_: str, share: float) -> None:
    """Their headers may be missing, or their libraries give no reason, so corrupt is a valid answer too."""
    data = saved(noise(), format_)
    rejected = reason(data[: int(len(data) * share)])
    assert rejected in (Reason.DECODE_TRUNCATED, Reason.DECODE_CORRUPT, Reason.DECODE_UNRECOGNIZED)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_cut_16_bit_tiff_is_truncated(compression: str | None) -> None:
    """The strips must end inside the file: tifffile would fill the missing samples."""
    cube = np.random.default_rng(4).integers(0, 65536, (32, 32, 3), dtype=np.uint16)
    data = tiff(cube, photometric="rgb", compression=compression)
    assert reason(data[:-20]) == Reason.DECODE_TRUNCATED


def test_a_cut_16_bit_png_is_truncated() -> None:
    """Also if another decoder than Pillow reads it."""
    data = _deep_rgb_png(32, 32)
    assert reason(data[: len(data) // 2]) == Reason.DECODE_TRUNCATED


@pytest.mark.parametrize("deep", [False, True])
def test_a_wrong_checksum_is_corrupt(deep: bool) -> None:
    """A flipped bit inside a PNG's pixels."""
    data = bytearray(_deep_rgb_png(32, 32) if deep else saved(noise(), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert reason(bytes(data)) == Reason.DECODE_CORRUPT


def test_text_that_inflates_to_too_much_is_corrupt() -> None:
    """A PNG whose compressed text holds 70 MB."""
    bomb = b"comment\0\0" + zlib.compress(b"\0" * 70_000_000)
    data = saved(Image.new("RGB", (2, 2)), "PNG")
    chunk = struct.pack(">I", len(bomb)) + b"zTXt" + bomb + struct.pack(">I", zlib.crc32(b"zTXt" + bomb))
    assert reason(data[:33] + chunk + data[33:]) == Reason.DECODE_CORRUPT


def test_only_the_broken_page_of_a_tiff_is_rejected() -> None:
    """The other pages of a TIFF keep their pixels."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(np.full((4, 4), 1, np.uint8))
        writer.write(np.full((4, 4), 2, np.complex64))
        writer.write(np.full((4, 4), 3, np.uint8))
    first, second, third = decode(file.getvalue(), GRAY, LIMITS)
    assert isinstance(second.content, ImageError)
    assert second.content.reason == Reason.IMAGE_MODE_NOT_SUPPORTED
    assert (int(first.content[0, 0, 0]), int(third.content[0, 0, 0])) == (1, 3)
    assert {p.pages for p in (first, second, third)} == {3}


def test_a_broken_chain_of_pages_counts_as_one_more_page() -> None:
    """Pages that cannot be reached are not ignored silently."""
    data = bytearray(saved(Image.new("L", (4, 4), 7), "TIFF", save_all=True, append_images=[Image.new("L", (4, 4))]))
    ifd = struct.unpack_from("<I", data, 4)[0]
    link = ifd + 2 + 12 * struct.unpack_from("<H", data, ifd)[0]
    struct.pack_into("<I", data, link, len(data) - 1)
    first, lost = decode(bytes(data), GRAY, LIMITS)
    assert int(first.content[0, 0, 0]) == 7
    assert isinstance(lost.content, ImageError)
    assert lost.content.reason in (Reason.DECODE_TRUNCATED, Reason.DECODE_CORRUPT)


def test_running_out_of_memory_is_its_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MemoryError rejects one image, and the reason is retryable."""

    def no_memory(_: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", no_memory)
    rejected = reason(saved(noise(), "BMP"))
    assert rejected == Reason.DECODE_OUT_OF_MEMORY
    assert rejected.retryable


# Pixel limit -------------------------------------------------------------------------------------------------------


def _deep_rgb_png(height: int, width: int) -> bytes:
    from imagecodecs import png_encode

    return bytes(png_encode(np.random.default_rng(5).integers(0, 65536, (height, width, 3), dtype=np.uint16)))


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.new("RGB", (20, 10)), "PNG"), saved(Image.new("RGB", (20, 10)), "JPEG"),
        saved(Image.new("RGB", (20, 10)), "TIFF"), saved(Image.new("RGB", (20, 10)), "WEBP"),
        saved(Image.new("RGB", (20, 10)), "GIF"), saved(Image.new("RGB", (20, 10)), "BMP"),
        tiff(np.zeros((10, 20, 3), np.uint16), photometric="rgb"), _deep_rgb_png(10, 20),
        npy(np.zeros((10, 20), np.uint8)),
    ],
    ids=["png", "jpeg", "tiff", "webp", "gif", "bmp", "tiff16", "png16", "npy"],
)  # fmt: skip
def test_the_pixel_limit_holds_in_every_reader_and_says_the_size(data: bytes) -> None:
    """10 × 20 pixels are more than 99; a limit of 200 lets them pass."""
    page = only(data, RGB, SMALL)
    assert isinstance(page.content, ImageError)
    assert page.content.reason == Reason.DECODE_TOO_MANY_PIXELS
    assert (page.height, page.width) == (10, 20)
    assert not isinstance(only(data, RGB, LimitsSpec(max_image_pixels=200)).content, ImageError)


def test_a_bomb_is_refused_by_its_header() -> None:
    """A 13,300² 1-bit PNG has a few kilobytes and is not decoded: this file has no pixels at all."""
    header = struct.pack(">IIBBBBB", 13_300, 13_300, 1, 0, 0, 0, 0)
    data = saved(Image.new("1", (1, 1)), "PNG")
    data = data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]
    assert reason(data) == Reason.DECODE_TOO_MANY_PIXELS


def test_pillows_own_limit_stays_in_place() -> None:
    """A picture beyond twice Pillow's limit has the same reason; the limit is not removed or lowered."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    data = saved(Image.new("1", (1, 1)), "PNG")
    data = data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]
    before = Image.MAX_IMAGE_PIXELS
    assert reason(data, RGB, SMALL) == Reason.DECODE_TOO_MANY_PIXELS
    assert before - Image.MAX_IMAGE_PIXELS == 0
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_limit_above_pillows_raises_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise Pillow would refuse what the job allows."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert not isinstance(only(saved(Image.new("L", (20, 10)), "PNG"), GRAY).content, ImageError)
    assert LIMITS.max_image_pixels == Image.MAX_IMAGE_PIXELS


def test_nothing_is_warned_or_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """A picture that Pillow warns about gives a row and no line on stderr."""
    from PIL import PngImagePlugin

    file = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    Image.new("P", (4, 4)).save(file, "PNG", pnginfo=text, transparency=b"\x01\x02")
    with warnings.catch_warnings(record=True) as caught:
        list(decode(file.getvalue(), RGB, LIMITS))
        list(decode(saved(noise(), "TIFF")[:-3000], RGB, LIMITS))
    assert caught == []
    assert capfd.readouterr().err == ""


# Contract ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "spec", "expected"),
    [
        (saved(Image.new("RGB", (2, 2)), "PNG"), ModelInput(color="bands", channels=5), "image.channels_mismatch"),
        (tiff(np.zeros((4, 5, 6), np.uint16), planarconfig="contig"), RGB, "image.channels_mismatch"),
        (npy(np.zeros((4, 5, 6), np.uint8)), RGB, "image.channels_mismatch"),
        (npy(np.zeros((4, 5, 6, 3), np.uint8)), RGB, "image.channels_mismatch"),
        (npy(np.zeros((4, 5), np.complex64)), GRAY, "image.mode_not_supported"),
        (npy(np.zeros((4, 5), np.int64)), GRAY, "image.mode_not_supported"),
        (npy(np.array([[{}]], object), allow_pickle=True), GRAY, "image.mode_not_supported"),
        (npy(np.array([[1.0, np.nan]])), GRAY, "image.non_finite"),
        (npy(np.array([[1.0, 1e300]])), GRAY, "image.non_finite"),
        (tiff(np.array([[1.0, np.inf]], np.float32)), GRAY, "image.non_finite"),
        (npy(np.zeros((4, 5)))[:-1], GRAY, "decode.truncated"),
        (npy(np.zeros((4, 5)))[:20], GRAY, "decode.truncated"),
        (npy(np.zeros((0, 5))), GRAY, "decode.corrupt"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit_the_contract_are_rejected(data: bytes, spec: ModelInput, expected: str) -> None:
    """Too many bands, objects, NaN, values beyond float32, missing values."""
    assert reason(data, spec) == expected


def test_a_mode_that_is_not_in_the_table_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """E.g. a new mode of a later Pillow."""
    from unet_batch.decode import decode as module

    monkeypatch.delitem(module._MODES, "L")
    assert reason(saved(Image.new("L", (2, 2)), "PNG")) == Reason.IMAGE_MODE_NOT_SUPPORTED


def test_a_npy_with_a_wrong_shape_takes_no_memory() -> None:
    """The header's shape is compared with the number of bytes before anything is allocated."""
    data = npy(np.zeros((4, 5), np.uint8)).replace(b"(4, 5)", b"(4000000, 5)")
    assert reason(data, GRAY) in (Reason.DECODE_TRUNCATED, Reason.DECODE_CORRUPT)


def test_messages_are_the_same_in_every_run() -> None:
    """Rows of two runs must be equal: no addresses, no counters."""
    data = saved(noise(), "PNG")[:100]
    assert str(only(data).content) == str(only(bytearray(data)).content) == str(only(bytes(data)).content)


def test_threads_decode_at_once() -> None:
    """Eight threads of good and bad bytes agree with one."""
    good, bad = saved(noise(), "JPEG"), saved(noise(), "JPEG")[:200]
    expected = only(good).content
    outcomes: list[bool] = []

    def work() -> None:
        outcomes.append(np.array_equal(only(good).content, expected) and isinstance(only(bad).content, ImageError))

    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert outcomes == [True] * 8
