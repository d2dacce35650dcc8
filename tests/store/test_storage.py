"""Storage: the contract on disks and on S3, and what only one of them does."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from contracts.cloud_suite import CloudSuite
from contracts.store_suite import StoreSuite
from faults.unruly_proxy import UnrulyProxy, unruly

from unet_batch.errors import Changed, Conflict, Denied, JobError, NotFound, StorageError, TooLarge, Unavailable
from unet_batch.options import EnvRef
from unet_batch.store import obstore_reads, unfinished
from unet_batch.store.objects import join
from unet_batch.store.storage import Storage


class TestLocalStore(StoreSuite):
    """Files on disk."""

    @pytest.fixture
    def storage(self) -> Storage:
        return Storage(threads=4)

    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/store"


@pytest.mark.s3
class TestS3Store(CloudSuite):
    """A server that speaks S3. Single objects are read through obstore, all else goes through botocore."""

    another_version = "etag:0"
    put_method = "PUT"
    nowhere = "s3://no-such-bucket-here/a"

    @pytest.fixture
    def storage(self, s3_options: dict) -> Storage:
        return Storage(s3_options, threads=4, first_wait_s=0.01)

    @pytest.fixture
    def top(self, new_bucket: Callable[[], str]) -> str:
        return new_bucket()

    @pytest.fixture
    def root(self, new_bucket: Callable[[], str]) -> str:
        return f"{new_bucket()}/prefix"

    @pytest.fixture
    def behind(self, s3_options: dict, s3_endpoint: str) -> Iterator[tuple[Storage, UnrulyProxy]]:
        with unruly(s3_endpoint) as proxy:
            yield Storage({**s3_options, "endpoint_url": proxy.url}, threads=4, first_wait_s=0.01), proxy

    def test_a_put_is_one_request(self, behind: tuple[Storage, UnrulyProxy], top: str) -> None:
        """As in every store, but for an ETag that is refused: it is sent once without its quotes, as some want it."""
        storage, proxy = behind
        version = storage.create(f"{top}/a", b"1")
        storage.replace(f"{top}/a", b"2", version=version)
        assert proxy.calls == {"PUT a": 2}
        with pytest.raises(Conflict):
            storage.replace(f"{top}/a", b"x", version=version)
        assert proxy.calls == {"PUT a": 4}
        assert storage.read(f"{top}/a") == b"2"

    def test_the_version_is_the_etag(self, storage: Storage, root: str) -> None:
        """Versions are comparable with what other tools show: an unquoted ETag (MD5 of a single put)."""
        assert storage.put(f"{root}/a", b"abc") == "etag:900150983cd24fb0d6963f7d28e17f72"

    def test_a_listing_goes_on_after_its_first_page(self, s3_options: dict, root: str) -> None:
        """S3 lists at most 1,000 keys at once; here two."""
        storage = Storage({**s3_options, "s3_additional_kwargs": {"MaxKeys": 2}})
        for name in ("a", "b/1", "c", "d/1", "e/1"):
            storage.put(f"{root}/{name}", b"")
        assert [o.uri.removeprefix(root) for o in storage.list(root)] == ["/a", "/b/1", "/c", "/d/1", "/e/1"]
        assert storage.folders(root) == ["b", "d", "e"]

    def test_no_asynchronous_client_is_imported(self, s3_options: dict, root: str) -> None:
        """s3fs, aiobotocore and aiohttp cost half a second in each process, and nothing here needs them."""
        code = (
            "import json, sys; from unet_batch.store.storage import Storage\n"
            "store, root = Storage(json.loads(sys.argv[1])), sys.argv[2]\n"
            "version = store.create(f'{root}/a', b'1'); version = store.replace(f'{root}/a', b'2', version=version)\n"
            "assert (len(list(store.list(root))), store.read(f'{root}/a')) == (1, b'2')\n"
            "store.delete(f'{root}/a', version=version)\n"
            "print(sorted({'s3fs', 'aiobotocore', 'aiohttp', 'fsspec'} & set(sys.modules)))"
        )
        command = [sys.executable, "-c", code, json.dumps(s3_options), root]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr

    def test_fsspecs_own_configuration_still_counts(
        self, s3_options: dict, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`FSSPEC_S3_ENDPOINT_URL` names a server for every job, as before; the job's options come first."""
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3_options["endpoint_url"]})
        monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", s3_options["endpoint_url"])
        rest = {name: value for name, value in s3_options.items() if name != "endpoint_url"}
        Storage(rest).put(f"{root}/a", b"1")
        with pytest.raises(Unavailable):
            Storage({**rest, "endpoint_url": "http://127.0.0.1:1"}, first_wait_s=0).read(f"{root}/a")

    def test_other_credentials_are_our_error(self, storage: Storage, root: str, s3_endpoint: str) -> None:
        """Keys named in the job file come from the environment, on first use."""
        other = Storage({"endpoint_url": s3_endpoint, "key": EnvRef(env="UNSET_KEY_OF_A_TEST")})
        with pytest.raises(JobError, match="UNSET_KEY_OF_A_TEST"):
            other.head(f"{root}/a")


