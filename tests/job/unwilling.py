"""A decoder for tests whose import decides how a worker process starts: UNWILLING names a file that counts starts.

Its lines, one for each start, say what that start does: `fine`, `missing` (the provider), `away` (the model's store),
`raise`, `die` (kill -9) or `hang`. After the last line every start is as that one. UNWILLING_TOGETHER names a folder:
no process decodes before two of them want to.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import poison

from unet_batch.contract import ModelInput
from unet_batch.decode.decode import Page
from unet_batch.errors import ProviderMissing, Unavailable
from unet_batch.spec import LimitsSpec

NAME = "unwilling:decode"
VARIABLE = "UNWILLING"
TOGETHER = "UNWILLING_TOGETHER"
TOGETHER_S = 60


def decode(data: bytes, spec: ModelInput, limits: LimitsSpec) -> Iterator[Page]:
    """The noting decoder, perhaps later."""
    if TOGETHER in os.environ:
        folder, give_up = Path(os.environ[TOGETHER]), time.monotonic() + TOGETHER_S
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < 2 and time.monotonic() < give_up:
            time.sleep(0.02)
    return poison.decode(data, spec, limits)


def _start() -> str:
    """What this start does; each line of the file is taken by one process."""
    path = Path(os.environ[VARIABLE])
    acts = path.read_text().split()
    for number in range(10_000):
        try:
            os.close(os.open(f"{path}.{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return acts[min(number, len(acts) - 1)]
    raise AssertionError("ten thousand starts")


def starts(path: Path) -> int:
    """How many processes have begun to start."""
    return len(list(path.parent.glob(f"{path.name}.*")))


if VARIABLE in os.environ and "UNWILLING_ISOLATED" not in os.environ:
    act = _start()
    if act == "missing":
        raise ProviderMissing("no driver on this machine")
    if act == "away":
        raise Unavailable("the store of the model is away")
    if act == "raise":
        raise RuntimeError("an unexpected error")
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "hang":
        time.sleep(3600)
