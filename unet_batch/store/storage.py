"""Objects by URI in any store: listed, read with their version pinned, and put under conditions.

The only module that knows fsspec. Knows the one retry layer and the threads; knows nothing of images, shards or
tables. A `Storage` belongs to its process: it is rebuilt from the job file elsewhere, never pickled.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol, TypeVar, cast

from unet_batch.errors import (
    AlreadyExists,
    Changed,
    Conflict,
    Denied,
    JobError,
    NotFound,
    PutUnknown,
    StorageError,
    TooLarge,
    Unavailable,
    UnetBatchError,
)
from unet_batch.options import Options, resolve_options
from unet_batch.store.conditional import ANYTHING, check
from unet_batch.store.faults import meaning, retrying, translated
from unet_batch.store.local import LocalStore
from unet_batch.store.objects import SCHEMES, Names, Object, canonical, join, path_of, redact, scheme_of
from unet_batch.store.ranges import RangeFile

__all__ = ["FACTS", "Object", "Storage", "canonical", "join"]

T = TypeVar("T")

FACTS = (NotFound, Changed, TooLarge, Denied)
"""What a read can find out about an object; any other failure says something about the store."""

PROBES = 3
"""Of an output, until one of them got all its answers."""

_EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""By scheme: the extra of this package that it needs; `_kind` has its class, and `objects.SCHEMES` the names."""


class Store(Protocol):
    """What one scheme must be able to do; errors are its own."""

    def list(self, folder: str) -> Iterator[Object]: ...
    def folders(self, folder: str) -> Names: ...
    def head(self, uri: str) -> Object: ...
    def read(self, uri: str, *, span: tuple[int, int] | None, version: str | None, max_bytes: int | None) -> bytes: ...
    def put(self, uri: str, body: bytes | Path, expect: str | None) -> str: ...
    def delete(self, uri: str, expect: str) -> None: ...


