"""A decoder for tests: it notes every image it decodes, and crashes, hangs, raises or says nothing on images
that ask for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import Page
from unet_batch.decode.decode import decode as decode_well
from unet_batch.spec import LimitsSpec

NAME = "poison:decode"
CRASH, HANG, RAISE, SILENT = b"<crash>", b"<hang>", b"<raise>", b"<silent>"
LOG_VARIABLE = "POISON_LOG"
DELAY_VARIABLE = "POISON_DELAY_S"


def decode(data: bytes, spec: ModelInput, limits: LimitsSpec) -> Iterator[Page]:
    """`decode`, with a note of the bytes' hash in the file that POISON_LOG names."""
    if LOG_VARIABLE in os.environ:
        with Path(os.environ[LOG_VARIABLE]).open("a") as log:
            log.write(f"{hash_of(data)}\n")
    time.sleep(float(os.environ.get(DELAY_VARIABLE, "0")))
    if data.endswith(CRASH):
        os._exit(1)
    if data.endswith(HANG):
        time.sleep(3600)
    if data.endswith(RAISE):
        raise RuntimeError("an unexpected error")
    if data.endswith(SILENT):
        return iter(())
    return decode_well(data, spec, limits)


def hash_of(data: bytes) -> str:
    """A short name of some bytes."""
    import hashlib

    return hashlib.sha256(data).hexdigest()[:16]
