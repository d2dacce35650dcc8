"""The meaning of stores' errors, and the retries of calls.

Recognises the errors of the SDKs of S3, GCS and Azure by HTTP status, error code and class name, without importing
them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import tenacity

from unet_batch.errors import Changed, Denied, NotFound, NotLoggedIn, StorageError, Unavailable, UnetBatchError
from unet_batch.store.objects import redact

T = TypeVar("T")
Retry = Callable[..., Any]
"""Calls its first argument with the other arguments, with retries."""
Meaning = Literal["absent", "denied", "unauthenticated", "refused", "beyond", "busy", "unknown", "failed"]
"""absent: no such object. denied: no permission with these credentials. unauthenticated: no or expired credentials.
refused: a condition of a put does not hold. beyond: the span is outside the object. busy: the store did nothing, and a
retry may succeed. unknown: the outcome is unknown. failed: other errors."""

ATTEMPTS = 5

_STATUS: dict[str, Meaning] = {
    "401": "unauthenticated", "403": "denied", "404": "absent", "412": "refused", "408": "unknown", "416": "beyond",
    "429": "busy", "500": "unknown", "502": "unknown", "503": "busy", "504": "unknown",
}  # fmt: skip
_CODES: dict[str, Meaning] = {
    "AccessDenied": "denied", "Forbidden": "denied", "AuthorizationFailure": "denied",
    "InvalidAccessKeyId": "unauthenticated", "SignatureDoesNotMatch": "unauthenticated",
    "ExpiredToken": "unauthenticated", "InvalidToken": "unauthenticated", "TokenRefreshRequired": "unauthenticated",
    "RequestTimeTooSkewed": "unauthenticated", "AuthenticationFailed": "unauthenticated",
    "InvalidAuthenticationInfo": "unauthenticated",
    "NoSuchKey": "absent", "NoSuchBucket": "absent", "BlobNotFound": "absent", "ContainerNotFound": "absent",
    "PreconditionFailed": "refused", "ConditionNotMet": "refused", "InvalidRange": "beyond",
    "BlobAlreadyExists": "refused", "LeaseIdMissing": "failed", "BlobArchived": "denied",
    "SlowDown": "busy", "ServiceUnavailable": "busy", "ServerBusy": "busy", "Throttling": "busy",
    "ThrottlingException": "busy", "RequestLimitExceeded": "busy", "rateLimitExceeded": "busy",
    "userRateLimitExceeded": "busy", "ConditionalRequestConflict": "busy", "OperationAborted": "busy",
    "InternalError": "unknown", "RequestTimeout": "unknown", "OperationTimedOut": "unknown",
}  # fmt: skip
# Classes of botocore, aiohttp, azure-core, google-auth, urllib3 and requests, by name. For classes that are not listed,
# the cause decides: azure-core has one ServiceRequestError for "no connection" and for a connection that broke after
# the request was sent. A ClientAuthenticationError without a status means that no token is available; it is not a
# refusal by the store.
_NAMES: dict[str, Meaning] = {
    "NoCredentialsError": "unauthenticated", "PartialCredentialsError": "unauthenticated",
    "ClientAuthenticationError": "busy",
    "ResourceNotFoundError": "absent", "ResourceExistsError": "refused", "ResourceModifiedError": "refused",
    "EndpointConnectionError": "busy", "ConnectTimeoutError": "busy", "ClientConnectorError": "busy",
    "ReadTimeoutError": "unknown", "ConnectionClosedError": "unknown", "HTTPClientError": "unknown",
    "ResponseStreamingError": "unknown", "IncompleteReadError": "unknown", "IncompleteRead": "unknown",
    "ResponseParserError": "unknown", "PageError": "unknown", "ClientPayloadError": "unknown",
    "ServerDisconnectedError": "unknown",
    "ClientOSError": "unknown", "ServerTimeoutError": "unknown", "FSTimeoutError": "unknown",
    "ServiceRequestTimeoutError": "busy", "ServiceResponseError": "unknown", "ChunkedEncodingError": "unknown",
    "ProtocolError": "unknown", "TransportError": "unknown", "ConnectionError": "unknown", "Timeout": "unknown",
}  # fmt: skip
_ERRNOS: dict[int, Meaning] = {
    errno.ENOENT: "absent", errno.ENOTDIR: "absent", errno.EISDIR: "absent", errno.EACCES: "denied",
    errno.EPERM: "denied", errno.EEXIST: "refused", errno.EBUSY: "busy", errno.EAGAIN: "busy",
    errno.EROFS: "denied", errno.ELOOP: "denied",
    errno.ESTALE: "unknown", errno.EIO: "unknown", errno.ETIMEDOUT: "unknown", errno.ECONNRESET: "unknown",
    errno.ECONNREFUSED: "busy", errno.EPIPE: "unknown",
    getattr(errno, "EREMOTEIO", -1): "unknown",  # macOS has none
}  # fmt: skip


class ShortReadError(OSError):
    """A successful answer had fewer bytes than declared."""


class StatusError(Exception):
    """An unsuccessful answer of a store that is used by plain HTTP."""

    def __init__(self, status_code: int, error_code: str, text: str) -> None:
        """error_code: the store's code, empty if there is none."""
        super().__init__(" ".join(word for word in (str(status_code), error_code, text) if word))
        self.status_code = status_code
        self.error_code = error_code


