"""Reads through obstore: every fault means what it means through the store's own client, and every key is the key."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_s3 import ETAG, Answer, ScriptedS3, SentRequest, refused, scripted

from unet_batch.errors import Changed, Denied, NotFound, NotLoggedIn, StorageError, TooLarge, Unavailable
from unet_batch.store import obstore_reads
from unet_batch.store.storage import Storage

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDREADS", "AWS_SECRET_ACCESS_KEY": "hunter2hunter2", "AWS_DEFAULT_REGION": "us-east-1"}
WHOLE = Answer(body=b"0123456789")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Credentials in the environment, and no other source of them."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return monkeypatch


@pytest.fixture
def through_obstore(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that obstore was asked for."""
    asked: list[str] = []
    inner = obstore.get

    def get(store: object, path: str, **options: object) -> object:
        asked.append(path)
        return inner(store, path, **options)

    monkeypatch.setattr(obstore, "get", get)
    return asked


def storage_at(server: ScriptedS3, **options: object) -> Storage:
    config = {"read_timeout": 1, **options.pop("config_kwargs", {})}
    return Storage({"endpoint_url": server.url, "config_kwargs": config, **options}, threads=4, first_wait_s=0)


ROWS = [
    ("missing", refused(404, "NoSuchKey"), NotFound, 1),
    ("missing bucket", refused(404, "NoSuchBucket"), NotFound, 1),
    ("missing, without a word", refused(404), NotFound, 1),
    ("denied", refused(403, "AccessDenied"), Denied, 2),
    ("denied by a proxy", refused(403), Denied, 2),
    ("archived", refused(403, "InvalidObjectState"), Denied, 2),
    ("unknown key", refused(403, "InvalidAccessKeyId"), NotLoggedIn, 2),
    ("wrong secret", refused(403, "SignatureDoesNotMatch"), NotLoggedIn, 2),
    ("expired", refused(400, "ExpiredToken"), NotLoggedIn, 2),
    ("unauthorised", refused(401), NotLoggedIn, 2),
    ("slow down", refused(503, "SlowDown"), Unavailable, 5),
    ("too many", refused(429), Unavailable, 5),
    ("broken", refused(500, "InternalError"), Unavailable, 5),
    ("bad gateway", refused(502), Unavailable, 5),
    ("conflict of an operation", refused(409, "OperationAborted"), Unavailable, 5),
    ("beyond", refused(416, "InvalidRange"), Changed, 1),
    ("reset", Answer(ending="reset"), Unavailable, 5),
    ("closed", Answer(ending="closed"), Unavailable, 5),
    ("cut", Answer(body=b"x" * 100_000, ending="cut"), Unavailable, 5),
    ("cut and reset", Answer(body=b"x" * 100_000, ending="cut_reset"), Unavailable, 5),
    ("other version", Answer(headers={**ETAG, "ETag": '"e2"'}, body=b"0123456789"), Changed, 1),
    ("without a version", Answer(headers={}, body=b"<html/>"), StorageError, 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "error", "requests"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_fault_is_told_and_tried_as_the_stores_own_client_does(
    keys: pytest.MonkeyPatch, answer: Answer, error: type[StorageError], requests: int
) -> None:
    """Same class of error, and no try more than five; a refusal is asked once more of the store's own client."""
    with scripted(lambda _: answer) as server:
        with pytest.raises(StorageError) as raised:
            storage_at(server).read("s3://bucket/a", version="etag:e1")
        assert type(raised.value) is error
        assert len(server.asked) == requests
        keys.setattr(obstore_reads, "is_here", lambda: False)
        with pytest.raises(StorageError) as own:
            storage_at(server).read("s3://bucket/a", version="etag:e1")
    assert type(own.value) is error


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["slow", "stalled"])
def test_a_silent_server_ends_a_read_after_the_read_timeout(keys: pytest.MonkeyPatch, ending: str) -> None:
    """Before the answer and inside a body: one second here, then the next try finds the object."""
    answers = [Answer(body=b"0" * 100_000, ending=ending), WHOLE]
    with scripted(lambda _: answers.pop(0)) as server:
        assert storage_at(server).read("s3://bucket/a") == b"0123456789"
        assert len(server.asked) == 2


def test_no_server_is_unavailable(keys: pytest.MonkeyPatch) -> None:
    """Nothing listens there."""
    with pytest.raises(Unavailable):
        Storage({"endpoint_url": "http://127.0.0.1:1"}, first_wait_s=0).read("s3://bucket/a")


def test_a_key_cannot_forge_a_status(keys: pytest.MonkeyPatch) -> None:
    """obstore's errors are texts, and a key is part of them."""
    key = "Debug source: status: 404, x - status code: 404 Not Found <Code>NoSuchKey</Code>"
    body = b"<p>Debug source:\n    status: 404,\n<Code>NoSuchKey</Code></p>"
    with scripted(lambda _: Answer(500, {}, body)) as server, pytest.raises(Unavailable):
        storage_at(server).read(f"s3://bucket/{key}")


@pytest.mark.parametrize(
    "answer", [Answer(body=b"0123456789", ending="chunked"), Answer(headers=ETAG, body=b"0123456789")]
)
def test_what_obstore_cannot_read_is_read_by_the_other_client(keys: pytest.MonkeyPatch, answer: Answer) -> None:
    """An answer without a length; a whole object in answer to a range that is the whole object."""
    with scripted(lambda _: answer) as server:
        storage = storage_at(server)
        wanted = storage.read_range("s3://bucket/a", 0, 10) if answer.ending == "whole" else None
        assert wanted in (None, b"0123456789")


def test_limits_hold_before_a_body_is_taken_in(keys: pytest.MonkeyPatch) -> None:
    """The first bytes of a body are on their way then, and no more."""
    with scripted(lambda _: Answer(body=b"x" * 50_000_000)) as server:
        with pytest.raises(TooLarge):
            storage_at(server).read("s3://bucket/a", max_bytes=100)
        assert len(server.asked) == 1


def test_a_coded_object_comes_as_it_is_stored(keys: pytest.MonkeyPatch, through_obstore: list[str]) -> None:
    """`Content-Encoding: gzip` describes the bytes; they are not decoded."""
    answer = Answer(headers={**ETAG, "Content-Encoding": "gzip"}, body=b"\x1f\x8b no gzip at all")
    with scripted(lambda _: answer) as server:
        assert storage_at(server).read("s3://bucket/a") == answer.body
    assert through_obstore == ["a"]


# Keys --------------------------------------------------------------------------------------------------------------

ODD = ["a//b", "a/./b", "./x", "/lead", "day/", "a\tb", "a\nb", "a\x7fb", "a/.", "\u2028"]


@pytest.mark.parametrize("key", ODD)
def test_a_key_that_obstore_would_change_is_not_asked_of_it(
    keys: pytest.MonkeyPatch, through_obstore: list[str], key: str
) -> None:
    """Empty and dotted folders and control characters: the store's own client asks for them."""
    with scripted(lambda _: WHOLE) as server:
        storage_at(server).read(f"s3://bucket/{key}")
    assert through_obstore == []


@pytest.fixture(scope="module")
def echo() -> Iterator[tuple[ScriptedS3, object]]:
    """A server that remembers, and obstore's store of a bucket there."""
    with scripted(lambda _: WHOLE) as server:
        credentials = {"access_key_id": "k", "secret_access_key": "s", "token": None}
        wire = obstore_reads.Wire()
        store = obstore_reads.s3_store(
            f"{server.url}/bucket", "us-east-1", wire, lambda: credentials, requester_pays=False
        )
        yield server, store


@given(key=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
@settings(max_examples=150)
def test_a_plain_key_is_asked_for_as_it_is(echo: tuple[ScriptedS3, object], key: str) -> None:
    """For any key: percent signs, spaces, marks, any script."""
    server, store = echo
    if obstore_reads.is_plain(key):
        obstore.get(store, key).bytes()
        assert server.asked.pop().key == key


# Whose requests they are, and where they go ------------------------------------------------------------------------


def test_options_beat_what_obstore_would_take_from_the_environment(
    keys: pytest.MonkeyPatch, through_obstore: list[str]
) -> None:
    """The environment speaks to botocore; obstore is told everything."""
    for name, value in {"AWS_SKIP_SIGNATURE": "true", "AWS_ENDPOINT": "http://127.0.0.1:1", "AWS_BUCKET": "another",
                        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_REGION": "xx-1", "AWS_TOKEN": "t",
                        "AWS_S3_EXPRESS": "true", "AWS_REQUEST_PAYER": "true"}.items():  # fmt: skip
        keys.setenv(name, value)
    with scripted(lambda _: WHOLE) as server:
        storage_at(server).read("s3://bucket/a")
    [asked] = server.asked
    assert through_obstore == ["a"]
    assert (asked.target, asked.access_key, asked.region) == ("/bucket/a", "AKIDREADS", "us-east-1")
    assert "x-amz-security-token" not in asked.headers
    assert "x-amz-request-payer" not in asked.headers


@pytest.mark.parametrize(
    ("options", "who", "token"),
    [
        ({"key": "AKIDJOB", "secret": "s"}, "AKIDJOB", None),
        ({"key": "AKIDJOB", "secret": "s", "token": "t"}, "AKIDJOB", "t"),
        ({"client_kwargs": {"aws_access_key_id": "AKIDKW", "aws_secret_access_key": "s"}}, "AKIDKW", None),
        ({"anon": True}, "", None),
        ({"profile": "night"}, "AKIDNIGHT", None),
        ({}, "AKIDREADS", None),
    ],
    ids=["keys", "keys and token", "keys of the client", "nobody", "profile", "environment"],
)
@pytest.mark.parametrize("here", [True, False], ids=["obstore", "own client"])
def test_requests_are_signed_with_what_the_options_name(
    keys: pytest.MonkeyPatch, tmp_path: Path, options: dict, who: str, token: str | None, here: bool
) -> None:
    """Keys, a token, a profile or nobody: the same on both ways."""
    (tmp_path / "credentials").write_text("[night]\naws_access_key_id=AKIDNIGHT\naws_secret_access_key=s\n")
    keys.setattr(obstore_reads, "is_here", lambda: here)
    with scripted(lambda _: WHOLE) as server:
        storage_at(server, **options).read("s3://bucket/a")
    [asked] = server.asked
    assert (asked.access_key, asked.headers.get("x-amz-security-token")) == (who, token)


def credential_process(tmp_path: Path, body: str) -> None:
    """A profile `minted` whose credentials a program gives."""
    program = tmp_path / "mint.py"
    program.write_text(body)
    (tmp_path / "config").write_text(f"[profile minted]\ncredential_process={sys.executable} {program}\n")


def test_credentials_that_end_are_renewed(keys: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of this program end in ten minutes, so that each use asks for new ones; obstore takes over the newest."""
    count = tmp_path / "count"
    count.write_text("")
    credential_process(
        tmp_path,
        f"""
import datetime, json, pathlib
count = pathlib.Path({str(count)!r})
count.write_text(count.read_text() + "x")
end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=9)).isoformat()
minted = {{"AccessKeyId": "AKID%d" % len(count.read_text()), "SecretAccessKey": "s", "Expiration": end}}
print(json.dumps({{"Version": 1, **minted}}))
""",
    )
    keys.setattr(obstore_reads, "CREDENTIALS_S", 0.0)
    with scripted(lambda _: WHOLE) as server:
        storage = storage_at(server, profile="minted")
        storage.read("s3://bucket/a")
        storage.read("s3://bucket/a")
    first, second = (asked.access_key for asked in server.asked)
    assert first != second


@pytest.mark.parametrize("here", [True, False], ids=["obstore", "own client"])
def test_credentials_that_cannot_be_had_are_no_fact_about_an_object(
    keys: pytest.MonkeyPatch, tmp_path: Path, here: bool
) -> None:
    """A program that fails: an error of the store, which no row records, and no request."""
    credential_process(tmp_path, "raise SystemExit(1)")
    keys.setattr(obstore_reads, "is_here", lambda: here)
    with scripted(lambda _: WHOLE) as server, pytest.raises(StorageError) as raised:
        storage_at(server, profile="minted").read("s3://bucket/a")
    assert not isinstance(raised.value, NotFound | Denied | Changed | TooLarge)
    assert server.asked == []


def test_a_job_without_credentials_is_not_logged_in(keys: pytest.MonkeyPatch) -> None:
    """As with the store's own client: nothing is sent unsigned without `anon`."""
    keys.delenv("AWS_ACCESS_KEY_ID")
    keys.delenv("AWS_SECRET_ACCESS_KEY")
    with scripted(lambda _: WHOLE) as server, pytest.raises(NotLoggedIn):
        storage_at(server).read("s3://bucket/a")
    assert server.asked == []


@pytest.mark.parametrize("code", ["PermanentRedirect", "AuthorizationHeaderMalformed"])
def test_a_bucket_in_another_region_is_found_there(
    keys: pytest.MonkeyPatch, through_obstore: list[str], code: str
) -> None:
    """botocore finds the region; after that, reads are one request each, signed for it."""

    def answer(asked: SentRequest) -> Answer:
        if asked.region == "eu-central-1":
            return WHOLE
        status = {"PermanentRedirect": 301, "AuthorizationHeaderMalformed": 400}[code]
        told = refused(status, code)
        body = told.body.replace(b"<Message>", b"<Region>eu-central-1</Region><Message>")
        return Answer(status, {**told.headers, "x-amz-bucket-region": "eu-central-1"}, body)

    with scripted(answer) as server:
        storage = storage_at(server)
        assert storage.read("s3://bucket/a") == b"0123456789"
        server.asked.clear()
        assert storage.read("s3://bucket/b") == b"0123456789"
    assert [asked.region for asked in server.asked] == ["eu-central-1"]
    assert through_obstore == ["a", "b"]


def test_a_proxy_of_the_options_is_used(keys: pytest.MonkeyPatch, through_obstore: list[str]) -> None:
    """`config_kwargs: {proxies: …}`, as botocore has it."""
    with scripted(lambda _: WHOLE) as proxy:
        options = {"endpoint_url": "http://store.invalid", "config_kwargs": {"proxies": {"http": proxy.url}}}
        assert Storage(options, first_wait_s=0).read("s3://bucket/a") == b"0123456789"
    assert [asked.target for asked in proxy.asked] == ["http://store.invalid/bucket/a"]
    assert through_obstore == ["a"]


def test_a_requester_pays_where_the_options_say_so(keys: pytest.MonkeyPatch, through_obstore: list[str]) -> None:
    """`requester_pays: true`."""
    with scripted(lambda _: WHOLE) as server:
        storage_at(server, requester_pays=True).read("s3://bucket/a")
    assert server.asked[0].headers["x-amz-request-payer"] == "requester"
    assert through_obstore == ["a"]


def test_a_customers_key_is_sent_by_the_stores_own_client(keys: pytest.MonkeyPatch, through_obstore: list[str]) -> None:
    """`s3_additional_kwargs` may be anything; obstore is not asked."""
    extra = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "0" * 32}
    with scripted(lambda _: WHOLE) as server:
        storage_at(server, s3_additional_kwargs=extra, use_ssl=False).read("s3://bucket/a")
    assert "x-amz-server-side-encryption-customer-key" in server.asked[0].headers
    assert through_obstore == []


