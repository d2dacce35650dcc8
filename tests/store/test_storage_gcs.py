"""Google Cloud Storage: the contract of stores against fake-gcs-server, and what only this store does."""

from __future__ import annotations

import gzip
import json
import re
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from contracts.cloud_suite import CloudSuite
from faults.unruly_proxy import UnrulyProxy, unruly

from unet_batch.errors import Unavailable
from unet_batch.store import gcs
from unet_batch.store.storage import Storage

pytestmark = pytest.mark.gcs


@pytest.fixture
def storage(gcs_options: dict) -> Storage:
    return Storage(gcs_options, threads=4, first_wait_s=0.01)


@pytest.fixture
def top(new_gcs_bucket: Callable[[], str]) -> str:
    return new_gcs_bucket()


@pytest.fixture
def root(new_gcs_bucket: Callable[[], str]) -> str:
    return f"{new_gcs_bucket()}/prefix"


class TestGcsStore(CloudSuite):
    """A server that speaks the JSON API.

    It ignores `ifGenerationMatch=0` on simple media uploads, where the service honours it. We send none.
    """

    another_version = "generation:1"
    put_method = "POST"
    nowhere = "gs://no-such-bucket-here/a"


@pytest.fixture
def behind(gcs_options: dict[str, str], gcs_endpoint: str) -> Iterator[tuple[Storage, UnrulyProxy]]:
    """A storage whose requests pass through a proxy that counts them."""
    with unruly(gcs_endpoint) as proxy:
        options = {name: value.replace(gcs_endpoint, proxy.url) for name, value in gcs_options.items()}
        yield Storage(options, threads=4, first_wait_s=0.01), proxy


def test_the_version_is_the_generation(storage: Storage, root: str) -> None:
    """The number that other tools show, and that the service never gives twice."""
    assert re.fullmatch(r"generation:\d+", storage.put(f"{root}/a", b"abc"))


@pytest.mark.parametrize("name", ["a#1795693721174282", "%23.png", "a/./b", ".hidden", "a?generation=1"])
def test_a_name_is_no_address(storage: Storage, root: str, name: str) -> None:
    """Digits after `#` are no generation, and nothing in a name is decoded or normalised."""
    version = storage.create(f"{root}/{name}", name.encode())
    assert [o.uri for o in storage.list(root)] == [f"{root}/{name}"]
    assert storage.read(f"{root}/{name}", version=version) == name.encode()


def test_a_listing_goes_on_after_its_first_page(storage: Storage, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service lists 1,000 at once; here two. (fake-gcs-server gives all folders at once, the service does not.)"""
    monkeypatch.setattr(gcs, "PAGE_OBJECTS", 2)
    for name in ("a", "b/1", "c", "d/1", "e/1"):
        storage.put(f"{root}/{name}", b"")
    assert [o.uri.removeprefix(root) for o in storage.list(root)] == ["/a", "/b/1", "/c", "/d/1", "/e/1"]
    assert storage.folders(root) == ["b", "d", "e"]


def test_an_object_that_stands_for_a_folder_is_none(storage: Storage, root: str) -> None:
    """Consoles and other clients leave them."""
    storage.put(f"{root}/day/", b"")
    storage.put(f"{root}/day/a.png", b"x")
    assert [o.uri for o in storage.list(root)] == [f"{root}/day/a.png"]
    assert storage.folders(root) == ["day"]


def test_an_object_that_is_stored_compressed_is_the_bytes_that_are_stored(
    storage: Storage, new_gcs_bucket: Callable[[], str], gcs_endpoint: str
) -> None:
    """`Content-Encoding: gzip` is not undone on the way: sizes, ranges and bytes stay those of the listing."""
    bucket, stored, mark = new_gcs_bucket(), gzip.compress(b"hello" * 100), "mark"
    named = json.dumps({"name": "a", "contentEncoding": "gzip"})
    body = f"--{mark}\r\nContent-Type: application/json\r\n\r\n{named}\r\n--{mark}\r\nContent-Type: image/png\r\n\r\n"
    request = urllib.request.Request(
        f"{gcs_endpoint}/upload/storage/v1/b/{bucket.removeprefix('gs://')}/o?uploadType=multipart",
        body.encode() + stored + f"\r\n--{mark}--\r\n".encode(),
        {"Content-Type": f"multipart/related; boundary={mark}"},
    )
    urllib.request.urlopen(request, timeout=10).close()
    (found,) = storage.list(bucket)
    assert found.size_bytes == len(stored)
    assert storage.read(found.uri, version=found.version) == stored
    assert storage.read_range(found.uri, 2, 9) == stored[2:9]


def test_a_token_that_cannot_be_renewed_is_no_fact_about_an_object(
    storage: Storage, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gcsfs says 401, as if the service had refused; an image must not be rejected because a token server is away."""
    from gcsfs.retry import HttpError

    def away(headers: dict[str, str]) -> None:
        raise HttpError({"code": 401, "message": "Invalid Credentials"})

    storage.put(f"{root}/a", b"x")
    monkeypatch.setattr(storage._store(root).fs.credentials, "apply", away)
    with pytest.raises(Unavailable, match="no access token"):
        storage.read(f"{root}/a")
