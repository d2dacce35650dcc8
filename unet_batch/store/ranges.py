"""A seekable file over range reads of one object, with read-ahead."""

from __future__ import annotations

import io
from collections.abc import Callable

FIRST_BLOCK_BYTES = 64 << 10
LAST_BLOCK_BYTES = 4 << 20
"""The read-ahead doubles from the first to the last size while the file is read in order, and starts again after a
seek: reading the headers of large members transfers little, and small members are streamed."""


class RangeFile(io.RawIOBase):
    """A file over range reads. Reads are always full, as with a local file."""

    def __init__(self, read_range: Callable[[int, int], bytes], size_bytes: int) -> None:
        """read_range: returns the bytes [start, stop) of one version of the object, or raises."""
        super().__init__()
        self._read_range = read_range
        self._size = size_bytes
        self._at = 0
        self._block = b""
        self._block_start = 0
        self._ahead = FIRST_BLOCK_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if self._at < 0:
            raise ValueError("a position before the beginning")
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """At most `size` bytes, fewer only at the end."""
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if stop <= self._at:
            return b""
        pieces = []
        while self._at < stop:
            offset = self._at - self._block_start
            if not 0 <= offset < len(self._block):
                self._fetch(stop)
                offset = 0
            piece = self._block[offset : offset + stop - self._at]
            pieces.append(piece)
            self._at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed has no public buffer type here
        view = memoryview(buffer).cast("B")
        body = self.read(len(view))
        view[: len(body)] = body
        return len(body)

    def _fetch(self, stop: int) -> None:
        in_order = self._at == self._block_start + len(self._block)
        self._ahead = min(self._ahead * 2, LAST_BLOCK_BYTES) if in_order and self._block else FIRST_BLOCK_BYTES
        end = min(max(stop, self._at + self._ahead), self._size)
        self._block = self._read_range(self._at, end)
        self._block_start = self._at
