"""Objects that are files on local disks: listing, reading and putting, directly by system calls.

Also finds what killed puts left (`unfinished`). No retries and no threads. Raises OSError for faults of the disk.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from unet_batch.errors import AlreadyExists, Changed, Denied, NotFound, Reason, TooLarge
from unet_batch.store.conditional import ANYTHING, PIECE_BYTES, check
from unet_batch.store.faults import ShortReadError
from unet_batch.store.objects import Names, Object, path_of
from unet_batch.store.unfinished import TEMPORARY, leftover, locked, temporary_beside, version_of


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
                    found = leftover(os.path.join(path, name), remove=remove)
                    if found is not None:
                        yield found


def real(uri: str) -> str:
    """The URI of a local path with all links resolved."""
    return "file://" + os.path.realpath(path_of(uri))


def is_link(uri: str) -> bool:
    """Whether the last name of a local path is a link; False if it does not exist."""
    return os.path.islink(path_of(uri))


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
