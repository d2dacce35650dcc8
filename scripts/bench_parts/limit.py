"""The limit: decode, fit, session and encode in a plain loop, one process per core, no Ray, nothing written.

Uses the package's own functions, so that what is between this and the job is the job: planning, actors, the object
store, parts and publication. As a program: limit.py PHOTOS MODEL OUT IMAGES [ENGINE PRECISION REFERENCE] prints one
JSON line; imports and opening the session are not timed (which flatters the limit).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

from rival import first_photos

from unet_batch.decode.decode import decode
from unet_batch.imaging.postprocess import reduce
from unet_batch.imaging.preprocess import fit, normalize
from unet_batch.imaging.tiling import Box
from unet_batch.planning.prepare import prepare
from unet_batch.records import Source
from unet_batch.session.batching import Batcher, Tile
from unet_batch.session.ladder import LadderMemory
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import CheckSpec, InputSpec, JobSpec, ModelSpec, OutputSpec
from unet_batch.table.rows import Provenance, prediction_row, to_table

BATCH_IMAGES = 32


def bench_job(
    photos: Path,
    model: Path,
    out: Path,
    engine: str = "onnxruntime",
    *,
    precision: str = "fp32",
    reference: str | None = None,
) -> JobSpec:
    """The job that both the limit and ours run. reference: the fp32 model that the gate holds another one against."""
    return JobSpec(
        name="bench",
        model=ModelSpec.model_validate({"path": str(model), "engine": engine, "precision": precision}),
        check=CheckSpec(reference=reference if reference != str(model) else None),
        input=InputSpec(uri=str(photos)),
        output=OutputSpec(uri=str(out), geometry="model", confidence=False),  # what the rivals write, and no more
    )


def work(photos: list[str], job: JobSpec, ready: Barrier) -> None:
    """Score photographs in slices of BATCH_IMAGES until there are none left."""
    try:
        prepared = prepare(job)
        model = prepared.model
        engine, precision = job.model.engine, job.model.precision
        session = open_session(
            prepared.model_bytes, model, job.session, Device(threads=1), engine=engine, precision=precision
        )
    except BaseException:
        ready.abort()  # nobody waits for a process that cannot start
        raise
    # With what the machine remembers, as the job has it: else a short limit climbs the ladder for most of its time.
    batcher = Batcher(session, batch_max=job.session.batch_max, memory=LadderMemory(precision))
    provenance = Provenance(model.sha256, prepared.fingerprint, "bench", session.provider, precision)
    ready.wait()
    for begin in range(0, len(photos), BATCH_IMAGES):
        names = photos[begin : begin + BATCH_IMAGES]
        geometries, tiles = [], []
        for index, name in enumerate(names):
            [page] = decode(Path(name).read_bytes(), model.contract.input, job.limits)
            fitted, geometry = fit(
                page.content, model.contract.input, tile_hw=model.tile_hw, source_hw=(page.height, page.width)
            )
            geometries.append(replace(geometry, source_hw=geometry.resized_hw))  # as output.geometry: model
            box = Box(0, 0, *geometry.fitted_hw)
            tiles.append(Tile(index, box, normalize(fitted, geometry, model.contract.input, largest=page.largest)))
        rows = []
        for tile, logits_khw in batcher.run(tiles):
            prediction = reduce(
                logits_khw, geometries[tile.image], model.contract.output, rle=True, confidence=job.output.confidence
            )
            rows.append(prediction_row(Source(names[tile.image], "v"), 0, 1, prediction, None))
        to_table(rows, "all", provenance)


def run(job: JobSpec, photos: Path, images: int) -> dict[str, Any]:
    """Seconds of the slowest process, from the moment all are ready."""
    names = first_photos(photos, images)
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(cores + 1)
    workers = [context.Process(target=work, args=(names[i::cores], job, ready)) for i in range(cores)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    try:
        ready.wait()
    except BrokenBarrierError:
        sys.exit("a process of the limit could not start")
    begun = time.perf_counter()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - begun
    if any(worker.exitcode for worker in workers):
        sys.exit("a process of the limit failed")
    return {"variant": "limit", "seconds": seconds, "images": len(names), "start_s": begun - started}


def job_of(arguments: list[str]) -> tuple[JobSpec, Path, int]:
    """The job that PHOTOS MODEL OUT IMAGES [ENGINE PRECISION REFERENCE] ask for, the photographs, and how many."""
    if len(arguments) not in (4, 7):
        sys.exit("usage: PHOTOS MODEL OUT IMAGES [ENGINE PRECISION REFERENCE]")
    photos, model, out = map(Path, arguments[:3])
    engine, precision, reference = arguments[4:] or ("onnxruntime", "fp32", None)
    return bench_job(photos, model, out, engine, precision=precision, reference=reference), photos, int(arguments[3])


if __name__ == "__main__":
    print(json.dumps(run(*job_of(sys.argv[1:]))), flush=True)
