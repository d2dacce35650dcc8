"""A project whose runs are struck, watched and counted, and a reader that never looks away."""

from __future__ import annotations

import hashlib
import json
import multiprocessing.context
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType

import poison
import strikes
from forked import Forked, wait_for_session
from project_fixture import Project

from unet_batch.job.local_executor import LocalExecutor
from unet_batch.job.summary import Summary
from unet_batch.job.sweep import sweep
from unet_batch.planning.survey import window_of


@dataclass
class Faulty:
    """A project whose runs are struck, watched and counted."""

    project: Project
    context: multiprocessing.context.ForkServerContext
    children: list[BaseProcess] = field(default_factory=list)
    session: int | None = None
    """That of the last driver of `on_workers`; None where its workers are in others."""
    driver_pid: int | None = None
    """Process id of the last driver of `on_workers`."""

    @property
    def log(self) -> Path:
        return self.project.folder / "decoded.txt"

    @property
    def driver_log(self) -> Path:
        """What the last driver of `on_workers` printed."""
        return self.project.folder / "driver.txt"

    def start(self, *struck: strikes.Strike, overrides: tuple[str, ...] = (), leases: bool = True) -> BaseProcess:
        """A run in a process of its own."""
        told = self.project.folder / f"told-{len(self.children)}.json"
        child = self.context.Process(
            target=strikes.score,
            args=(str(self.project.folder / "job.yaml"), overrides, struck, str(self.log), leases, str(told)),
            daemon=True,
        )
        child.start()
        self.children.append(child)
        return child

    def killed(self, point: str, nth: int = 1, *, overrides: tuple[str, ...] = ()) -> None:
        """A run that kill -9 ends at a point."""
        child = self.start(strikes.Strike(point, nth), overrides=overrides)
        assert ended(child) == -signal.SIGKILL

    def on_workers(
        self,
        where: str,
        *struck: strikes.Strike,
        executor: str = "ray",
        overrides: tuple[str, ...] = (),
        address: str | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
        **weather: object,
    ) -> tuple[int, dict]:
        """A run with workers of its own, in a process group of its own: exit code and summary.

        where: `driver`, `worker` or `driver and worker`: what is struck, or lives under some weather. executor: `ray`
        or `processes`. address: of the cluster that it joins, else its Ray is embedded; environment: what it needs for
        that.
        """
        tests, told = Path(__file__).parents[1], self.project.folder / "told.json"
        told.unlink(missing_ok=True)
        wanted = {"where": where, "weather": weather, "executor": executor, "address": address}
        wanted["strikes"] = [asdict(strike) for strike in struck]
        environment = {
            **os.environ,
            **environment,
            "PYTHONPATH": os.pathsep.join([str(tests), str(tests / "faults")]),
            strikes.VARIABLE: json.dumps(wanted),
            poison.LOG_VARIABLE: str(self.log),
        }
        script = tests / "faults" / "strikes.py"
        words = (script, self.project.folder / "job.yaml", told, *overrides)
        with open(os.devnull) as nothing, self.driver_log.open("w") as printed:
            driver = Forked(*words, environment=environment, new_session=True, streams=(nothing, printed, printed))
        self.driver_pid = driver.pid
        self.session = None if wanted["executor"] == "ray" else driver.pid
        try:
            code = driver.wait(timeout_s=240)
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
        return code, json.loads(told.read_text()) if told.exists() else {}

    def settled(self) -> None:
        """Wait until a dead driver's workers have noticed: they have ended, or nothing was done for a while."""
        if self.session is not None:
            wait_for_session(self.session, timeout_s=60)
            return
        before: tuple[int, int] | None = None
        for _ in range(60):
            now = (self.decoded().total(), len(self.parts()))
            if now == before:
                return
            before = now
            time.sleep(1.5)

    def told(self, child: BaseProcess) -> dict:
        """The summary of a run that ended by itself."""
        return json.loads((self.project.folder / f"told-{self.children.index(child)}.json").read_text())

    def rerun(self, *overrides: str, **choice) -> Summary:
        """The same command again, in this process, with the noting decoder."""

        def noting(settings) -> LocalExecutor:
            return LocalExecutor(replace(settings, decoder=strikes.NAME))

        before = os.environ.get(poison.LOG_VARIABLE)
        os.environ[poison.LOG_VARIABLE] = str(self.log)
        try:
            return self.project.run(*overrides, executor=noting, **choice)
        finally:
            os.environ.pop(poison.LOG_VARIABLE) if before is None else None

    def decoded(self) -> Counter[str]:
        """How often each image was decoded, by its bytes."""
        return Counter(self.log.read_text().split()) if self.log.exists() else Counter()

    def parts(self, *overrides: str) -> dict[Path, int]:
        """Parts under the job's fingerprint, and when each was written."""
        folder = self.project.folder / "out" / "_work" / "parts" / self.project.prepared(*overrides).fingerprint[:32]
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*.part")}

    def left_after_sweep(self, *overrides: str) -> list[str]:
        """Every file below the output, hidden ones too, but published rows and records, when `sweep` has been there."""
        sweep(self.project.prepared(*overrides), window_of("all"), keep_other_models=False, dry_run=False)
        out = self.project.folder / "out"
        names = (str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        return sorted(n for n in names if not n.endswith(("/data.parquet", ".json")) or "/leases/" in n)


def ended(child: BaseProcess, timeout_s: float = 60) -> int:
    """A child's exit code; negative is the signal that ended it."""
    child.join(timeout_s)
    assert child.exitcode is not None, "the run did not end"
    return child.exitcode


def until(holds, what: str, timeout_s: float = 60) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def stopped(child: BaseProcess) -> bool:
    """Whether a child is stopped by a signal, as proc(5) says."""
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Reader:
    """Reads one file again and again, and keeps the digests of all it ever saw."""

    def __init__(self, path: Path) -> None:
        self.seen: set[str] = set()
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.seen.add(digest(self._path))


def digest(path: Path) -> str:
    """A name for a file's bytes; `absent` where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return "absent"
