"""The peak memory of a session, measured in a process of its own: `python -m unet_batch.workbench.peak FOLDER`.

From the kernel's figures of that process; the memory of the calling process is not included.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from unet_batch import lifeline
from unet_batch.errors import ModelFailed
from unet_batch.model.model import Model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import Engine, Precision, SessionSpec
from unet_batch.table.scratch import scratch_folder

LIMIT_S = 300.0
"""Time limit of one measurement."""
RUNS = 3
"""Number of batches; then the memory of a session no longer grows."""


def peak_bytes(
    data: bytes,
    model: Model,
    spec: SessionSpec,
    *,
    shape_nhwc: tuple[int, int, int, int],
    threads: int = 1,
    engine: Engine = "onnxruntime",
    precision: Precision = "fp32",
) -> tuple[int, int]:
    """Peak resident bytes of a process that runs the batch, and its bytes before it opened the session.

    Raises ModelFailed if it cannot run the batch, with its last line of output or the signal that ended it.
    """
    done = _child(data, model, spec, shape_nhwc=shape_nhwc, threads=threads, engine=engine, precision=precision)
    if (crash := _crash(done, engine, precision)) is not None:
        raise ModelFailed(crash)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelFailed(f"the memory of {engine} in {precision} cannot be measured: {said}")
    before, peak = json.loads(done.stdout.splitlines()[-1])
    return int(peak), int(before)


def crash_message(
    data: bytes,
    model: Model,
    spec: SessionSpec,
    *,
    shape_nhwc: tuple[int, int, int, int],
    engine: Engine,
    precision: Precision,
) -> str | None:
    """A sentence if the engine kills its process on this file, as OpenVINO 2026.4 does on some; else None.

    Runs in a child process. An engine that only raises an error does not crash.
    """
    done = _child(data, model, spec, shape_nhwc=shape_nhwc, threads=1, engine=engine, precision=precision)
    return _crash(done, engine, precision)


def _crash(done: subprocess.CompletedProcess[str], engine: Engine, precision: Precision) -> str | None:
    if done.returncode >= 0:
        return None
    return (
        f"{engine} crashes on this file in {precision} ({signal.strsignal(-done.returncode)}): use another engine, or "
        "quantise the model with other settings"
    )


def _child(
    data: bytes,
    model: Model,
    spec: SessionSpec,
    *,
    shape_nhwc: tuple[int, int, int, int],
    threads: int,
    engine: Engine,
    precision: Precision,
) -> subprocess.CompletedProcess[str]:
    """A finished process that opened the session and ran such a batch, or failed."""
    with scratch_folder() as folder:
        (folder / "model.onnx").write_bytes(data)
        (folder / "model.json").write_bytes(model.to_json())
        (folder / "spec.json").write_text(spec.model_dump_json())
        asked = {"shape": shape_nhwc, "threads": threads, "engine": engine, "precision": precision}
        (folder / "asked.json").write_text(json.dumps(asked))
        # From the folder above the package, which need not be installed.
        above = Path(__file__).resolve().parents[2]
        return lifeline.run("unet_batch.workbench.peak", str(folder), timeout_s=LIMIT_S, folder=above)


def main(folder: Path) -> None:
    """Open the session described in FOLDER, run a batch RUNS times, print the bytes before and at the peak."""
    asked = json.loads((folder / "asked.json").read_text())
    model = Model.from_json((folder / "model.json").read_bytes())
    spec = SessionSpec.model_validate_json((folder / "spec.json").read_text())
    tiles = np.zeros(asked["shape"], model.contract.input.dtype)
    data = (folder / "model.onnx").read_bytes()
    _import_engine(asked["engine"])
    before = _highest_bytes()
    session = open_session(
        data, model, spec, Device(asked["threads"]), engine=asked["engine"], precision=asked["precision"]
    )
    for _ in range(RUNS):
        session.run(tiles)
    sys.stdout.write(json.dumps([before, _highest_bytes()]) + "\n")


def _import_engine(engine: str) -> None:
    """Import the engine's library, so that the difference of the two figures is the model alone."""
    importlib.import_module(engine)  # engines are named like their libraries


def _highest_bytes() -> int:
    """Peak resident bytes of this process; not `ru_maxrss` if possible, because a child inherits its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # all is written, and engines may take seconds to shut down
