"""What a unit costs the driver of a cluster: on Ray Data, as the executor uses it, and on plain Ray actors.

scripts/bench driver                     1,000 units on two actors that do nothing
scripts/bench driver --units 1000,8000   growth from one number of units to another
scripts/bench driver --profile           where the time of Ray Data's driver goes, by py-spy

Processor seconds of the driver alone, from the units to their receipts; the start of Ray is left out. A unit's text has
about 8 kB and its receipt 900 B. `core` is not in the product: it shows what the driver's part would cost there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMAGES_PER_UNIT = 40
"""So that a unit's text has 8 kB."""
CALLS_PER_ACTOR = 3
"""Under way at each actor of `core`: two that it works on and one that waits."""
VARIANTS = {"data": 0, "core": 1, "core, 8 in a call": 8}
"""Variant → units in one call; Ray Data's executor decides itself."""
PLACES = (
    ("update_iteration_metrics", "statistics of every input block, pickled every 5 s"),
    ("from_items", "from_items: units into blocks"),
    ("update_usages", "resource manager"),
    ("select_operator_to_run", "choice of the next task"),
    ("dispatch_next_task", "dispatch of a task"),
    ("process_completed_tasks", "finished tasks"),
    ("_scheduling_loop_step", "the rest of the scheduling loop"),
    ("iter_batches", "the iterator over receipts"),
    ("to_json", "texts of units"),
    ("from_json", "texts of receipts"),
)
"""Functions of Ray Data's driver, the innermost interesting ones first, and what they do."""


def main(arguments: Sequence[str], *, model: Path) -> None:
    """The table, or the profile. model: an ONNX file, which nothing runs here."""
    parser = argparse.ArgumentParser(
        "scripts/bench driver", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", default="1000", help="numbers of units (default 1000)")
    parser.add_argument("--profile", action="store_true", help="profile Ray Data instead, with py-spy")
    args = parser.parse_args(arguments)
    sizes = [int(size) for size in args.units.split(",")]
    found: dict[str, Any] = {"cores": os.cpu_count(), "runs": []}
    if args.profile:
        found["profile"] = profile(model, sizes[-1])
    else:
        print(f"{'variant':18} {'units':>7} {'CPU s':>7} {'ms a unit':>10}")
        for size in sizes:
            for variant in VARIANTS:
                cpu_s = child(variant, model, size)["cpu_s"]
                found["runs"].append({"variant": variant, "units": size, "cpu_s": cpu_s})
                print(f"{variant:18} {size:>7} {cpu_s:>7.2f} {1000 * cpu_s / size:>10.2f}", flush=True)
    print(json.dumps(found))


def child(variant: str, model: Path, size: int, before: Sequence[str] = ()) -> dict[str, float]:
    """What one variant in a process of its own found. before: a command that runs it, such as a profiler."""
    command = [*before, sys.executable, __file__, variant, str(model), str(size)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"driver: {variant} with {size} units failed with exit code {done.returncode}")
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def profile(model: Path, size: int) -> dict[str, float]:
    """Shares of the samples of busy threads, by place; prints them."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "stacks"
        spy = Path(sys.prefix) / "bin" / "py-spy"
        child("data", model, size, [str(spy), "record", "--rate", "100", "--format", "raw", "-o", str(raw), "--"])
        shares = shares_of(raw.read_text())
    for what, share in shares.items():
        print(f"{share:6.1%}  {what}")
    return shares


def shares_of(stacks: str) -> dict[str, float]:
    """By place, from py-spy's raw lines `outer;…;inner count`; what is in no place is `elsewhere`."""
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        where = next((what for name, what in PLACES if any(name in frame for frame in stack.split(";"))), "elsewhere")
        counts[where] += int(count)
    total = sum(counts.values()) or 1
    return {what: count / total for what, count in counts.most_common()}


# The children -----------------------------------------------------------------------------------------------------


def units_of(size: int) -> list[Any]:
    """Units whose texts have about 8 kB."""
    from unet_batch.records import Source, Unit, unit_id

    made = []
    for number in range(size):
        some = tuple(
            Source(f"s3://archive/2026/11/21/{number:06}/image-{i:03}.jpg", f"etag:{number:016x}{i:016x}", size_bytes=1)
            for i in range(IMAGES_PER_UNIT)
        )
        made.append(Unit(unit_id("", some), "date=2026-11-21", "images", some))
    return made


def receipt_of(text: bytes) -> bytes:
    """The receipt of a unit's text, as long as real ones are."""
    from unet_batch.records import Receipt, Unit

    unit = Unit.from_json(text)
    batches = tuple((size, 10) for size in range(1, 60))
    return Receipt(unit.unit_id, unit.partition, 40, 40, 0, batches=batches, node="n" * 56, pid=1).to_json()


def data(model: Path, size: int) -> dict[str, float]:
    """The executor of the package, with actors that do nothing."""
    import pyarrow as pa

    from unet_batch.on_ray import executor as on_ray
    from unet_batch.planning.prepare import prepare
    from unet_batch.spec import InputSpec, JobSpec, ModelSpec, OutputSpec
    from unet_batch.worker.worker import Settings

    class Nothing:
        def __init__(self, *_: Any) -> None:
            """No session."""

        def __call__(self, table: Any) -> Any:
            texts = [receipt_of(text.as_py()) for text in table.column("unit")]
            return pa.table({"receipt": pa.array(texts, pa.large_binary())})

    on_ray.ScoreActor = Nothing  # type: ignore[assignment, misc]
    with tempfile.TemporaryDirectory() as folder:
        job = JobSpec(
            name="driver",
            model=ModelSpec(path=str(model)),
            input=InputSpec(uri=f"{folder}/archive"),
            output=OutputSpec(uri=f"{folder}/out"),
        )
        prepared = prepare(job)
        settings = Settings(prepared.job.model_dump_json(), prepared.model.to_json(), prepared.fingerprint, "driver")
        executor = on_ray.RayExecutor(settings)
        units = units_of(size)
        cpu = time.process_time()
        arrived = sum(1 for _ in executor.run(units))
        cpu = time.process_time() - cpu
        executor.close()
    assert arrived == size, arrived
    return {"cpu_s": cpu}


def core(size: int, per_call: int) -> dict[str, float]:
    """Actors of Ray's own, a few calls under way at each, and a driver that hands out units and takes receipts."""
    import ray

    from unet_batch.on_ray.start import start
    from unet_batch.records import Receipt

    started = start(None)

    @ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0)
    class Nothing:
        def score(self, texts: list[bytes]) -> list[bytes]:
            return [receipt_of(text) for text in texts]

    actors = [Nothing.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
    units = units_of(size)
    ray.get([actor.score.remote([]) for actor in actors])
    cpu = time.process_time()
    waiting, under_way, arrived = deque(units), {}, 0

    def give(actor: Any) -> None:
        some = [waiting.popleft().to_json() for _ in range(min(per_call, len(waiting)))]
        if some:
            under_way[actor.score.remote(some)] = actor

    for _ in range(CALLS_PER_ACTOR):
        for actor in actors:
            give(actor)
    while under_way:
        ready, _ = ray.wait(list(under_way), num_returns=1)
        for reference in ready:
            arrived += len([Receipt.from_json(text) for text in ray.get(reference)])
            give(under_way.pop(reference))
    cpu = time.process_time() - cpu
    started.close()
    assert arrived == size, arrived
    return {"cpu_s": cpu}


if __name__ == "__main__":
    variant, model, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    result = core(size, VARIANTS[variant]) if VARIANTS[variant] else data(model, size)
    print(json.dumps(result), flush=True)
    os._exit(0)
