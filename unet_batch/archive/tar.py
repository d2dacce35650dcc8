"""What is inside a tar: its index, and proof that the index is complete.

Knows headers, links and ends; extracts nothing to any path, and member names are text only. `tarfile` alone
ends early, without an error, at a cut or damaged header: here every walk says whether it came to a proper end.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import IO, BinaryIO, cast

from unet_batch.archive.inflate import CHUNK, DamagedStreamError, Inflated, inflating
from unet_batch.archive.names import Tally, suffix_of
from unet_batch.decode.signatures import format_of
from unet_batch.errors import ImageError, Reason, UnetBatchError
from unet_batch.records import PassedOver

END_BYTES = 1024
"""An archive ends with two zero blocks of 512 bytes (POSIX.1-2001, pax, "ustar Interchange Format")."""

MAX_HEADER_BYTES = 16 << 20
"""Longest extended header that is taken in; real ones have kilobytes."""

FIRST_BYTES = 352
"""Of a member without a suffix, read to see whether it is a picture: a DICOM file says so at byte 128."""

INDEX_FORMAT = 2
"""Raised when an index says more: one of another format is made again."""

Named = tuple[str, int]
"""A member's name, and how many of the same name precede it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar, or another name of one (a hard link)."""

    name: str
    """As in the header; bytes that are not UTF-8 as `\\xff`."""
    ordinal: int
    """How many members of the same name precede it."""
    size_bytes: int
    offset: int | None
    """Where its bytes begin in the object; None in a compressed tar, and for sparse members."""
    target: Named | None = None
    """The member that holds the bytes of a hard link."""
    is_lost: bool = False
    """Whether it is a hard link to a member that does not precede it, so that nobody has its bytes."""
    is_picture: bool = False
    """Whether it has no suffix and begins as a picture does."""


