"""What a night costs the driver: planning, resuming and publishing with ever more images, and a long backfill.

scripts/bench operate                            10⁴, 10⁵ and 10⁶ images, then 400 days
scripts/bench operate --images 10000,100000      fewer
scripts/bench operate --images none              the backfill alone

Each figure comes from a process of its own: wall and CPU seconds behind `prepare`, which costs the same for every
archive, and the peak of the process's resident memory. The images are empty files, because a driver never opens
one; the staged rows are invented, 64 to a part, each with a mask of about 1.2 kB. Linux only: the peak is /proc's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import backfill

if TYPE_CHECKING:
    from unet_batch.planning.prepare import Prepared
    from unet_batch.records import Source, Unit

DAY = date(2026, 11, 21)
FOLDER_FILES = 1000
LATE_SHARE = 100
"""Of a hundred images the archive had before, one more comes late."""
ROWS_PER_PART = 64
RLE_LETTERS = 1200
"""COCO's text for a mask of 256² takes 1.1 to 1.9 kB."""
GROWTH_GOAL = 11.0
"""Most that ten times the images may cost, in time and in memory."""
PLAN_GOAL_MIB = 2048
"""Most that a driver may hold while it plans 10⁶ images."""
READ_ONLY_REPEATS = 3
"""Runs of a case that changes nothing, of which the fastest counts; one from REPEAT_BELOW images on."""
REPEAT_BELOW = 500_000
CASES = ("plan", "plan, manifest", "publish", "nothing to do", "resume, staged", "resume, published", "publish late")


