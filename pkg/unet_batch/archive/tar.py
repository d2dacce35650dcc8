"""What is inside a tar: its index, and proof that the index is complete.

Knows headers, ends and gzip trailers; extracts nothing to any path, and member names are text only. `tarfile` alone
ends early, without an error, at a cut or damaged header: here every walk says whether it came to a proper end.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import IO, BinaryIO, cast

from unet_batch.errors import Reason, UnetBatchError

END_BYTES = 1024
"""An archive ends with two zero blocks of 512 bytes (POSIX.1-2001, pax, "ustar Interchange Format")."""

MAX_INFLATED_BYTES = 64 << 30
MAX_INFLATED_RATIO = 1000
RATIO_FROM_BYTES = 64 << 20

MAX_HEADER_BYTES = 16 << 20
"""Longest extended header that is taken in; real ones have kilobytes."""

_GZIP = b"\x1f\x8b"
_FORMAT = 1
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    """As in the header; bytes that are not UTF-8 as `\\xff`."""
    ordinal: int
    """How many members of the same name precede it."""
    size_bytes: int
    offset: int | None
    """Where its bytes begin in the object; None in a gzipped tar, and for sparse members."""


@dataclass(frozen=True, slots=True)
class TarIndex:
    """All regular members of a tar, in its order."""

    members: tuple[Member, ...]
    others: int
    """Members that are no regular files: folders, links, devices."""
    problem: tuple[str, str] | None
    """Reason and message where members may be missing."""

    def to_json(self) -> bytes:
        return json.dumps({"format": _FORMAT, **asdict(self)}, separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> TarIndex | None:
        """The index, or None where the text is none of this format."""
        try:
            fields = json.loads(text)
            if fields.pop("format") != _FORMAT:
                return None
            fields["members"] = tuple(Member(**member) for member in fields["members"])
            fields["problem"] = None if fields["problem"] is None else tuple(fields["problem"])
            return TarIndex(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def inflated_limit(size_bytes: int) -> int:
    """Bytes a container may inflate to: 64 GiB, and beyond 64 MiB a thousand times its size (deflate ends at 1032)."""
    return min(MAX_INFLATED_BYTES, max(RATIO_FROM_BYTES, MAX_INFLATED_RATIO * size_bytes))


def index_tar(stream: BinaryIO) -> TarIndex:
    """The index of a tar, gzipped or not. Damage becomes `problem`; errors of the store pass through."""
    source, inflated, size_bytes = _opened(stream)
    members: list[Member] = []
    others, at, stop = 0, 0, 0
    problem: tuple[str, str] | None
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            for header, member in _members(tar, in_place=inflated is None):
                at = tar.offset
                if member is None:
                    others += 1
                    continue
                members.append(member)
                stop = at if header.issparse() else header.offset_data + header.size
            at = tar.offset
        problem = _problem_at_end(source, at, len(members))
    except UnetBatchError:
        raise
    except EOFError:
        problem = _cut(at, len(members))
    except (gzip.BadGzipFile, zlib.error, _TooManyBytesError) as error:
        problem = (Reason.SHARD_CORRUPT, f"its gzip stream cannot be read to its end: {error}")
    except Exception as error:  # noqa: BLE001 - tarfile raises much more than TarError on damaged headers
        if members or others:
            problem = _cut(at, len(members))
        else:
            problem = (Reason.SHARD_CORRUPT, f"this is no tar that can be read: {error}")
    if problem is not None and members and stop > (size_bytes if inflated is None else inflated.inflated):
        members.pop()  # its bytes are cut
    return TarIndex(tuple(members), others, problem)


def read_members(stream: BinaryIO, wanted: Collection[tuple[str, int]]) -> Iterator[tuple[Member, bytes]]:
    """Members (name, ordinal) of a tar and their bytes, in its order, read from its beginning to the last wanted one.

    For tars that cannot be read in places. Members that damage hides do not come; nothing is raised for them.
    """
    source, inflated, _ = _opened(stream)
    left = set(wanted)
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            for header, member in _members(tar, in_place=inflated is None):
                if member is None or (member.name, member.ordinal) not in left:
                    continue
                left.remove((member.name, member.ordinal))
                body = _body(tar, header)
                if len(body) != header.size:
                    return
                yield member, body
                if not left:
                    return
    except UnetBatchError:
        raise
    except Exception:  # noqa: BLE001 - see index_tar; what is missing is the caller's to tell
        return


def _opened(stream: BinaryIO) -> tuple[IO[bytes], _Inflated | None, int]:
    """The tar's bytes, the inflater they come through, if any, and the size of the object."""
    size_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    gzipped = stream.read(2) == _GZIP
    stream.seek(0)
    inflated = _Inflated(stream, size_bytes) if gzipped else None
    return cast(IO[bytes], _Guarded(inflated or stream)), inflated, size_bytes