class TestS3StoreWithoutObstore(TestS3Store):
    """Where obstore is not installed, or cannot read a bucket as botocore would: the same suite through botocore."""

    @pytest.fixture(autouse=True)
    def elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(obstore_reads, "is_here", lambda: False)


# Local files ------------------------------------------------------------------------------------------------------


def test_a_link_inside_the_archive_is_followed(tmp_path: Path) -> None:
    """A link to a file below the listed folder is that file under another name."""
    (tmp_path / "a.png").write_bytes(b"abc")
    (tmp_path / "b.png").symlink_to("a.png")
    found = {o.uri[-5:]: (o.size_bytes, o.problem) for o in Storage().list(f"file://{tmp_path}")}
    assert found == {"a.png": (3, None), "b.png": (3, None)}


def test_a_link_out_of_the_archive_is_a_problem_not_a_file(tmp_path: Path) -> None:
    """Links out, links to folders, dead links and pipes are reported and never opened."""
    (tmp_path / "secret").write_bytes(b"secret")
    top = tmp_path / "archive"
    (top / "sub").mkdir(parents=True)
    (top / "out").symlink_to(tmp_path / "secret")
    (top / "dead").symlink_to(top / "nothing")
    (top / "loop").symlink_to(top)
    os.mkfifo(top / "pipe")
    found = {Path(o.uri).name: o.problem and str(o.problem[0]) for o in Storage().list(f"file://{top}")}
    assert found == {"out": "read.denied", "dead": "read.not_found", "loop": "read.denied", "pipe": "read.denied"}


@pytest.mark.parametrize("target", ["self.png", "a.png/b.png"])
def test_a_link_that_cannot_be_resolved_costs_its_own_name_only(tmp_path: Path, target: str) -> None:
    """A link to itself, and one through a file: the other names of the folder are listed all the same."""
    (tmp_path / "a.png").write_bytes(b"abc")
    (tmp_path / "self.png").symlink_to(target)
    found = {Path(o.uri).name: o.problem and str(o.problem[0]) for o in Storage().list(f"file://{tmp_path}")}
    assert found == {"a.png": None, "self.png": "read.not_found"}


def test_a_name_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    """Tables hold text: such a file is reported under a readable name."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"x")
    (found,) = Storage().list(f"file://{tmp_path}")
    assert found.uri.endswith("/\\xff.png")
    assert found.problem is not None


def test_a_pipe_does_not_block_a_read(tmp_path: Path) -> None:
    """A read of something that is no file ends at once."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFound):
        Storage().read(f"file://{tmp_path}/pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_denied(tmp_path: Path) -> None:
    """EACCES is a fact about the object."""
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0)
    with pytest.raises(Denied):
        Storage().read(f"file://{tmp_path}/a")


def test_a_put_leaves_no_temporary_file_and_no_lock_in_a_listing(tmp_path: Path) -> None:
    """Readers and listings see objects only."""
    storage, uri = Storage(), f"file://{tmp_path}/data.parquet"
    version = storage.create(uri, b"1")
    storage.replace(uri, b"2", version=version)
    assert [o.uri for o in storage.list(f"file://{tmp_path}")] == [uri]
    assert os.listdir(tmp_path) == ["data.parquet"]


def test_those_who_waited_for_a_lock_that_was_removed_take_a_new_one(tmp_path: Path) -> None:
    """The last holder removes the lock: of twenty who replace at once, one at a time is in, and no lock is left."""
    inside, most, done = 0, 0, 0

    def enter(_: int) -> None:
        nonlocal inside, most, done
        with unfinished.locked(str(tmp_path / "a")):
            inside += 1
            most = max(most, inside)
            time.sleep(0.001)
            done += 1
            inside -= 1

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(enter, range(200)))
    assert (most, done) == (1, 200)
    assert os.listdir(tmp_path) == []


