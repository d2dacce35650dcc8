"""Environment variables of worker processes. They must be set before a process starts, so its driver sets them."""

from __future__ import annotations

KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(64 << 20)}
"""glibc's malloc(3): keep the pages of freed pictures for the next ones; handing them back cost a fifth of decoding."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy starts no threads beside those of the session."""
