"""Listings of S3: every key exactly as it is, every page once, and faults as everywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, quote_plus, urlsplit
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_s3 import Answer, SentRequest, refused, scripted

from unet_batch.errors import Denied, NotFound, NotLoggedIn, StorageError, Unavailable
from unet_batch.store.objects import Object
from unet_batch.store.s3_listing import PageError, page_of
from unet_batch.store.storage import Storage

NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
HOSTILE = [
    "a//b", "a/./b", "./x", "/lead", "a\tb", "a\nb", "a b", "a+b", "a%2Bb", "a%b", "100%25", "a&b<c>", "a'\"b", "x#y",
    "u\u0308", "\u00fc", "漢字/猫.png", "\U0001f600", "a?b=c", "~*()!", "a\\b", ".hidden", "z" * 900, "trailing ",
    " lead",
]  # fmt: skip

TAKEN = [key for key in HOSTILE if "\n" not in key]
"""Those that moto takes."""


def page(keys: list[str], *, token: str | None = None, coded: bool = True, namespace: str = NAMESPACE) -> bytes:
    """A page as a server writes it: each key has its own length as its size."""
    said = [quote_plus(k, safe="/") if coded else escape(k) for k in keys]
    rows = [
        f"<Contents><Key>{name}</Key><LastModified>2026-11-27T16:00:00.000Z</LastModified><ETag>&quot;e{n}&quot;</ETag>"
        f"<Size>{len(key)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for n, (name, key) in enumerate(zip(said, keys, strict=True))
    ]
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    encoding = "<EncodingType>url</EncodingType>" if coded else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult{namespace}><Name>b</Name>{encoding}{more}'
        f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>{''.join(rows)}</ListBucketResult>"
    ).encode()


@given(keys=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), max_size=5))
def test_a_coded_key_is_what_it_was(keys: list[str]) -> None:
    """For any key, also with control characters that XML cannot hold."""
    found = page_of(page(keys))
    assert found is not None
    assert [key for key, _, _ in found.objects] == keys
    assert [size for _, size, _ in found.objects] == [len(key) for key in keys]


@pytest.mark.parametrize("namespace", [NAMESPACE, ""])
def test_a_page_without_encoding_or_namespace_is_read_too(namespace: str) -> None:
    """Not every server codes, and a plus or a percent sign is itself then."""
    found = page_of(page(["a+b%20c", "<&>"], coded=False, namespace=namespace))
    assert found is not None
    assert found.objects == [("a+b%20c", 7, '"e0"'), ("<&>", 3, '"e1"')]
    assert (found.prefixes, found.next) == ([], None)


def test_a_space_may_be_coded_as_a_plus_or_in_percent() -> None:
    """S3 writes `+`, others `%20`."""
    body = page(["k"]).replace(b"<Key>k<", b"<Key>a+b%20c%2B<")
    found = page_of(body)
    assert found is not None
    assert found.objects[0][0] == "a b c+"


@pytest.mark.parametrize("body", [b"", b"<html><p>", b"<html></html>", page(["a", "b"])[:-40]])
def test_what_is_no_listing_is_no_empty_archive(body: bytes) -> None:
    """A proxy's page, or half of an answer."""
    with pytest.raises(PageError):
        page_of(body)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"<Size>1</Size>", b""), (b"<Size>1</Size>", b"<Size>x</Size>"), (b"<ETag>&quot;e0&quot;</ETag>", b""),
     (b"<IsTruncated>false", b"<IsTruncated>true")],
    ids=["no size", "no number", "no ETag", "no token"],
)  # fmt: skip
def test_a_listing_that_lacks_what_every_server_gives_is_refused(old: bytes, new: bytes) -> None:
    """An image without a version, or an end that is none, would be silent losses."""
    body = page(["a"])
    assert old in body
    with pytest.raises(StorageError):
        page_of(body.replace(old, new))


# Through a storage -------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")


def storage_at(url: str) -> Storage:
    return Storage({"endpoint_url": url, "config_kwargs": {"read_timeout": 2}}, first_wait_s=0)


