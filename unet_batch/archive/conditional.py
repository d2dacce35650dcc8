"""Puts that succeed only under a condition: the one thing on which exactly-once rests. One function per store.

Knows how each store says "only if nothing is there" and "only if it is still this version", and nothing of retries: a
function raises AlreadyExists or Conflict where the condition does not hold, else whatever its store raises. A body is
always one single put: several stores ignore conditions on multipart uploads, in silence.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from unet_batch.archive import fsspec_store, local, s3
from unet_batch.archive.faults import meaning
from unet_batch.archive.objects import path_of
from unet_batch.errors import AlreadyExists, Conflict, StorageError, TooLarge

ANYTHING = "anything"
"""Expect nothing: an unconditional put. None expects that no object is there; any other text, that version."""

S3_SINGLE_PUT_BYTES = 5 << 30
"""Largest body of one S3 PutObject (S3 user guide, "Uploading objects")."""

_MEMORY = threading.Lock()


def put_local(uri: str, body: bytes | Path, expect: str | None) -> str:
    """A whole file beside its final name, made durable, then linked (nothing there) or renamed over the old one."""
    path = path_of(uri)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = local.temporary_beside(path)
    try:
        _write(temporary, body)
        if expect is None:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise AlreadyExists(f"{uri} is already there") from None
            version = local.version_of(os.stat(temporary))
        elif expect == ANYTHING:
            version = local.version_of(os.stat(temporary))
            os.replace(temporary, path)
        else:
            with local.locked(path):
                version = _replace(uri, path, temporary, expect)
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)
    _sync(folder)
    return version


def put_memory(fs: Any, uri: str, body: bytes | Path, expect: str | None) -> str:
    """An object in this process's memory, under a lock of the whole process."""
    content = body.read_bytes() if isinstance(body, Path) else body
    with _MEMORY:
        now = fsspec_store.version_of(fs.info(uri)) if fs.exists(uri) else None
        _check(uri, now, expect)
        fs.pipe_file(uri, content)
        return fsspec_store.version_of(fs.info(uri))


def put_s3(fs: Any, uri: str, body: bytes | Path, expect: str | None) -> str:
    """One PutObject with `If-None-Match: *` or `If-Match`. An ETag that is refused in quotes is sent once without."""
    size = body.stat().st_size if isinstance(body, Path) else len(body)
    if size > S3_SINGLE_PUT_BYTES:
        raise TooLarge(f"{uri} would have {size} bytes; one put takes at most 5 GiB: use more buckets")
    if expect is None:
        return _put_s3(fs, uri, body, {"IfNoneMatch": "*"})
    if expect == ANYTHING:
        return _put_s3(fs, uri, body, {})
    etag = expect.removeprefix("etag:")
    try:
        return _put_s3(fs, uri, body, {"IfMatch": f'"{etag}"'})
    except Conflict:
        return _put_s3(fs, uri, body, {"IfMatch": etag})  # some stores compare the quotes too


def refuse(uri: str, expect: str | None) -> None:
    """What a store without conditional puts here does: anything unconditional is fine. Raises StorageError."""
    if expect != ANYTHING:
        raise StorageError(f"{uri}: this store has no conditional puts here; it needs output.single_writer: true")


def _put_s3(fs: Any, uri: str, body: bytes | Path, condition: dict[str, str]) -> str:
    bucket, key = s3.split(uri)
    try:
        if isinstance(body, Path):
            with body.open("rb") as stream:
                answer = fs.call_s3("put_object", Bucket=bucket, Key=key, Body=stream, **condition)
        else:
            answer = fs.call_s3("put_object", Bucket=bucket, Key=key, Body=body, **condition)
    except OSError as error:
        # s3fs says FileExistsError, or EINVAL where the server's error names no condition: 412 is in their cause.
        what = meaning(error)
        if what == "refused" and "IfNoneMatch" in condition:
            raise AlreadyExists(f"{uri} is already there") from error
        if what == "refused" or (what == "absent" and "IfMatch" in condition):
            raise Conflict(f"{uri} is no longer the version it was: another writer was here") from error
        raise
    return s3.version_of(answer["ETag"])


def _check(uri: str, now: str | None, expect: str | None) -> None:
    if expect is None and now is not None:
        raise AlreadyExists(f"{uri} is already there")
    if expect not in (None, ANYTHING, now):
        raise Conflict(f"{uri} is {now or 'gone'}, expected was {expect}: another writer was here")


def _replace(uri: str, path: str, temporary: str, expect: str) -> str:
    try:
        before = os.stat(path)
    except FileNotFoundError:
        before = None
    _check(uri, before and local.version_of(before), expect)
    made = os.stat(temporary)
    if before is not None and made.st_mtime_ns <= before.st_mtime_ns:
        # Two puts within one tick of the file system's clock must not look like one version.
        os.utime(temporary, ns=(made.st_atime_ns, before.st_mtime_ns + 1000))
        made = os.stat(temporary)
    os.replace(temporary, path)
    return local.version_of(made)


def _write(path: str, body: bytes | Path) -> None:
    with open(path, "xb") as target:
        if isinstance(body, Path):
            with body.open("rb") as source:
                while piece := source.read(1 << 20):
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
