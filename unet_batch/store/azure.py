"""Objects in Azure Blob Storage: listing, reading and putting, each in the fewest requests.

Uses the Blob service's REST API. Of the given `adlfs.AzureBlobFileSystem` it uses only the service client, with its URL
and credential, and the event loop, not its caches or retries. Requests for one blob use our own pipeline, because the
SDK's methods repeat a broken read, split a large read, and hold a whole body in memory. Every answer to a GET has the
ETag of its bytes, so a pinned read needs no additional request.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from unet_batch.errors import JobError, NotFound
from unet_batch.store import obstore_reads, pinned
from unet_batch.store.conditional import ANYTHING, PIECE_BYTES, once, refusals, removals, size_of
from unet_batch.store.faults import Retry, StatusError
from unet_batch.store.objects import Names, Object, split
from unet_batch.store.obstore_reads import ObstoreReads, Wire
from unet_batch.store.pinned import version_of

T = TypeVar("T")

API_VERSION = "2021-12-02"
"""Version of the REST API; since 2019-12-12, Put Blob allows 5,000 MiB."""
SINGLE_PUT_BYTES = 5000 << 20
"""Largest body of one Put Blob (Azure Storage REST API, "Put Blob", since version 2019-12-12)."""
PAGE_OBJECTS = 5000
"""Objects per page of a listing, the service's limit."""

_SCOPE = "https://storage.azure.com/.default"
_CLOSING_S = 5.0


