"""What every store must do: subclass, give the fixtures `storage` and `root`, and all tests must pass."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from unet_batch.errors import AlreadyExists, Changed, Conflict, NotFound, StorageError, TooLarge
from unet_batch.store.objects import join
from unet_batch.store.storage import Storage


class StoreSuite:
    """`storage`: talks to the store. `root`: URI of a folder in it where nothing is."""

    def test_a_put_object_is_read_back(self, storage: Storage, root: str) -> None:
        """Bytes come back as they went in, and the put tells the version that a head tells."""
        uri = join(root, "deep/folder/a.bin")
        version = storage.put(uri, b"\x00\xffbytes")
        found = storage.head(uri)
        assert storage.read(uri) == b"\x00\xffbytes"
        assert found is not None
        assert (found.uri, found.size_bytes, found.version) == (uri, 7, version)

    def test_an_empty_object_is_an_object(self, storage: Storage, root: str) -> None:
        """Attempt markers are empty objects."""
        uri = join(root, "marker")
        storage.create(uri, b"")
        assert storage.read(uri) == b""
        assert [o.size_bytes for o in storage.list(root)] == [0]

    def test_a_file_on_disk_can_be_the_body(self, storage: Storage, root: str, tmp_path: Path) -> None:
        """A partition is merged on disk and put from there."""
        body = tmp_path / "merged"
        body.write_bytes(b"rows" * 1000)
        uri = join(root, "data.parquet")
        version = storage.create(uri, body)
        storage.replace(uri, body, version=version)
        assert storage.read(uri) == b"rows" * 1000

    def test_a_listing_holds_every_object_below_the_folder(self, storage: Storage, root: str) -> None:
        """Folders are walked; a sibling whose name only begins alike is not below."""
        for name in ("day/a.png", "day/b/c.png", "day-2/d.png", "e.png"):
            storage.put(join(root, name), b"x")
        below = [join(root, "day/a.png"), join(root, "day/b/c.png")]
        assert sorted(o.uri for o in storage.list(join(root, "day"))) == below
        assert sorted(o.uri for o in storage.list(join(root, "day/"))) == below

    def test_a_listing_tells_the_versions_that_reads_accept(self, storage: Storage, root: str) -> None:
        """What the inventory pins is what a read checks."""
        storage.put(join(root, "a.png"), b"abc")
        (found,) = storage.list(root)
        assert found.size_bytes == 3
        assert storage.read(found.uri, version=found.version) == b"abc"
        assert storage.head(found.uri) == found

    def test_a_missing_folder_is_empty(self, storage: Storage, root: str) -> None:
        """A day without images is no error."""
        assert list(storage.list(join(root, "no/such"))) == []
        assert storage.folders(join(root, "no/such")) == []
        assert storage.is_folder(join(root, "no/such")) is False

    def test_a_listing_is_never_stale(self, storage: Storage, root: str) -> None:
        """An object that another client puts between two listings is in the second."""
        storage.put(join(root, "a"), b"1")
        first = [o.uri for o in storage.list(root)]
        storage.put(join(root, "b"), b"1")
        storage.delete(join(root, "a"))
        assert (first, [o.uri for o in storage.list(root)]) == ([join(root, "a")], [join(root, "b")])

    def test_folders_are_the_direct_children(self, storage: Storage, root: str) -> None:
        """Neither grandchildren nor objects are folders of a folder."""
        for name in ("2026/11/21/a.png", "2026/12/01/a.png", "2025/x.png", "file"):
            storage.put(join(root, name), b"x")
        assert storage.folders(root) == ["2025", "2026"]
        assert storage.folders(join(root, "2026")) == ["11", "12"]
        assert storage.is_folder(join(root, "2026")) is True

    @pytest.mark.parametrize("name", ["with space.png", "100%25.png", "a#b.png", "ü/漢字.png", "plus+&.png", "a=b,c"])
    def test_a_name_is_kept_verbatim(self, storage: Storage, root: str, name: str) -> None:
        """No percent decoding, no fragments: what a listing tells can be read."""
        storage.put(join(root, name), b"x")
        (found,) = storage.list(root)
        assert found.uri == join(root, name)
        assert storage.read(found.uri, version=found.version) == b"x"

    def test_a_missing_object_is_not_found(self, storage: Storage, root: str) -> None:
        """A read raises, a head says None, a delete is content."""
        uri = join(root, "gone")
        assert storage.head(uri) is None
        storage.delete(uri)
        with pytest.raises(NotFound):
            storage.read(uri)
        with pytest.raises(NotFound):
            storage.open(uri)

    def test_only_the_version_that_was_meant_is_removed(self, storage: Storage, root: str) -> None:
        """What another writer put meanwhile stays; what is gone already is gone."""
        uri = join(root, "lease")
        old = storage.put(uri, b"old!")
        new = storage.put(uri, b"new!")
        with pytest.raises(Conflict):
            storage.delete(uri, version=old)
        assert storage.read(uri) == b"new!"
        storage.delete(uri, version=new)
        assert storage.head(uri) is None
        storage.delete(uri, version=new)

    def test_a_replaced_object_is_changed(self, storage: Storage, root: str) -> None:
        """Bytes of the same length but another version are never returned for the pinned one."""
        uri = join(root, "a")
        old = storage.put(uri, b"old!")
        new = storage.put(uri, b"new!")
        assert old != new
        with pytest.raises(Changed):
            storage.read(uri, version=old)
        with pytest.raises(Changed):
            storage.read_range(uri, 0, 2, version=old)
        with pytest.raises(Changed):
            storage.open(uri, version=old)
        assert storage.read(uri, version=new) == b"new!"

    def test_an_open_file_does_not_mix_versions(self, storage: Storage, root: str) -> None:
        """A reader that seeks gets bytes of one version, or an error."""
        uri = join(root, "a")
        storage.put(uri, b"a" * 200_000)
        with storage.open(uri) as stream:
            assert stream.read(2) == b"aa"
            storage.put(uri, b"b" * 200_000)
            stream.seek(199_000)
            with pytest.raises(Changed):
                stream.read(2)

    def test_a_range_is_exact(self, storage: Storage, root: str) -> None:
        """Bytes [start, stop); beyond the end is an error, never fewer bytes."""
        uri = join(root, "a")
        version = storage.put(uri, b"0123456789")
        assert storage.read_range(uri, 2, 5, version=version) == b"234"
        assert storage.read_range(uri, 9, 10) == b"9"
        assert storage.read_range(uri, 4, 4) == b""
        with pytest.raises(Changed):
            storage.read_range(uri, 8, 12)
        with pytest.raises(Changed):
            storage.read_range(uri, 12, 14)

    def test_an_open_file_seeks(self, storage: Storage, root: str) -> None:
        """Footers are read from the end, members from the middle."""
        uri = join(root, "a")
        storage.put(uri, bytes(range(256)) * 1000)
        with storage.open(uri) as stream:
            assert stream.seek(-2, 2) == 255_998
            assert stream.read() == b"\xfe\xff"
            assert stream.seek(70_000) == 70_000
            assert stream.read(3) == bytes([70_000 % 256, 70_001 % 256, 70_002 % 256])
            assert stream.tell() == 70_003

    def test_an_object_above_the_limit_is_too_large(self, storage: Storage, root: str) -> None:
        """A limit is checked before the bytes are taken in."""
        uri = join(root, "a")
        storage.put(uri, b"12345")
        assert storage.read(uri, max_bytes=5) == b"12345"
        with pytest.raises(TooLarge):
            storage.read(uri, max_bytes=4)

    def test_many_reads_keep_their_order_and_their_facts(self, storage: Storage, root: str) -> None:
        """Facts about one object stand in its place and cost no other."""
        good = [(join(root, f"{i:02}"), storage.put(join(root, f"{i:02}"), str(i).encode() * 3)) for i in range(40)]
        requests = [*good[:20], (join(root, "gone"), None), (good[0][0], "size:0,mtime:0"), *good[20:]]
        answers = list(storage.read_many(requests, max_bytes=6))
        assert [a for a in answers if isinstance(a, bytes)] == [str(i).encode() * 3 for i in range(40)]
        assert isinstance(answers[20], NotFound)
        assert isinstance(answers[21], Changed)

    def test_create_refuses_what_is_there(self, storage: Storage, root: str) -> None:
        """The first bytes stay."""
        uri = join(root, "part")
        storage.create(uri, b"first")
        with pytest.raises(AlreadyExists):
            storage.create(uri, b"second")
        assert storage.read(uri) == b"first"

    def test_one_of_many_creators_wins(self, storage: Storage, root: str) -> None:
        """Of eight threads that create the same object one succeeds, and its bytes are there."""
        uri, won, start = join(root, "part"), [], threading.Barrier(8)

        def create(number: int) -> None:
            start.wait()
            try:
                storage.create(uri, str(number).encode())
                won.append(number)
            except AlreadyExists:
                pass

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(won) == 1
        assert storage.read(uri) == str(won[0]).encode()

    def test_replace_needs_the_version_that_is_there(self, storage: Storage, root: str) -> None:
        """Compare and swap: a stale version, a missing object and a present one for "nothing" are conflicts."""
        uri = join(root, "data.parquet")
        first = storage.replace(uri, b"1", version=None)
        with pytest.raises(Conflict):
            storage.replace(uri, b"x", version=None)
        second = storage.replace(uri, b"2", version=first)
        with pytest.raises(Conflict):
            storage.replace(uri, b"x", version=first)
        assert storage.replace(uri, b"3", version=second) != second
        with pytest.raises(Conflict):
            storage.replace(join(root, "gone"), b"x", version=first)
        assert storage.read(uri) == b"3"

    def test_one_of_many_replacers_wins(self, storage: Storage, root: str) -> None:
        """Of eight threads that replace the same version one succeeds."""
        uri, won, start = join(root, "data.parquet"), [], threading.Barrier(8)
        base = storage.create(uri, b"base")

        def replace(number: int) -> None:
            start.wait()
            try:
                storage.replace(uri, str(number).encode(), version=base)
                won.append(number)
            except Conflict:
                pass

        threads = [threading.Thread(target=replace, args=(number,)) for number in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(won) == 1
        assert storage.read(uri) == str(won[0]).encode()

    def test_the_probe_passes_and_leaves_nothing(self, storage: Storage, root: str) -> None:
        """A store that honours conditions is accepted; the scratch object is gone afterwards."""
        assert storage.probe(join(root, "_work/probe")) is None
        assert list(storage.list(root)) == []

    def test_every_error_is_one_of_ours(self, storage: Storage, root: str) -> None:
        """A folder where an object is expected is some StorageError, not a foreign exception."""
        storage.put(join(root, "folder/a"), b"x")
        with pytest.raises(StorageError):
            storage.read(join(root, "folder"))