@dataclass(frozen=True, slots=True)
class TarIndex:
    """All regular members of a tar, in its order."""

    members: tuple[Member, ...]
    others: PassedOver
    """Members that hold no bytes: symbolic links, devices and the like. Folders are not counted."""
    problem: tuple[str, str] | None
    """Reason and message where members may be missing."""

    def to_json(self) -> bytes:
        fields = {**asdict(self), "others": self.others.to_json()}
        return json.dumps({"format": INDEX_FORMAT, **fields}, separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> TarIndex | None:
        """The index, or None where the text is none of this format."""
        try:
            fields = json.loads(text)
            if fields.pop("format") != INDEX_FORMAT:
                return None
            members = [{**m, "target": None if m["target"] is None else tuple(m["target"])} for m in fields["members"]]
            fields["members"] = tuple(Member(**member) for member in members)
            fields["others"] = PassedOver.from_json(fields["others"])
            fields["problem"] = None if fields["problem"] is None else tuple(fields["problem"])
            return TarIndex(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def index_tar(stream: BinaryIO) -> TarIndex:
    """The index of a tar, compressed or not. Damage becomes `problem`; errors of the store pass through."""
    source, inflated, size_bytes = _opened(stream)
    members: list[Member] = []
    others = Tally()
    at, stop, seen = 0, 0, 0
    problem: tuple[str, str] | None
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            for header, member in _members(tar, in_place=inflated is None):
                at, seen = tar.offset, seen + 1
                if isinstance(member, Member):
                    if member.target is None and not member.is_lost:
                        stop = at if header.issparse() else header.offset_data + header.size
                        members.append(_looked_at(member, source, header))
                    else:
                        members.append(member)
                elif member:
                    others.note(member, _text(header.name))
            at = tar.offset
        problem = _problem_at_end(source, at, len(members))
    except UnetBatchError:
        raise
    except EOFError:
        problem = _cut(at, len(members))
    except DamagedStreamError as error:
        problem = (Reason.SHARD_CORRUPT, str(error))
    except Exception as error:  # noqa: BLE001 - tarfile raises much more than TarError on damaged headers
        if seen:
            problem = _cut(at, len(members))
        else:
            problem = (Reason.SHARD_CORRUPT, f"this is no tar that can be read: {error}")
    if problem is not None and members and stop > (size_bytes if inflated is None else inflated.inflated):
        members.pop()  # its bytes are cut
    return TarIndex(tuple(members), others.found(), problem)


def read_members(stream: BinaryIO, wanted: Collection[Named]) -> Iterator[tuple[Named, bytes]]:
    """Members of a tar and their bytes, read from its beginning to the last wanted one; hard links come last.

    For tars that cannot be read in places. Members that damage hides do not come; nothing is raised for them.
    """
    left = set(wanted)
    links: dict[Named, list[Named]] = {}
    for member, body in _read_in_order(stream, left):
        if body is not None:
            yield (member.name, member.ordinal), body
        elif member.target is not None:
            links.setdefault(member.target, []).append((member.name, member.ordinal))
    if links:  # what they name lies before them: it has gone by
        for member, body in _read_in_order(stream, set(links)):
            for link in links[member.name, member.ordinal]:
                yield link, body or b""


def _read_in_order(stream: BinaryIO, left: set[Named]) -> Iterator[tuple[Member, bytes | None]]:
    """The members of `left`, which is emptied, with their bytes; None for a hard link."""
    source, inflated, _ = _opened(stream)
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            for header, member in _members(tar, in_place=inflated is None):
                if not isinstance(member, Member) or (member.name, member.ordinal) not in left:
                    continue
                left.remove((member.name, member.ordinal))
                if member.target is not None or member.is_lost:
                    yield member, None
                else:
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


def _opened(stream: BinaryIO) -> tuple[IO[bytes], Inflated | None, int]:
    """The tar's bytes, the inflater they come through, if any, and the size of the object."""
    size_bytes = stream.seek(0, io.SEEK_END)
    inflated = inflating(stream)
    stream.seek(0)
    return cast(IO[bytes], _Guarded(inflated or stream)), inflated, size_bytes


def _members(tar: tarfile.TarFile, *, in_place: bool) -> Iterator[tuple[tarfile.TarInfo, Member | str]]:
    """Each header, with the member it describes; with what it is where it holds no bytes, empty for a folder."""
    seen: Counter[str] = Counter()
    holders: dict[str, Member] = {}
    while (header := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
        if header.size < 0 or tar.offset <= header.offset:
            raise tarfile.ReadError("a member with a negative size")
        name = _text(header.name)
        if header.isreg():
            offset = header.offset_data if in_place and not header.issparse() else None
            member = Member(name, seen[name], header.size, offset)
        elif header.islnk():
            member = _link(name, seen[name], holders.get(_place(_text(header.linkname))))
        else:
            yield header, "" if header.isdir() else "symlinked member" if header.issym() else "special member"
            continue
        holders[_place(name)] = member
        seen[name] += 1
        yield header, member


def _link(name: str, ordinal: int, held: Member | None) -> Member:
    """Another name of a member that precedes it."""
    if held is None or held.is_lost:
        return Member(name, ordinal, 0, None, is_lost=True)
    target = held.target or (held.name, held.ordinal)
    return Member(name, ordinal, held.size_bytes, held.offset, target=target)


def _looked_at(member: Member, source: IO[bytes], header: tarfile.TarInfo) -> Member:
    """The member, marked where its first bytes alone say that it is a picture."""
    if suffix_of(member.name) or not member.size_bytes or header.issparse():
        return member
    source.seek(header.offset_data)
    head = source.read(min(FIRST_BYTES, member.size_bytes))
    try:
        is_picture = format_of(head) != "BMP" or head[6:10] == bytes(4)  # text may begin with BM
    except ImageError:
        is_picture = head[128:132] == b"DICM"
    return Member(member.name, member.ordinal, member.size_bytes, member.offset, is_picture=is_picture)


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _place(name: str) -> str:
    """A name as the file system would take it: `./a` and `a` are one file."""
    return posixpath.normpath(name)


def _body(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(header)
    return b"" if stream is None else b"".join(iter(lambda: stream.read(CHUNK), b""))


def _problem_at_end(source: IO[bytes], at: int, members: int) -> tuple[str, str] | None:
    """Behind the last member only zeros may follow, two blocks at least, and the end of what the tar is packed in."""
    source.seek(at)
    zeros = 0
    while piece := source.read(CHUNK):
        if piece.count(0) != len(piece):
            return (Reason.SHARD_TRUNCATED, f"behind {members} files, at byte {at}, come bytes that are no members")
        zeros += len(piece)
    return _cut(at, members) if zeros < END_BYTES else None


def _cut(at: int, members: int) -> tuple[str, str]:
    return (
        Reason.SHARD_TRUNCATED,
        f"the tar has no end mark: it breaks off near byte {at}, in or after its file {members}",
    )


class _Guarded:
    """A file whose single reads are small: a header may claim an extension of any size, and tarfile would take it."""

    def __init__(self, stream: BinaryIO | Inflated) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header that claims {size} bytes")
        return self._stream.read(size)
