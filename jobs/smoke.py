"""Scores a few images into a fresh scratch output, and holds the rows against them: is this cluster fit for tonight?

    python jobs/smoke.py jobs/smoke.yaml [any option of `unet-batch run`]

Exit codes are those of `run`, then those of `verify`. Joins the cluster that RAY_ADDRESS names.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime

from unet_batch.spec import load_job

if __name__ == "__main__":
    job, words = sys.argv[1], sys.argv[2:]
    overrides = [word for i, word in enumerate(words) if word == "--set" or words[i - 1 : i] == ["--set"]]
    scratch = f"{load_job(job, overrides[1::2]).output.uri}/{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    cluster = ["--address", "auto"] if os.environ.get("RAY_ADDRESS") else []
    for command in (["run", *cluster, *words], ["verify", *overrides]):
        command += [job, "--window", "all", "--set", f"output.uri={scratch}"]
        code = subprocess.run([sys.executable, "-m", "unet_batch", *command], check=False).returncode  # noqa: S603
        if code != 0:
            sys.exit(code)
