"""How many images a run plans at a time, so that the driver's memory does not grow with the archive."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

IMAGE_BYTES = 1024
"""Memory of a driver for each image of the partitions that it scores: source, unit, keys (docs/performance.md)."""
MEMORY_SHARE = 4
"""A group takes at most one part in so many of the memory."""
FEWEST_IMAGES = 1_000_000
"""A group is not smaller, because on Ray each one starts its actors again."""


def groups(
    images: Mapping[str, int], most_partitions: int | None, most_images: int | None = None
) -> Iterator[list[str]]:
    """Partitions in the given order, in groups to be leased, planned and scored together.

    images: partition → number of its images. most_partitions: of a group; None: any number. most_images: of a group of
    more than one partition; None: as many as the memory of this machine allows, but not less than FEWEST_IMAGES.
    """
    most_images = most_images or images_at_once(memory_bytes())
    group: list[str] = []
    size = 0
    for name, count in images.items():
        if group and (len(group) == most_partitions or size + count > most_images):
            yield group
            group, size = [], 0
        group.append(name)
        size += count
    if group:
        yield group


def images_at_once(memory: int | None) -> int:
    """The images of one group on a driver with so many bytes of memory; None: unknown."""
    return max(FEWEST_IMAGES, (memory or 0) // (MEMORY_SHARE * IMAGE_BYTES))


def memory_bytes() -> int | None:
    """The container's limit if it is smaller, else the machine's memory; None if it is unknown."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))  # "max" means no limit
    return min(found, default=None)
