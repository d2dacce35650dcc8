"""The tutorial and the README, followed to the letter, with a network that they train themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from blocks import ROOT, play
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

LEVEL = 70
"""Between the dark ground and the darkest cell that the tutorial draws."""


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has done everything that docs/tutorial.md says."""
    for package in ("torch", "onnxscript", "pycocotools"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("tutorial")
    play(ROOT / "docs" / "tutorial.md", folder)
    return folder


def test_the_masks_of_the_tutorial_lie_on_the_cells(followed):
    """Dice with the bright pixels of each picture: the network was trained, exported and fed as it must be."""
    from pycocotools import mask

    rows = [row for row in pq.read_table(followed / "results/predictions").to_pylist() if row["status"] == "ok"]
    assert len(rows) == 12
    for row in rows:
        bright = np.asarray(Image.open(row["uri"].removeprefix("file://"))) > LEVEL
        found = mask.decode(row["classes"][0]["rle"]).astype(bool)
        assert 2 * (bright & found).sum() / (bright.sum() + found.sum()) > 0.95, row["uri"]


def test_the_pictures_of_the_tutorial_have_outlines(followed):
    """One for each picture that was scored."""
    looks = sorted((followed / "looks").glob("plate-*.png"))
    assert len(looks) == 12
    assert all((np.asarray(Image.open(look)) == (255, 196, 0)).all(axis=2).any() for look in looks)


def test_the_readme_does_what_it_says(followed, tmp_path):
    """README.md begins with a network, its weights and a folder of pictures."""
    (tmp_path / "images").symlink_to(followed / "images")
    for name in ("network.py", "cells.pt"):
        (tmp_path / name).write_bytes((followed / name).read_bytes())
    play(ROOT / "README.md", tmp_path)
