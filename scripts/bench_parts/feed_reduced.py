"""How far the labels of a trained U-Net move if JPEGs are decoded at half their size (`input.reduced_jpeg`).

Pictures: held-out photographs of 512² with discs and squares drawn into them, saved as JPEG; the model stretches them
to 256². Both ways score the same bytes with the same session, and both are held against what was drawn.
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import photos
import shapes
from limit import bench_job
from model_figures import shapes_model
from PIL import Image

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import decode
from unet_batch.imaging.preprocess import fit, normalize
from unet_batch.limits_spec import LimitsSpec
from unet_batch.planning.prepare import prepare
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device

LIMITS = LimitsSpec()
WAYS = ("full", "reduced", "other kernel")
"""As the contract says; decoded at half the size; and, as a measure, at full size with `torch_bilinear`."""


def measure(folder: Path, path: Path, count: int) -> dict[str, Any]:
    """Flips, Dice and milliseconds. folder: JPEGs of 512². path: where the trained model is, or is made."""
    path = shapes_model(path.parent.parent, folder)
    prepared = prepare(bench_job(folder, path, path.parent))
    model = prepared.model
    session = open_session(
        prepared.model_bytes, model, prepared.job.session, Device(threads=1), engine="onnxruntime", precision="fp32"
    )
    full = model.contract.input
    specs = dict(
        zip(
            WAYS,
            (
                full,
                full.model_copy(update={"reduced_jpeg": True}),
                full.model_copy(update={"kernel": "torch_bilinear"}),
            ),
            strict=True,
        )
    )
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    flips: dict[str, list[float]] = {way: [] for way in WAYS}
    levels: dict[str, list[float]] = {way: [] for way in WAYS}
    shared = {way: np.zeros((2, len(shapes.CLASSES))) for way in WAYS}
    for data, truth in drawn(folder, count):
        found = {}
        for way, spec in specs.items():
            begun = time.thread_time()
            content, place, largest = read(data, spec)
            times[way].append(1000 * (time.thread_time() - begun))
            logits = session.run(normalize(content, place, full, largest=largest)[None])[0]
            found[way] = logits.argmax(axis=0), content
        for way, (labels, content) in found.items():
            flips[way].append(float((labels != found["full"][0]).mean()))
            levels[way].append(float(np.abs(content.astype(int) - found["full"][1]).mean()))
            shared[way] += overlaps(labels, truth)
    result = {}
    for way in WAYS:
        dice = shared[way][0] / shared[way][1]
        result[way] = {
            "ms": round(statistics.median(times[way]), 3),
            "flipped": statistics.mean(flips[way]),
            "most_flipped": max(flips[way]),
            "levels": statistics.mean(levels[way]),
            "dice_of_truth": {name: round(float(d), 4) for name, d in zip(shapes.CLASSES[1:], dice[1:], strict=True)},
        }
        print(way, result[way], file=sys.stderr)
    print(f"{'decode and fit':16}" + "".join(f"{way:>15}" for way in WAYS))
    print(f"{'ms':16}" + "".join(f"{result[way]['ms']:15.2f}" for way in WAYS))
    print(f"{'labels flipped':16}" + "".join(f"{result[way]['flipped']:15.3%}" for way in WAYS))
    return result


def drawn(folder: Path, count: int) -> Any:
    """JPEGs of 512² with shapes in them, and what was drawn, at 256²."""
    random = np.random.default_rng(1)
    for path in shapes.photographs(folder, held_out=True)[:count]:
        with Image.open(path) as image:
            picture, labels = shapes.draw(np.asarray(image.convert("RGB")), random, scale=2)
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, "JPEG", quality=photos.QUALITY, subsampling=photos.SUBSAMPLING)
        yield encoded.getvalue(), labels[1::2, 1::2]


def read(data: bytes, spec: ModelInput) -> Any:
    """The picture at the model's size, its geometry, and the largest value of its depth."""
    [page] = decode(data, spec, LIMITS)
    content, place = fit(page.content, spec, tile_hw=(spec.height, spec.width), source_hw=(page.height, page.width))
    return content, place, page.largest


def overlaps(labels: npt.NDArray[Any], truth: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Twice the shared pixels, and the sum of both areas, by class: Dice is their ratio over all pictures."""
    classes = range(len(shapes.CLASSES))
    both = [2 * int(((labels == k) & (truth == k)).sum()) for k in classes]
    return np.array([both, [int((labels == k).sum() + (truth == k).sum()) for k in classes]], np.float64)
