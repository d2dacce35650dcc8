"""Drawn pictures of cells with their truth, and the training of a small network on them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

CLASSES = ("background", "cell", "edge")
GROUND, CELL, EDGE = (236, 208, 224), (168, 120, 178), (96, 52, 132)
"""Colours a little like those of a stained section."""
BATCH, SIDE = 2, 96

Normalize = Callable[[np.ndarray], np.ndarray]
"""From pictures, uint8 (N, H, W, 3), to what the network is trained with, in the same layout."""


def draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 (H, W, 3), of round cells, and its labels, uint8 (H, W): 0 ground, 1 cell, 2 the cell's edge."""
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    for _ in range(height * width // 2200):
        row, column, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, 17)
        squeeze, turn = rng.uniform(0.7, 1.3), rng.uniform(0, np.pi)
        along = (rows - row) * np.cos(turn) + (columns - column) * np.sin(turn)
        across = (columns - column) * np.cos(turn) - (rows - row) * np.sin(turn)
        distance = np.hypot(along * squeeze, across / squeeze)
        labels[(distance < radius) & (labels == 0)] = 1
        labels[(distance < radius) & (distance >= radius - 3)] = 2
    clean = np.array((GROUND, CELL, EDGE), float)[labels] * rng.uniform(0.9, 1.05)
    picture = clean + rng.normal(0, 9, (height, width, 1))
    soft = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    noisy = np.asarray(soft) + rng.normal(0, 4, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8), labels


def lay_out(folder: Path) -> None:
    """Six pictures in `pictures` and their label images in `truth`."""
    rng = np.random.default_rng(7)
    for name in ("pictures", "truth"):
        (folder / name).mkdir(parents=True)
    for number in range(6):
        picture, labels = draw(rng, int(rng.integers(260, 380)), int(rng.integers(320, 420)))
        Image.fromarray(picture).save(folder / "pictures" / f"field-{number}.png")
        Image.fromarray(labels).save(folder / "truth" / f"field-{number}.png")


def train(network: Any, normalize: Normalize, *, steps: int = 120, rate: float = 0.003) -> None:
    """Train a network with random weights on pictures of its own; it returns logits (N, 3, h, w) of any size."""
    import torch

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.train().parameters(), rate)
    for _ in range(steps):
        pictures, labels = zip(*(draw(rng, SIDE, SIDE) for _ in range(BATCH)), strict=True)
        inputs = torch.tensor(normalize(np.stack(pictures)), dtype=torch.float32).permute(0, 3, 1, 2)
        logits = torch.nn.functional.interpolate(network(inputs), size=(SIDE, SIDE), mode="bilinear")
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(np.stack(labels).astype(np.int64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    print(f"trained: loss {loss.item():.3f}", file=sys.stderr)
