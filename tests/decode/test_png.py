"""Ordinary PNGs are decoded by libspng: the pixels and the rejections are those of Pillow. Oracle: Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from encoded import by_pillow, outcome, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_batch.contract import ModelInput
from unet_batch.decode.png import plain_samples

Chunk = tuple[bytes, bytes]

SPECS = (
    ModelInput(),
    ModelInput(color="bgr"),
    ModelInput(color="gray", channels=1),
    ModelInput(color="bands", channels=4),
    ModelInput(alpha="white"),
    ModelInput(fit="stretch", height=7, width=11),
    ModelInput(fit="stretch", height=7, width=11, color="gray", channels=1),
)
COLORS = {1: 0, 3: 2, 4: 6}
"""Samples of a pixel → color type."""


def picture(samples: int, size_hw: tuple[int, int] = (23, 31)) -> np.ndarray:
    """Smooth colours with some noise, so that encoders choose every filter."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    noise = np.random.default_rng(5).integers(0, 9, (*size_hw, samples))
    return ((x[..., None] * 5 + y[..., None] * 3 * (np.arange(samples) + 1) + noise) % 256).astype(np.uint8)


def png(samples: int) -> bytes:
    image = picture(samples)
    return saved(Image.fromarray(image[:, :, 0] if samples == 1 else image), "PNG")


def chunks(data: bytes) -> list[Chunk]:
    place, found = 8, []
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        found.append((kind, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def joined(parts: list[Chunk]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def with_pixels(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The file with other bytes in its IDAT, and a valid checksum over them."""
    return joined([(kind, change(body) if kind == b"IDAT" else body) for kind, body in chunks(data)])


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
@pytest.mark.parametrize("samples", COLORS)
def test_an_ordinary_png_has_the_pixels_of_pillow(samples: int, spec: ModelInput) -> None:
    """Gray, RGB and RGBA, in every colour, with and without a resize."""
    data = png(samples)
    assert plain_samples(data) is not None
    assert outcome(data, spec) == by_pillow(data, spec)


@pytest.mark.parametrize("samples", COLORS)
@pytest.mark.parametrize("kind", range(5))
def test_every_filter_is_undone(samples: int, kind: int) -> None:
    """None, Sub, Up, Average and Paeth (PNG specification, 9.2), with bytes that no encoder chose."""
    random = np.random.default_rng(kind)
    rows = b"".join(bytes([kind]) + random.bytes(31 * samples) for _ in range(23))
    header = (b"IHDR", struct.pack(">IIBBBBB", 31, 23, 8, COLORS[samples], 0, 0, 0))
    data = joined([header, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    wanted = np.asarray(Image.open(io.BytesIO(data)))
    found = plain_samples(data)
    assert found is not None
    assert np.array_equal(found.reshape(wanted.shape), wanted)


def test_an_exif_orientation_turns_the_picture() -> None:
    """Orientation 6, before the pixels."""
    exif = Image.Exif()
    exif[274] = 6
    data = saved(Image.fromarray(picture(3)), "PNG", exif=exif)
    assert plain_samples(data) is not None
    assert outcome(data, ModelInput())[:2] == (31, 23)
    assert outcome(data, ModelInput()) == by_pillow(data, ModelInput())


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(picture(3)).convert("P"), "PNG"),
        saved(Image.fromarray(picture(3)).convert("1"), "PNG"),
        saved(Image.fromarray(picture(2)), "PNG"),
        saved(Image.fromarray(picture(3)), "PNG", transparency=(1, 2, 3)),
        saved(Image.fromarray(picture(3)), "PNG", save_all=True, append_images=[Image.fromarray(picture(3)[::-1])]),
        joined([*chunks(png(3))[:-1], (b"tEXt", b"a\0b"), (b"IEND", b"")]),
        joined(chunks(png(3))[:-1]),
        png(3)[:-30],
        b"\x89PNG\r\n\x1a\n",
    ],
    ids=["palette", "1 bit", "gray + alpha", "transparent colour", "APNG", "text behind", "no end", "cut", "empty"],
)
def test_what_is_not_ordinary_is_left_to_pillow(data: bytes) -> None:
    """Kinds of files in which the two could differ."""
    assert plain_samples(data) is None


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "wrong Adler-32": lambda body: body[:-4] + b"\0\0\0\1",
    "no Adler-32": lambda body: body[:-4],
    "cut": lambda body: body[: len(body) // 2],
    "a row too few": lambda body: zlib.compress(zlib.decompress(body)[: -31 * 3 - 1]),
    "a byte too few": lambda body: zlib.compress(zlib.decompress(body)[:-1]),
    "rows too many": lambda body: zlib.compress(zlib.decompress(body) * 3),
    "bytes behind the stream": lambda body: body + b"more",
    "unknown filter": lambda body: zlib.compress(b"\x09" + zlib.decompress(body)[1:]),
    "no stream": lambda body: b"",
    "not compressed": zlib.decompress,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_png_gets_the_verdict_of_pillow(fault: str) -> None:
    """The same pixels, or the same reason and message."""
    data = with_pixels(png(3), FAULTS[fault])
    assert outcome(data, ModelInput()) == by_pillow(data, ModelInput())


@settings(max_examples=250, deadline=None)
@given(place=st.floats(0, 1), value=st.integers(0, 255), samples=st.sampled_from([1, 3, 4]), sealed=st.booleans())
def test_any_byte_may_be_wrong(place: float, value: int, samples: int, sealed: bool) -> None:
    """One byte of the file, or of its pixels under a valid checksum, is another: the verdict stays that of Pillow."""

    def change(body: bytes) -> bytes:
        index = int(place * (len(body) - 1))
        return body[:index] + bytes([value]) + body[index + 1 :]

    data = with_pixels(png(samples), change) if sealed else change(png(samples))
    assert outcome(data, ModelInput()) == by_pillow(data, ModelInput())


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_pixels_may_come_in_several_chunks(parts: int) -> None:
    """Also with an empty one between them; a wrong checksum, which Pillow does not compare, changes nothing."""
    [head, (_, body), end] = chunks(png(3))
    step = -(-len(body) // parts)
    pieces = [(b"IDAT", body[at : at + step]) for at in range(0, len(body), step)]
    data = joined([head, pieces[0], (b"IDAT", b""), *pieces[1:], end])
    unsealed = data[:-13] + b"\0" + data[-12:]
    for file in (data, unsealed):
        assert outcome(file, ModelInput()) == by_pillow(file, ModelInput())
    assert outcome(data, ModelInput())[-1] == picture(3).tobytes()
