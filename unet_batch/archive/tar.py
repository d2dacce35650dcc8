"""The index of a tar, and whether the index is complete.

Nothing is extracted to a path; member names are text only. `tarfile` stops without an error at a truncated or damaged
header, so every read here also checks the end of the tar.
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
"""Longest extended header that is read; normal ones have kilobytes."""

FIRST_BYTES = 352
"""Bytes of a member without a suffix that are read to recognise a picture: DICOM's magic is at byte 128."""

INDEX_FORMAT = 3
"""Version of the stored index: an index of another version is made again."""

Named = tuple[str, int]
"""A member's name, and its ordinal among members of the same name."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar, or another name of one (a hard link without bytes of its own)."""

    name: str
    """The name in the header; bytes that are not UTF-8 are written as `\\xff`."""
    ordinal: int
    """How many members of the same name precede it."""
    size_bytes: int
    offset: int | None
    """First byte in the object; None in a compressed tar, and for sparse members."""
    target: Named | None = None
    """The member that holds the bytes of a hard link."""
    is_lost: bool = False
    """Whether it is a hard link without a target before it: its bytes are missing."""
    is_picture: bool = False
    """Whether it has no suffix and its first bytes are those of a picture."""


@dataclass(frozen=True, slots=True)
class TarIndex:
    """All regular members of a tar, in order."""

    members: tuple[Member, ...]
    others: PassedOver
    """Members without bytes: symbolic links, devices and others. Folders are not counted."""
    problem: tuple[str, str] | None
    """Reason and message if members may be missing."""

    def to_json(self) -> bytes:
        fields = {**asdict(self), "others": self.others.to_json()}
        return json.dumps({"format": INDEX_FORMAT, **fields}, separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> TarIndex | None:
        """The index; None if the text is not of this version."""
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
    """The index of a tar, compressed or not. Damage becomes `problem`; errors of the store are raised."""
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
        problem = _cut(at, len(members)) if seen else (Reason.SHARD_CORRUPT, f"this is not a readable tar: {error}")
    if problem is not None and members and stop > (size_bytes if inflated is None else inflated.inflated):
        members.pop()  # its bytes are incomplete
    return TarIndex(tuple(members), others.found(), problem)


def read_members(stream: BinaryIO, wanted: Collection[Named]) -> Iterator[tuple[Named, bytes]]:
    """Members of a tar and their bytes, read from the start to the last wanted one; hard links come last.

    For tars without byte offsets. Members after damage are not yielded; no error is raised for them.
    """
    left = set(wanted)
    links: dict[Named, list[Named]] = {}
    for member, body in _read_in_order(stream, left):
        if body is not None:
            yield (member.name, member.ordinal), body
        elif member.target is not None:
            links.setdefault(member.target, []).append((member.name, member.ordinal))
    if links:  # their targets precede them and were read already
        for member, body in _read_in_order(stream, set(links)):
            for link in links[member.name, member.ordinal]:
                yield link, body or b""


def _read_in_order(stream: BinaryIO, left: set[Named]) -> Iterator[tuple[Member, bytes | None]]:
    """The members in `left` with their bytes; None for a hard link. Members are removed from `left`."""
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
    except Exception:  # noqa: BLE001 - see index_tar; the caller reports missing members
        return


def _opened(stream: BinaryIO) -> tuple[IO[bytes], Inflated | None, int]:
    """The tar's stream, its decompressor, if any, and the size of the object."""
    size_bytes = stream.seek(0, io.SEEK_END)
    inflated = inflating(stream)
    stream.seek(0)
    return cast(IO[bytes], _Guarded(inflated or stream)), inflated, size_bytes


def _members(tar: tarfile.TarFile, *, in_place: bool) -> Iterator[tuple[tarfile.TarInfo, Member | str]]:
    """Each header with its member; for a member without bytes, its kind (empty for a folder)."""
    seen: Counter[str] = Counter()
    holders: dict[str, Member] = {}
    while (header := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
        if header.size < 0 or tar.offset <= header.offset:
            raise tarfile.ReadError("a member with a negative size")
        name = _text(header.name)
        if header.islnk() and header.size and _has_body(tar, header):
            header.type = tarfile.REGTYPE
            tar.offset = header.offset_data + -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
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


def _has_body(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bool:
    """Whether bytes follow the header of a hard link with a size.

    In pax archives the bytes may follow (POSIX.1-2001, pax, "ustar Interchange Format", typeflag 1); older writers give
    the size of the target, and no bytes. So they follow if the next block is neither a header nor zeros.
    """
    stream = cast(IO[bytes], tar.fileobj)
    block = stream.read(tarfile.BLOCKSIZE)
    stream.seek(header.offset_data)
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.EmptyHeaderError, tarfile.EOFHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]
        return False
    except tarfile.HeaderError:
        return True
    return False


def _link(name: str, ordinal: int, held: Member | None) -> Member:
    """A hard link to a member before it."""
    if held is None or held.is_lost:
        return Member(name, ordinal, 0, None, is_lost=True)
    target = held.target or (held.name, held.ordinal)
    return Member(name, ordinal, held.size_bytes, held.offset, target=target)


def _looked_at(member: Member, source: IO[bytes], header: tarfile.TarInfo) -> Member:
    """The member, with `is_picture` set by its first bytes if it has no suffix."""
    if suffix_of(member.name) or not member.size_bytes or header.issparse():
        return member
    source.seek(header.offset_data)
    head = source.read(min(FIRST_BYTES, member.size_bytes))
    try:
        is_picture = format_of(head) != "BMP" or head[6:10] == bytes(4)  # a text may begin with BM
    except ImageError:
        is_picture = head[128:132] == b"DICM"
    return Member(member.name, member.ordinal, member.size_bytes, member.offset, is_picture=is_picture)


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _place(name: str) -> str:
    """A normalised name: `./a` and `a` are the same file."""
    return posixpath.normpath(name)


def _body(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(header)
    return b"" if stream is None else b"".join(iter(lambda: stream.read(CHUNK), b""))


def _problem_at_end(source: IO[bytes], at: int, members: int) -> tuple[str, str] | None:
    """The problem at the end of a tar. Valid: at least two blocks of zeros, and the end of the compressed stream."""
    source.seek(at)
    zeros = 0
    while piece := source.read(CHUNK):
        if piece.count(0) != len(piece):
            return (Reason.SHARD_TRUNCATED, f"after {members} files, at byte {at}, follow bytes that are not members")
        zeros += len(piece)
    return _cut(at, members) if zeros < END_BYTES else None


def _cut(at: int, members: int) -> tuple[str, str]:
    return (
        Reason.SHARD_TRUNCATED,
        f"the tar has no end mark: it ends near byte {at}, in or after its file {members}",
    )


class _Guarded:
    """A file with a limit per read: a header may declare an extension of any size, which tarfile would read."""

    def __init__(self, stream: BinaryIO | Inflated) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header declares {size} bytes")
        return self._stream.read(size)
