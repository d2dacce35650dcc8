"""Pictures for display: the image with its masks, small with their borders, or at full size with a fill as well.

Arrays and colours only. Contrast is stretched for display; no model reads these arrays.
Legend: H, W pixels; C channels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.imaging.resize import resize

DISPLAYED_PERCENTILES = (1, 99.8)
"""Range of the stretch: micrographs use a small part of 16 bits, and a few hot pixels must not set the contrast."""
COVERED = 64
"""Coverage (of 255) from which a thumbnail's pixel belongs to a mask; low, so that thin structures keep a border."""

FILL = 0.3
"""Share of the class's colour inside its mask: the tissue below stays visible."""
PX_PER_LINE = 1500
"""Longer side of a picture, in pixels, for each pixel of a line's half width."""

Color = tuple[int, int, int]

COLORS: tuple[Color, ...] = (
    (255, 196, 0), (86, 180, 233), (0, 190, 140), (240, 110, 60), (214, 140, 190), (130, 120, 240), (180, 210, 60),
)  # fmt: skip
"""Of labels from 1 on, after Okabe and Ito's set for people who do not see all colours."""
FIRST_COLOR: Color = (178, 50, 70)
"""Of label 0, where it is a class and no background."""
GOLDEN = 0.618034
"""Step of the hue beyond them, of the whole circle: neighbours differ as far as they can, and none comes twice."""


def label_color(label: int) -> Color:
    """The colour of a label; each label has its own, 0 too: a model without a background has a class 0."""
    if label == 0:
        return FIRST_COLOR
    if label <= len(COLORS):
        return COLORS[label - 1]
    value = (0.95, 0.7)[label % 2]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.75, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def displayed(image_hwc: NDArray[Any], color: str) -> NDArray[Any]:
    """The channels as red, green and blue, (H, W, 3) in their dtype. color: of the contract's input.

    Of `bands`, the first three are shown, or the first if there are fewer than three.
    """
    if image_hwc.shape[2] < 3:
        return np.repeat(image_hwc[..., :1], 3, axis=2)
    return image_hwc[..., 2::-1] if color == "bgr" else image_hwc[..., :3]


def stretch(image: NDArray[Any]) -> NDArray[np.uint8]:
    """The range between the image's DISPLAYED_PERCENTILES as uint8; same shape."""
    low, high = np.percentile(image, DISPLAYED_PERCENTILES)
    unit = (image.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.asarray(unit.clip(0, 1) * 255, dtype=np.uint8)


def border(mask_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool (H, W): one pixel on either side of the mask's border, but not along the picture's edge."""
    return _spread(mask_hw) & _spread(~mask_hw)


def thumbnail_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Rows and columns of a thumbnail whose longer side is `side`; small pictures grow by whole factors only."""
    longest = max(height, width)
    if longest <= side:
        factor = max(side // longest, 1)
        return height * factor, width * factor
    return max(1, round(height * side / longest)), max(1, round(width * side / longest))


def thumbnail(
    image_hwc: NDArray[Any],
    side: int,
    masks: Iterable[tuple[NDArray[np.bool_], Color]],
    *,
    fill: float = FILL,
    lines: bool = True,
) -> NDArray[np.uint8]:
    """The picture with its masks filled and outlined, uint8 (H, W, 3), its longer side about `side`.

    image_hwc: as `displayed` returns it; other dtypes than uint8 are stretched. masks: any size, of the whole picture.
    fill: share of a mask's colour inside it. lines: whether borders are drawn.
    """
    height, width = size_hw = thumbnail_size(image_hwc.shape[0], image_hwc.shape[1], side)
    enlarged = height > image_hwc.shape[0]
    small_hwc = resize(np.ascontiguousarray(image_hwc), size_hw, "nearest" if enlarged else "pil_bilinear_u8")
    drawn_hwc = np.array(small_hwc if small_hwc.dtype == np.uint8 else stretch(small_hwc))
    borders = []
    for mask_hw, color in masks:
        grows = height > mask_hw.shape[0] or width > mask_hw.shape[1]
        levels = resize(mask_hw.astype(np.uint8)[..., None] * 255, size_hw, "nearest" if grows else "pil_bilinear_u8")
        inside_hw = levels[..., 0] >= COVERED
        drawn_hwc[inside_hw] = _tinted(drawn_hwc[inside_hw], color, fill)
        if lines:
            borders.append((border(inside_hw), color))
    for line_hw, _ in borders:
        drawn_hwc[_spread(line_hw) & ~line_hw] //= 2  # a dark outline keeps the line visible on bright tissue
    for line_hw, color in borders:
        drawn_hwc[line_hw] = color
    return drawn_hwc


def full_size(image_hwc: NDArray[Any], masks: Iterable[tuple[NDArray[np.bool_], Color]]) -> NDArray[np.uint8]:
    """The picture at its own size with its masks filled and outlined, uint8 (H, W, 3).

    image_hwc: as `displayed` returns it; other dtypes than uint8 are stretched. masks: any size, of the whole picture.
    """
    drawn_hwc = np.array(image_hwc if image_hwc.dtype == np.uint8 else stretch(image_hwc))
    size_hw = (drawn_hwc.shape[0], drawn_hwc.shape[1])
    borders = []
    for mask_hw, color in masks:
        same = mask_hw.shape == size_hw
        whole_hw = mask_hw if same else resize(mask_hw.astype(np.uint8)[..., None], size_hw, "nearest")[..., 0] > 0
        drawn_hwc[whole_hw] = _tinted(drawn_hwc[whole_hw], color, FILL)
        line_hw = border(whole_hw)
        for _ in range(max(size_hw) // PX_PER_LINE):
            line_hw = _spread(line_hw)
        borders.append((line_hw, color))
    for line_hw, color in borders:
        drawn_hwc[line_hw] = color
    return drawn_hwc


def _tinted(pixels: NDArray[np.uint8], color: Color, share: float) -> NDArray[np.uint8]:
    """Pixels (N, 3) with a share of a colour."""
    return np.asarray((pixels * (1 - share) + np.array(color) * share).round(), np.uint8)


def _spread(mask_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and its eight neighbours."""
    tall = mask_hw.copy()
    tall[1:] |= mask_hw[:-1]
    tall[:-1] |= mask_hw[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide
