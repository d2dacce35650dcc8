"""Fixtures of the multi-node tests: a slow S3 server that counts what is read, and a job in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_job import KEYS, RemoteJob
from small_cluster import SmallCluster, free_ports, wait_for


@pytest.fixture
def cluster(three_ray_nodes: tuple[SmallCluster, dict[str, str]]) -> SmallCluster:
    """The three nodes, with no secret of the store in their environment."""
    return three_ray_nodes[0]


@pytest.fixture
def token(three_ray_nodes: tuple[SmallCluster, dict[str, str]]) -> str:
    """The token that every client must send."""
    return three_ray_nodes[1]["RAY_AUTH_TOKEN"]


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
