"""Retries: which faults are tried again, how often, and what comes out, by written schedules and counted calls."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from unet_batch.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    NotFound,
    PutUnknown,
    StorageError,
    Unavailable,
)
from unet_batch.store import s3 as s3_store
from unet_batch.store.faults import ShortReadError, StatusError, is_transient, meaning, translated
from unet_batch.store.local import LocalStore
from unet_batch.store.storage import Storage, canonical


def s3_error(code: str, status: int) -> ClientError:
    """An error as botocore raises it."""
    return ClientError({"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "op")


class HttpError(Exception):
    """gcsfs's error: `code` is the HTTP status."""

    def __init__(self, code: int) -> None:
        super().__init__("message")
        self.code = code


class ServiceResponseError(Exception):
    """azure-core's error for an answer that broke off, by its name."""


class ServiceRequestError(Exception):
    """azure-core's error for any ClientError of aiohttp, by its name."""


class ClientAuthenticationError(Exception):
    """azure-identity's error for a token that cannot be had, by its name."""


class ClientOSError(OSError):
    """aiohttp's error for a connection that broke, by its name."""


class ClientConnectorError(ClientOSError):
    """aiohttp's error for a connection that was never there, by its name."""


class HttpResponseError(Exception):
    """azure-core's error: `status_code`, `error_code`."""

    def __init__(self, status_code: int, error_code: str) -> None:
        super().__init__("message")
        self.status_code, self.error_code = status_code, error_code


class ClientResponseError(Exception):
    """aiohttp's error: `status`; its text holds the whole signed URL."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, message='x', url='https://u:hunter2@host/a?X-Amz-Signature=hunter2'")
        self.status = status


class ServerDisconnectedError(Exception):
    """aiohttp's error, by its name."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (s3_error("SlowDown", 503), "busy"),
        (s3_error("InternalError", 500), "unknown"),
        (s3_error("ConditionalRequestConflict", 409), "busy"),
        (s3_error("XMinioSomething", 502), "unknown"),
        (s3_error("Whatever", 429), "busy"),
        (s3_error("AccessDenied", 403), "denied"),
        (s3_error("ExpiredToken", 400), "unauthenticated"),
        (s3_error("InvalidAccessKeyId", 403), "unauthenticated"),
        (NoCredentialsError(), "unauthenticated"),
        (s3_error("404", 404), "absent"),
        (s3_error("PreconditionFailed", 412), "refused"),
        (s3_error("MalformedXML", 400), "failed"),
        (s3_error("InvalidRange", 416), "beyond"),
        (caused(OSError(errno.EINVAL, "x"), s3_error("PreconditionFailed", 412)), "refused"),
        (caused(OSError(errno.EBUSY, "x"), s3_error("SlowDown", 503)), "busy"),
        (caused(PermissionError("x"), s3_error("AccessDenied", 403)), "denied"),
        (EndpointConnectionError(endpoint_url="http://h"), "busy"),
        (ReadTimeoutError(endpoint_url="http://h"), "unknown"),
        (HttpError(503), "busy"),
        (HttpError(500), "unknown"),
        (HttpError(403), "denied"),
        (HttpError(401), "unauthenticated"),
        (HttpResponseError(403, "AuthenticationFailed"), "unauthenticated"),
        (HttpResponseError(409, "BlobAlreadyExists"), "refused"),
        (HttpResponseError(503, "ServerBusy"), "busy"),
        (HttpResponseError(412, "ConditionNotMet"), "refused"),
        (HttpResponseError(412, "LeaseIdMissing"), "failed"),
        (ServiceResponseError(), "unknown"),
        (caused(ServiceRequestError(), ClientConnectorError()), "busy"),
        (caused(ServiceRequestError(), ClientOSError(errno.ECONNRESET, "x")), "unknown"),
        (caused(ServiceRequestError(), ServerDisconnectedError()), "unknown"),
        (ClientAuthenticationError(), "busy"),
        (StatusError(403, "userRateLimitExceeded", ""), "busy"),
        (StatusError(403, "", "a proxy's"), "denied"),
        (StatusError(409, "BlobAlreadyExists", ""), "refused"),
        (StatusError(412, "conditionNotMet", ""), "refused"),
        (StatusError(416, "", ""), "beyond"),
        (ClientResponseError(504), "unknown"),
        (ServerDisconnectedError(), "unknown"),
        (ConnectionResetError(), "unknown"),
        (TimeoutError(), "unknown"),
        (FileNotFoundError("x"), "absent"),
        (OSError(errno.ESTALE, "x"), "unknown"),
        (OSError(errno.ENOSPC, "x"), "failed"),
        (KeyError("x"), "failed"),
    ],
)
def test_a_fault_means_the_same_in_every_sdk(error: Exception, expected: str) -> None:
    """Status and error code first, then the class, then errno, anywhere in the chain of causes."""
    assert meaning(error) == expected
    assert is_transient(error) is (expected in ("busy", "unknown"))


def test_an_error_tells_no_secret() -> None:
    """aiohttp prints whole signed URLs; ours do not."""
    told = str(translated(ClientResponseError(503), "s3://bucket/a?X-Amz-Signature=hunter2"))
    assert "hunter2" not in told
    assert "s3://bucket/a" in told


class FlakyStore(LocalStore):
    """Fails by a written schedule: the errors of a name are raised one read after the other, then it works."""

    schedule: ClassVar[dict[str, list[Exception]]] = {}
    calls: ClassVar[Counter[str]] = Counter()

    def read(self, uri: str, **wanted: object) -> bytes:
        name = uri.rpartition("/")[2]
        type(self).calls[name] += 1
        if self.schedule.get(name):
            raise self.schedule[name].pop(0)
        return super().read(uri, **wanted)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FlakyStore]:
    """The scheme file, played by the flaky store with objects 0 to 4 in the current folder."""
    FlakyStore.schedule, FlakyStore.calls = {}, Counter()
    monkeypatch.setattr("unet_batch.store.opening.LocalStore", FlakyStore)
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        (tmp_path / str(i)).write_bytes(b"body%d" % i)
    return FlakyStore


def read_all(storage: Storage) -> list[bytes | StorageError]:
    return list(storage.read_many([(canonical(str(i)), None) for i in range(5)]))


def test_a_transient_fault_is_tried_again(flaky: type[FlakyStore]) -> None:
    """Input 3 fails twice, then works: three calls for it, one for each other."""
    flaky.schedule = {"3": [s3_error("SlowDown", 503), ConnectionResetError("reset")]}
    assert read_all(Storage(first_wait_s=0)) == [b"body0", b"body1", b"body2", b"body3", b"body4"]
    assert flaky.calls == {"0": 1, "1": 1, "2": 1, "3": 3, "4": 1}


def test_a_lasting_fault_is_unavailable_after_five_tries(flaky: type[FlakyStore]) -> None:
    """Unavailable is no fact about an object: it is raised, also among many reads."""
    flaky.schedule = {"3": [HttpError(503)] * 9}
    with pytest.raises(Unavailable):
        read_all(Storage(first_wait_s=0))
    assert flaky.calls["3"] == 5


@pytest.mark.parametrize(
    ("error", "fact"), [(HttpError(404), NotFound), (HttpError(403), Denied), (FileNotFoundError("x"), NotFound)]
)
def test_a_fact_is_never_tried_again(flaky: type[FlakyStore], error: Exception, fact: type) -> None:
    """403 and 404 are answers."""
    flaky.schedule = {"3": [error]}
    answers = read_all(Storage(first_wait_s=0))
    assert [type(a) for a in answers] == [bytes, bytes, bytes, fact, bytes]
    assert flaky.calls["3"] == 1


def test_an_unknown_error_is_raised_at_once(flaky: type[FlakyStore]) -> None:
    """An unclassified error is not retried and does not reject the image."""
    flaky.schedule = {"3": [KeyError("surprise")]}
    with pytest.raises(StorageError, match="surprise") as raised:
        read_all(Storage(first_wait_s=0))
    assert type(raised.value) is StorageError
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_short_answer_is_tried_again(flaky: type[FlakyStore]) -> None:
    """A success with too few bytes is a fault, never data."""
    flaky.schedule = {"3": [ShortReadError("2 of 5 bytes came")] * 2}
    assert Storage(first_wait_s=0).read(canonical("3")) == b"body3"
    assert flaky.calls["3"] == 3


class FakeS3:
    """A one-object S3 behind `S3Client.call`: raises by schedule, before or after the put took effect."""

    def __init__(self) -> None:
        self.options: Mapping[str, Any] = {}
        self.body: bytes | None = None
        self.puts: list[dict[str, object]] = []
        self.schedule: list[tuple[str, Exception]] = []
        self.quotes = True

    def opened(self, options: Mapping[str, Any]) -> FakeS3:
        self.options = options
        return self

    def on_answer(self, operation: str, parse: object) -> None:
        """Nothing is listed."""

    def call(self, method: str, Bucket: str, Key: str, Body: bytes, **condition: str) -> dict[str, str]:
        assert method == "put_object"
        self.puts.append(condition)
        when, error = self.schedule.pop(0) if self.schedule else ("", None)
        if when == "before":
            raise error
        etag = None if self.body is None else f'"{self.body.decode()}"'
        wanted = condition.get("IfMatch")
        if "IfNoneMatch" in condition and etag is not None:
            raise s3_error("PreconditionFailed", 412)
        if wanted is not None and wanted != (etag if self.quotes else (etag or "").strip('"')):
            raise s3_error("PreconditionFailed", 412)
        self.body = Body
        if when == "after":
            raise error
        return {"ETag": f'"{Body.decode()}"'}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> FakeS3:
    """The scheme s3, played by the fake."""
    fake = FakeS3()
    monkeypatch.setattr(s3_store, "S3Client", fake.opened)
    return fake


