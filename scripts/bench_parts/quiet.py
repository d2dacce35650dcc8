"""Says how much of the machine other processes took while something was measured (Linux).

Knows /proc, and nothing of what is measured. A figure from a machine that others were using is not a figure: blocks
with more than FOREIGN_LIMIT are set aside and measured again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

FOREIGN_LIMIT = 0.05
"""Share of all cores that others may take in a block that counts."""
SAMPLE_S = 0.2
"""Seconds between two looks at the process tree."""
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphaned descendants become our children, not those of process 1."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Process = tuple[int, int]
"""Process id and start time: ids come round again, pairs do not."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a block of wall time cost."""

    wall_s: float
    own_s: float
    """CPU seconds of this process and everything it started, directly or not."""
    busy_s: float
    """CPU seconds of the whole machine, the hypervisor's stolen ones included."""
    cores: int

    @property
    def foreign_share(self) -> float:
        """Share of all cores, 0 to 1, that neither was idle nor worked for us."""
        return max(0.0, self.busy_s - self.own_s) / (self.wall_s * self.cores)

    @property
    def quiet(self) -> bool:
        """Whether the block counts."""
        return self.foreign_share <= FOREIGN_LIMIT


class Watch:
    """Context manager around a block; `load` is there afterwards.

    Samples the process tree five times a second, because a process's CPU time cannot be read once it is gone, and
    adopts the orphans among its descendants: Ray's workers outlive the driver that they belong to. A process seen
    once is ours for good; the last samples of one that lives shorter than SAMPLE_S may be missed, and count as foreign.
    """

    load: Load

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._ticks: dict[Process, int] = {}
        self._before: dict[Process, int] = {}
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample_until_over, name="quiet", daemon=True)

    def __enter__(self) -> Watch:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._sample()
        self._before = dict(self._ticks)
        self._busy = busy_ticks((self._proc / "stat").read_text())
        self._start = time.perf_counter()
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall_s = time.perf_counter() - self._start
        busy = busy_ticks((self._proc / "stat").read_text()) - self._busy
        self._over.set()
        self._sampler.join()
        self._sample()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        own = sum(ticks - self._before.get(process, 0) for process, ticks in self._ticks.items())
        self.load = Load(wall_s, own / TICKS_PER_S, busy / TICKS_PER_S, os.cpu_count() or 1)

    def _sample_until_over(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        seen = {}
        for folder in self._proc.iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):  # it ended between the listing and the reading
                    process, parent, ticks = parse_process((folder / "stat").read_text())
                    seen[process] = (parent, ticks)
        children: dict[int, list[Process]] = {}
        for process, (parent, _) in seen.items():
            children.setdefault(parent, []).append(process)
        ours = [process for process in seen if process in self._ticks or process[0] == os.getpid()]
        reached = set(ours)
        while ours:
            born = [child for child in children.get(ours.pop()[0], []) if child not in reached]
            reached.update(born)
            ours += born
        self._ticks |= {process: seen[process][1] for process in reached}


def busy_ticks(stat: str) -> int:
    """Ticks that all cores were not idle, from the text of /proc/stat (proc(5): guest time is part of user time)."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return user + nice + system + irq + softirq + steal


def parse_process(stat: str) -> tuple[Process, int, int]:
    """Identity, parent's id, and ticks of CPU (children not counted), from the text of /proc/PID/stat (proc(5))."""
    head, _, tail = stat.rpartition(")")  # the name in parentheses may hold anything, spaces and parentheses too
    fields = tail.split()
    identity = (int(head.split("(", 1)[0]), int(fields[19]))
    return identity, int(fields[1]), int(fields[11]) + int(fields[12])
