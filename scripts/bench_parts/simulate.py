"""What breaks first as an archive grows: a model of the driver with 10⁷ to 10⁹ keys and 16 to 1,000 actors.

scripts/bench simulate                     measure the constants here (about a minute), then the tables
scripts/bench simulate --days 1            one night instead of a backfill of 400 days
scripts/bench simulate --constants C.json  no measurement: constants of an earlier call, as its JSON has them

A closed form, not a run: each step of the driver is its number of keys, units or rows times a measured constant, and
steps that overlap take as long as the longest. Two designs are compared: `before`, in which one driver holds every
key and publishes every row itself (until 2026-11-27), and `now`. What cannot be measured on one machine has a flag:
images per second of an actor, answers of the store, memory and cores of the driver.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

KEYS, ACTORS = (10**7, 10**8, 10**9), (16, 128, 1000)
GIB = 1 << 30
UNIT_IMAGES = 64
PAGE_KEYS = 1000
DAYS_AT_ONCE = 16
"""Days that are listed at the same time (`Storage`, threads)."""
TASKS = 4000
UNITS_PER_TASK = 8
"""`on_ray/executor.py`."""
GROUP_START_S = 5.0
"""Of a pass on Ray: 2 s of the driver and 3 s until the actors have their sessions (docs/performance.md)."""
DOCUMENTED = {"list_s": (25e-6, "2026-11-27"), "unit_s": (2.9e-3, "2026-11-27")}
"""Constants from docs/performance.md, with their date: a key listed on S3, a unit on Ray Data."""
FIGURES = {
    "list_s": "s of the driver to list a key on S3",
    "plan_s": "s to plan it: inventory, comparison, unit",
    "pack_s": "s to pack and unpack it",
    "unit_s": "s of the driver for a unit on Ray Data",
    "receipt_s": "s of the driver for a receipt",
    "publish_s": "s to publish a row",
    "work_bytes": "memory of a key while it is planned and scored",
    "held_bytes": "memory of a key that is held as a record",
    "packed_bytes": "memory of a key that is packed",
    "publish_bytes": "memory of a row while it is published",
    "row_bytes": "bytes of a published row",
}


@dataclass(frozen=True)
class Constants:
    """Seconds and bytes per key, unit or row; `FIGURES` has what each is."""

    list_s: float
    plan_s: float
    pack_s: float
    unit_s: float
    receipt_s: float
    publish_s: float
    work_bytes: float
    held_bytes: float
    packed_bytes: float
    publish_bytes: float
    row_bytes: float


@dataclass(frozen=True)
class Place:
    """Where the job runs, and how its archive is divided."""

    days: int = 400
    image_s: float = 1 / 14
    """Of one actor; 14 images/s is one core with a U-Net of 1.9 M parameters (docs/performance.md)."""
    page_s: float = 0.1
    """Until a store has answered with a page of 1,000 keys; assumed, not measured."""
    cores: int = 16
    """Of the driver."""
    memory_bytes: int = 64 * GIB
    night_s: float = 8 * 3600.0
    object_bytes: int = 2 * GIB
    """Most of a published object (`table/publish.py`)."""
    put_bytes: int = 5 * GIB
    """Most that S3 takes in one put."""
    task_s: float = 900.0
    """Longest task of an actor: its receipts come at its end, and a death costs them."""


@dataclass(frozen=True)
class Design:
    """How the driver works."""

    name: str
    held: int | None
    """Keys that are held as records, and the rest packed; None: all."""
    group: Callable[[Place], int] | None
    """Most keys that are planned and scored together; None: all."""
    publishers: Callable[[Place, float], int]
    """Processes beside the driver that publish, by rows of a day; 0: the driver publishes."""


@dataclass(frozen=True)
class Forecast:
    """What a run would take."""

    keys: int
    actors: int
    design: str
    list_s: float
    plan_s: float
    score_s: float
    """Of the actors, if the driver cost nothing."""
    driver_s: float
    """Of the driver while they score: units, receipts, and publication where it does that itself."""
    publish_s: float
    """All publication, divided among the processes that do it."""
    total_s: float
    memory_bytes: float
    """Of the driver's machine: the driver and the processes that publish."""
    object_bytes: float
    """Of one day's published rows."""
    task_s: float
    """Of one task of an actor."""
    breaks: tuple[tuple[str, float], ...] = ()
    """Walls that the run meets, by name (see `WALLS`), and how many times the limit it takes; the worst first."""


