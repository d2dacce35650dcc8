"""Objects in a store that speaks S3: listing and reading, each in the fewest requests.

Knows the S3 API through an `s3fs.S3FileSystem` that it is given (its client, its event loop), and neither its caches
nor its own retries. Every answer to a GET carries the ETag of its bytes: a pinned read costs no request more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from unet_batch.archive.faults import ShortReadError
from unet_batch.archive.objects import Names, Object, path_of
from unet_batch.errors import Changed, TooLarge


class S3Store:
    """The `s3` scheme. Raises what s3fs raises, and Changed or TooLarge before a body is transferred."""

    def __init__(self, fs: Any, retry: Callable[..., Any]) -> None:
        """retry: calls its first argument with the others, as often as it takes; used for each page of a listing."""
        self.fs = fs
        self._retry = retry

    def list(self, folder: str) -> Iterator[Object]:
        """Every object below a folder; the empty objects that stand for folders themselves are no objects."""
        bucket, prefix = split(folder, folder=True)
        for page in self._pages(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    yield Object(f"s3://{bucket}/{found['Key']}", int(found["Size"]), version_of(found["ETag"]))

    def folders(self, folder: str) -> Names:
        """Names of the folders in a folder."""
        bucket, prefix = split(folder, folder=True)
        pages = self._pages(Bucket=bucket, Prefix=prefix, Delimiter="/")
        found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return sorted(name.removeprefix(prefix).rstrip("/") for name in found)

    def head(self, uri: str) -> Object:
        """The object as it is now."""
        bucket, key = split(uri)
        found = self.fs.call_s3("head_object", Bucket=bucket, Key=key)
        return Object(uri, int(found["ContentLength"]), version_of(found["ETag"]))

    def read(self, uri: str, *, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        """All bytes of an object, or those of a span [start, stop), of one version; one request."""
        reading = self._read(uri, span, version, max_bytes)
        return asyncio.run_coroutine_threadsafe(reading, self.fs.loop).result()

    def delete(self, uri: str) -> None:
        """Remove an object; a missing one is fine."""
        bucket, key = split(uri)
        self.fs.call_s3("delete_object", Bucket=bucket, Key=key)

    async def _read(self, uri: str, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        bucket, key = split(uri)
        wanted = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
        answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key, **wanted)
        stream = answer["Body"]
        try:
            now, promised = version_of(answer["ETag"]), int(answer["ContentLength"])
            if version is not None and now != version:
                raise Changed(f"{uri} is {now} now, planned was {version}; plan the run again")
            if max_bytes is not None and promised > max_bytes:
                raise TooLarge(f"{uri} has {promised} bytes; at most {max_bytes} are allowed")
            body: bytes = await stream.read()
        finally:
            stream.close()
        if span is not None and promised < span[1] - span[0]:
            raise Changed(f"{uri} is shorter than planned; plan the run again")
        if len(body) != promised:
            raise ShortReadError(f"{len(body)} of {promised} bytes came")
        return body

    def _pages(self, **query: str) -> Iterator[dict[str, Any]]:
        while True:
            page: dict[str, Any] = self._retry(self.fs.call_s3, "list_objects_v2", **query)
            yield page
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]


def version_of(etag: str) -> str:
    """The version text of an ETag, with or without quotes; weak tags (`W/`) keep their mark."""
    return "etag:" + etag.replace('"', "")


def split(uri: str, *, folder: bool = False) -> tuple[str, str]:
    """Bucket and key of an object, or bucket and prefix of a folder."""
    bucket, _, key = path_of(uri).partition("/")
    return bucket, key + "/" if folder and key and not key.endswith("/") else key
