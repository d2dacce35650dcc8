"""The same as `ours`, on an embedded Ray: what a cluster runs, with Ray's start and end timed apart."""

from __future__ import annotations

import json
import os
import sys

from limit import job_of
from ours import run

from unet_batch.on_ray.executor import RayExecutor

if __name__ == "__main__":
    wanted, _, count = job_of(sys.argv[1:])
    print(json.dumps({**run(wanted, count, RayExecutor), "variant": "ray"}), flush=True)
    os._exit(0)  # pyarrow may abort while the interpreter winds down, long after the result is written