def before() -> Design:
    """One group, one driver."""
    return Design("before", None, None, lambda *_: 0)


def now() -> Design:
    """As the package works: its own limits."""
    from unet_batch.job.publishing.beside import processes_for
    from unet_batch.planning.groups import images_at_once
    from unet_batch.planning.holdings import HELD_IMAGES

    def publishers(place: Place, day: float) -> int:
        sizes = [int(day)] * min(place.days, 1000)
        return processes_for(sizes, place.cores, place.memory_bytes)

    return Design("now", HELD_IMAGES, lambda place: images_at_once(place.memory_bytes), publishers)


def forecast(constants: Constants, place: Place, design: Design, keys: int, actors: int) -> Forecast:
    """A run over all days, every image due."""
    c, day = constants, keys / place.days
    units = keys / UNIT_IMAGES
    group = keys if design.group is None else min(keys, max(design.group(place), math.ceil(day)))
    groups = math.ceil(keys / group)
    listing = max(keys * c.list_s, math.ceil(keys / PAGE_KEYS) * place.page_s / min(DAYS_AT_ONCE, place.days))
    packed = 0 if design.held is None else max(0, keys - design.held)
    planning = keys * c.plan_s + packed * c.pack_s
    publishers = design.publishers(place, day)
    publishing = keys * c.publish_s / max(1, publishers)
    scoring = keys * place.image_s / actors + groups * GROUP_START_S
    driving = units * (c.unit_s + c.receipt_s) + (0.0 if publishers else publishing)
    # The rows of the last day are published when the last actor has ended, whoever does it.
    total = listing + planning + max(scoring, driving, publishing) + day * c.publish_s
    records = keys - packed
    listed = min(DAYS_AT_ONCE, place.days) * day * c.held_bytes if packed else 0.0
    working = group * max(0.0, c.work_bytes - c.held_bytes) + max(1, publishers) * day * c.publish_bytes
    memory = records * c.held_bytes + packed * c.packed_bytes + max(listed, working + min(group, packed) * c.held_bytes)
    per_task = max(UNITS_PER_TASK, group / UNIT_IMAGES / TASKS)
    per_task = min(per_task, max(1.0, group / UNIT_IMAGES / (16 * actors)))
    found = Forecast(
        keys=keys,
        actors=actors,
        design=design.name,
        list_s=listing,
        plan_s=planning,
        score_s=scoring,
        driver_s=driving,
        publish_s=publishing,
        total_s=total,
        memory_bytes=memory,
        object_bytes=day * c.row_bytes,
        task_s=per_task * UNIT_IMAGES * place.image_s,
    )
    shares = ((name, share(found, place)) for name, (share, _) in WALLS.items())
    return replace(found, breaks=tuple(sorted((s for s in shares if s[1] > 1), key=lambda s: -s[1])))


WALLS: Mapping[str, tuple[Callable[[Forecast, Place], float], str]] = {
    "memory": (lambda f, p: f.memory_bytes / p.memory_bytes, "the driver's machine has less memory"),
    "list": (lambda f, p: f.list_s / p.night_s, "listing takes over a night"),
    "plan": (lambda f, p: f.plan_s / p.night_s, "planning takes over a night"),
    "driver": (lambda f, p: f.driver_s / p.night_s, "units and receipts take over a night"),
    "publish": (lambda f, p: f.publish_s / p.night_s, "publication takes over a night"),
    "object": (lambda f, p: f.object_bytes / p.object_bytes, "a day's rows need output.buckets"),
    "put": (lambda f, p: f.object_bytes / p.put_bytes, "a day's rows exceed one put of S3"),
    "task": (lambda f, p: f.task_s / p.task_s, "a task takes longer than 15 minutes"),
    "idle": (lambda f, _: max(f.driver_s, f.publish_s) / f.score_s, "actors wait for the driver"),
}
"""Name → share of the limit that a run takes, and what that means above 1."""


def first_keys(constants: Constants, place: Place, design: Design, actors: int, wall: str) -> int | None:
    """The fewest keys, to 1 %, at which a run meets a wall; None below 10¹² keys."""
    share = WALLS[wall][0]
    low, high = 1.0, 1e12

    def is_met(keys: float) -> bool:
        return share(forecast(constants, place, design, int(keys), actors), place) > 1

    if not is_met(high):
        return None
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_met(middle) else (middle, high)
    return int(high)


