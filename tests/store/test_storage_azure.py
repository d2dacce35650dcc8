"""Azure Blob Storage: the contract of stores against Azurite, and what only this store does."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterator

import pytest
from contracts.cloud_suite import CloudSuite
from faults.unruly_proxy import UnrulyProxy, unruly

from unet_batch.errors import JobError, NotFound
from unet_batch.store import azure, obstore_reads
from unet_batch.store.storage import Storage

pytestmark = pytest.mark.azure


@pytest.fixture
def storage(azure_options: dict) -> Storage:
    return Storage(azure_options, threads=4, first_wait_s=0.01)


@pytest.fixture
def top(new_container: Callable[[], str]) -> str:
    return new_container()


@pytest.fixture
def root(new_container: Callable[[], str]) -> str:
    return f"{new_container()}/prefix"


class TestAzureStore(CloudSuite):
    """A server that speaks the Blob service's REST API."""

    another_version = "etag:0x1"
    put_method = "PUT"
    nowhere = "az://no-such-container-here/a"


class TestAzureStoreWithoutObstore(TestAzureStore):
    """Where obstore is not installed, or cannot read a container as the SDK would: the same suite without it."""

    @pytest.fixture(autouse=True)
    def elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(obstore_reads, "is_here", lambda: False)


@pytest.fixture
def behind(azure_options: dict[str, str], azure_endpoint: str) -> Iterator[tuple[Storage, UnrulyProxy]]:
    """A storage whose requests pass through a proxy that counts them."""
    with unruly(azure_endpoint) as proxy:
        options = {name: value.replace(azure_endpoint, proxy.url) for name, value in azure_options.items()}
        yield Storage(options, threads=4, first_wait_s=0.01), proxy


def test_the_version_is_the_etag(storage: Storage, root: str) -> None:
    """As on S3, without its quotes."""
    version = storage.put(f"{root}/a", b"abc")
    assert version.startswith("etag:0x")
    assert '"' not in version


@pytest.mark.parametrize("scheme", ["abfs", "abfss"])
def test_a_uri_may_name_its_account(azure_options: dict, new_container: Callable[[], str], scheme: str) -> None:
    """`abfs://container@account.host/key` is the container's object, and keeps its spelling."""
    storage, container = Storage(azure_options), new_container().removeprefix("az://")
    folder = f"{scheme}://{container}@devstoreaccount1.dfs.core.windows.net/day"
    version = storage.create(f"{folder}/a.png", b"x")
    assert [o.uri for o in storage.list(folder)] == [f"{folder}/a.png"]
    assert storage.read(f"{folder}/a.png", version=version) == b"x"
    assert Storage(azure_options).read(f"az://{container}/day/a.png") == b"x"


def test_a_uri_in_another_account_is_refused(storage: Storage) -> None:
    """One set of options reaches one account: the same name in it would be another object."""
    with pytest.raises(JobError, match="another account than 'devstoreaccount1'"):
        storage.read("abfs://container@somebody.dfs.core.windows.net/a.png")


def test_a_listing_goes_on_after_its_first_page(storage: Storage, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service lists 5,000 at once; here two."""
    monkeypatch.setattr(azure, "PAGE_OBJECTS", 2)
    for name in ("a", "b/1", "c", "d/1", "e/1"):
        storage.put(f"{root}/{name}", b"")
    assert [o.uri.removeprefix(root) for o in storage.list(root)] == ["/a", "/b/1", "/c", "/d/1", "/e/1"]
    assert storage.folders(root) == ["b", "d", "e"]


def test_a_blob_that_stands_for_a_folder_is_no_object(storage: Storage, root: str) -> None:
    """Where names are hierarchical the service leaves an empty blob with a mark for every folder."""
    storage.put(f"{root}/day/a.png", b"x")
    storage.put(f"{root}/night/", b"")
    _, container, key = storage._store(root)._split(f"{root}/day")
    client = storage._store(root).fs.service_client.get_blob_client(container, key)
    storage._store(root)._wait(client.upload_blob(b"", metadata={"hdi_isfolder": "true"}))
    assert [o.uri for o in storage.list(root)] == [f"{root}/day/a.png"]
    assert storage.folders(root) == ["day", "night"]


def test_a_dot_for_a_folder_names_nothing(storage: Storage, root: str) -> None:
    """HTTP clients would ask for another blob."""
    storage.put(f"{root}/a/b", b"another")
    with pytest.raises(NotFound):
        storage.read(f"{root}/a/./b")


def test_a_signature_in_place_of_a_key_opens_the_store(
    azure_options: dict, new_container: Callable[[], str], azure_endpoint: str
) -> None:
    """A shared access signature is part of every URL, and of no message."""
    from azure.storage.blob import AccountSasPermissions, BlobServiceClient, ResourceTypes, generate_account_sas

    client = BlobServiceClient.from_connection_string(azure_options["connection_string"])
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    signature = generate_account_sas(
        client.account_name, client.credential.account_key,
        ResourceTypes(container=True, object=True), AccountSasPermissions(read=True, write=True, list=True), until,
    )  # fmt: skip
    named = f"BlobEndpoint={azure_endpoint}/{client.account_name};SharedAccessSignature={signature}"
    storage, uri = Storage({"connection_string": named}), f"{new_container()}/a b#1"
    version = storage.create(uri, b"x")
    assert storage.read(uri, version=version) == b"x"
    assert [o.uri for o in storage.list(uri.rpartition("/")[0])] == [uri]
    with pytest.raises(NotFound) as missing:
        storage.read(f"{uri}-gone")
    assert "sig=" not in str(missing.value)


def test_a_token_is_sent_with_tls_only() -> None:
    """Azurite takes no tokens without certificates; that ours would carry one is all that can be seen here."""
    from azure.core.exceptions import ServiceRequestError
    from azure.core.rest import HttpRequest

    class Credential:
        async def get_token(self, *scopes: str, **how: object) -> None:
            raise AssertionError("no token is asked for without TLS")

    async def sent() -> None:
        async with azure._pipeline(Credential(), {}) as client:
            await client.send_request(HttpRequest("GET", "http://127.0.0.1:1/a"))

    with pytest.raises(ServiceRequestError, match="TLS"):
        asyncio.run(sent())
