"""Objects in a store that speaks S3: listing, reading and putting, each in the fewest requests.

Puts, removals and listings use one botocore client, listings with one pass over their XML. Reads use obstore if it
reads like that client. Every answer to a GET has the ETag of its bytes, so a pinned read needs no additional request.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unet_batch.errors import Conflict, NotFound
from unet_batch.store import obstore_reads, pinned, s3_listing
from unet_batch.store.conditional import ANYTHING, refusals, removals, size_of
from unet_batch.store.faults import Retry
from unet_batch.store.objects import Names, Object, split
from unet_batch.store.obstore_reads import ObstoreReads
from unet_batch.store.pinned import version_of
from unet_batch.store.s3_client import Place, S3Client, demand_botocore

SINGLE_PUT_BYTES = 5 << 30
"""Largest body of one PutObject (S3 user guide, "Uploading objects")."""


class S3Store:
    """The `s3` scheme. Raises the errors of botocore, and Changed or TooLarge before a body is transferred."""

    def __init__(self, options: Mapping[str, Any], retry: Retry) -> None:
        """options: those of `options`. retry: calls its first argument with the other arguments, with retries; used
        for each page of a listing. Raises ImportError without botocore.
        """
        demand_botocore()
        self._options = options
        self._retry = retry
        self._lock = threading.Lock()
        self._made: S3Client | None = None
        self._places: dict[str, Place] = {}
        """Where obstore looks for each bucket."""
        self._reads = ObstoreReads(self._opened, self._moved)

    @staticmethod
    def options(given: dict[str, Any], threads: int) -> dict[str, Any]:
        """Options of an S3 file system, without the SDK's retries, which would multiply with ours."""
        config = {
            "connect_timeout": 10, "read_timeout": 60, "max_pool_connections": max(threads, 10),
            **given.get("config_kwargs", {}), "retries": {"total_max_attempts": 1, "mode": "standard"},
        }  # fmt: skip
        return {**given, "config_kwargs": config}

    def list(self, folder: str) -> Iterator[Object]:
        """Every object below a folder, without the empty objects that represent folders."""
        bucket, prefix = split(folder, folder=True)
        for page in self._pages(Bucket=bucket, Prefix=prefix):
            for key, size_bytes, etag in page.objects:
                if not key.endswith("/"):
                    yield Object(f"s3://{bucket}/{key}", size_bytes, version_of(etag))

    def folders(self, folder: str) -> Names:
        """Names of the folders in a folder."""
        bucket, prefix = split(folder, folder=True)
        pages = self._pages(Bucket=bucket, Prefix=prefix, Delimiter="/")
        return sorted(name.removeprefix(prefix).rstrip("/") for page in pages for name in page.prefixes)

    def head(self, uri: str) -> Object:
        """The object's current state."""
        bucket, key = _object(uri)
        return self._reads.head(uri, bucket, key, lambda: self._head(uri))

    def read(self, uri: str, *, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        """All bytes of an object, or those of a span [start, stop), of one version; one request."""
        bucket, key = _object(uri)

        def otherwise() -> bytes:
            return self._read(uri, span, version, max_bytes)

        return self._reads.read(uri, bucket, key, span=span, version=version, max_bytes=max_bytes, otherwise=otherwise)

    def put(self, uri: str, body: bytes | Path, expect: str | None) -> str:
        """One PutObject with `If-None-Match: *` or `If-Match`; returns the new version.

        If an ETag with quotes is refused, it is sent once without: some stores compare without quotes.
        """
        size_of(uri, body, SINGLE_PUT_BYTES)
        if expect is None:
            return self._put(uri, body, expect, {"IfNoneMatch": "*"})
        if expect == ANYTHING:
            return self._put(uri, body, expect, {})
        etag = expect.removeprefix("etag:")
        try:
            return self._put(uri, body, expect, {"IfMatch": f'"{etag}"'})
        except Conflict:
            return self._put(uri, body, expect, {"IfMatch": etag})

    def delete(self, uri: str, expect: str) -> None:
        """Remove an object, or one version of it; a missing one is fine. Raises Conflict."""
        bucket, key = split(uri)
        condition = {} if expect == ANYTHING else {"IfMatch": f'"{expect.removeprefix("etag:")}"'}
        with removals(uri, expect):
            self._client().call("delete_object", Bucket=bucket, Key=key, **condition)

    def _put(self, uri: str, body: bytes | Path, expect: str | None, condition: dict[str, str]) -> str:
        bucket, key = split(uri)
        with ExitStack() as ends:
            ends.enter_context(refusals(uri, expect))
            content = ends.enter_context(body.open("rb")) if isinstance(body, Path) else body
            answer = self._client().call("put_object", Bucket=bucket, Key=key, Body=content, **condition)
        return version_of(answer["ETag"])

    def _read(self, uri: str, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        bucket, key = split(uri)
        answer = self._client().call("get_object", Bucket=bucket, Key=key, **pinned.range_of(span))
        stream, size_bytes = answer["Body"], int(answer["ContentLength"])
        try:
            pinned.before(uri, version_of(answer["ETag"]), size_bytes, version=version, max_bytes=max_bytes)
            body: bytes = stream.read()
        finally:
            stream.close()
        return pinned.whole(uri, body, size_bytes, span)

    def _head(self, uri: str) -> Object:
        bucket, key = split(uri)
        found = self._client().call("head_object", Bucket=bucket, Key=key)
        return Object(uri, int(found["ContentLength"]), version_of(found["ETag"]))

    def _pages(self, **query: str) -> Iterator[s3_listing.Page]:
        return s3_listing.pages(lambda **asked: self._retry(self._page, **asked), **query)

    def _page(self, **query: str) -> s3_listing.Page:
        page: s3_listing.Page = self._client().call("list_objects_v2", **query)[s3_listing.FOUND]
        return page

    def _client(self) -> S3Client:
        """Made on first use: finding credentials may take requests."""
        with self._lock:
            if self._made is None:
                self._made = S3Client(self._options)
                self._made.on_answer("ListObjectsV2", s3_listing.take)
            return self._made

    def _opened(self, bucket: str) -> Any:
        """obstore's store of a bucket; None if reads need a feature of botocore."""
        # A directory bucket (S3 Express) has its own sessions, and a name with colons is an access point.
        if not obstore_reads.is_here() or bucket.endswith("--x-s3") or ":" in bucket:
            return None
        client = self._client()
        place = None if client.additional("get_object").keys() - {"RequestPayer"} else client.place(bucket)
        if place is not None:
            self._places[bucket] = place
        return None if place is None else self._at(place)

    def _moved(self, bucket: str) -> Any:
        """The same if botocore has found the bucket in another region meanwhile, else None."""
        try:
            place = self._client().place(bucket)
        except Exception:  # noqa: BLE001 - the key has been read, so an error here does not matter
            return None
        if place is None or place == self._places.get(bucket):
            return None
        self._places[bucket] = place
        return self._at(place)

    def _at(self, place: Place) -> Any:
        client = self._client()
        wire = client.wire()
        if wire is None:
            return None
        credentials = client.credentials if place.signed else None
        payer = "RequestPayer" in client.additional("get_object")
        return obstore_reads.s3_store(place.url, place.region, wire, credentials, requester_pays=payer)


def _object(uri: str) -> tuple[str, str]:
    bucket, key = split(uri)
    if not key:
        raise NotFound(f"{uri} does not exist: it is a bucket")
    return bucket, key
