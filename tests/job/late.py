"""A decoder whose process takes long to start, as on a busy machine; the worker itself imports it at once."""

from __future__ import annotations

import sys
import time

from unet_batch.decode.decode import decode

__all__ = ["decode"]

NAME = "late:decode"
START_S = 4.0

if sys.argv[0].endswith("isolate.py"):
    time.sleep(START_S)
