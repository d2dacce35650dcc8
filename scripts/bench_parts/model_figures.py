"""`scripts/bench model`: what the ways to run one model cost against each other, on this machine; ends in a JSON line.

Speed and masks are those of a U-Net of 1.9 M parameters at 256² that was trained to find shapes in photographs
(`shapes.py`; without PyTorch its weights are random, and only its speed tells anything), and of the published nuclei
model where `scripts/demo` has run. Every session lives in a process of its own, so that none can crash another, and
they run in turns: ratios of one round are of one moment of a shared machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from acting import Actor, acting, batch_of

from unet_batch.gate.parity import Parity, Tolerance
from unet_batch.imaging.preprocess import normalize, whole
from unet_batch.model.contract import METADATA_KEY
from unet_batch.model.graph import metadata, read
from unet_batch.model.model import Model
from unet_batch.planning.prepare import prepare
from unet_batch.planning.survey import window_of
from unet_batch.session.model_files import model_at
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import JobSpec, SessionSpec, TilingSpec
from unet_batch.workbench.packing.pack import PackSpec, pack
from unet_batch.workbench.quantize import QuantizeSpec, quantize
from unet_batch.workbench.sample import archive_tiles
from unet_batch.workbench.variants import Variant, variants

PARTS = Path(__file__).parent
ROOT = PARTS.parents[1]
ANYTHING = Tolerance(max_flipped=1.0, min_dice=0.0)
VERIFIED = Tolerance(max_flipped=0.001, min_dice=0.995)
"""What a session must keep to be called verified: the defaults of a job's `check`."""
BATCHES = 6
"""Of one actor in one round, when two are held against one."""
LIMIT_IMAGES = 2000
JOB_S = 70
"""Seconds for which the job gets images."""
GOALS = {
    "two_actors": (1.85, "≥"),
    "pack_speed": (0.92, "≥"),
    "pack_bytes": (1 / 8, "≤"),
    "int8_speed": (1.8, "≥"),
    "int8_file": (0.30, "≤"),
    "best_speed": (3.0, "≥"),
    "job_over_limit": (0.85, "≥"),
}
"""What this project asks of itself."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one way to run a model costs, and how far it is from fp32 in ONNX Runtime."""

    way: Variant
    speed: float
    tiles_per_s: float
    peak_bytes: int
    parity: Parity

    @property
    def verified(self) -> bool:
        return not VERIFIED.breaches(self.parity)


