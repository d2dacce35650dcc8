"""Which of a window's images a run works on, in one word. Imports nothing: the command line's help names them all."""

from __future__ import annotations

from typing import Literal

Select = Literal["due", "missing", "failed", "changed", "all"]
"""Which of a window's images a run works on.

missing: of partitions without published rows. changed: of partitions that are published, but by another fingerprint or
for another inventory. due: both. Each of them takes along rejections whose reason may have passed, and `due` those of
partitions that are up to date, too: in `limits.retries` runs, and in every run where they keep a partition back.
failed: such rejections, however often they were tried, and nothing else. all: due and failed.
"""

SELECTIONS: tuple[Select, ...] = ("missing", "failed", "changed", "all")
"""Those of a backfill; `due` is what a run does."""
