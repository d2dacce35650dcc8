"""A backfill of many small days with failures of every kind, by a seed: does one command converge and touch no more?

Some images are cut, make their decoder raise, crash or hang; some units are lost with their process before or after
their put, and some meet a store that is away. The loop of the local executor runs them; what would kill its process is
lost instead, as Ray loses the units of a dead actor.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

FIRST = date(2025, 10, 1)
SEED = 11
BAD = {"cut": 0.02, "raise": 0.02, "crash": 0.02, "hang": 0.003}
"""Share of the images that fail for good, by how."""
PASSING = {"lost": 0.03, "lost after its put": 0.03, "store away": 0.03}
"""Share of the units that fail on their first try, by how."""
IMAGE_TIMEOUT_S = 2


def measure(folder: Path, days: int, *, seed: int = SEED) -> dict[str, Any]:
    """Counts of one backfill over `days` days of two or three images, and of the same command given again."""
    from models import threshold_model

    from unet_batch.job.run import Choice, run
    from unet_batch.job.verify import verify
    from unet_batch.planning.prepare import prepare
    from unet_batch.planning.survey import window_of
    from unet_batch.spec import load_job

    logging.getLogger("unet_batch").setLevel(logging.CRITICAL)  # every planted failure is logged with its stack
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "archive").mkdir(parents=True)
    dice = random.Random(seed)
    outside = FIRST - timedelta(days=1)
    planted = fill(folder / "archive", days, dice)
    made = threshold_model("nchw", 1, 2, size=32)
    (folder / "model.onnx").write_bytes(made.data)
    (folder / "model.yaml").write_text(made.contract_yaml)
    (folder / "job.yaml").write_text(
        f"name: backfill\nmodel: {{path: {folder}/model.onnx}}\n"
        f'input: {{uri: "{folder}/archive/{{date:%Y/%m/%d}}/"}}\noutput: {{uri: {folder}/out}}\n'
        f"limits: {{max_rejected: 3, image_timeout_s: {IMAGE_TIMEOUT_S}}}\n"
    )
    done = Choice("missing")
    with counted_sessions() as sessions:
        # The day before and one inside were published by other settings: a backfill of missing days leaves both alone.
        for day in (outside, FIRST + timedelta(days=days // 2)):
            older = prepare(load_job(folder / "job.yaml", ["tiling.overlap=0.5"]))
            run(older, window_of(f"{day}"), faulty(dice, planted, passing={}), choice=done, quiet=True)
        before = contents(folder / "out" / "predictions")
        sessions.clear()
        prepared = prepare(load_job(folder / "job.yaml", []))
        window = window_of(f"{FIRST}..{FIRST + timedelta(days=days - 1)}")
        started = time.perf_counter()
        met: Counter[str] = Counter()
        summary = run(prepared, window, faulty(dice, planted, met=met), choice=done, quiet=True)
        seconds = time.perf_counter() - started
        again = run(prepared, window, faulty(dice, planted), choice=done, quiet=True)
    after = contents(folder / "out" / "predictions")
    stale = f"date={FIRST + timedelta(days=days // 2)}"
    findings = [f for f in verify(prepared, window).findings if f.partition != stale]
    expected = planted.counts.total() - planted.of_day(stale.removeprefix("date="))
    bad = planted.counts.total() - planted.counts["sound"]
    found: dict[str, Any] = {
        "days": days,
        "images": summary.ok + summary.rejected,
        "planted": dict(planted.counts),
        "passing_failures": dict(met),
        "reasons": summary.reasons,
        "exit_code": summary.exit_code,
        "published": summary.published,
        "remaining": summary.remaining,
        "disagreements": len(findings),
        "sessions": sum(sessions.values()),
        "actors": 1,
        "planned_again": again.planned,
        "untouched": sum(after.get(name) == was for name, was in before.items()),
        "touched": sum(after.get(name) != was for name, was in before.items()),
        "seconds": round(seconds, 1),
        "problems": summary.problems[:3],
    }
    found["converged"] = (
        (summary.exit_code, summary.remaining, len(findings), again.planned, found["touched"]) == (0, 0, 0, 0, 0)
        and (summary.published, found["images"], summary.rejected) == (days - 1, expected, bad)
        and found["sessions"] <= found["actors"]
    )
    workers = f"{found['sessions']} session(s) in {found['actors']} actor(s)"
    print(
        f"\nbackfill   {summary.published} of {days - 1} missing days published by one command, {workers}: "
        f"{found['images']} images, {summary.rejected} of them rejected; "
        f"{found['touched']} of {len(before)} other objects touched; converged: {found['converged']}",
        flush=True,
    )
    return found


class Planted:
    """Which images are bad, and how."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kinds: dict[str, str] = {}
        """By file URI."""
        self._days: Counter[str] = Counter()

    def add(self, path: Path, day: date, kind: str) -> None:
        if day >= FIRST:
            self.counts[kind] += 1
        self.kinds[f"file://{path}"] = kind
        self._days[f"{day}"] += 1

    def of_day(self, day: str) -> int:
        """How many images a day holds."""
        return self._days[day]


