"""Ordinary JPEGs at full size are decoded by imagecodecs: pixels and rejections are those of Pillow. Oracle: Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from encoded import by_pillow, outcome, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_batch.contract import ModelInput
from unet_batch.decode.jpeg import plain_samples

SIZE_HW = (61, 83)
SPECS = (
    ModelInput(),
    ModelInput(color="bgr"),
    ModelInput(color="gray", channels=1),
    ModelInput(color="bands", channels=3),
    ModelInput(fit="letterbox", height=32, width=32),
    ModelInput(fit="stretch", height=32, width=32),
    ModelInput(fit="stretch", height=32, width=32, kernel="triangle_f32", reduced_jpeg=True),
)


def picture(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    noise = np.random.default_rng(5).integers(0, 40, (*SIZE_HW, 3))
    colors = (x[..., None] * 3 + y[..., None] * 2 * (np.arange(3) + 1) + noise) % 256
    return Image.fromarray(colors.astype(np.uint8)).convert(mode)


WAYS = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "progressive": {"progressive": True},
    "optimised, low quality": {"optimize": True, "quality": 12},
    "restarts": {"restart_marker_blocks": 2},
    "kept as RGB": {"keep_rgb": True},
    "comment, profile and EXIF": {"comment": b"\xff\xd9", "icc_profile": b"p" * 70_000, "exif": b"Exif\0\0"},
}


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
@pytest.mark.parametrize("way", WAYS)
def test_an_ordinary_jpeg_has_the_pixels_of_pillow(way: str, spec: ModelInput) -> None:
    """Every sampling and coding, in every colour, with and without a resize."""
    data = saved(picture(), "JPEG", **WAYS[way])
    assert plain_samples(data, SIZE_HW, 3) is not None
    assert outcome(data, spec) == by_pillow(data, spec)


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_a_gray_jpeg_has_the_pixels_of_pillow(spec: ModelInput) -> None:
    """One component."""
    if spec.color != "bands":
        data = saved(picture("L"), "JPEG")
        assert plain_samples(data, SIZE_HW, 1) is not None
        assert outcome(data, spec) == by_pillow(data, spec)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_turns_the_picture(orientation: int) -> None:
    """All eight."""
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(picture(), "JPEG", exif=exif)
    assert outcome(data, ModelInput()) == by_pillow(data, ModelInput())


@pytest.mark.parametrize(
    "data",
    [
        saved(picture("CMYK"), "JPEG"),
        saved(picture(), "JPEG") + b"behind",
        saved(picture(), "JPEG")[:-2],
        saved(picture(), "JPEG")[:400],
        saved(picture(), "JPEG")[:2],
        b"",
    ],
    ids=["CMYK", "bytes behind", "no end", "cut", "only its start", "empty"],
)
def test_what_is_not_ordinary_is_left_to_pillow(data: bytes) -> None:
    """Kinds of files in which the two could differ."""
    assert plain_samples(data, SIZE_HW, 3) is None


FILES = (saved(picture(), "JPEG"), saved(picture(), "JPEG", progressive=True, restart_marker_blocks=3))


@settings(max_examples=400, deadline=None)
@given(
    file=st.sampled_from(FILES),
    places=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    values=st.lists(st.integers(0, 255), min_size=4, max_size=4),
)
def test_any_byte_may_be_wrong(file: bytes, places: list[float], values: list[int]) -> None:
    """Some bytes of the file are others: the verdict stays that of Pillow."""
    damaged = bytearray(file)
    for place, value in zip(places, values, strict=False):
        damaged[int(place * (len(file) - 1))] = value
    assert outcome(bytes(damaged), ModelInput()) == by_pillow(bytes(damaged), ModelInput())


@settings(max_examples=150, deadline=None)
@given(file=st.sampled_from(FILES), begin=st.floats(0, 1), length=st.integers(1, 40), again=st.booleans())
def test_bytes_may_be_missing_or_doubled(file: bytes, begin: float, length: int, again: bool) -> None:
    """A piece is left out, or stands there twice."""
    place = int(begin * len(file))
    damaged = file[:place] + (2 * file[place : place + length] if again else b"") + file[place + length :]
    assert outcome(damaged, ModelInput()) == by_pillow(damaged, ModelInput())
