"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores(limits: Path = CGROUP) -> int:
    """The cores that the scheduler lets this process run on, and no more than a container's limit pays for; at least 1.

    limits: where Linux shows the limits of control groups (cgroups(7), versions 2 and 1).
    """
    may = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(may, _paid(limits))))


def _paid(limits: Path) -> float:
    """Processor seconds for each second; infinite where nothing limits them, or nothing is known."""
    try:
        if (limits / "cpu.max").exists():
            quota, period = (limits / "cpu.max").read_text().split()[:2]
        else:
            quota = (limits / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (limits / "cpu" / "cpu.cfs_period_us").read_text()
        paid = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # `max` is no number
        return math.inf
    return paid if paid > 0 else math.inf  # -1 means no limit
