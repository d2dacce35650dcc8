"""Scores a few images into a fresh scratch output, and holds the rows against them: is this cluster fit for tonight?

    python jobs/smoke.py jobs/smoke.yaml [any option of `unet-batch run`]

Exit codes are those of `run`, then those of `verify`. Joins the cluster that RAY_ADDRESS names.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise

from unet_batch.spec import load_job

if __name__ == "__main__":
    job = sys.argv[1]
    words = [w for word in sys.argv[2:] for w in (word.split("=", 1) if word.startswith("--set=") else [word])]
    overrides = [after for word, after in pairwise(words) if word == "--set"]
    scratch = f"{load_job(job, overrides).output.uri.rstrip('/')}/{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    cluster = ["--address", "auto"] if os.environ.get("RAY_ADDRESS") else []
    for command in (["run", *cluster, *words], ["verify", *(f"--set={o}" for o in overrides)]):
        command += [job, "--window", "all", "--set", f"output.uri={scratch}"]
        if code := subprocess.run([sys.executable, "-m", "unet_batch", *command], check=False).returncode:  # noqa: S603
            sys.exit(code)
