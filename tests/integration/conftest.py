"""Fixtures of the multi-node tests: a cluster with a job server, and a slow S3 server that counts what is read."""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_job import KEYS, RemoteJob
from small_cluster import SmallCluster, free_ports, wait_for


@pytest.fixture(scope="module")
def token() -> str:
    """What the cluster asks everybody for: its control plane listens on all interfaces, whatever its address is."""
    return secrets.token_hex(32)


@pytest.fixture(scope="module")
def cluster(token: str) -> Iterator[SmallCluster]:
    """A head without cores, a node with one core and a node with two; no secret of the store in their environment."""
    if not sys.platform.startswith("linux"):
        pytest.skip("each node has a loopback address of its own, which other systems do not set up")
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("ray[default], which brings the job server, is not installed")
    made = SmallCluster({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token})
    try:
        made.add("small", cpus=1)
        made.add("large", cpus=2)
        wait_for(f"{made.address}/api/version", token)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Endpoint of the S3 server, and the folder where it notes what is read."""
    folder, port = tmp_path_factory.mktemp("store"), free_ports(1)[0]
    command = [sys.executable, str(Path(__file__).with_name("slow_store.py")), str(port), str(folder)]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **KEYS})
    endpoint = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{endpoint}/moto-api/")
        yield endpoint, folder
    finally:
        server.kill()
        server.wait(timeout=30)


@pytest.fixture
def job(
    cluster: SmallCluster, store: tuple[str, Path], token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RemoteJob:
    """A job in a fresh bucket, with nothing in its archive."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return RemoteJob(cluster, *store, tmp_path, token)