def _members(tar: tarfile.TarFile, *, in_place: bool) -> Iterator[tuple[tarfile.TarInfo, Member | None]]:
    """Each header, with the member it describes where that is a regular file."""
    seen: Counter[str] = Counter()
    while (header := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
        if header.size < 0 or tar.offset <= header.offset:
            raise tarfile.ReadError("a member with a negative size")
        if not header.isreg():
            yield header, None
            continue
        name = header.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        offset = header.offset_data if in_place and not header.issparse() else None
        yield header, Member(name, seen[name], header.size, offset)
        seen[name] += 1


def _body(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(header)
    return b"" if stream is None else b"".join(iter(lambda: stream.read(_CHUNK), b""))


def _problem_at_end(source: IO[bytes], at: int, members: int) -> tuple[str, str] | None:
    """Behind the last member nothing may follow but at least two blocks of zeros, and the gzip trailer."""
    source.seek(at)
    zeros = 0
    while piece := source.read(_CHUNK):
        if piece.count(0) != len(piece):
            return (Reason.SHARD_TRUNCATED, f"behind {members} files, at byte {at}, come bytes that are no members")
        zeros += len(piece)
    return _cut(at, members) if zeros < END_BYTES else None


def _cut(at: int, members: int) -> tuple[str, str]:
    return (
        Reason.SHARD_TRUNCATED,
        f"the tar has no end mark: it breaks off near byte {at}, in or after its file {members}",
    )


class _TooManyBytesError(Exception):
    """A container inflates beyond the limits."""


class _Guarded:
    """A file whose single reads are small: a header may claim an extension of any size, which tarfile would take in."""

    def __init__(self, stream: BinaryIO | _Inflated) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header that claims {size} bytes")
        return self._stream.read(size)


class _Inflated:
    """A gzip stream as a file that goes forward, and back within its last read; its trailer is checked at the end.

    Raises EOFError where the stream is cut, gzip.BadGzipFile or zlib.error where it is damaged.
    """

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        self._gzip = gzip.GzipFile(fileobj=stream, mode="rb")
        self._limit = inflated_limit(size_bytes)
        self._at = 0
        self._last = b""
        self._again = b""
        self.inflated = 0
        """Bytes that came out whole so far."""

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        if position < self._at:
            back = self._at - position
            if back > len(self._last):
                raise OSError("a gzip stream goes forward only")
            self._again, self._last, self._at = self._last[-back:] + self._again, self._last[:-back], position
        while self._at < position:
            if not self.read(min(position - self._at, _CHUNK)):
                raise EOFError
        return position

    def read(self, size: int) -> bytes:
        pieces, self._again = [self._again[:size]], self._again[size:]
        got = len(pieces[0])
        while got < size and (piece := self._gzip.read1(size - got)):
            pieces.append(piece)
            got += len(piece)
            self.inflated += len(piece)
            if self.inflated > self._limit:
                raise _TooManyBytesError(f"it inflates to more than {self._limit} bytes")
        self._last = b"".join(pieces)
        self._at += len(self._last)
        return self._last
