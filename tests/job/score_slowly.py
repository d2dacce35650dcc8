"""A driver of its own: runs a job with the noting decoder. Arguments: an executor, a job file, overrides.

Ray belongs in processes that end: one that lost its cluster may leave without a word, and would take the tests along.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, replace

import poison

from unet_batch.errors import UnetBatchError
from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.process_executor import ProcessExecutor
from unet_batch.job.run import run
from unet_batch.on_ray.executor import RayExecutor
from unet_batch.planning.prepare import prepare
from unet_batch.planning.survey import window_of
from unet_batch.spec import load_job
from unet_batch.worker.worker import Settings


def on_cpus(settings: Settings) -> RayExecutor:
    """An executor that was placed on CPUs, whose sessions still must be what the job asks for."""
    job = settings.job
    placed = job.model_copy(update={"session": job.session.model_copy(update={"providers": ("cpu",)})})
    executor = RayExecutor(replace(settings, job_json=placed.model_dump_json()))
    executor._settings = settings
    return executor


EXECUTORS = {"local": LocalExecutor, "processes": ProcessExecutor, "ray": RayExecutor, "ray-on-cpus": on_cpus}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell begin with Ctrl-C ignored
    make, sys.stdout = EXECUTORS[sys.argv[1]], sys.stderr  # Ray prints what its workers died of
    try:
        summary = run(
            prepare(load_job(sys.argv[2], sys.argv[3:])),
            window_of("all"),
            lambda settings: make(replace(settings, decoder=poison.NAME)),
            quiet=True,
        )
        print(json.dumps(asdict(summary)), file=sys.__stdout__, flush=True)
        os._exit(summary.exit_code)
    except UnetBatchError as error:
        print(f"error [{error.code}]: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
