"""Scores yesterday's images: what a scheduler starts every night on a cluster.

    python jobs/nightly.py jobs/nightly.yaml [--window 2026-11-21] [any other option of `unet-batch run`]

The same as `unet-batch run`, with its exit codes; leaves the page about the night below the output (`reports/`). Joins
the cluster that RAY_ADDRESS names, as Ray's job server sets it.
"""

import os
import sys

from unet_batch.cli.main import main

if __name__ == "__main__":
    cluster = ["--address", "auto", "--wait", "600"] if os.environ.get("RAY_ADDRESS") else []
    sys.argv[1:] = ["run", "--window", "yesterday", "--report", *cluster, *sys.argv[1:]]
    main()
