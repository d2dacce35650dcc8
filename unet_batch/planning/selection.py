"""Which of a window's images a run works on, in one word. Imports nothing: the command line's help names them all."""

from __future__ import annotations

from typing import Literal

Select = Literal["due", "missing", "failed", "changed", "all"]
"""Which images of a window a run works on.

missing: images of partitions without published rows. changed: of partitions published with another fingerprint or
inventory. due: both. All three include retryable rejections of these partitions; `due` also those of partitions that
are up to date. Rejections are retried in `limits.retries` runs, or in every run if they keep a partition from being
published. failed: only retryable rejections, without that limit. all: due and failed.
"""

SELECTIONS: tuple[Select, ...] = ("missing", "failed", "changed", "all")
"""Selections of `backfill`; `run` uses `due`."""
