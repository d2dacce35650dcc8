"""Ours: the job end to end, from listing the archive to one published partition, in worker processes.

As a program: ours.py PHOTOS MODEL OUT IMAGES [ENGINE PRECISION REFERENCE] prints one JSON line. Starting the processes,
opening their sessions and the gate are part of the time. `ours_on_ray` is the same on an embedded Ray, whose start and,
after the publication, end are timed apart, as for naive.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

from limit import job_of

from unet_batch.job.process_executor import ProcessExecutor
from unet_batch.job.run import MakeExecutor
from unet_batch.job.run import run as run_job
from unet_batch.job.verify import verify
from unet_batch.planning.prepare import prepare
from unet_batch.planning.survey import window_of
from unet_batch.spec import JobSpec
from unet_batch.table.without_pandas import forgo_pandas


def run(job: JobSpec, images: int, executor: MakeExecutor = ProcessExecutor) -> dict[str, Any]:
    """Seconds from the job file to the published partition, without what the executor calls its start and end; and what
    verify says."""
    started = time.perf_counter()
    prepared = prepare(job)
    summary = run_job(prepared, window_of("all"), executor, quiet=True)
    seconds = time.perf_counter() - started - summary.start_s - summary.stop_s
    proof = verify(prepared, window_of("all"))
    return {
        "variant": "ours",
        "seconds": seconds,
        "images": summary.ok,
        "start_s": summary.start_s,
        "stop_s": summary.stop_s,
        "publish_s": summary.publish_s,
        "score_s": summary.score_s,
        "stage_s": summary.stage_s,
        "batches": summary.batches,
        "verified": (proof.partitions, len(proof.findings)) == (1, 0) and summary.ok == images,
        "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "worker_peak_mib": summary.peak_worker_rss_bytes >> 20,
    }


if __name__ == "__main__":
    forgo_pandas()  # as the command line does where no Ray Data is wanted
    wanted, _, count = job_of(sys.argv[1:])
    print(json.dumps(run(wanted, count)), flush=True)
    os._exit(0)  # pyarrow may abort while the interpreter winds down, long after the result is written
