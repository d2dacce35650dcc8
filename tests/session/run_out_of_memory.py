"""A session that runs out of memory for real, in a process of its own: such a limit cannot be taken back."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_out_of_memory(engine: str, *, kept_mib: int) -> str:
    """What went wrong when a batch did not fit and smaller ones followed; empty where all was well.

    kept_mib: most address space that the session may keep of the failed batch.
    """
    child = subprocess.run(
        [sys.executable, __file__, engine, str(kept_mib)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return child.stderr if child.returncode else ""


def main(engine: str, kept_mib: int) -> None:
    from models import unet_model

    from unet_batch.errors import OutOfMemory
    from unet_batch.model.contract import resolve
    from unet_batch.session.model_files import read_model
    from unet_batch.session.opening import open_session
    from unet_batch.session.session import Device
    from unet_batch.spec import SessionSpec, TilingSpec

    tiny = unet_model(128, base=16, levels=2)
    model = resolve(tiny.contract, read_model(tiny.data, "unet.onnx", None), TilingSpec())
    session = open_session(tiny.data, model, SessionSpec(), Device(threads=1), engine=engine)
    alone = session.run(np.zeros((1, 128, 128, 3), np.float32))
    tiles = np.zeros((128, 128, 128, 3), np.float32)
    before = address_space()
    resource.setrlimit(resource.RLIMIT_AS, (before + (256 << 20),) * 2)
    with pytest.raises(OutOfMemory, match="batch of 128 tiles of 128x128"):
        session.run(tiles)
    kept = address_space() - before
    assert kept < kept_mib << 20, f"{kept} bytes were kept"
    for count in (1, 2):
        np.testing.assert_array_equal(session.run(tiles[:count])[:1], alone)


def address_space() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