class Storage:
    """All stores of one set of options. Threads may share it.

    Raises JobError where an option or a package is missing, else StorageError's subclasses, from every method.
    """

    def __init__(self, options: Options | None = None, threads: int = 16, *, first_wait_s: float = 0.2) -> None:
        """options: of the fsspec file system; read, with their environment variables, on first use.

        threads: objects read at once. first_wait_s: wait before the second of five tries; the next waits double.
        """
        self._options = options or {}
        self._threads = threads
        self._retry = retrying(first_wait_s)
        self._retry_busy = retrying(first_wait_s, lambda error: meaning(error) == "busy")
        self._lock = threading.Lock()
        self._stores: dict[str, Store] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Storage is not pickled (it holds credentials); build it again from its options")

    def list(self, prefix: str) -> Iterator[Object]:
        """Every object below the folder `prefix`, never from a cache; a missing folder gives nothing.

        Raises NotFound where the bucket itself is missing.
        """
        try:
            yield from self._store(prefix).list(prefix)
        except UnetBatchError:
            raise
        except Exception as error:  # whatever a store's SDK raises
            raise translated(error, prefix) from error

    def folders(self, prefix: str) -> Names:
        """Names of the folders directly in the folder `prefix`, sorted."""
        return self._try(prefix, lambda: self._store(prefix).folders(prefix))

    def is_folder(self, uri: str) -> bool:
        """Whether there is a folder: on a disk even an empty one, in an object store one that holds something."""
        if scheme_of(uri) == "file":
            return Path(path_of(uri)).is_dir()
        return next(iter(self.list(uri)), None) is not None

    def head(self, uri: str) -> Object | None:
        """The object as it is now; None where there is none."""
        try:
            return self._try(uri, lambda: self._store(uri).head(uri))
        except NotFound:
            return None

    def read(self, uri: str, *, version: str | None = None, max_bytes: int | None = None) -> bytes:
        """The whole object, never a mixture of two versions and never a part of it.

        Raises NotFound, Denied, Changed (not `version` any more), TooLarge (more than max_bytes), NotLoggedIn or
        Unavailable.
        """
        store = self._store(uri)
        return self._try(uri, lambda: store.read(uri, span=None, version=version, max_bytes=max_bytes))

    def read_range(self, uri: str, start: int, stop: int, *, version: str | None = None) -> bytes:
        """Exactly the bytes [start, stop) of the object. Raises as `read`, and Changed where it is shorter."""
        if stop <= start:
            return b""
        store = self._store(uri)
        return self._try(uri, lambda: store.read(uri, span=(start, stop), version=version, max_bytes=None))

    def read_many(
        self, requests: Sequence[tuple[str, str | None]], *, max_bytes: int | None = None
    ) -> Iterator[bytes | StorageError]:
        """Whole objects (URI, version) in the order asked for, `threads` of them under way at a time.

        NotFound, Denied, Changed and TooLarge are yielded in their place; Unavailable and the rest are raised.
        """

        def fetch(uri: str, version: str | None) -> bytes | StorageError:
            try:
                return self.read(uri, version=version, max_bytes=max_bytes)
            except FACTS as fact:
                return fact

        return self.ahead(partial(fetch, uri, version) for uri, version in requests)

    def ahead(self, calls: Iterable[Callable[[], T]], *, depth: int | None = None) -> Iterator[T]:
        """Results of the calls in their order; at most `depth` (default: `threads`) are under way or unread.

        Calls run on this storage's threads, so a call must not use `ahead` itself.
        """
        depth = depth or self._threads
        waiting: deque[Future[T]] = deque()
        try:
            for call in calls:
                waiting.append(self._workers().submit(call))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def open(self, uri: str, *, version: str | None = None) -> BinaryIO:
        """A seekable binary file over one version of an object (default: the one there now); reads raise Changed."""
        found = self.head(uri)
        if found is None:
            raise NotFound(f"there is no {uri}")
        if version is not None and found.version != version:
            raise Changed(f"{uri} is {found.version} now, planned was {version}; plan the run again")
        read_range = partial(self._read_span, uri, found.version)
        return cast(BinaryIO, RangeFile(read_range, found.size_bytes))

    def create(self, uri: str, body: bytes | Path) -> str:
        """Put an object where nothing is, whole or not at all; returns its version. Raises AlreadyExists.

        For objects named by their content: after a lost answer it is tried again, and then finds its own put.
        """
        return self._try(uri, lambda: self._put(uri, body, None))

    def replace(self, uri: str, body: bytes | Path, *, version: str | None) -> str:
        """Put an object only over this version of it (None: only where nothing is), whole or not at all.

        Returns the new version. Raises Conflict where another writer was here, PutUnknown where nobody knows.
        """
        tries = 0

        def attempt() -> str:
            nonlocal tries
            tries += 1
            return self._put(uri, body, version)

        try:
            return self._retry_busy(attempt)
        except (AlreadyExists, Conflict) as lost:
            if tries > 1:  # a try that seemed to do nothing may have been the other writer
                raise PutUnknown(f"{uri} was refused after {tries} tries; read it back to see whose it is") from lost
            raise Conflict(str(lost)) from lost
        except UnetBatchError:
            raise
        except Exception as error:  # whatever a store's SDK raises
            if meaning(error) == "unknown":
                text = redact(" ".join(str(error).split()))[:300]
                raise PutUnknown(f"no answer to the put of {uri} ({text}); read it back to see whose it is") from error
            raise translated(error, uri) from error

    def put(self, uri: str, body: bytes | Path) -> str:
        """Put an object over whatever is there, whole or not at all; returns its version."""
        return self._try(uri, lambda: self._put(uri, body, ANYTHING))

    def delete(self, uri: str, *, version: str | None = None) -> None:
        """Remove an object; a missing one is fine.

        version: remove only this version of it. Raises Conflict where it is another one. A store that ignores the
        condition of a removal (several S3-compatible ones do) is only asked first: a put between question and removal
        would be lost there.
        """
        expect = ANYTHING if version is None else version
        try:
            if version is not None:
                found = self.head(uri)
                if found is None:
                    return
                check(uri, found.version, expect)
            self._try(uri, lambda: self._store(uri).delete(uri, expect))
        except NotFound:
            return

    def leftovers(self, folder: str, *, remove: bool) -> Iterator[Object]:
        """What killed puts left below a folder and no listing shows; nothing in stores where puts leave nothing.

        remove: delete each before it is given. Never a file of a put that may still be under way.
        """
        store = self._store(folder)
        if not isinstance(store, LocalStore):
            return
        try:
            yield from store.leftovers(folder, remove=remove)
        except OSError as error:
            raise translated(error, folder) from error

    def probe(self, scratch: str) -> str | None:
        """None where the store honours conditional puts in the folder `scratch`, else a sentence about what it does.

        Raises Unavailable where it keeps its answers to itself.
        """
        for _ in range(PROBES):
            try:
                return self._probe(scratch, join(scratch, f"probe-{secrets.token_hex(8)}"))
            except (AlreadyExists, PutUnknown) as error:  # an answer was lost: a fresh name leaves nothing to guess
                unsure = error
        raise Unavailable(f"{scratch}: {PROBES} probes lost an answer ({unsure}); run the same command again later")

    def _probe(self, scratch: str, uri: str) -> str | None:
        try:
            first = self.create(uri, b"1")
            if _succeeds(lambda: self.create(uri, b"2")):
                return f"the store at {scratch} ignores create-only puts (If-None-Match): it overwrote an object"
            try:
                self.replace(uri, b"three", version=first)
            except Conflict:
                return f"the store at {scratch} refuses to replace an object whose version (If-Match) is right"
            if _succeeds(lambda: self.replace(uri, b"four", version=first)):
                return f"the store at {scratch} ignores the version (If-Match) of a put: it let a stale writer win"
            if self.read(uri) != b"three":
                return f"the store at {scratch} does not give back what was put last"
        finally:
            self.delete(uri)
        return None

    def close(self) -> None:
        """Let the threads go; the storage makes new ones when it is used again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _try(self, uri: str, call: Callable[[], T]) -> T:
        try:
            return self._retry(call)
        except UnetBatchError:
            raise
        except Exception as error:  # whatever a store's SDK raises
            raise translated(error, uri) from error

    def _read_span(self, uri: str, version: str, start: int, stop: int) -> bytes:
        return self.read_range(uri, start, stop, version=version)

    def _put(self, uri: str, body: bytes | Path, expect: str | None) -> str:
        return self._store(uri).put(uri, body, expect)

    def _workers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="fetch")
            return self._pool

    def _store(self, uri: str) -> Store:
        scheme = scheme_of(uri)
        store = self._stores.get(scheme)
        if store is None:
            with self._lock:  # looked at again: another thread may have made it meanwhile
                store = self._stores.get(scheme)
                if store is None:
                    store = self._stores[scheme] = self._made(scheme, uri)
        return store

    def _made(self, scheme: str, uri: str) -> Store:
        if scheme not in SCHEMES:
            raise JobError(f"{redact(uri)!r} is not the URI of a store; allowed are {', '.join(SCHEMES)}")
        if scheme == "file":
            return LocalStore()
        extra = _EXTRAS[scheme]
        kind = _kind(extra)
        options = kind.options(resolve_options(self._options), self._threads)
        import fsspec

        try:
            fs = fsspec.filesystem(scheme, skip_instance_cache=True, **options)
        except ImportError as error:
            package = f"unet-batch[{extra}]"
            raise JobError(f"{scheme}:// needs a package that is not here: pip install {package}") from error
        except (TypeError, ValueError) as error:
            raise JobError(f"`options` open no store at {scheme}:// ({redact(str(error))})") from error
        store: Store = kind(fs, self._retry)
        return store


def _kind(extra: str) -> type[Any]:
    """The class of an extra's stores. Local disks need none of them, nor fsspec and asyncio: 0.1 s in each process."""
    if extra == "s3":
        from unet_batch.store.s3 import S3Store

        return S3Store
    if extra == "gcs":
        from unet_batch.store.gcs import GcsStore

        return GcsStore
    from unet_batch.store.azure import AzureStore

    return AzureStore


def _succeeds(put: Callable[[], str]) -> bool:
    try:
        put()
    except (AlreadyExists, Conflict):
        return False
    return True
