"""Sessions in processes of their own, which run batches when they are told to: none can crash another.

Knows sessions, clocks and pipes. As a program: acting.py FOLDER is one such process, which `Actor` starts.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]

from unet_batch.model.model import Model  # noqa: E402
from unet_batch.session.opening import open_session  # noqa: E402
from unet_batch.session.session import Device  # noqa: E402
from unet_batch.spec import SessionSpec  # noqa: E402
from unet_batch.workbench.variants import Variant  # noqa: E402

BATCH_PX = 1 << 18
"""Pixels of a batch: 4 tiles of 256², one of 1024²."""


class Actor:
    """A session of one thread in a process of its own."""

    def __init__(self, folder: Path, data: bytes, model: Model, way: Variant, tiles_nhwc: npt.NDArray[Any]) -> None:
        folder.mkdir()
        (folder / "model.onnx").write_bytes(data)
        (folder / "model.json").write_bytes(model.to_json())
        (folder / "asked.json").write_text(json.dumps({"engine": way.engine, "precision": way.precision}))
        np.save(folder / "tiles.npy", tiles_nhwc)
        self._folder = folder
        command = [sys.executable, __file__, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        self.peak_bytes = 0

    def ready(self) -> bool:
        """Waits until the session has scored the tiles; False where its process died."""
        line = self._line()
        self.peak_bytes = int(line or 0)
        return bool(line)

    def outputs(self) -> npt.NDArray[np.float32]:
        """What the session said to each tile, (N, K, H, W)."""
        found: npt.NDArray[np.float32] = np.load(self._folder / "outputs.npy")
        return found

    def begin(self, batches: int) -> None:
        self._process.stdin.write(f"{batches}\n")
        self._process.stdin.flush()

    def seconds(self) -> float:
        """Waits; seconds of the fastest of the batches that were begun."""
        return float(self._line())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _line(self) -> str:
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def acting(
    model: Model, ways: Sequence[Variant], tiles_nhwc: npt.NDArray[Any]
) -> Iterator[list[tuple[Variant, Actor]]]:
    """An actor for each way that runs; they open one after the other, and are closed at the end.

    One that dies, whatever killed it, is left out with a line.
    """
    actors: list[tuple[Variant, Actor]] = []
    with tempfile.TemporaryDirectory(prefix="bench-model-") as folder:
        try:
            for number, way in enumerate(ways):
                actor = Actor(Path(folder) / str(number), way.data, model, way, tiles_nhwc)
                actors.append((way, actor))
                if not actor.ready():
                    actor.close()
                    actors.pop()
                    print(f"{way.name} is left out: its process died", file=sys.stderr)
            yield actors
        finally:
            for _, actor in actors:
                actor.close()


def act(folder: Path) -> None:
    """One actor: scores the tiles one by one, then runs so many batches at every line that it reads."""
    asked = json.loads((folder / "asked.json").read_text())
    model = Model.from_json((folder / "model.json").read_bytes())
    data = (folder / "model.onnx").read_bytes()
    session = open_session(data, model, SessionSpec(), Device(1), engine=asked["engine"], precision=asked["precision"])
    tiles = np.load(folder / "tiles.npy")
    size = batch_of(model, tiles)
    one_by_one = [session.run(np.repeat(tile[None], model.batch or 1, axis=0))[:1] for tile in tiles]
    np.save(folder / "outputs.npy", np.concatenate(one_by_one))
    batch = np.stack([tiles[n % len(tiles)] for n in range(size)])
    session.run(batch)
    print(peak_bytes(), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            session.run(batch)
            seconds.append(time.perf_counter() - start)
        print(min(seconds), flush=True)


def batch_of(model: Model, tiles_nhwc: npt.NDArray[Any]) -> int:
    """Tiles of one batch."""
    return model.batch or max(1, BATCH_PX // (tiles_nhwc.shape[1] * tiles_nhwc.shape[2]))


def peak_bytes() -> int:
    """Of this process, resident; 1 where nobody says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 1


if __name__ == "__main__":
    act(Path(sys.argv[1]))
