"""Environment variables of worker processes. The driver sets them, because they must be set before a process starts."""

from __future__ import annotations

KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(64 << 20)}
"""glibc's malloc(3): keep the pages of freed images for the next ones; returning them took a fifth of decoding."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""NumPy starts no threads in addition to those of the session."""