def main(arguments: Sequence[str], *, model: Path, folder: Path) -> None:
    """The whole table, or what the arguments ask for. model: an ONNX file, which nothing runs here."""
    parser = argparse.ArgumentParser(
        "scripts/bench operate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="10000,100000,1000000", help="sizes of the archive, or none")
    parser.add_argument("--days", type=int, default=400, help="days of the backfill; 0: none (default 400)")
    parser.add_argument("--folder", type=Path, default=folder, help="where 10⁶ images need 6 GB and as many inodes")
    args = parser.parse_args(arguments)
    sizes = [] if args.images == "none" else [int(size) for size in args.images.split(",")]
    found: dict[str, Any] = {"cores": os.cpu_count(), "scale": {}}
    for size in sizes:
        found["scale"][size] = scale(args.folder.absolute() / str(size), model, size)
    if sizes:
        found["growth"] = growth(found["scale"])
        print_scale(found["scale"], found["growth"])
    if args.days:
        found["backfill"] = backfill.measure(args.folder.absolute() / "days", args.days)
    print(json.dumps(found))


# The parent: one archive after the other, each case in a process of its own -------------------------------------------


def scale(folder: Path, model: Path, images: int) -> dict[str, Any]:
    """Every case of an archive of `images` images, one hundredth of which came late."""
    shutil.rmtree(folder, ignore_errors=True)
    archive, out = folder / "archive" / f"{DAY}", folder / "out"
    names = [f"{i // FOLDER_FILES:04}/image-{i:07}.jpg" for i in range(images)]
    late = [name.replace(".jpg", "-late.jpg") for name in names[::LATE_SHARE]]
    touch(archive, names)
    (folder / "archive" / "list.jsonl").write_text("".join(f'{{"uri": "{DAY}/{name}"}}\n' for name in names))
    found: dict[str, Any] = {}

    def case(name: str, program: str, expected: int, *, before: Callable[[], None] = lambda: None) -> None:
        repeats = READ_ONLY_REPEATS if images < REPEAT_BELOW and program != "stage" else 1
        runs = []
        for _ in range(repeats):
            before()
            runs.append(child(program, folder, model))
            if runs[-1]["images"] != expected:
                sys.exit(f"{name} of {images} images: {runs[-1]['images']} where {expected} were expected")
        found[name] = min(runs, key=lambda run: run["seconds"])
        print(f"{images:>9} {name:18} {found[name]}", file=sys.stderr, flush=True)

    case("plan", "plan", images)
    case("plan, manifest", "plan_manifest", images)
    case("stage", "stage", images)
    case("publish", "run", images, before=lambda: shutil.rmtree(out / "predictions", ignore_errors=True))
    case("nothing to do", "run", 0)
    touch(archive, late)
    (out / "predictions").rename(out / "away")
    case("resume, staged", "plan", len(late))
    (out / "away").rename(out / "predictions")
    shutil.rmtree(out / "_work" / "parts")
    case("resume, published", "plan", len(late))
    child("stage", folder, model)
    shutil.copytree(out / "predictions", out / "away")

    def back() -> None:
        shutil.rmtree(out / "predictions")
        shutil.copytree(out / "away", out / "predictions")

    case("publish late", "run", images + len(late), before=back)
    shutil.rmtree(folder)
    return found


def touch(archive: Path, names: Sequence[str]) -> None:
    """Empty files, in folders of FOLDER_FILES."""
    for folder in {name.partition("/")[0] for name in names}:
        (archive / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        os.close(os.open(archive / name, os.O_CREAT | os.O_WRONLY))


def child(program: str, folder: Path, model: Path) -> dict[str, Any]:
    """What one case in a process of its own found."""
    command = [sys.executable, __file__, program, str(folder), str(model)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment())
    if done.returncode:
        sys.exit(f"operate: {program} in {folder} failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def environment() -> dict[str, str]:
    """This one, with everything importable that is importable here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def growth(found: dict[int, dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """By case and step from one size to the next: what ten times the images cost, as a multiple."""
    sizes, ratios = sorted(found), {}
    for name in CASES:
        ratios[name] = {
            f"{small}->{large}": {
                figure: round(10 * small / large * found[large][name][figure] / found[small][name][figure], 2)
                for figure in ("seconds", "cpu_s", "peak_mib")
            }
            for small, large in pairwise(sizes)
        }
    return ratios


def print_scale(found: dict[int, dict[str, Any]], ratios: dict[str, dict[str, dict[str, float]]]) -> None:
    print(
        f"\n{'case':18} {'images':>9} {'seconds':>9} {'CPU s':>9} {'peak MiB':>9} {'10x: s':>7} {'CPU':>6} {'MiB':>6}"
    )
    sizes = sorted(found)
    for name in CASES:
        for before, size in zip([None, *sizes], sizes, strict=False):
            row, step = found[size][name], ratios[name].get(f"{before}->{size}", {})
            line = f"{name:18} {size:9} {row['seconds']:9.2f} {row['cpu_s']:9.2f} {row['peak_mib']:9}"
            shown = " ".join(f"{step[f]:{w}.1f}" for f, w in (("seconds", 7), ("cpu_s", 6), ("peak_mib", 6)) if step)
            print(f"{line} {shown}{'  over' if step and max(step.values()) > GROWTH_GOAL else ''}")
    if 1_000_000 in found:
        held = max(row["peak_mib"] for name, row in found[1_000_000].items() if name.startswith(("plan", "resume")))
        print(f"10⁶ images are planned within {held} MiB (goal {PLAN_GOAL_MIB})")
    sys.stdout.flush()


# The child: one case ----------------------------------------------------------------------------------------------


def measured(program: str, folder: Path, model: Path) -> dict[str, Any]:
    """One case, timed behind `prepare`."""
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.spec import InputSpec, JobSpec, ModelSpec, OutputSpec

    listed = program.endswith("_manifest")
    uri = folder / "archive" / ("list.jsonl" if listed else "{date:%Y-%m-%d}")
    job = JobSpec(
        name="operate",
        model=ModelSpec(path=str(model)),
        input=InputSpec(uri=str(uri), format="manifest" if listed else "images"),
        output=OutputSpec(uri=str(folder / "out")),
    )
    prepared, window = prepare(job), window_of("all")
    base, cpu, started = peak_mib(), time.process_time(), time.perf_counter()
    found = PROGRAMS[program](prepared, window)
    return {
        "seconds": round(time.perf_counter() - started, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
        "peak_mib": peak_mib(),
        "start_mib": base,
        **found,
    }


def plan(prepared: Prepared, window: Any) -> dict[str, Any]:
    """What `unet-batch plan` does."""
    from unet_batch.planning.plan import units
    from unet_batch.planning.survey import selected

    work = selected(prepared, window, "due")
    todo = [unit for p in work for unit in units(p, prepared.job, prepared.fingerprint, workers=16)]
    return {"images": sum(len(unit.sources) for unit in todo), "units": len(todo)}


def run(prepared: Prepared, window: Any) -> dict[str, Any]:
    """What `unet-batch run` does where nothing is left to score."""
    from unet_batch.job.run import run as run_job
    from unet_batch.table.publish import read_commit

    def no_executor(_: Any) -> Any:
        raise AssertionError("every row was staged, and yet something is to be scored")

    summary = run_job(prepared, window, no_executor, quiet=True)
    if summary.exit_code:
        sys.exit(f"operate: {summary.problems}")
    commits = [read_commit(prepared.output, name) for name in summary.partitions]
    rows = sum(commit.commit.rows for commit in commits if commit)
    return {"images": rows, "publish_s": summary.publish_s}


def stage(prepared: Prepared, window: Any) -> dict[str, Any]:
    """The parts that workers would leave, with invented rows."""
    from unet_batch.planning.survey import selected
    from unet_batch.records import Unit, unit_id
    from unet_batch.table.parts import write_part
    from unet_batch.table.rows import Provenance

    mark = prepared.fingerprint
    where = Provenance(prepared.model.sha256, mark, "operate", "cpu", "fp32")
    [work] = selected(prepared, window, "due")
    for begin in range(0, len(work.open), ROWS_PER_PART):
        piece = work.open[begin : begin + ROWS_PER_PART]
        unit = Unit(unit_id(mark, piece), work.partition, "images", piece)
        write_part(prepared.output, unit, list(rows_of(unit, begin)), where, compression="zstd")
    return {"images": len(work.open)}


def rows_of(unit: Unit, seed: int) -> Iterator[dict[str, Any]]:
    """A prediction for each source, or, for one in two hundred, a rejection: a job allows one in a hundred."""
    from unet_batch.errors import ImageError, Reason
    from unet_batch.imaging.postprocess import ClassArea, Prediction
    from unet_batch.table.rows import prediction_row, rejection_row

    dice = random.Random(seed)
    bad = ImageError(Reason.DECODE_TRUNCATED, "the image ends early")

    def row(source: Source) -> dict[str, Any]:
        if dice.random() < 0.005:
            return rejection_row(source, 0, 1, bad)
        share = dice.random()
        text = dice.randbytes(RLE_LETTERS * 3 // 4).hex()[:RLE_LETTERS]
        area = ClassArea(1, "class_1", int(65536 * share), share, dice.random(), (0, 0, 255, 255), text)
        return prediction_row(
            source, 0, 1, Prediction(256, 256, "class_1", share, (area,), None, share, 1 - share), None
        )

    return map(row, unit.sources)


def peak_mib() -> int:
    """Most memory that this process had resident so far (proc(5), VmHWM).

    Not ru_maxrss: that begins with what the parent of the process had when it started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


PROGRAMS: dict[str, Callable[[Prepared, Any], dict[str, Any]]] = {
    "plan": plan,
    "plan_manifest": plan,
    "run": run,
    "stage": stage,
}


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))), flush=True)
    os._exit(0)  # pyarrow may abort while the interpreter winds down, long after the result is written
