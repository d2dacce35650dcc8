"""The number of cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores(limits: Path = CGROUP) -> int:
    """The cores in this process's affinity, limited by the CPU quota of its container; at least 1.

    limits: folder of Linux's control groups (cgroups(7), versions 2 and 1).
    """
    may = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(may, _paid(limits))))


def _paid(limits: Path) -> float:
    """CPU quota in processor seconds per second; infinite without a limit, or if unknown."""
    try:
        if (limits / "cpu.max").exists():
            quota, period = (limits / "cpu.max").read_text().split()[:2]
        else:
            quota = (limits / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (limits / "cpu" / "cpu.cfs_period_us").read_text()
        paid = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # `max` is not a number
        return math.inf
    return paid if paid > 0 else math.inf  # -1 means no limit
