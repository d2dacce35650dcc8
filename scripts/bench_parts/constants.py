"""The constants of `scripts/bench simulate`, measured on this machine: what a key, a unit and a row cost the driver.

Each figure is the slope between two sizes, from processes of their own, so that what every process pays is not in it.
Seconds are those of the processor. The keys are of an archive that exists only as a listing; the staged rows are
invented, as in `scripts/bench operate`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from hashlib import md5
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_batch.planning.prepare import Prepared
    from unet_batch.records import Receipt, Unit
    from unet_batch.store.storage import Object

DAY = date(2026, 11, 21)
PLANNED = (20_000, 100_000)
PUBLISHED = (5_000, 20_000)
RECEIPTS = (1_000, 4_000)
IMAGES_PER_UNIT = 64


def measure(folder: Path, model: Path) -> dict[str, float]:
    """Seconds and bytes per key, unit and row; see `FIGURES` in simulate.py for what each is."""
    shutil.rmtree(folder, ignore_errors=True)
    plan = slopes("plan", folder, model, PLANNED)
    pack = slopes("pack", folder, model, PLANNED)
    receipts = slopes("receipts", folder, model, RECEIPTS)
    for size in PUBLISHED:
        child("stage", folder, model, size)
    published = slopes("publish", folder, model, PUBLISHED)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "plan_s": plan["cpu_s"],
        "work_bytes": plan["bytes"],
        "held_bytes": pack["held_bytes"],
        "packed_bytes": pack["packed_bytes"],
        "pack_s": pack["cpu_s"],
        "receipt_s": receipts["cpu_s"],
        "publish_s": published["cpu_s"],
        "publish_bytes": published["bytes"],
        "row_bytes": published["row_bytes"],
    }


def slopes(program: str, folder: Path, model: Path, sizes: tuple[int, int]) -> dict[str, float]:
    """What one more of the counted things costs, by figure."""
    few, many = (child(program, folder, model, size) for size in sizes)
    return {name: (many[name] - few[name]) / (sizes[1] - sizes[0]) for name in few}


def child(program: str, folder: Path, model: Path, size: int) -> dict[str, float]:
    """What one program in a process of its own found."""
    command = [sys.executable, __file__, program, str(folder), str(model), str(size)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"simulate: {program} of {size} failed with exit code {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{program:9} {size:>7} {found}", file=sys.stderr, flush=True)
    return found


# The children -----------------------------------------------------------------------------------------------------


def prepared_for(folder: Path, model: Path, size: int) -> Prepared:
    """A job over an archive of one day whose listing is all there is of it."""
    from unet_batch.planning.prepare import prepare
    from unet_batch.spec import InputSpec, JobSpec, ModelSpec, OutputSpec
    from unet_batch.store.storage import Object, Storage

    top = f"file:///archive-of-a-simulation/{DAY:%Y/%m/%d}"

    class Listed(Storage):
        def list(self, *_: str) -> Iterator[Object]:
            for number in range(size):
                name = f"{top}/ward-{number % 97:02}/image-{number:09}.jpg"
                yield Object(name, 39_000 + number % 1000, f"etag:{md5(b'%d' % number).hexdigest()}")

    job = JobSpec(
        name="simulate",
        model=ModelSpec(path=str(model)),
        input=InputSpec(uri="file:///archive-of-a-simulation/{date:%Y/%m/%d}/"),
        output=OutputSpec(uri=str(folder / f"out-{size}")),
    )
    return replace(prepare(job), archive=Listed())


def plan(prepared: Prepared, size: int) -> dict[str, float]:
    """From the listed objects to the units as they are sent: time, and the most memory beyond the start."""
    from unet_batch.job.publisher import Publisher, PublishResult
    from unet_batch.planning.plan import units
    from unet_batch.planning.survey import archive_partitions, survey_partition, window_of

    base, cpu = peak_bytes(), time.process_time()
    holdings = archive_partitions(prepared, window_of(f"{DAY}"), keep=False)
    plans = [survey_partition(prepared, name, found, repair=True) for name, found in holdings.partitions.items()]
    todo = [unit for one in plans for unit in units(one, prepared.job, prepared.fingerprint, workers=16)]
    publisher = Publisher(prepared, "simulate", plans, PublishResult(), lambda _: None)
    texts = [unit.to_json() for unit in todo]
    cpu = time.process_time() - cpu
    assert (sum(len(unit.sources) for unit in todo), len(texts), publisher is None) == (size, len(todo), False)
    return {"cpu_s": cpu, "bytes": peak_bytes() - base}


def pack(prepared: Prepared, _: int) -> dict[str, float]:
    """The memory of sources as records and packed, and the time to pack and unpack them."""
    from unet_batch.archive.packed import PackedSources
    from unet_batch.planning.survey import archive_partitions, window_of

    base = resident_bytes()
    [sources] = archive_partitions(prepared, window_of(f"{DAY}"), keep=False).partitions.values()
    held, cpu = resident_bytes() - base, time.process_time()
    packed = PackedSources(sources)
    again = tuple(packed)
    cpu = time.process_time() - cpu
    assert again == tuple(sources)
    return {"held_bytes": held, "packed_bytes": packed.packed_bytes, "cpu_s": cpu}


def receipts(_: Prepared, size: int) -> dict[str, float]:
    """From the texts of receipts to the counts of a run: what the driver does for each unit, whatever the executor."""
    from unet_batch.job.reconcile import score
    from unet_batch.job.summary import Summary
    from unet_batch.records import Receipt, Source, Unit, unit_id

    made = []
    for number in range(size):
        some = tuple(Source(f"file:///a/{number}/{i}.jpg", f"etag:{number:x}-{i:x}") for i in range(IMAGES_PER_UNIT))
        made.append(Unit(unit_id("", some), "all", "images", some))
    texts = [
        Receipt(unit.unit_id, "all", IMAGES_PER_UNIT, IMAGES_PER_UNIT, 0, read_s=0.1, decode_s=0.2).to_json()
        for unit in made
    ]

    class Told:
        name, workers, loaders = "told", 16, 0

        def run(self, _: Sequence[Unit]) -> Iterator[Receipt]:
            yield from map(Receipt.from_json, texts)

        def close(self) -> None:
            """Nothing was started."""

    summary = Summary(run="simulate")
    open_keys = {source.key for unit in made for source in unit.sources}

    def done(unit: Unit, receipt: Receipt) -> None:
        summary.count(unit, receipt)
        open_keys.difference_update(source.key for source in unit.sources)

    cpu = time.process_time()
    score(Told(), made, "", done=done, reject=lambda *_: None)  # type: ignore[arg-type, return-value]
    cpu = time.process_time() - cpu
    assert (summary.ok, len(open_keys)) == (size * IMAGES_PER_UNIT, 0)
    return {"cpu_s": cpu}


def stage(prepared: Prepared, _: int) -> dict[str, float]:
    """The parts that workers would leave."""
    import operate

    work = operate.stage(prepared, window())
    return {"images": work["images"]}


def publish(prepared: Prepared, size: int) -> dict[str, float]:
    """One partition from staged parts to its object: time, memory, and bytes of the object."""
    from unet_batch.planning.survey import selected
    from unet_batch.table.publish import Publication
    from unet_batch.table.publish import publish as publish_rows

    base = resident_bytes()
    [work] = selected(prepared, window(), "due")
    wanted = Publication(
        work.partition, work.sources, prepared.fingerprint, prepared.model.sha256, "simulate", None, work.parts
    )
    uri = prepared.output.published(work.partition)
    publish_rows(prepared.output, wanted, prepared.job.limits)  # what the first one loads and fills is not in it
    prepared.output.store.delete(uri)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again, from what is resident (proc(5))
    cpu = time.process_time()
    published = publish_rows(prepared.output, wanted, prepared.job.limits)
    cpu = time.process_time() - cpu
    assert published.commit.rows == size
    found = prepared.output.store.head(uri)
    assert found is not None
    prepared.output.store.delete(uri)
    return {"cpu_s": cpu, "bytes": peak_bytes() - base, "row_bytes": found.size_bytes}


def window() -> Any:
    from unet_batch.planning.survey import window_of

    return window_of(f"{DAY}")


def peak_bytes() -> int:
    """Most memory that this process had resident so far (proc(5), VmHWM)."""
    return _status("VmHWM:")


def resident_bytes() -> int:
    """Memory that this process has resident now."""
    return _status("VmRSS:")


def _status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(name)[2].split()[0]) << 10


PROGRAMS: dict[str, Callable[[Prepared, int], dict[str, float]]] = {
    "plan": plan,
    "pack": pack,
    "receipts": receipts,
    "stage": stage,
    "publish": publish,
}

if __name__ == "__main__":
    program, folder, model, size = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    print(json.dumps(PROGRAMS[program](prepared_for(folder, model, size), size)), flush=True)
    os._exit(0)  # pyarrow may abort while the interpreter winds down, long after the result is written
