"""Compressed containers, read once from start to end: gzip, bzip2, xz and Zstandard, recognised by their first bytes.

A truncated stream is an error. The size of the inflated stream is limited.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

import pyarrow as pa

MAX_INFLATED_BYTES = 64 << 30
MAX_INFLATED_RATIO = 1000
RATIO_FROM_BYTES = 64 << 20
MAX_XZ_BYTES = 1 << 30
"""Memory for an xz stream's dictionary; `xz -9` takes 65 MiB."""

CHUNK = 1 << 20
_MAGIC = (
    ("gzip", re.compile(rb"\x1f\x8b")),
    # The magic is followed by a block or the end of an empty stream: a tar may begin with a name such as BZh1.png.
    ("bzip2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")),
    ("xz", re.compile(rb"\xfd7zXZ\0")),
    ("Zstandard", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2aM\x18")),
)


class DamagedStreamError(Exception):
    """A compressed stream is damaged, or inflates beyond the limits."""


def inflated_limit(size_bytes: int) -> int:
    """Most bytes of an inflated container: 64 GiB, and above 64 MiB 1000 times its size (deflate reaches 1032)."""
    return min(MAX_INFLATED_BYTES, max(RATIO_FROM_BYTES, MAX_INFLATED_RATIO * size_bytes))


def inflating(stream: BinaryIO) -> Inflated | None:
    """The inflated stream, from its beginning; None if the stream is not compressed."""
    size_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    first = stream.read(16)
    stream.seek(0)
    kind = next((kind for kind, magic in _MAGIC if magic.match(first)), None)
    return None if kind is None else Inflated(kind, _READERS[kind](stream), size_bytes)


class Inflated:
    """A compressed stream as a file. It seeks forward, and back within the last read; the end is checked.

    Raises EOFError if the stream is truncated, DamagedStreamError if it is damaged or too long.
    """

    def __init__(self, kind: str, read: Callable[[int], bytes], size_bytes: int) -> None:
        self._kind = kind
        self._read = read
        self._limit = inflated_limit(size_bytes)
        self._at = 0
        self._last = b""
        self._again = b""
        self.inflated = 0
        """Number of bytes inflated so far."""

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        if position < self._at:
            back = self._at - position
            if back > len(self._last):
                raise OSError("a compressed stream cannot seek back")
            self._again, self._last, self._at = self._last[-back:] + self._again, self._last[:-back], position
        while self._at < position:
            if not self.read(min(position - self._at, CHUNK)):
                raise EOFError
        return position

    def read(self, size: int) -> bytes:
        pieces, self._again = [self._again[:size]], self._again[size:]
        got = len(pieces[0])
        while got < size and (piece := self._more(size - got)):
            pieces.append(piece)
            got += len(piece)
            self.inflated += len(piece)
            if self.inflated > self._limit:
                raise DamagedStreamError(f"its {self._kind} stream inflates to more than {self._limit} bytes")
        self._last = b"".join(pieces)
        self._at += len(self._last)
        return self._last

    def _more(self, size: int) -> bytes:
        try:
            return self._read(size)
        except (OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            if "Truncated" in str(error):  # Arrow has one error for truncation and damage
                raise EOFError from error
            text = f"its {self._kind} stream cannot be read to its end: {error}"
            raise DamagedStreamError(text) from error


class _Decompressor(Protocol):
    """What bz2 and lzma share."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _ConcatenatedStreams:
    """Several bzip2 or xz streams in a row, as their tools write them for large files."""

    def __init__(self, stream: BinaryIO, make: Callable[[], _Decompressor], *, padded: bool) -> None:
        """padded: whether zeros may follow a stream."""
        self._stream = stream
        self._make = make
        self._padded = padded
        self._now: _Decompressor | None = make()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; empty at the end. Raises EOFError if a stream is truncated."""
        while self._now is not None:
            piece = b""
            if self._now.needs_input:
                piece = self._stream.read(CHUNK)
                if not piece:
                    raise EOFError
            out = self._now.decompress(piece, size)
            if self._now.eof:
                self._now = self._next(self._now.unused_data)
            if out:
                return out
        return b""

    def _next(self, rest: bytes) -> _Decompressor | None:
        """The decompressor of the next stream, with the rest of the last read; None at the end."""
        while True:
            if self._padded:
                rest = rest.lstrip(b"\0")
            if rest:
                following = self._make()
                self._stream.seek(-len(rest), io.SEEK_CUR)
                return following
            rest = self._stream.read(CHUNK)
            if not rest:
                return None


class _NotClosed:
    """The caller's file, which Arrow reads and must not close."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self.read = stream.read

    def close(self) -> None:
        """Do nothing: the file stays open."""


_READERS: dict[str, Callable[[BinaryIO], Callable[[int], bytes]]] = {
    "gzip": lambda stream: gzip.GzipFile(fileobj=stream, mode="rb").read1,
    "bzip2": lambda stream: _ConcatenatedStreams(stream, bz2.BZ2Decompressor, padded=False).read,
    "xz": lambda stream: (
        _ConcatenatedStreams(stream, lambda: lzma.LZMADecompressor(memlimit=MAX_XZ_BYTES), padded=True).read
    ),
    "Zstandard": lambda stream: pa.CompressedInputStream(pa.PythonFile(_NotClosed(stream), mode="r"), "zstd").read,
}