class AzureStore:
    """The schemes `az`, `abfs` and `abfss`. Raises StatusError, the errors of azure-core and the SDK, and Changed or
    TooLarge before a body is transferred."""

    def __init__(self, fs: Any, retry: Retry) -> None:
        """retry: calls its first argument with the other arguments, with retries; used for each page of a listing."""
        self.fs = fs
        self._retry = retry
        self._pipeline = _pipeline(fs.service_client.credential, fs._timeout_kwargs)
        self._reads = ObstoreReads(self._opened)
        weakref.finalize(self, _close, self._pipeline, fs.loop)

    @staticmethod
    def options(given: dict[str, Any], threads: int) -> dict[str, Any]:  # noqa: ARG004
        """Options of adlfs, unchanged."""
        return given

    def list(self, folder: str) -> Iterator[Object]:
        """Every object below a folder, without the empty objects that represent folders.

        In an account with a hierarchical namespace these have the folder's name and a marker.
        """
        top, container, prefix = self._split(folder, folder=True)
        for page in self._pages(container, "list_blobs", name_starts_with=prefix, include=["metadata"]):
            for blob in page:
                if not blob.name.endswith("/") and (blob.metadata or {}).get("hdi_isfolder") != "true":
                    yield Object(f"{top}/{blob.name}", int(blob.size), version_of(blob.etag))

    def folders(self, folder: str) -> Names:
        """Names of the folders in a folder."""
        _, container, prefix = self._split(folder, folder=True)
        pages = self._pages(container, "walk_blobs", name_starts_with=prefix, delimiter="/")
        found = [entry.name for page in pages for entry in page if hasattr(entry, "prefix")]
        return sorted(name.removeprefix(prefix).rstrip("/") for name in found)

    def head(self, uri: str) -> Object:
        """The object's current state."""
        _, container, key = self._split(uri)
        return self._reads.head(uri, container, key, lambda: self._head(uri))

    def read(self, uri: str, *, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        """All bytes of an object, or those of a span [start, stop), of one version; one request."""
        _, container, key = self._split(uri)
        return self._reads.read(
            uri, container, key, span=span, version=version, max_bytes=max_bytes,
            otherwise=lambda: self._wait(self._read(uri, span, version, max_bytes)),
        )  # fmt: skip

    def put(self, uri: str, body: bytes | Path, expect: str | None) -> str:
        """One Put Blob with `If-None-Match: *` or `If-Match`; returns the new version."""
        headers = {
            "x-ms-blob-type": "BlockBlob",
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size_of(uri, body, SINGLE_PUT_BYTES)),
        }
        if expect is None:
            headers["If-None-Match"] = "*"
        elif expect != ANYTHING:
            headers["If-Match"] = f'"{expect.removeprefix("etag:")}"'
        with refusals(uri, expect):
            answer = self.call("PUT", uri, headers, once(body))
        return version_of(answer["ETag"])

    def delete(self, uri: str, expect: str) -> None:
        """Remove an object, or one version of it. Raises Conflict, and StatusError 404 if it does not exist."""
        headers = {} if expect == ANYTHING else {"If-Match": f'"{expect.removeprefix("etag:")}"'}
        with removals(uri, expect):
            self.call("DELETE", uri, headers)

    def call(
        self, method: str, uri: str, headers: Mapping[str, str] | None = None, body: AsyncIterator[bytes] | None = None
    ) -> Mapping[str, str]:
        """The headers of the answer to one request for a blob. Raises StatusError.

        A request with a body is sent only once, because its iterator can be read only once.
        """

        async def answered() -> Mapping[str, str]:
            answer = await self._send(method, uri, headers or {}, body)
            await answer.close()
            found: Mapping[str, str] = answer.headers
            return found

        return self._wait(answered())

    def _head(self, uri: str) -> Object:
        found = self.call("HEAD", uri)
        return Object(uri, int(found["Content-Length"]), version_of(found["ETag"]))

    def _opened(self, container: str) -> Any:
        """obstore's store of a container; None if reads need a feature of the file system's client."""
        timeouts, service = self.fs._timeout_kwargs, self.fs.service_client
        parts = urlsplit(service.url)
        held = service.credential
        # A token is sent with TLS only.
        is_known = hasattr(held, "account_key") or hasattr(held, "signature") or parts.scheme == "https"
        if not obstore_reads.is_here() or timeouts.keys() - {"connection_timeout", "read_timeout"}:
            return None
        if held is not None and not is_known:
            return None
        wire = Wire(timeouts.get("connection_timeout", 10), timeouts.get("read_timeout", 60))
        credential = self._credential if held is not None or parts.query else None
        url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        return obstore_reads.azure_store(url, service.account_name, container, wire, credential)

    def _credential(self) -> dict[str, Any]:
        """The current credential for obstore, with its expiry."""
        held = self.fs.service_client.credential
        if hasattr(held, "account_key"):
            return {"access_key": held.account_key, "expires_at": None}
        if hasattr(held, "signature"):
            return {"sas_token": held.signature, "expires_at": None}
        if held is None:
            return {"sas_token": urlsplit(self.fs.service_client.url).query, "expires_at": None}
        token = self._wait(held.get_token(_SCOPE))
        return {"token": token.token, "expires_at": datetime.fromtimestamp(token.expires_on, UTC)}

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self.fs.loop).result()

    async def _read(self, uri: str, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes:
        # The SDK's signature covers x-ms-range, not Range.
        answer = await self._send("GET", uri, pinned.range_of(span, "x-ms-range"))
        try:
            size_bytes = int(answer.headers["Content-Length"])
            pinned.before(uri, version_of(answer.headers["ETag"]), size_bytes, version=version, max_bytes=max_bytes)
            body = b"".join([piece async for piece in answer.iter_raw()])
        finally:
            await answer.close()
        return pinned.whole(uri, body, size_bytes, span)

    async def _send(
        self, method: str, uri: str, headers: Mapping[str, str], body: AsyncIterator[bytes] | None = None
    ) -> Any:
        """A successful answer whose body is not yet read."""
        from azure.core.rest import HttpRequest

        _, container, key = self._split(uri)
        if not key or "." in key.split("/"):  # HTTP clients convert a/./b to a/b, which may be another blob
            raise NotFound(f"{uri} does not exist: it is a container, or has '.' as a folder")
        now = format_datetime(datetime.now(UTC), usegmt=True)
        url = self.fs.service_client.get_blob_client(container, key).url
        request = HttpRequest(
            method, url, headers={"x-ms-date": now, "x-ms-version": API_VERSION, **headers}, content=body
        )
        answer = await self._pipeline.send_request(request, stream=True)
        if not 200 <= answer.status_code < 300:
            await answer.close()
            raise StatusError(answer.status_code, answer.headers.get("x-ms-error-code", ""), answer.reason or "")
        return answer

    def _split(self, uri: str, *, folder: bool = False) -> tuple[str, str, str]:
        """The URI of a container, its name, and the key or prefix.

        Raises JobError if `abfs://container@account.host` has another account than the options.
        """
        bucket, key = split(uri, folder=folder)
        container, _, host = bucket.partition("@")
        ours = self.fs.service_client.account_name
        if host and host.partition(".")[0] != ours:
            raise JobError(f"{uri} is in another account than {ours!r} of the store's options")
        return f"{uri.partition('://')[0]}://{bucket}", container, key

    def _pages(self, container: str, method: str, **query: Any) -> Iterator[Any]:
        """Pages of the SDK's listings; each retry of a page starts at the same marker."""
        client = self.fs.service_client.get_container_client(container)
        mark: str | None = None

        async def page() -> tuple[list[Any], str | None]:
            pages = getattr(client, method)(retry_total=0, results_per_page=PAGE_OBJECTS, **query).by_page(mark)
            found = [entry async for entry in await anext(pages)]
            return found, pages.continuation_token

        while True:
            entries, mark = self._retry(lambda: self._wait(page()))
            yield entries
            if not mark:
                return


def _pipeline(credential: Any, timeouts: Mapping[str, Any]) -> Any:
    """A client that signs and sends requests without retries."""
    from azure.core import AsyncPipelineClient
    from azure.core.credentials import AzureSasCredential
    from azure.core.pipeline.policies import AsyncBearerTokenCredentialPolicy, AzureSasCredentialPolicy
    from azure.core.pipeline.transport import AioHttpTransport

    policies: list[Any] = []
    if hasattr(credential, "get_token"):
        policies = [AsyncBearerTokenCredentialPolicy(credential, _SCOPE)]
    elif isinstance(credential, AzureSasCredential):
        policies = [AzureSasCredentialPolicy(credential)]
    elif credential is not None:
        policies = [credential]  # the SDK has converted the account key into a policy
    transport = AioHttpTransport(
        **{"connection_timeout": 10, "read_timeout": 60, **timeouts}, connection_data_block_size=PIECE_BYTES
    )
    return AsyncPipelineClient("", policies=policies, transport=transport)


def _close(pipeline: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Close the connections when the store is collected or the process ends."""
    if not loop.is_running():
        return
    closing = asyncio.run_coroutine_threadsafe(pipeline.close(), loop)
    try:
        asyncio.get_running_loop()  # collected inside the loop: waiting here would be a deadlock
    except RuntimeError:
        closing.result(_CLOSING_S)
