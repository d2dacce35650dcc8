"""The chain of directories in a TIFF: where each lies, and where the chain ends or breaks.

Reads headers and links, no tags. `tifffile` ends a broken chain silently, so the chain is followed here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from unet_batch.errors import ImageError, Reason

MOST_TAGS = 4096
"""A directory with more tags is damaged (tifffile's limit)."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The main directories of a TIFF."""

    offsets: tuple[int, ...]
    """First byte of each, in the order of the links."""
    broken: ImageError | None
    """Why more directories may exist that cannot be reached; None if the chain is complete."""


def chain_of(data: bytes) -> Chain:
    """The main directories of a classic TIFF or BigTIFF, the pages of the file.

    A link back to an earlier directory ends the chain, as in libtiff and Pillow; some writers leave such links. Never
    raises: if even the first directory is missing, `offsets` is empty and `broken` says why.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count_format, tag_bytes, link_format = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    offsets: list[int] = []
    seen: set[int] = set()
    place = 8 if big else 4
    while True:
        try:
            (offset,) = struct.unpack_from(link_format, data, place)
        except struct.error:
            return _broken(offsets, Reason.DECODE_TRUNCATED, "the file ends before the link to the next page")
        if offset in seen:
            return Chain(tuple(offsets), None)
        if offset == 0:
            if offsets:
                return Chain(tuple(offsets), None)
            return _broken(offsets, Reason.DECODE_TRUNCATED, "the TIFF has no page: its writer did not finish it")
        try:
            (count,) = struct.unpack_from(count_format, data, offset)
        except struct.error:
            return _broken(offsets, Reason.DECODE_TRUNCATED, f"the next page begins at byte {offset}, after the end")
        if not 0 < count <= MOST_TAGS:
            return _broken(offsets, Reason.DECODE_CORRUPT, f"the directory at byte {offset} claims {count} tags")
        place = offset + struct.calcsize(count_format) + tag_bytes * count
        if place > len(data):
            return _broken(offsets, Reason.DECODE_TRUNCATED, f"the file ends inside the directory at byte {offset}")
        offsets.append(offset)
        seen.add(offset)


def _broken(offsets: list[int], reason: Reason, what: str) -> Chain:
    where = f"page {len(offsets)} cannot be reached: " if offsets else ""
    return Chain(tuple(offsets), ImageError(reason, where + what))