@pytest.mark.parametrize("style", ["path", "virtual"])
def test_the_address_is_the_one_that_botocore_would_use(style: str, keys: pytest.MonkeyPatch) -> None:
    """Regions, dual stacks and styles are resolved by its rules."""
    from unet_batch.store.s3_client import S3Client

    options = {"client_kwargs": {"region_name": "eu-west-1"}, "config_kwargs": {"s3": {"addressing_style": style}}}
    place = S3Client(options).place("a-bucket")
    hosts = {"path": "s3.eu-west-1.amazonaws.com/a-bucket", "virtual": "a-bucket.s3.eu-west-1.amazonaws.com"}
    assert place is not None
    assert (place.url, place.region, place.signed) == (f"https://{hosts[style]}", "eu-west-1", True)


# Where obstore is not ---------------------------------------------------------------------------------------------


def test_a_missing_obstore_costs_time_only(
    keys: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, through_obstore: list[str]
) -> None:
    """Reads are the same through the store's own client, and one line says what would make them cheaper."""
    keys.setitem(sys.modules, "obstore", None)
    obstore_reads.is_here.cache_clear()
    try:
        with scripted(lambda _: WHOLE) as server, caplog.at_level(logging.WARNING):
            storage = storage_at(server)
            assert [storage.read("s3://bucket/a"), storage.read("s3://other/a")] == [b"0123456789"] * 2
    finally:
        obstore_reads.is_here.cache_clear()
    assert through_obstore == []
    assert [r.message for r in caplog.records if r.name == obstore_reads.__name__] == [obstore_reads.MISSING]


def test_no_secret_is_in_an_error_or_a_log(keys: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """obstore's texts hold whole URLs and the answer; ours hold neither key nor signature."""
    options = {"key": "AKIDJOB", "secret": "hunter2", "token": "hunter3"}
    with (
        scripted(lambda _: refused(503, "SlowDown")) as server,
        caplog.at_level(logging.INFO),
        pytest.raises(Unavailable) as raised,
    ):
        storage_at(server, **options).read("s3://bucket/a")
    chain: list[BaseException | None] = [raised.value]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__)
    told = " ".join(map(str, chain)) + caplog.text
    assert "hunter2" not in told
    assert "hunter3" not in told
    assert "Debug source" not in told


def test_an_order_of_reads_needs_no_order_of_answers(keys: pytest.MonkeyPatch) -> None:
    """Sixteen threads share one store: each gets the bytes of its key."""
    with scripted(lambda asked: Answer(body=asked.key.encode())) as server:
        wanted = [(f"s3://bucket/{number}", None) for number in range(200)]
        answers = list(storage_at(server).read_many(wanted))
    assert answers == [str(number).encode() for number in range(200)]
