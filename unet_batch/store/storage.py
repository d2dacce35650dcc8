"""Objects by URI in any store: listed, read with their version pinned, and put under conditions.

The retries and the threads are here. A `Storage` belongs to its process: other processes build it again from the job
file; it cannot be pickled.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar, cast

from unet_batch.errors import (
    AlreadyExists,
    Changed,
    Conflict,
    Denied,
    NotFound,
    PutUnknown,
    StorageError,
    TooLarge,
    Unavailable,
    UnetBatchError,
)
from unet_batch.options import Options
from unet_batch.store.conditional import ANYTHING, check
from unet_batch.store.faults import meaning, retrying, translated
from unet_batch.store.local import LocalStore, leads_nowhere
from unet_batch.store.objects import Names, Object, Store, canonical, join, path_of, redact, scheme_of
from unet_batch.store.opening import opened
from unet_batch.store.ranges import RangeFile

__all__ = ["OBJECT_ERRORS", "Object", "Storage", "canonical", "join"]

T = TypeVar("T")

OBJECT_ERRORS = (NotFound, Changed, TooLarge, Denied)
"""Errors of a read that concern the object; all other errors concern the store."""

PROBES = 3
"""Most probes of an output, if answers are lost."""


class Storage:
    """All stores with one set of options. Thread-safe.

    Every method raises JobError if an option or a package is missing, and subclasses of StorageError.
    """

    def __init__(self, options: Options | None = None, threads: int = 16, *, first_wait_s: float = 0.2) -> None:
        """options: of the fsspec file system; resolved, with their environment variables, on first use.

        threads: objects read in parallel. first_wait_s: wait before the second of five tries; later waits double.
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
        """Every object below the folder `prefix`, not from a cache; a missing folder gives nothing.

        Raises NotFound if the bucket is missing.
        """
        try:
            yield from self._store(prefix).list(prefix)
        except UnetBatchError:
            raise
        except Exception as error:  # any error of the store's SDK
            raise translated(error, prefix) from error

    def folders(self, prefix: str) -> Names:
        """Names of the folders directly in the folder `prefix`, sorted."""
        return self._try(prefix, lambda: self._store(prefix).folders(prefix))

    def is_folder(self, uri: str) -> bool:
        """Whether the folder exists: on a disk also if it is empty, in an object store only if it holds objects."""
        if scheme_of(uri) == "file":
            return Path(path_of(uri)).is_dir()
        return next(iter(self.list(uri)), None) is not None

    def leads_nowhere(self, uri: str) -> bool:
        """Whether a local path ends in, or passes through, a link to what is not there; False in object stores."""
        return scheme_of(uri) == "file" and leads_nowhere(path_of(uri))

    def head(self, uri: str) -> Object | None:
        """The object's current state; None if it does not exist."""
        try:
            return self._try(uri, lambda: self._store(uri).head(uri))
        except NotFound:
            return None

    def read(self, uri: str, *, version: str | None = None, max_bytes: int | None = None) -> bytes:
        """The whole object, all bytes of one version.

        Raises NotFound, Denied, Changed (no longer `version`), TooLarge (more than max_bytes), NotLoggedIn or
        Unavailable.
        """
        store = self._store(uri)
        return self._try(uri, lambda: store.read(uri, span=None, version=version, max_bytes=max_bytes))

    def read_range(self, uri: str, start: int, stop: int, *, version: str | None = None) -> bytes:
        """Exactly the bytes [start, stop) of the object. Raises as `read`, and Changed if it is shorter."""
        if stop <= start:
            return b""
        store = self._store(uri)
        return self._try(uri, lambda: store.read(uri, span=(start, stop), version=version, max_bytes=None))

    def read_many(
        self, requests: Sequence[tuple[str, str | None]], *, max_bytes: int | None = None
    ) -> Iterator[bytes | StorageError]:
        """Whole objects (URI, version) in order; `threads` of them are read in parallel.

        NotFound, Denied, Changed and TooLarge are yielded in place of the bytes; other errors are raised.
        """

        def fetch(uri: str, version: str | None) -> bytes | StorageError:
            try:
                return self.read(uri, version=version, max_bytes=max_bytes)
            except OBJECT_ERRORS as fact:
                return fact

        return self.map_bounded(partial(fetch, uri, version) for uri, version in requests)

    def map_bounded(self, calls: Iterable[Callable[[], T]], *, depth: int | None = None) -> Iterator[T]:
        """Results of the calls in order; at most `depth` (default: `threads`) calls are active or unread.

        The calls run on this storage's threads, so a call must not use `map_bounded`.
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
        """A seekable binary file over one version of an object (default: the current one); reads raise Changed."""
        found = self.head(uri)
        if found is None:
            raise NotFound(f"{uri} does not exist")
        if version is not None and found.version != version:
            raise Changed(f"{uri} is {found.version} now, planned was {version}; plan the run again")
        read_range = partial(self._read_span, uri, found.version)
        return cast(BinaryIO, RangeFile(read_range, found.size_bytes))

    def create(self, uri: str, body: bytes | Path) -> str:
        """Create an object atomically; returns its version. Raises AlreadyExists.

        For objects named by their content: a retry after a lost answer may find its own put.
        """
        return self._try(uri, lambda: self._put(uri, body, None))

    def replace(self, uri: str, body: bytes | Path, *, version: str | None) -> str:
        """Replace this version of an object atomically (None: it must not exist).

        Returns the new version. Raises Conflict if another writer changed it, PutUnknown if the outcome is unknown.
        """
        tries = 0

        def attempt() -> str:
            nonlocal tries
            tries += 1
            return self._put(uri, body, version)

        try:
            return self._retry_busy(attempt)
        except (AlreadyExists, Conflict) as lost:
            if tries > 1:  # an earlier try may have succeeded
                raise PutUnknown(f"{uri} was refused after {tries} tries; read it back to see who wrote it") from lost
            raise Conflict(str(lost)) from lost
        except UnetBatchError:
            raise
        except Exception as error:  # any error of the store's SDK
            if meaning(error) == "unknown":
                text = redact(" ".join(str(error).split()))[:300]
                raise PutUnknown(f"no answer to the put of {uri} ({text}); read it back to see who wrote it") from error
            raise translated(error, uri) from error

    def put(self, uri: str, body: bytes | Path) -> str:
        """Put an object atomically, without a condition; returns its version."""
        return self._try(uri, lambda: self._put(uri, body, ANYTHING))

    def delete(self, uri: str, *, version: str | None = None) -> None:
        """Remove an object; a missing one is fine.

        version: remove only this version. Raises Conflict if it is another one. Several S3-compatible stores ignore the
        condition of a removal, so the version is also read first; a put between the two requests would be lost there.
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
        """Temporary files of killed puts below a folder, which listings hide; empty for object stores.

        remove: delete each before it is yielded. Files of puts that may still be active are left out.
        """
        store = self._store(folder)
        if not isinstance(store, LocalStore):
            return
        try:
            yield from store.leftovers(folder, remove=remove)
        except OSError as error:
            raise translated(error, folder) from error

    def probe(self, scratch: str) -> str | None:
        """None if the store honours conditional puts in the folder `scratch`, else a sentence about what it does.

        Raises Unavailable if answers are lost.
        """
        for _ in range(PROBES):
            try:
                return self._probe(scratch, join(scratch, f"probe-{secrets.token_hex(8)}"))
            except (AlreadyExists, PutUnknown) as error:  # an answer was lost: try again with a new name
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
                return f"the store at {scratch} ignores the version (If-Match) of a put: it accepted a stale one"
            if self.read(uri) != b"three":
                return f"the store at {scratch} does not return the last put"
        finally:
            self.delete(uri)
        return None

    def close(self) -> None:
        """End the threads; new ones start on the next use."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _try(self, uri: str, call: Callable[[], T]) -> T:
        try:
            return self._retry(call)
        except UnetBatchError:
            raise
        except Exception as error:  # any error of the store's SDK
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
            with self._lock:  # check again: another thread may have made it
                store = self._stores.get(scheme)
                if store is None:
                    store = self._stores[scheme] = self._made(scheme, uri)
        return store

    def _made(self, scheme: str, uri: str) -> Store:
        return opened(scheme, uri, self._options, self._threads, self._retry)


def _succeeds(put: Callable[[], str]) -> bool:
    try:
        put()
    except (AlreadyExists, Conflict):
        return False
    return True
