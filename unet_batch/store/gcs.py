"""Objects in Google Cloud Storage: listing, reading and putting, each in the fewest requests.

Uses the JSON API. Of the given `gcsfs.GCSFileSystem` it uses only the session, the event loop and the credentials, not
its caches, its retries or its interpretation of `#digits` in a name. An object's generation is its version. Every
answer to a GET has the generation of its bytes, so a pinned read needs no additional request.
"""

from __future__ import annotations

import asyncio
import errno
import json
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from unet_batch.errors import NotFound
from unet_batch.store import pinned
from unet_batch.store.conditional import ANYTHING, once, refusals, removals, size_of
from unet_batch.store.faults import Retry, StatusError
from unet_batch.store.objects import Names, Object, split

T = TypeVar("T")

OBJECT_BYTES = 5 << 40
"""Largest object, and the largest that one request may upload (Cloud Storage, "Quotas and limits")."""
PAGE_OBJECTS = 1000
"""Objects per page of a listing, the service's limit."""

_OBJECTS = "/storage/v1/b/{}/o"
_FIELDS = "nextPageToken,prefixes,items(name,size,generation)"


class GcsStore:
    """The `gs` scheme. Raises StatusError, the errors of aiohttp, and Changed or TooLarge before a body is sent."""

    def __init__(self, fs: Any, retry: Retry) -> None:
        """retry: calls its first argument with the other arguments, with retries; used for each page of a listing."""
        import aiohttp

        self.fs = fs
        self._retry = retry
        # No total limit: 2 GiB may take long. sock_read: until the answer begins, and between two pieces.
        wait_s = fs.requests_timeout or 60
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(wait_s, 10), sock_read=wait_s)

    @staticmethod
    def options(given: dict[str, Any], threads: int) -> dict[str, Any]:  # noqa: ARG004
        """Options of gcsfs: an object stored with `Content-Encoding: gzip` is the bytes that are stored."""
        return {**given, "session_kwargs": {**given.get("session_kwargs", {}), "auto_decompress": False}}

    def list(self, folder: str) -> Iterator[Object]:
        """Every object below a folder, without the empty objects that represent folders."""
        bucket, prefix = split(folder, folder=True)
        for page in self._pages(bucket, prefix=prefix):
            for found in page.get("items", ()):
                if not found["name"].endswith("/"):
                    uri = f"gs://{bucket}/{found['name']}"
                    yield Object(uri, int(found.get("size", 0)), version_of(found["generation"]))

    def folders(self, folder: str) -> Names:
        """Names of the folders in a folder."""
        bucket, prefix = split(folder, folder=True)
        pages = self._pages(bucket, prefix=prefix, delimiter="/")
        found = [name for page in pages for name in page.get("prefixes", ())]
        return sorted(name.removeprefix(prefix).rstrip("/") for name in found)

    def head(self, uri: str) -> Object:
        """The object's current state."""
        found = self.call("GET", _path(uri))
        return Object(uri, int(found.get("size", 0)), version_of(found["generation"]))

    def read(self, uri: str, *, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        """All bytes of an object, or those of a span [start, stop), of one version; one request."""
        return self._wait(self._read(uri, span, version, max_bytes))

    def put(self, uri: str, body: bytes | Path, expect: str | None) -> str:
        """One multipart upload (name and bytes in one request) with `ifGenerationMatch`, 0 for "nothing there".

        Returns the new version.
        """
        bucket, key = split(uri)
        mark = secrets.token_hex(16)  # no body holds it
        first = f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps({'name': key})}\r\n"
        first += f"--{mark}\r\nContent-Type: application/octet-stream\r\n\r\n"
        last = f"\r\n--{mark}--\r\n"
        size = size_of(uri, body, OBJECT_BYTES) + len(first) + len(last)  # both are ASCII
        params = {"uploadType": "multipart", "fields": "generation"}
        if expect != ANYTHING:
            params["ifGenerationMatch"] = "0" if expect is None else expect.removeprefix("generation:")
        headers = {"Content-Type": f"multipart/related; boundary={mark}", "Content-Length": str(size)}
        path = "/upload" + _OBJECTS.format(quote(bucket, safe=""))
        with refusals(uri, expect):
            answer = self.call(
                "POST", path, params=params, headers=headers, body=once(body, first.encode(), last.encode())
            )
        return version_of(answer["generation"])

    def delete(self, uri: str, expect: str) -> None:
        """Remove an object, or one version of it. Raises Conflict, and StatusError 404 if it does not exist."""
        params = {} if expect == ANYTHING else {"ifGenerationMatch": expect.removeprefix("generation:")}
        with removals(uri, expect):
            self.call("DELETE", _path(uri), params=params)

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: AsyncIterator[bytes] | None = None,
    ) -> dict[str, Any]:
        """The JSON of the answer to one request, without retries. Raises StatusError."""

        async def answered() -> dict[str, Any]:
            wanted = {"Accept-Encoding": "identity", **(headers or {})}
            async with self._answer(method, path, params or {}, wanted, body) as answer:
                text = await answer.read()
            found: dict[str, Any] = json.loads(text) if text else {}
            return found

        return self._wait(answered())

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self.fs.loop).result()

    async def _read(self, uri: str, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        # Accept-Encoding: gzip returns the bytes as stored; without it, Google decompresses them.
        headers = {"Accept-Encoding": "gzip", **pinned.range_of(span)}
        async with self._answer("GET", "/download" + _path(uri), {"alt": "media"}, headers) as answer:
            size_bytes = int(answer.headers["Content-Length"])
            now = version_of(answer.headers["X-Goog-Generation"])
            pinned.before(uri, now, size_bytes, version=version, max_bytes=max_bytes)
            body: bytes = await answer.read()
        return pinned.whole(uri, body, size_bytes, span)

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any],
        headers: Mapping[str, str],
        body: AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[Any]:
        """A successful answer whose body is not yet read."""
        await self.fs._set_session()
        async with self.fs.session.request(
            method,
            f"{self.fs._location}{path}",
            params=self.fs._get_params(dict(params)),
            headers=self._with_credentials(headers),
            data=body,
            timeout=self._timeout,
        ) as answer:
            if not 200 <= answer.status < 300:
                raise _error(answer.status, await answer.read())
            yield answer

    def _with_credentials(self, headers: Mapping[str, str]) -> dict[str, str]:
        try:
            found: dict[str, str] = self.fs._get_headers(headers)
        except Exception as error:  # noqa: BLE001 - any error of google-auth
            # gcsfs reports every failure to renew a token as 401, but it is not a refusal by the store.
            raise OSError(errno.EAGAIN, f"no access token is available: {error.__cause__ or error}") from None
        return found

    def _pages(self, bucket: str, **query: str) -> Iterator[dict[str, Any]]:
        path, query = (
            _OBJECTS.format(quote(bucket, safe="")),
            {"fields": _FIELDS, "maxResults": str(PAGE_OBJECTS), **query},
        )
        while True:
            page: dict[str, Any] = self._retry(self.call, "GET", path, params=query)
            yield page
            if not page.get("nextPageToken"):
                return
            query["pageToken"] = page["nextPageToken"]


def version_of(generation: str | int) -> str:
    """The version text of a generation."""
    return f"generation:{generation}"


def _path(uri: str) -> str:
    bucket, key = split(uri)
    if not key:
        raise NotFound(f"{uri} is a bucket, not an object")
    return f"{_OBJECTS.format(quote(bucket, safe=''))}/{quote(key, safe='')}"


def _error(status: int, body: bytes) -> StatusError:
    """The error of an answer. Google's errors are JSON with reasons; those of proxies are not."""
    try:
        error = json.loads(body)["error"]
        return StatusError(status, str(error["errors"][0]["reason"]), str(error["message"]))
    except (ValueError, LookupError, TypeError):
        return StatusError(status, "", body[:200].decode(errors="replace"))
