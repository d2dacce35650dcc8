"""What a run works on: which partitions of a window, in which order, and until when."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from unet_batch.errors import JobError
from unet_batch.planning.selection import Select

DEADLINE_SHARE = 0.05
"""Share of the time until a deadline that is reserved for active units and publishing."""
DEADLINE_LEAST_S = 20.0
DEADLINE_MOST_S = 900.0
"""Lower and upper limit of that time; it is never more than half of the time until the deadline."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which partitions of a window a run works on, in which order, and until when."""

    select: Select = "due"
    newest_first: bool = False
    max_active: int | None = None
    """Partitions to lease and score at a time; each group starts new sessions on Ray. None: by images (`groups`)."""
    deadline: datetime | None = None
    """No unit is started after it, minus the time reserved for publishing; complete partitions are published."""
    wait_s: float = 0.0
    """Seconds to wait for leases that are not renewed, after the other partitions are done."""
    rescore: bool = False
    """Score every image of the window again, even if its rows are published and up to date; `select` is then all."""

    def stop_at_s(self) -> float | None:
        """Seconds since 1970 after which no unit is started. Raises JobError for a past deadline."""
        if self.deadline is None:
            return None
        left_s = self.deadline.timestamp() - time.time()
        if left_s <= 0:
            raise JobError(f"the deadline {self.deadline.isoformat()} has passed: write a later one")
        reserved_s = min(max(DEADLINE_SHARE * left_s, DEADLINE_LEAST_S), DEADLINE_MOST_S, left_s / 2)
        return self.deadline.timestamp() - reserved_s
