"""Models of other frameworks as jobs score them, for tests that hold the label maps against the framework's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image

from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.run import run
from unet_batch.planning.prepare import prepare
from unet_batch.planning.survey import window_of
from unet_batch.review.originals import masks_of
from unet_batch.spec import JobSpec
from unet_batch.strict import validate

SIZES = ((64, 64), (70, 90), (47, 33), (97, 130))
"""Heights and widths of the pictures: even, and odd in every way."""


def pictures(folder: Path, sizes: tuple[tuple[int, int], ...] = SIZES, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Smooth colour pictures as PNG files in a folder, and their pixels (H, W, 3) by file name."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for number, (height, width) in enumerate(sizes):
        coarse = Image.fromarray(random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
        made[f"{number}.png"] = np.asarray(image)
    return made


def label_maps(model: Path, archive: Path, output: Path, **tiling: Any) -> dict[str, np.ndarray]:
    """Label maps (H, W) by file name, as a job with the local executor publishes them.

    The settings in `<model>.job.yaml` are taken; tiling: more of them.
    """
    beside = model.with_suffix(".job.yaml")
    own = yaml.safe_load(beside.read_text()) if beside.exists() else {}
    tree = {
        "name": "foreign",
        **own,
        "model": {"path": str(model), **own.get("model", {})},
        "input": {"uri": f"{archive}/", **own.get("input", {})},
        "output": {"uri": str(output), **own.get("output", {})},
        "tiling": {**own.get("tiling", {}), **tiling},
    }
    prepared = prepare(validate(JobSpec, tree, "the job of the test"))
    run(prepared, window_of("all"), LocalExecutor, quiet=True)
    found = {}
    (data,) = (output / "predictions").rglob("data.parquet")
    for row in pq.ParquetFile(data).read().to_pylist():
        assert row["status"] == "ok", row["reason"]
        labels = np.zeros((row["height"], row["width"]), np.int64)
        for number, mask in masks_of(prepared, row):
            labels[mask] = number
        found[row["image_key"].rsplit("/", 1)[1]] = labels
    return found


def differing_share(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Share of pixels with another label, over all pictures."""
    assert found.keys() == expected.keys()
    assert all(found[name].shape == expected[name].shape for name in expected)
    pixels = sum(labels.size for labels in expected.values())
    return sum(int((found[name] != expected[name]).sum()) for name in expected) / pixels


def mean_dice_of_four_commands(folder: Path, source: str, truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """From a framework's model and `pictures/` in a folder to overlays and a Dice, as a person types it.

    truth: label maps (H, W) by the pictures' file names. Returns the mean Dice of each class; nothing is edited.
    """
    (folder / "truth").mkdir()
    for name, labels_hw in truth.items():
        Image.fromarray(labels_hw.astype(np.uint8)).save(folder / "truth" / name)
    commands = (
        f"init {source} pictures --yes",
        "run job.yaml --executor local",
        "masks job.yaml --to overlay overlays",
        "evaluate job.yaml --truth truth/{name}",
    )
    for command in commands:
        done = forked.command(forked.PROGRAM, *command.split(), folder=folder, timeout_s=300)
        assert done.returncode == 0, done.stderr
    assert len(list((folder / "overlays").rglob("*.jpg"))) == len(truth)
    evaluation = json.loads(done.stdout.splitlines()[-1])
    assert evaluation["compared"] == len(truth)
    return {name: score["mean_dice"] for name, score in evaluation["classes"].items() if score["images_truth"]}
