"""(d) The job end to end on Ray: its images per second against the bare session's tiles per second, and the GPU's load.

One picture is one tile, so the two rates compare. Each job runs on a quarter of the pictures and on all of them: the
difference leaves out what a run costs once (Ray, actors, sessions, the gate).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from gpu_parts import card, networks
from gpu_parts.networks import Network
from gpu_parts.results import Results, Skipped
from gpu_parts.settings import Settings
from gpu_parts.speed import timed

SIDE_PX = 512
DRAWN = 64
"""Different pictures among the job's; the others are links to them, and count as images of their own."""
FEWEST = 8
"""Pictures from which a job also runs on a quarter of them."""
A_JOB_S = 25.0
"""Least time for another job."""
GOAL = 0.90
"""Images per second of the job over tiles per second of the session."""
ROOT = Path(__file__).resolve().parents[2]


def run(settings: Settings, results: Results) -> None:
    """A row for each job under `rows`. Raises Skipped where Ray lacks."""
    if importlib.util.find_spec("ray") is None:
        raise Skipped("Ray is not installed here")
    counts = (settings.images // 4, settings.images) if settings.images >= FEWEST else (settings.images,)
    archives = {count: archive(settings, count) for count in counts}
    fastest = settings.precisions[-1]
    jobs = [("labels", networks.packed(settings, fastest)), ("logits", networks.in_precision(settings, "fp32"))]
    for number, (kind, net) in enumerate(jobs if settings.on_gpu else jobs[:1]):
        name = f"{net.precision} {kind}"
        if number and not results.has_time(name, A_JOB_S):
            continue
        with results.attempt(name):
            row: dict[str, Any] = {"name": name, "bare_tiles_per_s": _bare(settings, net), "goal": GOAL, "runs": []}
            results.add("rows", row)
            for count in counts:
                if row["runs"] and not results.has_time(f"{name}, {count} pictures", A_JOB_S):
                    break
                row["runs"].append(_run(settings, results, net, archives[count], count))
                row |= rates(row)
                results.put("rows", results.found["rows"])


def rates(row: dict[str, Any]) -> dict[str, float]:
    """Images per second of the longest run, and without what each run costs once; both as ratios to the session too."""
    runs = row["runs"]
    whole = runs[-1]["summary"]["images_per_s"]
    found = {"images_per_s": whole, "ratio": round(whole / row["bare_tiles_per_s"], 4)}
    if len(runs) > 1:
        seconds = runs[-1]["summary"]["score_s"] - runs[0]["summary"]["score_s"]
        images = runs[-1]["images"] - runs[0]["images"]
        if seconds > 0 and images > 0:
            found["steady_images_per_s"] = round(images / seconds, 1)
            found["steady_ratio"] = round(images / seconds / row["bare_tiles_per_s"], 4)
    return found


def archive(settings: Settings, count: int) -> Path:
    """A folder with this many JPEGs, made once."""
    folder = settings.out / "pictures" / str(count)
    if folder.is_dir():
        return folder
    sources = sorted(settings.photos.glob("*.jpg")) if settings.photos else _drawn(settings, min(DRAWN, count))
    scratch = folder.with_suffix(".part")
    scratch.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        target = scratch / f"picture-{number:06}.jpg"
        source = sources[number % len(sources)]
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            target.write_bytes(source.read_bytes())
    scratch.replace(folder)
    return folder


def _drawn(settings: Settings, count: int) -> list[Path]:
    folder = settings.out / "pictures" / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, picture in enumerate(networks.pictures(count, SIDE_PX)):
        paths.append(folder / f"{number:03}.jpg")
        paths[-1].write_bytes(networks.jpeg(picture))
    return paths


def _bare(settings: Settings, net: Network) -> float:
    """Tiles per second of the session alone, the better of two sizes."""
    session = networks.opened(settings, net)
    tiles = networks.tiles_for(net, settings.cap, settings.size)
    found = 0.0
    for size in {max(1, settings.cap // 4), settings.cap}:
        found = max(found, size / timed(partial(session.run, tiles[:size]), settings.run_s)[1])
    return round(found, 1)


def _run(settings: Settings, results: Results, net: Network, pictures: Path, count: int) -> dict[str, Any]:
    """One run, its verification, and the GPU's figures beside it. Raises RuntimeError with the end of its messages."""
    folder = settings.out / "job" / f"{net.name}-{net.precision}-{count}-{time.time_ns()}"
    folder.mkdir(parents=True)
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(_job(settings, net, pictures, folder)))
    with card.Sampler() as sampler:
        summary = json.loads(_command(["run", str(path), "--executor", "ray", "--window", "all"], results))
    if summary["ok"] != count:
        why = f"{summary['problems']} {summary['reasons']}"
        raise RuntimeError(f"{summary['ok']} of {count} pictures were scored: {why}")
    _command(["verify", str(path), "--window", "all"], results)
    return {"images": count, "summary": summary, "gpu": sampler.figures(), "verified": True}


def _job(settings: Settings, net: Network, pictures: Path, folder: Path) -> dict[str, Any]:
    model = folder / f"{net.name}.onnx"
    model.write_bytes(net.data)
    check: dict[str, Any] = {"max_flipped": 0.05, "min_dice": 0.5}  # of random weights; the section `parity` is exact
    if net.precision == "fp16" or net.packed:
        reference = folder / "reference.onnx"
        trusted = networks.packed(settings, "fp32") if net.packed else networks.main_network(settings)
        reference.write_bytes(trusted.data)
        check["reference"] = str(reference)
    found: dict[str, Any] = {
        "name": "gpu-smoke",
        "model": {"path": str(model), "precision": net.precision},
        "input": {"uri": str(pictures)},
        "output": {"uri": str(folder / "output"), "confidence": False},
        "session": {"providers": [settings.provider], "batch_max": settings.cap},
        "check": check,
    }
    if not settings.on_gpu:  # the actors of a GPU: one session, and others that load
        found["resources"] = {"load_actors": 1, "infer_actors": 1}
    return found


def _command(arguments: list[str], results: Results) -> str:
    """The last line of a command's stdout. Raises RuntimeError if it fails, or if the section's time is over."""
    limit_s = max(1.0, results.left_s() - 1) if results.left_s() < 1e9 else None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "unet_batch", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{arguments[0]} had not ended when the section's time was over") from error
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-1500:]}")
    return done.stdout.strip().splitlines()[-1]
