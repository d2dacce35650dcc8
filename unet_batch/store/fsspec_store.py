"""Objects in a store that fsspec reaches and that has no module of its own: this process's memory.

Knows fsspec's common interface through a file system that it is given. fsspec has no conditional puts: a lock makes
them safe within one process, and no other process sees its memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unet_batch.errors import Changed, NotFound, TooLarge
from unet_batch.store.conditional import check
from unet_batch.store.faults import Retry, ShortReadError
from unet_batch.store.objects import Names, Object, join

_PUTS = threading.Lock()


class FsspecStore:
    """Any other scheme, through fsspec's common interface; a pinned read costs one request more."""

    def __init__(self, fs: Any, retry: Retry) -> None:
        self.fs = fs
        self._retry = retry

    def list(self, folder: str) -> Iterator[Object]:
        self.fs.invalidate_cache()
        top = self.fs._strip_protocol(folder)
        for name, found in self._retry(self.fs.find, folder, detail=True).items():
            if found["type"] == "file" and name != top and not name.endswith("/"):
                yield Object(join(folder, name[len(top) :].removeprefix("/")), int(found["size"]), version_of(found))

    def folders(self, folder: str) -> Names:
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(folder, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "directory")

    def head(self, uri: str) -> Object:
        self.fs.invalidate_cache()
        found = self.fs.info(uri)
        if found["type"] != "file":
            raise NotFound(f"{uri} is not an object")
        return Object(uri, int(found["size"]), version_of(found))

    def read(self, uri: str, *, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        if max_bytes is not None and (size := self.head(uri).size_bytes) > max_bytes:
            raise TooLarge(f"{uri} has {size} bytes; at most {max_bytes} are allowed")
        start, stop = span or (None, None)
        body: bytes = self.fs.cat_file(uri, start=start, end=stop)
        # Looked at afterwards: a version that was planned before and is there after was there in between.
        now = self.head(uri)
        if version is not None and now.version != version:
            raise Changed(f"{uri} is {now.version} now, planned was {version}; plan the run again")
        if span is not None and now.size_bytes < span[1]:
            raise Changed(f"{uri} is shorter than planned; plan the run again")
        if len(body) != (now.size_bytes if span is None else span[1] - span[0]):
            raise ShortReadError(f"{len(body)} bytes of {uri} came, not what was asked for")
        return body

    def put(self, uri: str, body: bytes | Path, expect: str | None) -> str:
        content = body.read_bytes() if isinstance(body, Path) else body
        with _PUTS:
            now = version_of(self.fs.info(uri)) if self.fs.exists(uri) else None
            check(uri, now, expect)
            self.fs.pipe_file(uri, content)
            return version_of(self.fs.info(uri))

    def delete(self, uri: str, expect: str) -> None:
        """Remove an object, or one version of it. Raises Conflict, FileNotFoundError."""
        with _PUTS:
            check(uri, version_of(self.fs.info(uri)), expect)
            self.fs.rm_file(uri)


def version_of(found: dict[str, Any]) -> str:
    """The version text of an entry of fsspec: its ETag, else size and time."""
    if found.get("etag"):
        return "etag:" + str(found["etag"]).replace('"', "")
    stamp = found.get("created", found.get("mtime", ""))
    # The memory store tells its times as numbers in listings and as datetimes elsewhere.
    return f"size:{found['size']},mtime:{stamp.timestamp() if hasattr(stamp, 'timestamp') else stamp}"
