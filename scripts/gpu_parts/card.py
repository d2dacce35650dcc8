"""The GPU beside a section: its figures while something runs, page-locked host memory, and memory that is taken away.

Asks nvidia-smi and the CUDA driver; needs no library of Python. Without them, each function says so.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

FIGURES = ("utilization.gpu", "memory.used", "power.draw", "clocks.sm")
EVERY_MS = 200
ABOUT = "name,driver_version,memory.total,memory.used,utilization.gpu,clocks.sm,pcie.link.gen.current"
DRIVER = "libcuda.so.1"


def about() -> str:
    """One line of nvidia-smi about the first GPU, or why there is none."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi here"
    asked = ["nvidia-smi", f"--query-gpu={ABOUT}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=30)
    return " ".join((done.stdout or done.stderr).split())


class Sampler:
    """Samples the GPU's figures in a thread while a block runs."""

    def __enter__(self) -> Sampler:
        self._rows: list[list[float]] = []
        self._process: subprocess.Popen[str] | None = None
        if shutil.which("nvidia-smi") is None:
            return self
        asked = ["nvidia-smi", f"--query-gpu={','.join(FIGURES)}", "--format=csv,noheader,nounits", "--id=0"]
        self._process = subprocess.Popen([*asked, f"--loop-ms={EVERY_MS}"], stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join(5)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._rows.append([_number(text) for text in line.split(",")])

    def figures(self) -> dict[str, Any]:
        """Mean, median and largest value of each figure; `busy` are the samples with a utilisation above 0."""
        rows = np.array([row for row in self._rows if len(row) == len(FIGURES)], np.float64)
        if not len(rows):
            return {"samples": 0, "why": "nvidia-smi gave no samples"}
        busy = rows[rows[:, 0] > 0]
        found: dict[str, Any] = {"samples": len(rows), "busy_samples": len(busy)}
        for column, name in enumerate(FIGURES):
            values = rows[:, column]
            found[name] = {
                "mean": round(float(np.nanmean(values)), 1) if np.isfinite(values).any() else None,
                "busy_mean": round(float(np.nanmean(busy[:, column])), 1) if len(busy) else None,
                "largest": round(float(np.nanmax(values)), 1) if np.isfinite(values).any() else None,
            }
        return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return float("nan")


@contextmanager
def _context() -> Iterator[Any]:
    """The driver, with the first GPU's primary context current. Raises OSError without a driver or GPU."""
    driver = ctypes.CDLL(DRIVER)
    ordinal, context, ended = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    _done(driver.cuInit(0), "cuInit")
    _done(driver.cuDeviceGet(ctypes.byref(ordinal), 0), "cuDeviceGet")
    _done(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal), "cuDevicePrimaryCtxRetain")
    _done(driver.cuCtxPushCurrent_v2(context), "cuCtxPushCurrent")
    try:
        yield driver
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ended))
        driver.cuDevicePrimaryCtxRelease_v2(ordinal)


def _done(status: int, what: str) -> None:
    if status:
        raise OSError(f"{what} of the CUDA driver returned {status}")


@contextmanager
def page_locked(*arrays: NDArray[Any]) -> Iterator[None]:
    """The memory of these arrays, page-locked: the GPU copies from and to it by itself. Raises OSError.

    Inside, the process must use the GPU, or the registration ends with the context.
    """
    with _context() as driver:
        held = []
        try:
            for array in arrays:
                address = ctypes.c_void_p(array.ctypes.data)
                _done(driver.cuMemHostRegister_v2(address, ctypes.c_size_t(array.nbytes), 0), "cuMemHostRegister")
                held.append(address)
            yield
        finally:
            for address in held:
                driver.cuMemHostUnregister(address)


def memory() -> tuple[int, int]:
    """Free and total bytes of the first GPU. Raises OSError."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with _context() as driver:
        _done(driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
    return free.value, total.value


@contextmanager
def held_by_another(keep_bytes: int) -> Iterator[int]:
    """A process holds all free memory of the GPU but keep_bytes; the value is what it holds. Raises OSError."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(keep_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("holding "):
            raise OSError("no process could hold the GPU's memory")
        yield int(line.split()[1])
    finally:
        process.kill()
        process.wait()


def hold(keep_bytes: int) -> None:
    """Takes the GPU's memory in pieces until keep_bytes are free, says so, and waits to be killed."""
    piece, held = 64 << 20, 0
    with _context() as driver:
        free, total, address = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
        while True:
            _done(driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
            size = min(max(piece, (free.value - keep_bytes) // 2), free.value - keep_bytes)
            if size < piece or driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size)):
                break
            held += size
        print(f"holding {held}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    hold(int(sys.argv[1]))
