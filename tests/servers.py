"""Servers of the stores' protocols, each on a free port until a block ends."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

S3_KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def serving(command: Callable[[int], list[str]], path: str, name: str, **environment: str) -> Iterator[str]:
    """URL of a server on a free port, until the block ends. Skips the test where the server does not start.

    command: what starts it on a port. path: answers anything at all when it is ready.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command(port), stdout=quiet, stderr=quiet, env={**os.environ, **environment})
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{endpoint}{path}", timeout=1).close()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                if server.poll() is not None:
                    pytest.skip(f"{name} does not start here")
                time.sleep(0.1)
        else:
            pytest.fail(f"{name} does not answer")
        yield endpoint
    finally:
        server.terminate()
        server.wait(timeout=10)


def moto() -> contextlib.AbstractContextManager[str]:
    """URL of a server of its own that speaks S3 and IAM."""

    def start(port: int) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("moto_server.py")), str(port)]

    return serving(start, "/moto-api/", "moto's server", **S3_KEYS)