def fill(archive: Path, days: int, dice: random.Random) -> Planted:
    """Two or three images a day, from the day before FIRST on; that one and the middle day are sound."""
    import poison
    from project_fixture import png

    ends = {"raise": poison.RAISE, "crash": poison.CRASH, "hang": poison.HANG}
    planted = Planted()
    for number in range(-1, days):
        day = FIRST + timedelta(days=number)
        folder = archive / f"{day:%Y/%m/%d}"
        folder.mkdir(parents=True)
        for i in range(2 + dice.randrange(2)):
            kind = "sound" if number in (-1, days // 2) else drawn(BAD, dice) or "sound"
            body = png(i) + ends.get(kind, b"")
            path = folder / f"{i}.png"
            path.write_bytes(body[:-40] if kind == "cut" else body)
            planted.add(path, day, kind)
    return planted


def drawn(shares: dict[str, float], dice: random.Random) -> str | None:
    """One of the names, each with its share; None for the rest."""
    point = dice.random()
    for name, share in shares.items():
        point -= share
        if point < 0:
            return name
    return None


def faulty(
    dice: random.Random,
    planted: Planted,
    *,
    passing: dict[str, float] = PASSING,
    met: Counter[str] | None = None,
) -> Callable[[Any], Any]:
    """Makes local executors whose units fail as the dice say; `met` counts how often."""
    import poison

    from unet_batch.job.local_executor import LocalExecutor
    from unet_batch.records import Receipt, Unit

    class Faulty(LocalExecutor):
        def run(self, units: Sequence[Unit]) -> Iterator[Receipt]:
            for unit in units:
                deadly = any(planted.kinds[source.uri] in ("crash", "hang") for source in unit.sources)
                fault = None if unit.unit_id in tried else drawn(passing, dice)
                tried.add(unit.unit_id)
                if fault is not None and met is not None:
                    met[fault] += 1
                if fault == "store away":
                    failure = ("storage.unavailable", "the store is away")
                    yield Receipt(unit.unit_id, unit.partition, 0, 0, 0, failure=failure)
                elif fault == "lost after its put" and not deadly:
                    list(super().run([unit]))
                elif fault != "lost" and (unit.isolate or not deadly):
                    yield from super().run([unit])

    tried: set[str] = set()
    return lambda settings: Faulty(replace(settings, decoder=poison.NAME))


@contextmanager
def counted_sessions() -> Iterator[Counter[int]]:
    """Sessions that workers open meanwhile, by process."""
    from unet_batch.session.opening import open_session
    from unet_batch.worker import worker

    opened: Counter[int] = Counter()

    def counting(*arguments: Any, **options: Any) -> Any:
        opened[os.getpid()] += 1
        return open_session(*arguments, **options)

    with patch.object(worker, "open_session", counting):
        yield opened


def contents(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Time of change, inode and bytes of every file below a folder."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