def test_a_failed_put_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk costs the new bytes only."""
    storage, uri = Storage(first_wait_s=0), f"file://{tmp_path}/a"
    storage.put(uri, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        storage.put(uri, b"new")
    assert storage.read(uri) == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_replacement_is_always_younger_than_what_it_replaced(tmp_path: Path) -> None:
    """Two puts within a tick of a coarse or wrong clock are two versions: size and time must tell them apart."""
    storage, path = Storage(), tmp_path / "a"
    path.write_bytes(b"1")
    ahead = time.time_ns() + 10**15
    os.utime(path, ns=(ahead, ahead))
    found = storage.head(f"file://{path}")
    assert found is not None
    storage.replace(f"file://{path}", b"2", version=found.version)
    assert os.stat(path).st_mtime_ns > ahead


def test_comparing_and_renaming_are_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process compares before a rename is done, even a slow one."""
    storage, uri, inner = Storage(), f"file://{tmp_path}/a", os.replace
    base = storage.create(uri, b"base")

    def slow(source: str, target: str) -> None:
        time.sleep(0.1)
        inner(source, target)

    monkeypatch.setattr(os, "replace", slow)

    def replaces(number: int) -> bool:
        try:
            storage.replace(uri, str(number).encode(), version=base)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(replaces, range(4))) == 1


def test_a_file_that_grows_while_it_is_read_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers that do not rename are noticed."""
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    inner = os.pread

    def slow(descriptor: int, size: int, start: int) -> bytes:
        body = inner(descriptor, size, start)
        path.write_bytes(b"abcdef")
        return body

    monkeypatch.setattr(os, "pread", slow)
    with pytest.raises(Changed):
        Storage().read(f"file://{path}")


def test_published_files_are_readable_by_others(tmp_path: Path) -> None:
    """Puts honour the umask like any other program, so other users can read what is published."""
    old = os.umask(0o022)
    try:
        Storage().create(f"file://{tmp_path}/a", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o644


@pytest.mark.slow
def test_ten_thousand_small_files_cost_little_each(tmp_path: Path) -> None:
    """The fast path: well below 100 µs for one small local file (the limit here is ten times that)."""
    for number in range(10_000):
        (tmp_path / str(number)).write_bytes(b"%06d" % number * 100)
    storage = Storage()
    found = list(storage.list(f"file://{tmp_path}"))
    start = time.perf_counter()
    bodies = [storage.read(one.uri, version=one.version) for one in found]
    seconds = time.perf_counter() - start
    assert {int(body[:6]) for body in bodies} == set(range(10_000))
    assert seconds / 10_000 < 1e-3


# One object, many rules --------------------------------------------------------------------------------------------


def test_a_storage_is_not_pickled() -> None:
    """A pickle would carry credentials to wherever it goes."""
    with pytest.raises(TypeError):
        pickle.dumps(Storage())


def test_an_unknown_scheme_is_refused() -> None:
    """fsspec knows 56 protocols; jobs get seven."""
    with pytest.raises(JobError, match="http"):
        Storage().read("http://host/a.png")


@pytest.mark.parametrize(
    ("uri", "extra"), [("s3://b/a", "s3"), ("gs://b/a", "gcs"), ("az://c/a", "azure"), ("abfss://c/a", "azure")]
)
def test_a_missing_package_is_said_with_its_extra(monkeypatch: pytest.MonkeyPatch, uri: str, extra: str) -> None:
    """No store falls back to another."""

    def missing(scheme: str, **options: object) -> None:
        raise ImportError(f"please install what {scheme} needs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(JobError, match=rf"pip install -e '\.\[{extra}\]'"):
        Storage().read(uri)


def test_options_that_open_no_store_are_an_error_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing account name is not a fault of the store."""
    pytest.importorskip("adlfs")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    with pytest.raises(JobError, match="options"):
        Storage().read("az://container/a.png")


def test_reading_ahead_is_bounded(tmp_path: Path) -> None:
    """At most `threads` objects are fetched before the first is taken."""
    uris = [f"file://{tmp_path}/{i:03}" for i in range(100)]
    storage = Storage(threads=4)
    [storage.put(uri, b"x") for uri in uris]
    fetched = []
    calls = [lambda uri=uri: (fetched.append(uri), storage.read(uri))[1] for uri in uris]
    answers = storage.map_bounded(calls)
    next(answers)
    assert len(fetched) <= 5
    answers.close()
    assert len(fetched) <= 5


def test_a_limit_holds_for_many_reads(tmp_path: Path) -> None:
    """TooLarge is a fact about one object."""
    storage = Storage()
    storage.put(f"file://{tmp_path}/a", b"123")
    assert [type(a) for a in storage.read_many([(join(f"file://{tmp_path}", "a"), None)], max_bytes=2)] == [TooLarge]


def test_threads_that_begin_together_share_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client holds a pool of connections and a token: eight threads that ask at once make one, and all get it."""
    storage, together = Storage(), threading.Barrier(8)
    made: list[str] = []
    real = Storage._made

    def slowly(self: Storage, scheme: str, uri: str):
        made.append(scheme)
        time.sleep(0.05)
        return real(self, scheme, uri)

    monkeypatch.setattr(Storage, "_made", slowly)

    def ask(_: int) -> int:
        together.wait(10)
        return id(storage._store("file:///folder/a"))

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(ask, range(8)))) == 1
    assert made == ["file"]
