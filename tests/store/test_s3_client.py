"""Clients of S3: what they share in a process, and what they do not."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("botocore")

import botocore.loaders
from botocore.loaders import JSONFileLoader

from unet_batch.store import s3_client
from unet_batch.store.s3_client import S3Client

OPTIONS = {
    "key": "k",
    "secret": "s",
    "endpoint_url": "http://127.0.0.1:9",
    "client_kwargs": {"region_name": "eu-west-1"},
}


def test_a_second_client_reads_no_description_of_a_service_again(monkeypatch):
    """A tenth of a second of processor time for each store of a job."""
    read: list[str] = []
    load = JSONFileLoader.load_file
    # The server of other tests shares one loader for all of this process.
    monkeypatch.setattr(botocore.loaders, "create_loader", inspect.unwrap(botocore.loaders.create_loader))
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda self, path: read.append(path) or load(self, path))
    s3_client._loader.cache_clear()
    first = S3Client(OPTIONS)
    assert any("s3" in path for path in read)
    read.clear()
    second = S3Client({**OPTIONS, "key": "another"})
    assert read == []
    assert [client.credentials()["access_key_id"] for client in (first, second)] == ["k", "another"]


def test_clients_of_one_process_have_their_own_endpoints():
    """Descriptions are shared, and nothing else."""
    other = {**OPTIONS, "endpoint_url": "http://127.0.0.1:10"}
    assert [S3Client(options).place("bucket").url for options in (OPTIONS, other)] == [
        "http://127.0.0.1:9/bucket",
        "http://127.0.0.1:10/bucket",
    ]


def test_another_folder_of_descriptions_is_another_loader():
    """A profile may name one (`data_path`)."""
    assert s3_client._loader(None) is s3_client._loader(None)
    assert s3_client._loader("/elsewhere") is not s3_client._loader(None)
