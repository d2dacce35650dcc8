"""A contact sheet: pictures in a grid of named columns and rows, with captions, as one PNG.

Uses arrays and texts only. Pillow's own font draws the texts, so every machine makes the same sheet.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP_PX = 8
HEAD_PX, FOOT_PX = 16, 14
"""Sizes of the fonts of a column's head and of a caption; a line is half as high again."""
LETTER_PX = 9
"""Mean width of a letter in a head."""
PAPER, INK, CHOSEN, FAINT = (250, 250, 250), (20, 20, 20), (0, 110, 60), (110, 110, 110)


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of a sheet and its caption."""

    rgb_hwc: NDArray[Any] | None
    """uint8 (H, W, 3); None: there is no picture."""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """The cells below one head, from the top."""

    head: tuple[str, ...]
    """Lines above the cells."""
    cells: tuple[Cell, ...]
    chosen: bool = False
    """Whether the head is emphasised."""


def sheet(title: Sequence[str], columns: Sequence[Column], side: int) -> bytes:
    """The PNG of a sheet. side: width in pixels of a cell, and its largest height; pictures are at most as large.

    Rows are as high as their highest picture. A title is wrapped; other texts are cut where their column ends.
    """
    width = GAP_PX + len(columns) * (side + GAP_PX)
    title = [line for text in title for line in textwrap.wrap(text, max(20, width // LETTER_PX))]
    fonts = {size: ImageFont.load_default(size) for size in (HEAD_PX, FOOT_PX)}
    line, foot = HEAD_PX * 3 // 2, FOOT_PX * 3 // 2
    heads = max((len(column.head) for column in columns), default=0)
    rows = max((len(column.cells) for column in columns), default=0)
    heights = [max((_height(c.cells[n]) for c in columns if n < len(c.cells)), default=0) for n in range(rows)]
    top = GAP_PX + line * (len(title) + heads) + GAP_PX
    page = Image.new("RGB", (width, top + sum(height + foot + GAP_PX for height in heights)), PAPER)
    pen = ImageDraw.Draw(page)

    def write(place: tuple[int, int], text: str, size: int, ink: tuple[int, int, int], room: int) -> None:
        while text and pen.textlength(text, font=fonts[size]) > room:
            text = text[:-2] + "…" if len(text) > 2 else ""
        pen.text(place, text, fill=ink, font=fonts[size])

    for number, text in enumerate(title):
        write((GAP_PX, GAP_PX + number * line), text, HEAD_PX, INK, width - 2 * GAP_PX)
    for place, column in enumerate(columns):
        left = GAP_PX + place * (side + GAP_PX)
        for number, text in enumerate(column.head):
            y = GAP_PX + (len(title) + number) * line
            write((left, y), text, HEAD_PX, CHOSEN if column.chosen else INK, side)
        y = top
        for cell, height in zip(column.cells, heights, strict=False):
            if cell.rgb_hwc is not None:
                page.paste(Image.fromarray(np.ascontiguousarray(cell.rgb_hwc)), (left, y))
            write((left, y + height + 2), cell.caption, FOOT_PX, FAINT, side)
            y += height + foot + GAP_PX
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def _height(cell: Cell) -> int:
    return 0 if cell.rgb_hwc is None else int(cell.rgb_hwc.shape[0])
