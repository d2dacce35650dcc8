"""Contact sheets: where pictures and texts lie."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from unet_batch.imaging.sheet import GAP_PX, PAPER, Cell, Column, sheet


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_pictures_keep_their_pixels_and_stand_side_by_side():
    """A column for each variant, and a row as high as its highest picture."""
    red, blue = np.full((20, 30, 3), (255, 0, 0), np.uint8), np.full((40, 50, 3), (0, 0, 255), np.uint8)
    page = opened(sheet(["title"], [Column(("a",), (Cell(red, "r"),)), Column(("b",), (Cell(blue, "b"),))], 60))
    reds, blues = (np.argwhere((page == color).all(axis=2)) for color in ((255, 0, 0), (0, 0, 255)))
    assert (len(reds), len(blues)) == (20 * 30, 40 * 50)
    assert tuple(reds.min(axis=0))[1] == GAP_PX
    assert tuple(blues.min(axis=0))[1] == GAP_PX + 60 + GAP_PX
    assert reds.min(axis=0)[0] == blues.min(axis=0)[0]


def test_texts_stay_in_their_column():
    """A long head is cut, so that it does not run into the next one."""
    columns = [Column(("a head that is far too long for its column",), ()), Column(("",), ())]
    page = opened(sheet([], columns, 80))
    assert (page[:, : GAP_PX + 80] != PAPER).any()
    assert (page[:, GAP_PX + 80 :] == PAPER).all()