XML = {"Content-Type": "application/xml"}
LISTED = Answer(headers=XML, body=page(["day/a"]))
ROWS = [
    ("slow down", refused(503, "SlowDown"), Unavailable, 5),
    ("broken", refused(500, "InternalError"), Unavailable, 5),
    ("an error in a success", Answer(200, XML, refused(500, "InternalError").body), Unavailable, 5),
    ("a proxy's page", Answer(200, {}, b"<html><p>"), Unavailable, 5),
    ("empty", Answer(200, {}, b""), Unavailable, 5),
    ("reset", Answer(ending="reset"), Unavailable, 5),
    ("closed", Answer(ending="closed"), Unavailable, 5),
    ("cut", Answer(headers=XML, body=page(["day/a"] * 1000), ending="cut"), Unavailable, 5),
    ("denied", refused(403, "AccessDenied"), Denied, 1),
    ("no bucket", refused(404, "NoSuchBucket"), NotFound, 1),
    ("wrong secret", refused(403, "SignatureDoesNotMatch"), NotLoggedIn, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "error", "requests"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_fault_is_told_and_tried(keys: None, answer: Answer, error: type[StorageError], requests: int) -> None:
    """The classes and the tries of every other call."""
    with scripted(lambda _: answer) as server:
        with pytest.raises(StorageError) as raised:
            list(storage_at(server.url).list("s3://bucket/day"))
        assert type(raised.value) is error
        assert len(server.asked) == requests


@pytest.mark.slow
@pytest.mark.parametrize("fault", [row[1] for row in ROWS[:8]], ids=[row[0] for row in ROWS[:8]])
def test_a_page_that_failed_is_asked_for_again_and_no_other(keys: None, fault: Answer) -> None:
    """The second of three pages fails once: each key comes once, in order."""
    faults = [fault]

    def answer(asked: SentRequest) -> Answer:
        token = parse_qs(urlsplit(asked.target).query).get("continuation-token", ["0"])[0]
        if token == "a+/=1" and faults:
            return faults.pop()
        number = int(token[-1])
        return Answer(headers=XML, body=page([f"day/{number}"], token=None if number == 2 else f"a+/={number + 1}"))

    with scripted(answer) as server:
        found = [o.uri for o in storage_at(server.url).list("s3://bucket/day")]
        assert len(server.asked) == 4
    assert found == [f"s3://bucket/day/{n}" for n in range(3)]


def test_a_requester_pays_for_listings_too(keys: None) -> None:
    """`requester_pays: true`."""
    with scripted(lambda _: LISTED) as server:
        list(Storage({"endpoint_url": server.url, "requester_pays": True}).list("s3://bucket/day"))
        assert server.asked[0].headers["x-amz-request-payer"] == "requester"


def test_a_listing_asks_for_its_folder_and_for_codes(keys: None) -> None:
    """One request, with the prefix as it is."""
    with scripted(lambda _: LISTED) as server:
        assert list(storage_at(server.url).list("s3://bucket/day +%/ü")) == [Object("s3://bucket/day/a", 5, "etag:e0")]
    [asked] = server.asked
    wanted = {"list-type": ["2"], "prefix": ["day +%/ü/"], "encoding-type": ["url"]}
    assert parse_qs(urlsplit(asked.target).query) == wanted


def test_hostile_keys_are_those_that_botocores_own_parser_gives(keys: None) -> None:
    """The oracle is another client, on the same bytes."""
    from botocore.session import Session

    with scripted(lambda _: Answer(headers=XML, body=page(HOSTILE))) as server:
        answer = Session().create_client("s3", "us-east-1", endpoint_url=server.url).list_objects_v2(Bucket="bucket")
        found = [(o.uri, o.size_bytes, o.version) for o in storage_at(server.url).list("s3://bucket")]
    oracle = [(f"s3://bucket/{o['Key']}", o["Size"], "etag:" + o["ETag"].strip('"')) for o in answer["Contents"]]
    assert found == oracle
    assert [uri.removeprefix("s3://bucket/") for uri, _, _ in found] == HOSTILE


@pytest.mark.s3
class TestRealServer:
    """Against a server of the S3 protocol, with boto3 as the oracle."""

    @pytest.fixture
    def bucket(self, s3_endpoint: str, new_bucket: Callable[[], str]) -> Iterator[str]:
        import boto3

        client = boto3.client("s3", endpoint_url=s3_endpoint)
        name = new_bucket()
        for key in [*TAKEN, "day/", "day/a"]:
            client.put_object(Bucket=name.removeprefix("s3://"), Key=key, Body=key.encode())
        return name

    def test_every_key_is_listed_as_another_client_lists_it(self, s3_options: dict, bucket: str) -> None:
        """Seven to a page; only the empty object that stands for a folder is no object."""
        import boto3

        client = boto3.client("s3", endpoint_url=s3_options["endpoint_url"])
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket.removeprefix("s3://"))
        oracle = [(f"{bucket}/{o['Key']}", o["Size"], o["ETag"].strip('"')) for p in pages for o in p["Contents"]]
        storage = Storage({**s3_options, "s3_additional_kwargs": {"MaxKeys": 7}})
        found = [(o.uri, o.size_bytes, o.version.removeprefix("etag:")) for o in storage.list(bucket)]
        assert found == [row for row in oracle if row[0] != f"{bucket}/day/"]
        assert {uri.removeprefix(f"{bucket}/") for uri, _, _ in found} == {*TAKEN, "day/a"}

    def test_what_is_listed_can_be_read(self, s3_options: dict, bucket: str) -> None:
        """Through obstore or, where that would change the key, through the other client: the bytes of that key."""
        storage = Storage(s3_options)
        for found in storage.list(bucket):
            key = found.uri.removeprefix(f"{bucket}/")
            assert storage.read(found.uri, version=found.version) == key.encode()


@pytest.mark.slow
def test_a_slow_listing_ends_after_the_read_timeout(keys: None) -> None:
    """Silence is a fault like others."""
    answers = [Answer(ending="slow"), LISTED]
    with scripted(lambda _: answers.pop(0)) as server:
        began = time.monotonic()
        assert len(list(storage_at(server.url).list("s3://bucket/day"))) == 1
        assert time.monotonic() - began < 3.0