# Tables -----------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """At most six characters: `12 s`, `4.5 m`, `13 h`, `9.2 d`."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "m")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def power(keys: float) -> str:
    """`2·10⁸`."""
    lead, _, exponent = f"{keys:.1e}".partition("e+")
    digits = str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}" if lead == "1.0" else f"{lead}·10{digits}"


def table(found: Iterable[Forecast]) -> list[str]:
    """One line for each run; at most 80 columns."""
    lines = [
        f"{'':6} {'keys':>5} {'act.':>5} {'list':>6} {'plan':>6} {'score':>6} {'driver':>6} {'publ.':>6} {'GiB':>5}"
    ]
    lines[0] += "  breaks first"
    for f in found:
        times = " ".join(f"{duration(s):>6}" for s in (f.list_s, f.plan_s, f.score_s, f.driver_s, f.publish_s))
        line = f"{f.design:6} {power(f.keys):>5} {f.actors:>5} {times} {f.memory_bytes / GIB:>5.0f}"
        worst = f"{f.breaks[0][0]} ×{f.breaks[0][1]:.1f}" if f.breaks else ""
        lines.append(f"{line}  {worst}{f' +{len(f.breaks) - 1}' if len(f.breaks) > 1 else ''}".rstrip())
    return lines


def walls(constants: Constants, place: Place, designs: Sequence[Design], actors: int) -> list[str]:
    """The keys from which each wall stands in the way, by design."""
    lines = [f"{'with ' + str(actors) + ' actors':16} " + " ".join(f"{design.name:>9}" for design in designs)]
    for wall, (_, text) in WALLS.items():
        firsts = [first_keys(constants, place, design, actors, wall) for design in designs]
        shown = " ".join(f"{'–' if first is None else power(first):>9}" for first in firsts)
        lines.append(f"{wall:16} {shown}  {text}")
    return lines


def main(arguments: Sequence[str], *, model: Path, folder: Path) -> None:
    """The tables, then one JSON line. model: an ONNX file, which nothing runs here."""
    parser = argparse.ArgumentParser(
        "scripts/bench simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--constants", type=Path, help="JSON of an earlier call, or its key `constants`")
    parser.add_argument("--days", type=int, default=Place.days, help="partitions (default 400)")
    parser.add_argument("--image-ms", type=float, default=1000 * Place.image_s, help="of an actor (default 71)")
    parser.add_argument("--page-ms", type=float, default=1000 * Place.page_s, help="answer of a listing (default 100)")
    parser.add_argument("--cores", type=int, default=Place.cores, help="of the driver (default 16)")
    parser.add_argument("--memory-gib", type=float, default=Place.memory_bytes / GIB, help="of the driver (default 64)")
    args = parser.parse_args(arguments)
    place = Place(
        days=args.days,
        image_s=args.image_ms / 1000,
        page_s=args.page_ms / 1000,
        cores=args.cores,
        memory_bytes=int(args.memory_gib * GIB),
    )
    sources: dict[str, str] = {}
    if args.constants:
        known = json.loads(args.constants.read_text())
        constants = Constants(**known.get("constants", known))
    else:
        constants, sources = measured(folder, model)
    designs = (before(), now())
    found = [forecast(constants, place, d, keys, actors) for keys in KEYS for actors in ACTORS for d in designs]
    for name, value in asdict(constants).items():
        shown = f"{value * 1e6:9.1f} µs" if name.endswith("_s") else f"{value:9.0f} B "
        print(f"{shown}  {FIGURES[name]}{f' ({sources[name]})' if name in sources else ''}")
    print(f"\n{place.days} days, {place.cores} cores and {place.memory_bytes / GIB:.0f} GiB for the driver")
    print("\n".join(["", *table(found), "", *walls(constants, place, designs, ACTORS[-1])]))
    print(
        json.dumps(
            {
                "machine": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "place": asdict(place),
                "constants": asdict(constants),
                "sources": sources,
                "runs": [asdict(run) for run in found],
                "walls": {
                    design.name: {
                        str(actors): {wall: first_keys(constants, place, design, actors, wall) for wall in WALLS}
                        for actors in ACTORS
                    }
                    for design in designs
                },
            }
        )
    )


def measured(folder: Path, model: Path) -> tuple[Constants, dict[str, str]]:
    """The constants of this machine, and where each comes from."""
    import constants as measuring

    found = measuring.measure(folder, model)
    sources = dict.fromkeys(found, "measured")
    for name, (value, day) in DOCUMENTED.items():
        found[name], sources[name] = value, f"docs/performance.md, {day}"
    print("", file=sys.stderr)
    return Constants(**found), sources