def main(arguments: list[str], *, bench: Path, photos: Path, many: Path, demo: Path) -> None:
    """bench: folder for models. photos, many: folders of JPEGs; the job scores the second. demo: of `scripts/demo`."""
    parser = argparse.ArgumentParser(prog="scripts/bench model", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns of every variant (default 7)")
    parser.add_argument("--tiles", type=int, default=24, help="tiles to calibrate with and to compare on (default 24)")
    parser.add_argument("--no-job", action="store_true", help="leave out the job end to end, half of the time")
    args = parser.parse_args(arguments)
    started = time.perf_counter()
    result: dict[str, Any] = {"two_actors": round(two_actors(gray(bench), args.rounds), 3)}
    result |= packed(gray(bench), args.rounds)
    path = shapes_model(bench, photos)
    data, found = model_at(str(path), None, TilingSpec())
    tiles = shape_tiles(photos, found, args.tiles)
    int8, table = compare("shapes in photographs", data, found, tiles, args.rounds)
    result["unet"] = as_json(table)
    result |= headline(table)
    if (demo / "archive").exists():
        nuclei, of_nuclei = model_at(str(demo / "model" / "nuclei.onnx"), None, TilingSpec())
        fields = archive(demo / "model" / "nuclei.onnx", f"{demo}/archive/{{date:%Y/%m/%d}}/", 9)
        result["nuclei"] = as_json(compare("nuclei", nuclei, of_nuclei, fields, max(2, args.rounds // 3))[1])
    else:
        print("no nuclei model: run scripts/demo first to have it measured too", file=sys.stderr)
    best = max((row for row in table if row.verified), key=lambda row: row.speed)
    if not args.no_job:
        result |= job_over_limit(best.way, path, int8, many, bench / "out")
    result["seconds"] = round(time.perf_counter() - started)
    for name, (goal, sign) in GOALS.items():
        if name in result:
            met = result[name] >= goal if sign == "≥" else result[name] <= goal
            print(f"{name:16} {result[name]:7.3f}  goal {sign} {goal:.3f}{'' if met else '  MISSED'}", file=sys.stderr)
    print(json.dumps(result))


# The models and what they are shown ------------------------------------------------------------------------------


def gray(bench: Path) -> Path:
    """The U-Net of `scripts/make_model` with one channel and three classes, random weights."""
    path = bench / "models" / "gray.onnx"
    if not path.exists():
        command = [sys.executable, str(ROOT / "scripts" / "make_model"), "unet", str(path)]
        subprocess.run([*command, "--size", "256", "--channels", "1", "--classes", "3"], check=True)
    return path


def shapes_model(bench: Path, photos: Path) -> Path:
    """The trained U-Net, which stretches 512² to 256²; random weights where there is no PyTorch."""
    path = bench / "models" / "shapes.onnx"
    if not path.exists() and importlib.util.find_spec("torch") is None:
        print("no PyTorch: the U-Net has random weights, so its masks prove nothing", file=sys.stderr)
        return bench / "models" / "unet.onnx"
    if not path.exists():
        subprocess.run([sys.executable, str(PARTS / "shapes.py"), str(photos), str(path)], check=True)
    contract = yaml.safe_load(metadata(read(path.read_bytes(), str(path)))[METADATA_KEY])
    contract["input"]["fit"] = "stretch"
    path.with_suffix(".yaml").write_text(yaml.safe_dump(contract, sort_keys=False))
    return path


def shape_tiles(photos: Path, model: Model, count: int) -> npt.NDArray[Any]:
    """Photographs with shapes in them that were never trained on, (N, H, W, C) as the model takes them."""
    import shapes

    pictures = [picture for picture, _ in shapes.judged(photos, count)]
    return np.stack(pictures).astype(model.contract.input.dtype) / np.float32(255)


def archive(model: Path, uri: str, count: int) -> npt.NDArray[Any]:
    """Tiles of an archive's images, as the model takes them."""
    with tempfile.TemporaryDirectory() as out:
        job = {"name": "bench-model", "model": {"path": str(model)}, "input": {"uri": uri}, "output": {"uri": out}}
        return archive_tiles(prepare(JobSpec.model_validate(job)), window_of("all"), count).tiles_nhwc


# What is measured ------------------------------------------------------------------------------------------------


def two_actors(path: Path, rounds: int) -> float:
    """Throughput of two processes with one thread each over that of one: the median over rounds taken in turn."""
    data, model = model_at(str(path), None, TilingSpec())
    way = Variant("fp32", data, "onnxruntime", "fp32")
    tiles = np.zeros((1, *model.tile_hw, model.contract.input.channels), np.float32)
    with acting(model, [way, way], tiles) as actors:
        pair = [actor for _, actor in actors]
        ratios = [wall(pair[n % 2 : n % 2 + 1]) * 2 / wall(pair) for n in range(rounds)]
    return statistics.median(ratios)


def wall(actors: Sequence[Actor]) -> float:
    """Seconds until all of them have run their batches."""
    start = time.perf_counter()
    for actor in actors:
        actor.begin(BATCHES)
    for actor in actors:
        actor.seconds()
    return time.perf_counter() - start


def packed(path: Path, rounds: int) -> dict[str, Any]:
    """Speed of a packed session over that of an unpacked one, of the whole way from pixels to labels, and bytes."""
    data, model = model_at(str(path), None, TilingSpec())
    made = pack(data, model, PackSpec())
    pixels = np.random.default_rng(0).integers(0, 256, (4, *model.tile_hw, 1), np.uint8)
    plain = open_session(data, model, SessionSpec(), Device(1))
    fused = open_session(made.data, made.model, SessionSpec(), Device(1))
    session, way = [], []
    for n in range(2 * rounds + 1):
        start = time.perf_counter()
        spec = model.contract.input
        tiles = np.stack([normalize(tile, whole(tile.shape[:2]), spec, largest=255.0) for tile in pixels])
        before = time.perf_counter()
        logits = plain.run(tiles)
        after = time.perf_counter()
        labels = logits.argmax(axis=1).astype(np.uint8)
        end = time.perf_counter()
        fused_labels = fused.run(pixels)
        last = time.perf_counter()
        if n:  # the first round makes plans
            session.append((after - before) / (last - end))
            way.append((end - start) / (last - end))
    return {
        "pack_speed": round(statistics.median(session), 3),
        "pack_way_speed": round(statistics.median(way), 3),
        "pack_bytes": round(made.bytes_after / made.bytes_before, 4),
        "pack_equal_pixels": float((fused_labels[:, 0] == labels).mean()),
    }


def compare(
    title: str, data: bytes, model: Model, tiles_nhwc: npt.NDArray[Any], rounds: int
) -> tuple[bytes, list[Row]]:
    """The 8-bit file, and a row for each way to run the model; the first one is fp32 in ONNX Runtime."""
    tiles = list(tiles_nhwc)
    made = quantize(data, model, tiles, QuantizeSpec(tolerance=ANYTHING))
    judges = np.stack(tiles[2::3])  # which calibrated nothing
    ways = variants(data, made.data)
    found = []
    with acting(model, ways, judges) as actors:
        seconds: list[list[float]] = [[] for _ in actors]
        for _ in range(rounds):
            for mine, (_, actor) in zip(seconds, actors, strict=True):
                actor.begin(2)
                mine.append(actor.seconds())
        expected = actors[0][1].outputs()
        for mine, (way, actor) in zip(seconds, actors, strict=True):
            found.append(
                Row(
                    way=way,
                    speed=statistics.median(a / b for a, b in zip(seconds[0], mine, strict=True)),
                    tiles_per_s=batch_of(model, judges) / statistics.median(mine),
                    peak_bytes=actor.peak_bytes,
                    parity=Parity.of(expected, actor.outputs(), model.contract.output),
                )
            )
    print_rows(f"{title}: {len(judges)} tiles that calibrated nothing, one thread", found)
    return made.data, found


def print_rows(title: str, table: Sequence[Row]) -> None:
    """The table for people."""
    classes = table[0].parity.classes
    lines = [["variant", "× fp32", "tiles/s", "file MB", "peak MB", "flipped", *(f"Dice {name}" for name in classes)]]
    for row in table:
        figures = [f"{row.speed:.2f}", f"{row.tiles_per_s:.1f}", f"{len(row.way.data) / 1e6:.2f}"]
        figures += [f"{row.peak_bytes / 1e6:.0f}", f"{row.parity.flipped_share:.4%}"]
        figures += [f"{dice:.5f}" for dice in row.parity.dice]
        lines.append([row.way.name, *figures, "" if row.verified else "not verified"])
    widths = [max(len(line[n]) for line in lines if n < len(line)) for n in range(max(map(len, lines)))]
    print(f"\n{title}", file=sys.stderr)
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=False)), file=sys.stderr)


def as_json(table: Sequence[Row]) -> dict[str, Any]:
    """By variant: speed and file size against fp32, and what its masks are."""
    return {
        row.way.name: {
            "speed": round(row.speed, 3),
            "file": round(len(row.way.data) / len(table[0].way.data), 4),
            "peak_mb": round(row.peak_bytes / 1e6),
            "equal_pixels": round(1 - row.parity.flipped_share, 6),
            "dice": dict(zip(row.parity.classes, (round(dice, 5) for dice in row.parity.dice), strict=True)),
            "verified": row.verified,
        }
        for row in table
    }


def headline(table: Sequence[Row]) -> dict[str, Any]:
    """The figures with a goal."""
    found: dict[str, Any] = {}
    for row in table:
        if row.way.name == "int8":
            found |= {"int8_speed": round(row.speed, 3), "int8_verified": row.verified}
            found |= {"int8_file": round(len(row.way.data) / len(table[0].way.data), 4)}
    best = max((row for row in table if row.verified), key=lambda row: row.speed)
    return found | {
        "best": best.way.name,
        "best_speed": round(best.speed, 3),
        "best_equal_pixels": round(1 - best.parity.flipped_share, 6),
        "best_dice": round(min(best.parity.dice), 5),
    }


def job_over_limit(best: Variant, path: Path, int8: bytes, photos: Path, out: Path) -> dict[str, Any]:
    """The job end to end with the best engine over its own limit; its gate holds it against the fp32 file.

    The limit is measured before and after the job, on a few photographs, because a shared machine's speed drifts; the
    job gets as many as take JOB_S, so that its start weighs as little as in a real one.
    """
    model = path
    if best.precision == "int8":
        model = path.with_name("shapes-int8.onnx")
        model.write_bytes(int8)
    names = sorted(photos.glob("*.jpg"))

    def speed(name: str, images: int) -> float:
        scored, target = out / "photos", out / name
        for folder in (scored, target):
            shutil.rmtree(folder, ignore_errors=True)
        scored.mkdir(parents=True)
        for photo in names[:images]:
            (scored / photo.name).hardlink_to(photo)
        command = [sys.executable, str(PARTS / f"{name}.py"), str(scored), str(model), str(target), str(images)]
        command += [best.engine, best.precision, str(path)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        if found["images"] != images or found.get("verified") is False:
            sys.exit(f"{name} scored {found['images']} of {images} images, verified: {found.get('verified')}")
        print(
            f"{name:6} {best.name}: {images / found['seconds']:.1f} images/s of {images}", file=sys.stderr, flush=True
        )
        return float(images / found["seconds"])

    few = min(LIMIT_IMAGES, len(names))
    before = speed("limit", few)
    job = speed("ours", min(len(names), max(few, int(JOB_S * before))))
    limit = (before + speed("limit", few)) / 2
    return {
        "job_images_per_s": round(job, 1),
        "limit_images_per_s": round(limit, 1),
        "job_over_limit": round(job / limit, 3),
    }
