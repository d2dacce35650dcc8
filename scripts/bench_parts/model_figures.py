"""`scripts/bench model`: what the ways to run one model cost against each other, on this machine; ends in a JSON line.

Speed is that of the 1.9 M U-Net of `scripts/make_model` on photographs. Its weights are random, so that its labels hang
on nearly equal scores and every rounding flips some: what fewer bits do to masks is measured, with `--trained`, on
the model of `scripts/demo` and its own pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]

from unet_batch.imaging.preprocess import normalize  # noqa: E402
from unet_batch.job.prepare import model_at, prepare  # noqa: E402
from unet_batch.job.sample import archive_tiles  # noqa: E402
from unet_batch.job.survey import window_of  # noqa: E402
from unet_batch.model.pack import PackSpec, pack  # noqa: E402
from unet_batch.model.pack_reference import whole  # noqa: E402
from unet_batch.model.parity import Tolerance  # noqa: E402
from unet_batch.model.quantize import QuantizeSpec, quantize  # noqa: E402
from unet_batch.model.session import Device, open_session  # noqa: E402
from unet_batch.model.variants import Figures, measure, rows, variants  # noqa: E402
from unet_batch.spec import JobSpec, SessionSpec, TilingSpec  # noqa: E402

ANYTHING = Tolerance(max_flipped=1.0, min_dice=0.0)
BATCH = 4
BATCHES = 6
"""Of one actor in one round."""


def main(arguments: list[str], *, model: Path, photos: Path, demo: Path) -> None:
    """model: the U-Net. photos: a folder of JPEGs. demo: the folder of `scripts/demo`, which need not be there."""
    parser = argparse.ArgumentParser(prog="scripts/bench model", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns of every variant (default 7)")
    parser.add_argument("--tiles", type=int, default=24, help="tiles to calibrate with and to compare on (default 24)")
    parser.add_argument("--trained", action="store_true", help="also the trained model of scripts/demo (minutes)")
    args = parser.parse_args(arguments)
    data, found = model_at(str(model), None, TilingSpec())
    tiles = list(_tiles(model, str(photos), args.tiles))
    result: dict[str, Any] = {
        "two_actors_over_one": round(two_actors(model, args.rounds), 3),
        "pack": packed(data, found, args.rounds),
    }
    spec = QuantizeSpec(tolerance=ANYTHING)
    result["unet"] = _table("unet, random weights", data, found, tiles, spec, args.rounds)
    trained = demo / "model" / "nuclei.onnx"
    if args.trained and trained.exists() and (demo / "archive").exists():
        data, found = model_at(str(trained), None, TilingSpec())
        tiles = list(_tiles(trained, f"{demo}/archive/{{date:%Y/%m/%d}}/", 9))
        result["nuclei"] = _table("nuclei, trained", data, found, tiles, spec, max(2, args.rounds // 3))
    elif args.trained:
        print("no trained model: run scripts/demo first to have fewer bits measured on masks", file=sys.stderr)
    print(json.dumps(result))


def two_actors(model: Path, rounds: int) -> float:
    """Throughput of two processes with one thread each over that of one: the median over rounds taken in turn."""
    command = [sys.executable, __file__, str(model)]
    actors = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for actor in actors:
            actor.stdout.readline()  # ready
        ratios = [_seconds(actors[:1]) * 2 / _seconds(actors) for _ in range(rounds)]
    finally:
        for actor in actors:
            actor.stdin.close()
            actor.wait(timeout=30)
    return statistics.median(ratios)


def packed(data: bytes, model: Any, rounds: int) -> dict[str, float]:
    """Session time, the time of the whole way from pixels to labels, and bytes: packed over unpacked."""
    made = pack(data, model, PackSpec())
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *model.tile_hw, 3), np.uint8)
    plain = open_session(data, model, SessionSpec(), Device(1))
    fused = open_session(made.data, made.model, SessionSpec(), Device(1))
    session, way = [], []
    for n in range(rounds + 1):
        start = time.perf_counter()
        tiles = np.stack([normalize(tile, whole(tile.shape[:2]), model.contract.input) for tile in pixels])
        before = time.perf_counter()
        logits = plain.run(tiles)
        after = time.perf_counter()
        labels = logits.argmax(axis=1).astype(np.uint8)
        end = time.perf_counter()
        fused_labels = fused.run(pixels)
        last = time.perf_counter()
        if n:  # the first round makes plans
            session.append((last - end) / (after - before))
            way.append((last - end) / (end - start))
    return {
        "session_time": round(statistics.median(session), 3),
        "pixels_to_labels_time": round(statistics.median(way), 3),
        "bytes": round(made.bytes_after / made.bytes_before, 4),
        "equal_pixels": float((fused_labels[:, 0] == labels).mean()),
    }


def _table(
    title: str, data: bytes, model: Any, tiles: list[Any], spec: QuantizeSpec, rounds: int
) -> dict[str, dict[str, Any]]:
    made = quantize(data, model, tiles, spec)
    judges = tiles[2::3]  # which calibrated nothing
    ways = variants(
        data, model, [t for n, t in enumerate(tiles) if n % 3 != 2], chosen=made.data, keep=made.report.kept
    )
    figures = measure(ways, model, judges, rounds=rounds)
    print(f"\n{title}: {len(judges)} tiles held out, one thread", file=sys.stderr)
    table = rows(figures)
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), file=sys.stderr)
    return {row.name: _figure(row, figures[0]) for row in figures}


def _figure(row: Figures, first: Figures) -> dict[str, Any]:
    return {
        "speed": round(row.speed, 3),
        "file": round(row.file_bytes / first.file_bytes, 4),
        "model_memory": round(row.model_bytes / first.model_bytes, 3),
        "equal_pixels": round(1 - row.parity.flipped_share, 6),
        "dice": dict(zip(row.parity.classes, (round(d, 5) for d in row.parity.dice), strict=True)),
    }


def _tiles(model: Path, uri: str, count: int) -> Any:
    with tempfile.TemporaryDirectory() as out:
        job = {"name": "bench-model", "model": {"path": str(model)}, "input": {"uri": uri}, "output": {"uri": out}}
        return archive_tiles(prepare(JobSpec.model_validate(job)), window_of("all"), count).tiles_nhwc


def _seconds(actors: list[Any]) -> float:
    """Until all of them have run their batches."""
    start = time.perf_counter()
    for actor in actors:
        actor.stdin.write("go\n")
        actor.stdin.flush()
    for actor in actors:
        actor.stdout.readline()
    return time.perf_counter() - start


def _act(model: Path) -> None:
    """One actor: runs its batches at every line that it reads."""
    data, found = model_at(str(model), None, TilingSpec())
    session = open_session(data, found, SessionSpec(), Device(1))
    batch = np.zeros((BATCH, *found.tile_hw, 3), np.float32)
    session.run(batch)
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(BATCHES):
            session.run(batch)
        print("done", flush=True)


if __name__ == "__main__":
    _act(Path(sys.argv[1]))
