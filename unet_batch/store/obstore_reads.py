"""Reads of single objects through obstore: one request each, with the interpreter's lock released meanwhile.

The only module that knows obstore. It uses blocking calls alone (asynchronous ones can abort a process at its end), and
neither its retries nor its listings, which change keys. What it cannot read as the store's own client would, and every
refusal, is asked again of that client: this module makes reads cheap, and decides nothing.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from unet_batch.store import pinned
from unet_batch.store.faults import StatusError
from unet_batch.store.objects import Object

log = logging.getLogger(__name__)

MISSING = "obstore is not installed: objects are read all the same, at several times the processor time"
CREDENTIALS_S = 600.0
"""Credentials are asked for again before so many seconds are over; botocore keeps those that end valid for as long."""
BODY_S = 24 * 3600.0
"""Of one body; what ends a read is a server that is silent for the read time-out."""
ODD_ANSWERS = 16
"""After so many answers that obstore cannot read, a bucket is left to the store's own client."""

_REFUSED = {301, 302, 303, 307, 308, 400, 401, 403}
"""Refusals and redirections: the store's own client says what they mean, or finds the right region."""
# The text behind the last "Debug source:" is Rust's own dump, where bodies and keys are quoted: one line each.
_STATUS = re.compile(r"^\s+status: (\d{3}),$", re.MULTILINE)
_REDIRECTED = re.compile(r"^\s+inner: BareRedirect,$", re.MULTILINE)
_KIND = re.compile(r"HttpError \{\s+kind: (\w+),")
_CODE = re.compile(r"<Code>(\w[\w.]*)</Code>")
_ODD_SEGMENTS = {"", ".", ".."}


@dataclass(frozen=True, slots=True)
class Wire:
    """How a client reaches its server."""

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    """Of silence; a body as a whole may take longer."""
    proxy_url: str | None = None
    """None: what the environment says."""
    verified: bool = True
    """Whether the server's certificate is checked."""
    roots: bytes | None = None
    """PEM of certificates that are trusted besides those of the system."""


class ObstoreReads:
    """The buckets of one store, each with connections of its own. Threads may share it."""

    def __init__(self, opened: Callable[[str], Any], moved: Callable[[str], Any] = lambda _: None) -> None:
        """opened: obstore's store for a bucket; None: it has to be read by the store's own client.

        moved: the same after that client could read a key that obstore was refused.
        """
        self._opened = opened
        self._moved = moved
        self._stores: dict[str, Any] = {}
        self._odd: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(
        self, uri: str, bucket: str, key: str, *,
        span: tuple[int, int] | None, version: str | None, max_bytes: int | None, otherwise: Callable[[], bytes],
    ) -> bytes:  # fmt: skip
        """All bytes of an object, or those of a span [start, stop), of one version.

        otherwise: the same read through the store's own client. Raises StatusError, ConnectionError, TimeoutError,
        and Changed or TooLarge before a body is transferred.
        """

        def get(store: Any) -> bytes:
            import obstore

            answer = obstore.get(store, key, options={} if span is None else {"range": span})
            begin, end = answer.range
            now = _version(answer.meta)
            # The size of the whole object is what `max_bytes` limits, and what the answer would be without a span.
            pinned.before(uri, now, end - begin, version=version, max_bytes=max_bytes)
            if span is not None and end - begin < span[1] - span[0]:
                return pinned.whole(uri, b"", end - begin, span)
            return pinned.whole(uri, answer.bytes().to_bytes(), end - begin, span)

        found: bytes = self._asked(bucket, key, get, otherwise)
        return found

    def head(self, uri: str, bucket: str, key: str, otherwise: Callable[[], Object]) -> Object:
        """The object as it is now. otherwise: the same through the store's own client."""

        def ask(store: Any) -> Object:
            import obstore

            found = obstore.head(store, key)
            return Object(uri, int(found["size"]), _version(found))

        found: Object = self._asked(bucket, key, ask, otherwise)
        return found

    def _asked(self, bucket: str, key: str, ask: Callable[[Any], Any], otherwise: Callable[[], Any]) -> Any:
        store = self._store(bucket) if is_plain(key) else None
        if store is None:
            return otherwise()
        try:
            return ask(store)
        except _exceptions() as error:
            fault = _fault(error)
            if isinstance(fault, StatusError) and fault.status_code in _REFUSED:
                found = otherwise()
                self._leave(bucket, self._moved(bucket))
                return found
            if fault is None:
                return self._odd_one(bucket, otherwise)
            raise fault from None  # its text is Rust's dump, with the whole URL
        except _NoVersion:
            return self._odd_one(bucket, otherwise)

    def _store(self, bucket: str) -> Any:
        if bucket not in self._stores:
            with self._lock:
                if bucket not in self._stores:
                    self._stores[bucket] = self._opened(bucket)
        return self._stores[bucket]

    def _odd_one(self, bucket: str, otherwise: Callable[[], Any]) -> Any:
        """An answer without a length, for example: such an object is read by the other client."""
        found = otherwise()
        with self._lock:
            self._odd[bucket] = self._odd.get(bucket, 0) + 1
        if self._odd[bucket] >= ODD_ANSWERS:
            self._leave(bucket, None)
        return found

    def _leave(self, bucket: str, store: Any) -> None:
        with self._lock:
            self._stores[bucket] = store


