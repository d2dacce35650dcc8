"""Fixtures that many suites share: an S3-protocol server, and fresh buckets in it."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator

import hypothesis
import pytest

# A shared machine may pause any example; how long one takes is no property of the code.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")

pytest.register_assert_rewrite("contracts.store_suite")

S3_KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of a moto server that lives as long as the session; tests that use it carry the marker `s3`."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("moto[server] is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, **S3_KEYS}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1).close()
                break
            except OSError:
                if server.poll() is not None:
                    pytest.skip("moto's server does not start here")
                time.sleep(0.1)
        yield endpoint
    finally:
        server.terminate()
        server.wait(timeout=10)


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


@pytest.fixture
def ranges_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the byte ranges that are asked from any storage, in bytes."""
    from unet_batch.archive.storage import Storage

    asked: list[int] = []
    inner = Storage.read_range

    def watched(self: Storage, uri: str, start: int, stop: int, *, version: str | None = None) -> bytes:
        asked.append(stop - start)
        return inner(self, uri, start, stop, version=version)

    monkeypatch.setattr(Storage, "read_range", watched)
    return asked
