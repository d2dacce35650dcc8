"""Objects that are files on this machine's own disks: listing and reading, without any layer in between.

Knows no retries and no threads; raises OSError where the disk does, our errors where a promise would break.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from unet_batch.archive.faults import ShortReadError
from unet_batch.archive.objects import Names, Object, path_of
from unet_batch.errors import Changed, NotFound, Reason, TooLarge

TEMPORARY = ".put-"
"""Files with this prefix are puts in flight and locks: no objects."""


class LocalStore:
    """The `file` scheme."""

    def list(self, folder: str) -> Iterator[Object]:
        """Every file below a folder, in no order; a missing folder gives nothing.

        A link is followed where it leads to a file below the folder; any other link, pipe or device, and a name that
        is not UTF-8, is an object with a problem: it is reported, never read and never left out in silence.
        """
        top = path_of(folder)
        real_top, open_folders = os.path.realpath(top), [top]
        while open_folders:
            try:
                entries = os.scandir(open_folders.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone since its parent was listed, or the folder itself is missing
            with entries:
                for entry in entries:
                    if entry.name.startswith(TEMPORARY):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        open_folders.append(entry.path)
                    else:
                        yield _object(entry, real_top)

    def folders(self, folder: str) -> Names:
        """Names of the folders in a folder."""
        try:
            with os.scandir(path_of(folder)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def head(self, uri: str) -> Object:
        """The file as it is now."""
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

    def delete(self, uri: str) -> None:
        """Remove a file; a missing one is fine."""
        try:
            os.unlink(path_of(uri))
        except FileNotFoundError:
            return


def version_of(found: os.stat_result) -> str:
    """The version text of a file."""
    return f"size:{found.st_size},mtime:{found.st_mtime_ns}"


def real(uri: str) -> str:
    """The URI of what a local path leads to when all its links are followed."""
    return "file://" + os.path.realpath(path_of(uri))


def _read(descriptor: int, start: int, size: int) -> bytes:
    body = os.pread(descriptor, size, start)
    if len(body) == size or not body:
        return body
    pieces = [body]  # one pread gives at most 2 GiB
    while body and (got := sum(map(len, pieces))) < size:
        body = os.pread(descriptor, size - got, start + got)
        pieces.append(body)
    return b"".join(pieces)


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
    except FileNotFoundError:
        return Object(uri, 0, "missing", (Reason.READ_NOT_FOUND, "a link that leads nowhere"))
    if not stat.S_ISREG(found.st_mode):
        return Object(uri, 0, "special", (Reason.READ_DENIED, "a link to a folder, a pipe or a device, not a file"))
    return Object(uri, found.st_size, version_of(found))
