"""Pictures that anybody can make again: clouds, discs and bars out of integers.

No float takes part, and no generator of NumPy's, so that every machine and every version makes the same pixels.
Legend: H, W pixels; C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_batch.model.pack_nodes import SourceType

KINDS = ("clouds", "discs", "bars")


def synthetic(number: int, shape_hwc: tuple[int, int, int], dtype: SourceType) -> NDArray[Any]:
    """Picture `number` of this size: clouds, discs or bars, each channel with values of its own."""
    height, width, channels = shape_hwc
    kind = KINDS[number % len(KINDS)]
    pixels = np.empty(shape_hwc, np.int64)
    for channel in range(channels):
        texture = _clouds(height, width, seed=1000 * number + channel)
        if kind != "clouds":
            texture = texture // 8 + _shapes(height, width, number, channel, kind=kind)
        # Channels differ in brightness, so that a wrong order shows.
        pixels[:, :, channel] = texture * (255 - 40 * (channel % 4)) // 255
    if number >= len(KINDS):  # the second round is darker, as microscopy is
        pixels //= 2
    pixels = np.clip(pixels, 0, 255)
    return (pixels * 257 if dtype == "uint16" else pixels).astype(dtype)


def _clouds(height: int, width: int, *, seed: int) -> NDArray[np.int64]:
    """0 to 255: three octaves of values on a lattice, interpolated."""
    total = np.zeros((height, width), np.int64)
    for octave, (cell, weight) in enumerate(((64, 4), (16, 2), (4, 1))):
        rows, columns = np.arange(height), np.arange(width)
        lattice = _random((height // cell + 2, width // cell + 2), seed=seed * 8 + octave) % 256
        top, left = rows // cell, columns // cell
        down, across = (rows % cell)[:, None], (columns % cell)[None]
        upper = lattice[top][:, left] * (cell - across) + lattice[top][:, left + 1] * across
        lower = lattice[top + 1][:, left] * (cell - across) + lattice[top + 1][:, left + 1] * across
        blended = (upper * (cell - down) + lower * down) // (cell * cell)
        total += blended.astype(np.int64) * weight
    return total // 7


def _shapes(height: int, width: int, number: int, channel: int, *, kind: str) -> NDArray[np.int64]:
    """Discs or bars of 40 to 255 on a ground of 0 to 127."""
    count = max(6, height * width // 1024)
    draws = _random((count, 4), seed=number * 64 + 7)  # places and sizes are the same in every channel
    values = _random((count,), seed=number * 64 + 11 + channel) % 216 + 40
    canvas = np.full((height, width), int(_random((1,), seed=number * 64 + 31 + channel)[0] % 128), np.int64)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    for (y, x, size, shape), value in zip(draws, values, strict=True):
        row, column, radius = int(y % height), int(x % width), int(3 + size % 14)
        top, left = max(0, row - 4 * radius), max(0, column - 4 * radius)
        box = slice(top, row + 4 * radius + 1), slice(left, column + 4 * radius + 1)
        down, across = abs(rows[box[0]] - row), abs(columns[:, box[1]] - column)
        if kind == "discs":
            inside = down**2 + across**2 <= radius**2
        else:
            inside = (down <= (radius if shape % 2 else 2)) & (across <= (2 if shape % 2 else 4 * radius))
        canvas[box][inside] = value
    return canvas


def _random(shape: tuple[int, ...], *, seed: int) -> NDArray[np.int64]:
    """Numbers of 0 to 2^31 − 1: splitmix64 (Steele, Lea and Flood 2014) of a counter."""
    state = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64((seed * 0xD1342543DE82EF95) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return (state >> np.uint64(33)).astype(np.int64).reshape(shape)
