"""A driver to be killed: runs a job with the noting decoder. Arguments: local or ray, job file, overrides."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import poison

from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.prepare import prepare
from unet_batch.job.ray_executor import RayExecutor
from unet_batch.job.run import run
from unet_batch.job.survey import window_of
from unet_batch.spec import load_job

EXECUTORS = {"local": LocalExecutor, "ray": RayExecutor}

if __name__ == "__main__":
    make = EXECUTORS[sys.argv[1]]
    summary = run(
        prepare(load_job(sys.argv[2], sys.argv[3:])),
        window_of("all"),
        lambda settings: make(replace(settings, decoder=poison.NAME)),
        quiet=True,
    )
    print(summary, file=sys.stderr)
    os._exit(summary.exit_code)