@functools.cache
def is_here() -> bool:
    """Whether obstore is installed; says once in a process where it is not."""
    try:
        import obstore  # noqa: F401
    except ImportError:
        log.warning(MISSING)
        return False
    return True


def s3_store(
    url: str, region: str, wire: Wire, credentials: Callable[[], dict[str, str | None]] | None, *, requester_pays: bool
) -> Any:
    """obstore's store of one bucket of S3.

    url: of the bucket. credentials: access_key_id, secret_access_key and token as they are now; None: requests are not
    signed.
    """
    from obstore.store import S3Store

    # Every word is said here, because obstore takes those that are not from the environment.
    config: dict[str, Any] = {
        "endpoint": url, "aws_endpoint_url_s3": url, "virtual_hosted_style_request": True, "region": region,
        "skip_signature": credentials is None, "request_payer": requester_pays, "s3_express": False,
    }  # fmt: skip

    def asked() -> dict[str, Any]:
        found = {} if credentials is None else credentials()
        return {**found, "expires_at": datetime.now(UTC) + timedelta(seconds=CREDENTIALS_S)}

    provider = None if credentials is None else asked
    return S3Store("bucket", config=config, credential_provider=provider, **_connections(url, wire))


def azure_store(
    url: str, account: str, container: str, wire: Wire, credential: Callable[[], dict[str, Any]] | None
) -> Any:
    """obstore's store of one container of Azure.

    url: of the account. credential: one of access_key, sas_token and token, with its end, as it is now; None: requests
    are not signed.
    """
    from obstore.store import AzureStore

    config: dict[str, Any] = {
        "endpoint": url, "account_name": account, "use_emulator": False, "use_fabric_endpoint": False,
        "skip_signature": credential is None,
    }  # fmt: skip
    return AzureStore(container, config=config, credential_provider=credential, **_connections(url, wire))


def _connections(url: str, wire: Wire) -> dict[str, Any]:
    plain = url.startswith("http://")
    client: dict[str, Any] = {
        "allow_http": plain, "timeout": timedelta(seconds=BODY_S),
        "connect_timeout": timedelta(seconds=wire.connect_timeout_s),
        "read_timeout": timedelta(seconds=wire.read_timeout_s),
        "allow_invalid_certificates": not wire.verified,
    }  # fmt: skip
    if wire.proxy_url is not None:
        client["proxy_url"] = wire.proxy_url
    if wire.roots is not None and not plain:
        client["root_certificate"] = wire.roots
    return {"client_options": client, "retry_config": {"max_retries": 0}}


def is_plain(key: str) -> bool:
    """Whether obstore asks for exactly this key: it changes or refuses empty and dotted folders, control characters."""
    return not _ODD_SEGMENTS.intersection(key.split("/")) and key.isprintable()


def _version(meta: Mapping[str, Any]) -> str:
    if not meta["e_tag"]:
        raise _NoVersion
    return pinned.version_of(meta["e_tag"])


def _exceptions() -> tuple[type[Exception], ...]:
    from obstore.exceptions import BaseError

    return (BaseError, FileNotFoundError, ValueError)


def _fault(error: BaseException) -> Exception | None:
    """An error of obstore as one that `faults.meaning` knows, or None where only the store's own client can tell."""
    _, found, dump = str(error).rpartition("Debug source:")
    if not found:
        return None
    status = _STATUS.findall(dump)
    if status:
        code = _CODE.search(dump)
        return StatusError(int(status[-1]), code[1] if code else "", "")
    if _REDIRECTED.search(dump):
        return StatusError(301, "", "")
    kinds = _KIND.findall(dump)
    if not kinds:
        return None
    if kinds[-1] == "Timeout":
        return TimeoutError("the store was silent for too long")
    if kinds[-1] in ("Connect", "Request", "Interrupted"):
        return ConnectionError(f"the connection to the store failed ({kinds[-1].lower()})")
    return None


class _NoVersion(Exception):
    """An answer without an ETag."""