def test_our_retries_replace_those_of_botocore(s3: FakeS3) -> None:
    """Two retry layers multiply: five by five tries against a store that asks to slow down."""
    Storage({"config_kwargs": {"retries": {"total_max_attempts": 9}}}, first_wait_s=0).put("s3://b/a", b"1")
    assert s3.options["config_kwargs"]["retries"]["total_max_attempts"] == 1


def test_a_lost_answer_to_a_replacement_is_unknown(s3: FakeS3) -> None:
    """The put took effect, the reply did not come: only reading back can tell."""
    s3.body, s3.schedule = b"v1", [("after", ReadTimeoutError(endpoint_url="http://h"))]
    with pytest.raises(PutUnknown):
        Storage(first_wait_s=0).replace("s3://b/a", b"v2", version="etag:v1")
    assert len(s3.puts) == 1


def test_a_replacement_is_tried_again_where_the_store_did_nothing(s3: FakeS3) -> None:
    """409 ConditionalRequestConflict and SlowDown say so."""
    s3.body = b"v1"
    s3.schedule = [("before", s3_error("ConditionalRequestConflict", 409)), ("before", s3_error("SlowDown", 503))]
    assert Storage(first_wait_s=0).replace("s3://b/a", b"v2", version="etag:v1") == "etag:v2"
    assert len(s3.puts) == 3


def test_a_refusal_after_a_retry_is_unknown(s3: FakeS3) -> None:
    """A proxy that says 503 after the put took effect makes us our own rival: no false conflict."""
    s3.body, s3.schedule = b"v1", [("after", s3_error("SlowDown", 503))]
    with pytest.raises(PutUnknown):
        Storage(first_wait_s=0).replace("s3://b/a", b"v2", version="etag:v1")


def test_an_etag_refused_in_quotes_is_sent_without(s3: FakeS3) -> None:
    """Some stores compare If-Match with the bare ETag."""
    s3.body, s3.quotes = b"v1", False
    assert Storage(first_wait_s=0).replace("s3://b/a", b"v2", version="etag:v1") == "etag:v2"
    assert [p["IfMatch"] for p in s3.puts] == ['"v1"', "v1"]


def test_a_refused_replacement_is_a_conflict(s3: FakeS3) -> None:
    """412 with both spellings is believed."""
    s3.body = b"v9"
    with pytest.raises(Conflict):
        Storage(first_wait_s=0).replace("s3://b/a", b"v2", version="etag:v1")
    assert s3.body == b"v9"


def test_a_created_object_whose_answer_was_lost_is_there(s3: FakeS3) -> None:
    """Content-named objects are put again, and "already there" is the caller's success."""
    s3.schedule = [("after", ConnectionResetError("reset"))]
    with pytest.raises(AlreadyExists):
        Storage(first_wait_s=0).create("s3://b/part", b"p")
    assert s3.body == b"p"


def test_a_put_is_one_single_put(s3: FakeS3) -> None:
    """Never multipart: stores ignore conditions there."""
    Storage(first_wait_s=0).create("s3://b/part", b"p")
    assert s3.puts == [{"IfNoneMatch": "*"}]


class CarelessS3(FakeS3):
    """A real kind of server: accepts the condition headers and ignores some of them."""

    ignored = ("IfNoneMatch",)

    def call(self, method: str, **request: object) -> dict[str, str]:
        if method == "delete_object":
            self.body = None
            return {}
        kept = {k: v for k, v in request.items() if k not in self.ignored}
        return super().call(method, **kept)


@pytest.mark.parametrize(("ignored", "word"), [(("IfNoneMatch",), "If-None-Match"), (("IfMatch",), "If-Match")])
def test_the_probe_names_the_condition_that_a_store_ignores(
    monkeypatch: pytest.MonkeyPatch, ignored: tuple[str, ...], word: str
) -> None:
    """The negative control: such a store is refused, and the sentence says why."""
    fake = CarelessS3()
    fake.ignored = ignored
    monkeypatch.setattr(s3_store, "S3Client", fake.opened)
    sentence = Storage(first_wait_s=0).probe("s3://b/_work/probe")
    assert sentence is not None
    assert word in sentence
    assert fake.body is None
