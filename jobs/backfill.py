"""Scores every partition that has no rows yet, as long as it takes: start it again, and it goes on.

    python jobs/backfill.py jobs/backfill.yaml [--window A..B] [any other option of `unet-batch backfill`]

The same as `unet-batch backfill`, with its exit codes. Joins the cluster that RAY_ADDRESS names, as Ray's job server
sets it.
"""

import os
import sys

from unet_batch.cli.main import main

if __name__ == "__main__":
    cluster = ["--address", "auto", "--wait", "600"] if os.environ.get("RAY_ADDRESS") else []
    sys.argv[1:] = ["backfill", "--window", "all", "--select", "missing", *cluster, *sys.argv[1:]]
    main()
