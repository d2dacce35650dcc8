"""Puts that succeed only under a condition: the one thing on which exactly-once rests. One function per store.

Knows how each store says "only if nothing is there" and "only if it is still this version", and nothing of retries: a
function raises AlreadyExists or Conflict where the condition does not hold, else whatever its store raises. A body is
always one single put: several stores ignore conditions on multipart uploads, in silence.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from unet_batch.archive import fsspec_store, gcs, local, s3
from unet_batch.archive.azure import AzureStore
from unet_batch.archive.faults import StatusError, meaning
from unet_batch.archive.fsspec_store import FsspecStore
from unet_batch.archive.gcs import GcsStore
from unet_batch.archive.objects import path_of, split
from unet_batch.archive.s3 import S3Store
from unet_batch.errors import AlreadyExists, Conflict, TooLarge

ANYTHING = "anything"
"""Expect nothing: an unconditional put. None expects that no object is there; any other text, that version."""

S3_SINGLE_PUT_BYTES = 5 << 30
"""Largest body of one S3 PutObject (S3 user guide, "Uploading objects")."""
GCS_OBJECT_BYTES = 5 << 40
"""Largest object, and the largest that one request may upload (Cloud Storage, "Quotas and limits")."""
AZURE_SINGLE_PUT_BYTES = 5000 << 20
"""Largest body of one Put Blob (Azure Storage REST API, "Put Blob", since version 2019-12-12)."""

_CONTENT = "application/octet-stream"
_PIECE_BYTES = 1 << 20
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


def put_memory(store: FsspecStore, uri: str, body: bytes | Path, expect: str | None) -> str:
    """An object in this process's memory, under a lock of the whole process."""
    fs, content = store.fs, body.read_bytes() if isinstance(body, Path) else body
    with _MEMORY:
        now = fsspec_store.version_of(fs.info(uri)) if fs.exists(uri) else None
        _check(uri, now, expect)
        fs.pipe_file(uri, content)
        return fsspec_store.version_of(fs.info(uri))


def put_s3(store: S3Store, uri: str, body: bytes | Path, expect: str | None) -> str:
    """One PutObject with `If-None-Match: *` or `If-Match`. An ETag that is refused in quotes is sent once without."""
    _size(uri, body, S3_SINGLE_PUT_BYTES)
    if expect is None:
        return _put_s3(store, uri, body, expect, {"IfNoneMatch": "*"})
    if expect == ANYTHING:
        return _put_s3(store, uri, body, expect, {})
    etag = expect.removeprefix("etag:")
    try:
        return _put_s3(store, uri, body, expect, {"IfMatch": f'"{etag}"'})
    except Conflict:
        return _put_s3(store, uri, body, expect, {"IfMatch": etag})  # some stores compare the quotes too


def put_gcs(store: GcsStore, uri: str, body: bytes | Path, expect: str | None) -> str:
    """One multipart upload (name and bytes in one request) with `ifGenerationMatch`, which is 0 for "nothing there"."""
    bucket, key = split(uri)
    mark = secrets.token_hex(16)  # no body holds it
    first = f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps({'name': key})}\r\n"
    first += f"--{mark}\r\nContent-Type: {_CONTENT}\r\n\r\n"
    last = f"\r\n--{mark}--\r\n"
    size = _size(uri, body, GCS_OBJECT_BYTES) + len(first) + len(last)  # both are ASCII
    params = {"uploadType": "multipart", "fields": "generation"}
    if expect != ANYTHING:
        params["ifGenerationMatch"] = "0" if expect is None else expect.removeprefix("generation:")
    headers = {"Content-Type": f"multipart/related; boundary={mark}", "Content-Length": str(size)}
    pieces = _once(body, first.encode(), last.encode())
    with _refusals(uri, expect):
        answer = store.call("POST", gcs.uploads(bucket), params=params, headers=headers, body=pieces)
    return gcs.version_of(answer["generation"])


def put_azure(store: AzureStore, uri: str, body: bytes | Path, expect: str | None) -> str:
    """One Put Blob with `If-None-Match: *` or `If-Match`."""
    headers = {
        "x-ms-blob-type": "BlockBlob",
        "Content-Type": _CONTENT,
        "Content-Length": str(_size(uri, body, AZURE_SINGLE_PUT_BYTES)),
    }
    if expect is None:
        headers["If-None-Match"] = "*"
    elif expect != ANYTHING:
        headers["If-Match"] = f'"{expect.removeprefix("etag:")}"'
    with _refusals(uri, expect):
        answer = store.call("PUT", uri, headers, _once(body))
    return s3.version_of(answer["ETag"])


def _put_s3(store: S3Store, uri: str, body: bytes | Path, expect: str | None, condition: dict[str, str]) -> str:
    bucket, key = split(uri)
    with ExitStack() as ends:
        ends.enter_context(_refusals(uri, expect))
        content = ends.enter_context(body.open("rb")) if isinstance(body, Path) else body
        answer = store.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)
    return s3.version_of(answer["ETag"])


@contextmanager
def _refusals(uri: str, expect: str | None) -> Iterator[None]:
    """Makes a condition that does not hold our error; all else stays as the store raised it."""
    try:
        yield
    except (OSError, StatusError) as error:
        # s3fs says FileExistsError, or EINVAL where the server's error names no condition: 412 is in their cause.
        what = meaning(error)
        if what == "refused" and expect is None:
            raise AlreadyExists(f"{uri} is already there") from error
        if what == "refused" or (what == "absent" and expect not in (None, ANYTHING)):
            raise Conflict(f"{uri} is no longer the version it was: another writer was here") from error
        raise


def _size(uri: str, body: bytes | Path, most: int) -> int:
    size = body.stat().st_size if isinstance(body, Path) else len(body)
    if size > most:
        raise TooLarge(f"{uri} would have {size} bytes; one put takes at most {most}: use more buckets")
    return size


async def _once(body: bytes | Path, first: bytes = b"", last: bytes = b"") -> AsyncIterator[bytes]:
    """A body in pieces. It can be taken once, so no HTTP client sends it again behind our back."""
    if first:
        yield first
    if isinstance(body, Path):
        with body.open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece
    elif body:
        yield body
    if last:
        yield last


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