def meaning(error: BaseException) -> Meaning:
    """The meaning of an error, from the most precise information in its chain of causes: status, code, class, errno."""
    chain = list(_chain(error))
    for read in (_by_answer, _by_class, _by_errno):
        for link in chain:
            if (found := read(link)) is not None:
                return found
    return "failed"


def translated(error: BaseException, uri: str) -> StorageError:
    """Our error for a store's error, without secrets; raise it `from` the original."""
    if isinstance(error, StorageError):
        return error
    what, text = meaning(error), redact(" ".join(str(error).split()))[:300] or type(error).__name__
    if what == "absent":
        return NotFound(f"{redact(uri)} does not exist")
    if what == "denied":
        return Denied(f"the store refuses access to {redact(uri)} ({text}); check `options` and the store's policy")
    if what == "unauthenticated":
        return NotLoggedIn(
            f"the store does not accept these credentials ({text}), for {redact(uri)}; renew them, check `options` "
            "and run the same command again"
        )
    if what == "beyond":
        return Changed(f"{redact(uri)} is shorter than planned; plan the run again")
    if what in ("busy", "unknown"):
        return Unavailable(f"{redact(uri)} is not available now ({text}); run the same command again later")
    return StorageError(f"{redact(uri)}: {text}")


def is_transient(error: BaseException) -> bool:
    """Whether a retry of the same call may succeed."""
    if isinstance(error, UnetBatchError):
        return error.retryable
    return meaning(error) in ("busy", "unknown")


def retrying(first_wait_s: float, retry: Callable[[BaseException], bool] = is_transient) -> tenacity.Retrying:
    """Up to ATTEMPTS tries with exponential waits and jitter; raises the last error."""
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=first_wait_s, max=20.0) + tenacity.wait_random(0, first_wait_s),
        retry=tenacity.retry_if_exception(retry),
        reraise=True,
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _by_answer(error: BaseException) -> Meaning | None:
    response = getattr(error, "response", None)
    answer = response if isinstance(response, dict) else {}
    codes = (answer.get("Error", {}).get("Code"), getattr(error, "error_code", None), getattr(error, "code", None))
    for code in codes:
        if str(code) in _CODES:
            return _CODES[str(code)]
    statuses = (
        answer.get("ResponseMetadata", {}).get("HTTPStatusCode"),
        getattr(error, "status_code", None),
        getattr(error, "status", None),
        *codes,
    )
    for status in statuses:
        if str(status) in _STATUS:
            return _STATUS[str(status)]
    return None


def _by_class(error: BaseException) -> Meaning | None:
    if isinstance(error, FileNotFoundError):
        return "absent"
    if isinstance(error, PermissionError):
        return "denied"
    if isinstance(error, FileExistsError):
        return "refused"
    if isinstance(error, TimeoutError | ConnectionError | ShortReadError):
        return "unknown"
    return next((_NAMES[c.__name__] for c in type(error).__mro__ if c.__name__ in _NAMES), None)


def _by_errno(error: BaseException) -> Meaning | None:
    return _ERRNOS.get(error.errno or 0) if isinstance(error, OSError) else None
