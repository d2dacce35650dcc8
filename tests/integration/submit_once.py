"""Sends one submission, as the command line does: a JSON of its fields in, a JSON of what became of it out.

Ray reads whether it needs a token once in a process, so every submission has its own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

from unet_batch.errors import UnetBatchError
from unet_batch.job.submission import Submission
from unet_batch.job.submit import submit

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("unet_batch").setLevel(logging.INFO)
    words = json.loads(sys.argv[1])
    follow = words.pop("follow", True)
    words = {name: tuple(value) if isinstance(value, list) else value for name, value in words.items()}
    code, sys.stdout = 1, sys.stderr
    try:
        done = submit(
            Submission(**{**words, "job_file": Path(words["job_file"])}), show=sys.stderr.write if follow else None
        )
        print(json.dumps(asdict(done)), file=sys.__stdout__, flush=True)
        code = done.exit_code
    except UnetBatchError as error:
        print(f"error [{error.code}]: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    os._exit(code)
