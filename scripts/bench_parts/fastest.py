"""The job with the file that `model optimize` wrote: engine, precision and threads are those that it recommends.

As a program: fastest.py PHOTOS MODEL OUT IMAGES prints one JSON line, as `ours` does; MODEL is the fp32 file, and the
optimised one lies beside it. The job's gate compares it with fp32 before anything is scored.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from limit import bench_job, job_of
from ours import run

from unet_batch.errors import ModelRefused
from unet_batch.gate.parity import Tolerance
from unet_batch.planning.prepare import prepare, without_recommendation
from unet_batch.planning.survey import window_of
from unet_batch.review.compare import compare
from unet_batch.spec import JobSpec
from unet_batch.table.without_pandas import forgo_pandas
from unet_batch.workbench.optimize.optimize import optimize, rows
from unet_batch.workbench.sample import archive_tiles

TILES = 96
"""Tiles of the archive for `model optimize`: two thirds calibrate, the others are held out."""


def optimized(model: Path) -> Path:
    """The path of the optimised file."""
    return model.with_name(f"{model.stem}.optimized.onnx")


def job_with(photos: Path, model: Path, out: Path) -> JobSpec:
    """The job with `model.engine: auto`."""
    job = bench_job(photos, optimized(model), out)
    return job.model_copy(update={"model": job.model.model_copy(update={"engine": "auto"})})


def make(photos: Path, model: Path, out: Path) -> Path:
    """The optimised file, made once, as `unet-batch model optimize` makes it; prints its table."""
    path = optimized(model)
    if not path.exists():
        job = bench_job(photos, model, out)
        prepared = prepare(job)
        sample = archive_tiles(prepared, window_of("all"), TILES, largest_side=1024)
        tolerance = Tolerance(job.check.max_flipped, job.check.min_dice, job.check.max_abs_error)
        found = optimize(
            prepared.model_bytes,
            prepared.model,
            list(sample.tiles_nhwc),
            tolerance,
            batch_max=min(job.session.batch_max, 8),
            labels_suffice=not job.output.confidence,
            gate_images=job.check.images,
        )
        for row in rows(found):
            print("  ".join(str(cell) for cell in row), file=sys.stderr)
        path.write_bytes(found.data)
    return path


def agreement(photos: Path, model: Path, fp32: Path, fast: Path) -> dict[str, Any]:
    """How far the published rows of both jobs agree: share of equal pixels, Dice by class, pooled and as a mean."""
    job = job_with(photos, model, fast)
    found = compare(prepare(job), "published", "published", window_of("all"), b_output=str(fp32.resolve())).total
    return {
        "images": found.compared,
        "equal_pixels": round(1 - (found.flipped_share or 0.0), 6),
        "dice": {name: of.overlap.dice and round(of.overlap.dice, 5) for name, of in sorted(found.classes.items())},
        "mean_dice": {name: of.mean_dice and round(of.mean_dice, 5) for name, of in sorted(found.classes.items())},
    }


def run_or_fp32(job: JobSpec, images: int) -> dict[str, Any]:
    """As `unet-batch run` does: where the gate refuses what the file recommends, the job runs in fp32, and says why."""
    prepared = prepare(job)
    try:
        found = run(job, images)
    except ModelRefused as error:
        prepared = without_recommendation(prepared, error)
        found = run(prepared.job, images)
    return {**found, "engine": prepared.job.model.engine, "precision": prepared.job.model.precision}


if __name__ == "__main__":
    forgo_pandas()  # as the command line does where no Ray Data is wanted
    _, pictures, count = job_of(sys.argv[1:])
    found = run_or_fp32(job_with(pictures, Path(sys.argv[2]), Path(sys.argv[3])), count)
    print(f"fastest ran in {found['engine']} in {found['precision']}", file=sys.stderr)
    print(json.dumps({**found, "variant": "fastest"}), flush=True)
    os._exit(0)  # pyarrow may abort while the interpreter winds down, long after the result is written
