"""A U-Net whose masks mean something, and pictures for it: red discs and blue squares drawn into photographs.

The 1.9 M U-Net of `unet_batch.architectures`, three channels, 256², trained for some minutes on two cores until
it finds them. What fewer bits or fewer channels do to masks cannot be seen on random weights, where every rounding
flips some label. Needs PyTorch (the extra `export`).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import photos as photo_maker
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]

CLASSES = ("background", "disc", "square")
FACTORY = "unet_batch.architectures:unet"
ARGUMENTS = {"in_channels": 3, "classes": 3, "base": 16}
SIDE_PX, CROP_PX = 256, 128
COLORS = np.array([[200, 60, 50], [50, 80, 200]])
"""Of discs and of squares, give or take 40."""
STEPS, BATCH = 700, 8
SHAPES = 5
"""Of each kind in one picture."""
HELD_OUT = 200
"""The last photographs of the folder: never trained on."""

Pixels = npt.NDArray[np.uint8]


def draw(photo: Pixels, random: np.random.Generator, *, scale: int = 1) -> tuple[Pixels, Pixels]:
    """The photograph (H, W, 3) with red discs and blue squares in it, through which it shines, and the labels.

    scale: how many pixels of the photograph are one of the model's.
    """
    picture, labels = photo.astype(np.float32), np.zeros(photo.shape[:2], np.uint8)
    rows, columns = np.mgrid[: photo.shape[0], : photo.shape[1]]
    for number in range(2 * SHAPES):
        kind = 1 + number % 2
        y, x = random.integers(0, photo.shape[0]), random.integers(0, photo.shape[1])
        half = scale * random.integers(6, 24)
        inside = (
            (rows - y) ** 2 + (columns - x) ** 2 <= half**2
            if kind == 1
            else (abs(rows - y) <= half * 0.886) & (abs(columns - x) <= half * 0.886)  # of the same area
        )
        color = (COLORS[kind - 1] + random.uniform(-40, 40, 3)).astype(np.float32)
        picture[inside] = 0.6 * color + 0.4 * picture[inside]
        labels[inside] = kind
    return picture.astype(np.uint8), labels


def photographs(folder: Path, *, held_out: bool) -> list[Path]:
    """JPEGs to train on, or those that are kept for judging."""
    names = sorted(folder.glob("*.jpg"))
    return names[-HELD_OUT:] if held_out else names[:-HELD_OUT]


def read(path: Path) -> Pixels:
    """A photograph at the model's size, uint8 (256, 256, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))


def judged(folder: Path, count: int, *, seed: int = 1) -> list[tuple[Pixels, Pixels]]:
    """Pictures and their true labels, from photographs that were never trained on."""
    random = np.random.default_rng(seed)
    names = photographs(folder, held_out=True)
    return [draw(read(names[n * len(names) // count]), random) for n in range(count)]


def archive(photos: Path, target: Path, *, seed: int = 2) -> Path:
    """A folder of JPEGs, made once: the photographs of a folder with shapes drawn into them, named as they are."""
    if not target.is_dir():
        scratch = target.with_name(f".{target.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        random = np.random.default_rng(seed)
        for path in sorted(photos.glob("*.jpg")):
            with Image.open(path) as image:
                photo = np.asarray(image.convert("RGB"))
            picture, _ = draw(photo, random, scale=max(1, photo.shape[0] // SIDE_PX))
            photo_maker.write(scratch / path.name, Image.fromarray(picture))
        scratch.replace(target)
    return target


def train(folder: Path, weights: Path, *, steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    """Trains on crops and writes the state dict; returns the loss, averaged over the last fiftieth of the steps."""
    import torch

    from unet_batch.architectures import unet

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = unet(**ARGUMENTS).to(memory_format=torch.channels_last)
    photos = [read(path) for path in photographs(folder, held_out=False)[::4]]
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps)
    weight = torch.tensor([0.5, 1.0, 1.0])
    losses = []
    for step in range(steps):
        pairs = [draw(photos[random.integers(len(photos))], random) for _ in range(BATCH)]
        places = random.integers(0, SIDE_PX - CROP_PX, (BATCH, 2))
        pieces = [
            (p[y : y + CROP_PX, x : x + CROP_PX], t[y : y + CROP_PX, x : x + CROP_PX])
            for (p, t), (y, x) in zip(pairs, places, strict=True)
        ]
        images = torch.from_numpy(np.stack([p for p, _ in pieces]).transpose(0, 3, 1, 2).astype(np.float32) / 255)
        labels = torch.from_numpy(np.stack([t for _, t in pieces]).astype(np.int64))
        # In fp32: autocast to bf16 takes twice as long on processors without such instructions.
        logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(logits, labels, weight=weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            print(f"step {step + 1} of {steps}: loss {np.mean(losses[-100:]):.4f}", file=sys.stderr, flush=True)
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), weights)
    return {"steps": steps, "loss": float(np.mean(losses[-max(1, steps // 50) :]))}


def make(folder: Path, path: Path, *, steps: int = STEPS) -> Path:
    """The trained model as a verified ONNX file with its contract inside; trained once, then found."""
    from unet_batch.contract import Divide
    from unet_batch.workbench.export.export import ExportSpec, export

    if not path.exists():
        weights = path.with_suffix(".pt")
        print("training a U-Net on shapes in photographs (minutes, once)", file=sys.stderr)
        print(json.dumps(train(folder, weights, steps=steps)), file=sys.stderr)
        size = (3, SIDE_PX, SIDE_PX)
        export(
            ExportSpec(FACTORY, path, size, CLASSES, args=ARGUMENTS, weights=weights, normalize=Divide(), color="rgb")
        )
    return path


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: shapes.py PHOTOS MODEL")
    print(make(Path(sys.argv[1]), Path(sys.argv[2])))
