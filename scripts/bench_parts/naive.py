"""The rival: batch inference with Ray Data and ONNX Runtime as Ray's own guides write it.

    read_images -> map_batches(preprocess) -> map_batches(actor with a session, fixed batch) -> write_parquet

As many sessions as cores, no progress bars, CPU requests that leave room for the read tasks, masks encoded beside the
session so that logits stay in the actor. Sessions have ONNX Runtime's own number of threads, as in the guides, or
THREADS: with one each, this is as fast as its shape can be. Knows nothing of unet_batch. As a program:
naive.py PHOTOS MODEL OUT IMAGES [THREADS] prints one JSON line; it starts its own Ray, whose start is timed apart.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image
from rival import BATCH, SIDE_PX, Segmenter, first_photos, tiles

Batch = dict[str, Any]


def preprocess(batch: Batch) -> Batch:
    """uint8 (N, H, W, 3) pictures to float32 (N, 3, 256, 256) in [0, 1]."""
    pictures = (Image.fromarray(image) for image in batch["image"])
    small = [np.asarray(picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)) for picture in pictures]
    return {"key": batch["path"], "tile": tiles(np.stack(small))}


class Segment:
    """The actor: one session, one batch at a time."""

    def __init__(self, model: str, provider: str, threads: int) -> None:
        self._segmenter = Segmenter(model, provider, threads=threads)

    def __call__(self, batch: Batch) -> Batch:
        return {"key": batch["key"], **self._segmenter(batch["tile"])}


def run(photos: Path, model: Path, out: Path, images: int, threads: int = 0) -> dict[str, Any]:
    """Scores the first `images` JPEGs of a folder; returns wall seconds without Ray's start, and that apart.

    threads: of each session; 0 leaves it to ONNX Runtime.
    """
    started = time.perf_counter()
    cores = os.cpu_count() or 1
    ray.init(address="local", num_cpus=cores, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    ready = time.perf_counter()

    dataset = ray.data.read_images(first_photos(photos, images), mode="RGB", include_paths=True).map_batches(preprocess)
    if gpus:
        provider = "CUDAExecutionProvider"
        dataset = dataset.map_batches(
            Segment,
            fn_constructor_args=(str(model.resolve()), provider, threads),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=gpus),
            num_gpus=1,
        )
    else:
        provider = "CPUExecutionProvider"
        dataset = dataset.map_batches(
            Segment,
            fn_constructor_args=(str(model.resolve()), provider, threads),
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=cores),
            num_cpus=0.5,  # whole ones would hold every core, and the read tasks could never start
        )
    dataset.write_parquet(str(out.resolve()))
    seconds = time.perf_counter() - ready

    rows = ray.data.read_parquet(str(out.resolve())).count()
    ray.shutdown()
    return {
        "variant": "tuned" if threads else "naive",
        "seconds": seconds,
        "images": rows,
        "start_s": ready - started,
        "provider": provider,
    }


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit("usage: naive.py PHOTOS MODEL OUT IMAGES [THREADS]")
    result = run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
    print(json.dumps(result), flush=True)
    os._exit(0)  # pyarrow may abort while the interpreter winds down, long after the result is written
