"""Objects that are files on local disks: listing, reading and putting, directly by system calls.

Also finds the temporary files of killed puts. No retries and no threads. Raises OSError for faults of the disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unet_batch.errors import AlreadyExists, Changed, Denied, NotFound, Reason, TooLarge
from unet_batch.store.conditional import ANYTHING, PIECE_BYTES, check
from unet_batch.store.faults import ShortReadError
from unet_batch.store.objects import Names, Object, path_of

TEMPORARY = ".put-"
"""Prefix of temporary files of active puts, and of locks; these are not objects."""
FOREIGN_PUT_S = 3600.0
"""A put of another machine without a write for this long is dead: even 5 GiB take only minutes."""

_LOCK = re.compile(r"\.put-[0-9a-f]{16}\.lock")
_PUT = re.compile(r"\.put-[0-9a-f]{16}\.(?:(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<began>\d+)-)?[0-9a-z-]+")


class LocalStore:
    """The `file` scheme."""

    def list(self, folder: str) -> Iterator[Object]:
        """Every file below a folder, in any order; a missing folder gives nothing.

        A link is followed if it leads to a file below the folder. Any other link, pipe or device, and a name that is
        not UTF-8, is an object with a problem: it is reported but never read.
        """
        top = path_of(folder)
        real_top, open_folders = os.path.realpath(top), [top]
        while open_folders:
            try:
                entries = os.scandir(open_folders.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue  # deleted since its parent was listed, or the folder does not exist
            with entries:
                for entry in entries:
                    if entry.name.startswith(TEMPORARY):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        open_folders.append(entry.path)
                    else:
                        yield _object(entry, real_top)

    def folders(self, folder: str) -> Names:
        """Names of the folders in a folder, including links to folders, and links that lead nowhere: the disk of a
        linked folder may be missing."""
        try:
            with os.scandir(path_of(folder)) as entries:
                return sorted(entry.name for entry in entries if _leads_to_folder(entry))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def head(self, uri: str) -> Object:
        """The file's current state."""
        found = os.stat(path_of(uri))
        if not stat.S_ISREG(found.st_mode):
            raise NotFound(f"{uri} is not a file")
        return Object(uri, found.st_size, version_of(found))

    def read(self, uri: str, *, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        """All bytes of a file, or those of a span [start, stop), of one version."""
        descriptor = os.open(path_of(uri), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block here
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise NotFound(f"{uri} is not a file")
            if version is not None and version_of(before) != version:
                raise Changed(f"{uri} is {version_of(before)} now, planned was {version}; plan the run again")
            start, stop = span or (0, before.st_size)
            if max_bytes is not None and stop - start > max_bytes:
                raise TooLarge(f"{uri} has {stop - start} bytes; at most {max_bytes} are allowed")
            if stop > before.st_size:
                raise Changed(f"{uri} is shorter than planned; plan the run again")
            body = _read(descriptor, start, stop - start)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if (after.st_mtime_ns, after.st_size) != (before.st_mtime_ns, before.st_size):
            raise Changed(f"{uri} was written while it was read; plan the run again")
        if len(body) != stop - start:
            raise ShortReadError(f"{len(body)} of {stop - start} bytes came")
        return body

    def put(self, uri: str, body: bytes | Path, expect: str | None) -> str:
        """Write a temporary file, sync it, then link it (create) or rename it (replace). Returns the new version."""
        path = path_of(uri)
        folder = os.path.dirname(path)
        _make_room(uri, path, folder)
        temporary = temporary_beside(path)
        try:
            _write(temporary, body)
            if expect is None:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    raise AlreadyExists(f"{uri} already exists") from None
                version = version_of(os.stat(temporary))
            elif expect == ANYTHING:
                version = version_of(os.stat(temporary))
                os.replace(temporary, path)
            else:
                with locked(path):
                    version = _replace(uri, path, temporary, expect)
        finally:
            if os.path.lexists(temporary):
                os.unlink(temporary)
        _sync(folder)
        return version

    def delete(self, uri: str, expect: str) -> None:
        """Remove a file, or one version of it; a missing one is fine. Raises Conflict."""
        path = path_of(uri)
        with suppress(FileNotFoundError):
            if expect == ANYTHING:
                os.unlink(path)
                return
            with locked(path):
                check(uri, version_of(os.stat(path)), expect)
                os.unlink(path)

    def leftovers(self, folder: str, *, remove: bool) -> Iterator[Object]:
        """Temporary files of killed puts below a folder, and free lock files; `list` hides them.

        Files of puts that may still be active are left out: their process lives, or, on another machine, has written
        recently. remove: delete each before it is yielded.
        """
        for path, _, names in os.walk(path_of(folder)):
            for name in names:
                if name.startswith(TEMPORARY):
                    found = _leftover(os.path.join(path, name), remove=remove)
                    if found is not None:
                        yield found


def temporary_beside(path: str) -> str:
    """A temporary name for a put of this process, in the same folder. It contains host and process of its owner."""
    return f"{_hidden(path)}.{_mark()}{secrets.token_hex(6)}"


@contextmanager
def locked(path: str) -> Iterator[None]:
    """An exclusive lock for replacing this file, on this machine or over NFS."""
    lock_path = _hidden(path) + ".lock"
    while True:
        with open(lock_path, "ab") as lock:  # opened for writing: NFS locks need that
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(lock.fileno()).st_nlink:
                continue  # removed by its last holder: later holders lock another file
            try:
                yield
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(lock_path)
            return


def host() -> str:
    """This machine's name and PID namespace; processes of other hosts and containers cannot be checked."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def began(pid: int) -> str:
    """The kernel's start time of a process of this machine, because PIDs are reused.

    Field 22 of proc(5)'s stat; empty for a dead process, `?` without /proc.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return "" if Path("/proc/self").exists() else "?"


def version_of(found: os.stat_result) -> str:
    """The version text of a file."""
    return f"size:{found.st_size},mtime:{found.st_mtime_ns}"


def real(uri: str) -> str:
    """The URI of a local path with all links resolved."""
    return "file://" + os.path.realpath(path_of(uri))


def is_link(uri: str) -> bool:
    """Whether the last name of a local path is a link; False if it does not exist."""
    return os.path.islink(path_of(uri))


def _hidden(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, TEMPORARY + hashlib.sha256(os.fsencode(name)).hexdigest()[:16])


def _mark() -> str:
    since = began(pid := os.getpid())
    return f"{_short(host())}-{pid}-{since}-" if since.isdigit() else ""


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _leftover(path: str, *, remove: bool) -> Object | None:
    try:
        found = os.stat(path, follow_symlinks=False)
        name = os.path.basename(path)
        if _LOCK.fullmatch(name):
            dead = _is_free(path, remove=remove)
        else:
            dead = _is_dead(name, found)
            if dead and remove:
                os.unlink(path)
    except FileNotFoundError:
        return None  # the put has ended meanwhile
    return Object("file://" + path, found.st_size, version_of(found)) if dead else None


def _is_dead(name: str, found: os.stat_result) -> bool:
    put = _PUT.fullmatch(name)
    if put is None or not stat.S_ISREG(found.st_mode):
        return False  # not one of our files
    if put["host"] == _short(host()):
        return began(int(put["pid"])) not in (put["began"], "?")
    return time.time() - found.st_mtime > FOREIGN_PUT_S


def _is_free(path: str, *, remove: bool) -> bool:
    with open(path, "r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        free = os.fstat(lock.fileno()).st_nlink > 0
        if free and remove:
            os.unlink(path)
        return free


def _read(descriptor: int, start: int, size: int) -> bytes:
    body = os.pread(descriptor, size, start)
    if len(body) == size or not body:
        return body
    pieces = [body]  # one pread gives at most 2 GiB
    while body and (got := sum(map(len, pieces))) < size:
        body = os.pread(descriptor, size - got, start + got)
        pieces.append(body)
    return b"".join(pieces)


def leads_nowhere(path: str) -> bool:
    """Whether a path, or a folder above it, is a link to what is not there."""
    while path != os.path.dirname(path):
        if os.path.islink(path):
            return not os.path.exists(path)
        path = os.path.dirname(path)
    return False


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # circular links
        return False


def _object(entry: os.DirEntry[str], real_top: str) -> Object:
    uri = "file://" + entry.path
    try:
        uri.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(uri).decode("utf-8", "backslashreplace")
        return Object(shown, 0, "name", (Reason.READ_DENIED, "the file's name is not UTF-8; rename it"))
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if os.path.commonpath([target, real_top]) != real_top:
            return Object(uri, 0, f"link:{target}", (Reason.READ_DENIED, "a link that leads out of the archive"))
    try:
        found = entry.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise  # a fault of the disk does not concern one name
        return Object(uri, 0, "missing", (Reason.READ_NOT_FOUND, "a link that leads nowhere"))
    if not stat.S_ISREG(found.st_mode):
        return Object(uri, 0, "special", (Reason.READ_DENIED, "a link to a folder, a pipe or a device, not a file"))
    return Object(uri, found.st_size, version_of(found))


def _make_room(uri: str, path: str, folder: str) -> None:
    """Make the folder of a file that is about to be put. Raises Denied where something else lies in its place."""
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        above = next(str(place) for place in (Path(folder), *Path(folder).parents) if os.path.lexists(place))
        raise Denied(f"{uri} cannot be written, because {above} is no folder: choose another place") from error
    if os.path.isdir(path):
        raise Denied(f"{uri} cannot be written, because it is a folder: choose another place")


def _replace(uri: str, path: str, temporary: str, expect: str) -> str:
    try:
        before = os.stat(path)
    except FileNotFoundError:
        before = None
    check(uri, before and version_of(before), expect)
    made = os.stat(temporary)
    if before is not None and made.st_mtime_ns <= before.st_mtime_ns:
        # Two puts within one tick of the file system's clock must not look like one version.
        os.utime(temporary, ns=(made.st_atime_ns, before.st_mtime_ns + 1000))
        made = os.stat(temporary)
    os.replace(temporary, path)
    return version_of(made)


def _write(path: str, body: bytes | Path) -> None:
    with open(path, "xb") as target:
        if isinstance(body, Path):
            with body.open("rb") as source:
                while piece := source.read(PIECE_BYTES):
                    target.write(piece)
        else:
            target.write(body)
        target.flush()
        os.fsync(target.fileno())


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
