"""What a store over HTTP must do besides: few requests, bodies in pieces, and no empty archive in place of a mistake.

Subclass with the fixtures of the store suite and two more: `behind`, a storage whose requests pass through a counting
proxy, and `top`, the URI of an empty bucket.
"""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import ClassVar

import pytest
from contracts.store_suite import StoreSuite
from faults.unruly_proxy import UnrulyProxy

from unet_batch.errors import AlreadyExists, Changed, Conflict, NotFound, TooLarge
from unet_batch.store.storage import Storage


class CloudSuite(StoreSuite):
    """`another_version`: as the store writes them, of no object. `put_method`: HTTP's. `nowhere`: in no bucket."""

    another_version: ClassVar[str]
    put_method: ClassVar[str]
    nowhere: ClassVar[str]

    def test_a_pinned_read_is_one_request(self, behind: tuple[Storage, UnrulyProxy], top: str) -> None:
        """The answer carries the version of its own bytes, so nothing else is asked: for the whole, and for a part."""
        storage, proxy = behind
        version = storage.put(f"{top}/a", b"0123456789")
        proxy.calls.clear()
        assert storage.read(f"{top}/a", version=version) == b"0123456789"
        assert storage.read_range(f"{top}/a", 2, 5, version=version) == b"234"
        with pytest.raises(TooLarge):
            storage.read(f"{top}/a", version=version, max_bytes=9)
        with pytest.raises(Changed):
            storage.read(f"{top}/a", version=self.another_version)
        assert proxy.calls == {"GET a": 4}

    def test_a_put_is_one_request(self, behind: tuple[Storage, UnrulyProxy], top: str) -> None:
        """Created, refused, replaced, refused: bytes, name and condition go together, so nothing is there half."""
        storage, proxy = behind
        version = storage.create(f"{top}/a", b"1")
        with pytest.raises(AlreadyExists):
            storage.create(f"{top}/a", b"x")
        storage.replace(f"{top}/a", b"2", version=version)
        with pytest.raises(Conflict):
            storage.replace(f"{top}/a", b"x", version=version)
        assert proxy.calls == {f"{self.put_method} a": 4}
        assert storage.read(f"{top}/a") == b"2"

    def test_a_file_is_put_in_pieces(self, storage: Storage, root: str, tmp_path: Path) -> None:
        """Merged rows may have 2 GiB: they never are in memory at once."""
        body = tmp_path / "merged"
        body.write_bytes(os.urandom(1 << 20) * 32)
        storage.create(f"{root}/warm", b"x")
        tracemalloc.start()
        try:
            version = storage.create(f"{root}/data.parquet", body)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 8 << 20
        assert storage.read(f"{root}/data.parquet", version=version) == body.read_bytes()

    def test_a_bucket_itself_can_be_the_folder(self, storage: Storage, top: str) -> None:
        """A prefix is not required, and a bucket is no object."""
        storage.put(f"{top}/a/b", b"x")
        assert [o.uri for o in storage.list(top)] == [f"{top}/a/b"]
        assert storage.folders(f"{top}/") == ["a"]
        with pytest.raises(NotFound):
            storage.read(top)

    def test_a_missing_bucket_is_an_error(self, storage: Storage) -> None:
        """A typing error in its name must not look like an empty archive."""
        with pytest.raises(NotFound):
            list(storage.list(self.nowhere))
