"""Leases: which run is working on a partition, so that two runs do not do the same work.

Correctness does not depend on leases: publication is conditional. A lease names its owner and is renewed while the
owner lives. It ends by expiry, or at once if the owner's process on the same machine is gone.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType

from unet_batch.errors import AlreadyExists, Changed, Conflict, Held, NotFound, PutUnknown, StorageError
from unet_batch.store import unfinished
from unet_batch.store.storage import Storage
from unet_batch.table.output import Output

log = logging.getLogger(__name__)

RENEWALS = 3
"""Renewals within the lifetime of a lease: two may fail before it ends."""
LOOK_EVERY_S = 2.0
"""Interval at which a waiting run checks a lease."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One partition's lease, as stored in the output."""

    partition: str
    run: str
    host: str
    """Host name and PID namespace; processes of other hosts and containers cannot be checked."""
    pid: int
    started: str
    """The kernel's start time of that process, because its PID may be reused."""
    attempt: int
    """1 for the first owner; one more for each run that took over."""
    expires_s: float
    """Seconds since 1970."""

    def alive(self, now_s: float) -> bool:
        """Whether the owner may still be working."""
        if now_s >= self.expires_s:
            return False
        return self.host != unfinished.host() or unfinished.began(self.pid) == self.started

    def __str__(self) -> str:
        until = datetime.fromtimestamp(self.expires_s, UTC)
        return f"run {self.run} (process {self.pid} on {self.host.partition('/')[0]}, until {until:%H:%M:%S} UTC)"


def read_lease(output: Output, partition: str) -> Lease | None:
    """The lease of a partition, alive or not; None if there is none or it is unreadable."""
    found = _read(output.store, output.lease(partition))
    return None if found is None else found[1]


class Leases:
    """The leases of one run. A context manager: a thread renews them, and they are released at the end."""

    def __init__(self, output: Output, run: str, ttl_s: float, *, clock: Callable[[], float] = time.time) -> None:
        """ttl_s: lifetime of a lease without renewal. clock: seconds since 1970."""
        self._output = output
        self._run = run
        self._ttl_s = ttl_s
        self._clock = clock
        self._held: dict[str, tuple[Lease, str]] = {}
        self._refused_by: dict[str, str] = {}
        """Versions of the leases that refused this run."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._keep, name="leases", daemon=True)

    def __enter__(self) -> Leases:
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._renewer.join()
        for partition in list(self._held):
            self.release(partition)

    def take(self, partition: str) -> None:
        """Become the owner. Raises Held, with the owner's name, if another run that may be alive is the owner."""
        uri = self._output.lease(partition)
        mine = self._mine(partition, 1)
        try:
            version = self._output.store.create(uri, _body(mine))
        except AlreadyExists:
            mine, version = self._take_over(uri, partition)
        with self._lock:
            self._held[partition] = (mine, version)

    def wait(self, partition: str, until_s: float) -> None:
        """Return when the lease that refused this run has expired or was released, so that `take` may succeed.

        until_s: seconds since 1970. Raises Held at that time, and at once if the lease was renewed or taken over, which
        shows that its owner is alive.
        """
        uri, known = self._output.lease(partition), self._refused_by.get(partition)
        while True:
            found, now_s = _read(self._output.store, uri), self._clock()
            version, owner = found or ("", None)
            if owner is None or not owner.alive(now_s):
                return
            if version != known:
                raise Held(f"{partition} is being worked on by {owner}, which renewed its lease meanwhile")
            if now_s >= until_s:
                raise _held(partition, owner)
            time.sleep(min(LOOK_EVERY_S, until_s - now_s, owner.expires_s - now_s))

    def release(self, partition: str) -> None:
        """Release a lease, unless another run has taken it over, even between check and removal.

        An error of the store is only logged.
        """
        with self._lock:
            if self._held.pop(partition, None) is None:
                return
        uri = self._output.lease(partition)
        try:
            found = _read(self._output.store, uri)
            if found is not None and found[1] is not None and found[1].run == self._run:
                self._output.store.delete(uri, version=found[0])
        except Conflict:
            log.info("the lease of %s was taken over meanwhile and is not removed", partition)
        except StorageError as error:
            log.warning("the lease of %s ends by its expiry, because it could not be removed: %s", partition, error)

    def renew(self) -> None:
        """Renew every lease that is still ours; drop lost ones with a warning."""
        with self._lock:
            held = dict(self._held)
        for partition, (lease, version) in held.items():
            try:
                renewed = self._renewed(partition, lease, version)
            except StorageError as error:
                log.warning("the lease of %s could not be renewed this time: %s", partition, error)
                continue
            if renewed is None:
                with self._lock:
                    self._held.pop(partition, None)
                continue
            with self._lock:
                if partition in self._held:
                    self._held[partition] = renewed

    def _renewed(self, partition: str, lease: Lease, version: str) -> tuple[Lease, str] | None:
        """The lease with a later expiry; None if another run owns it. Raises StorageError."""
        uri, mine = self._output.lease(partition), self._mine(partition, lease.attempt)
        try:
            return mine, self._output.store.replace(uri, _body(mine), version=version)
        except (Conflict, PutUnknown):
            found = _read(self._output.store, uri)
        owner = found[1] if found else None
        if found is not None and owner is not None and owner.run == self._run:
            return owner, found[0]
        log.warning("this run lost the lease of %s (owner now: %s) and continues", partition, owner or "none")
        return None

    def _take_over(self, uri: str, partition: str) -> tuple[Lease, str]:
        found = _read(self._output.store, uri)
        if found is None:  # released meanwhile
            mine = self._mine(partition, 1)
            try:
                return mine, self._output.store.create(uri, _body(mine))
            except AlreadyExists as error:
                raise Held(f"{partition} was taken by another run just now; run the command again") from error
        version, owner = found
        if owner is not None and owner.run != self._run and owner.alive(self._clock()):
            self._refused_by[partition] = version
            raise _held(partition, owner)
        if owner is not None:
            log.warning("%s: taking over from %s, which is gone", partition, owner)
        mine = self._mine(partition, 1 + (owner.attempt if owner else 0))
        try:
            return mine, self._output.store.replace(uri, _body(mine), version=version)
        except (Conflict, PutUnknown) as error:
            now = _read(self._output.store, uri)
            if now is not None and now[1] is not None and now[1].run == self._run:
                return now[1], now[0]  # our put succeeded; only its answer was lost
            raise Held(f"{partition} was taken over by another run just now; run the command again") from error

    def _mine(self, partition: str, attempt: int) -> Lease:
        pid = os.getpid()
        return Lease(
            partition, self._run, unfinished.host(), pid, unfinished.began(pid), attempt, self._clock() + self._ttl_s
        )

    def _keep(self) -> None:
        while not self._stop.wait(self._ttl_s / RENEWALS):
            self.renew()


def _read(store: Storage, uri: str) -> tuple[str, Lease | None] | None:
    """Version and lease; None if there is no object. The lease is None if the object is not a lease."""
    found = store.head(uri)
    if found is None:
        return None
    try:
        return found.version, Lease(**json.loads(store.read(uri, version=found.version, max_bytes=1 << 16)))
    except NotFound:
        return None
    except Changed:
        return _read(store, uri)
    except (ValueError, TypeError):
        log.warning("%s is not a lease and is ignored", uri)
        return found.version, None


def _held(partition: str, owner: Lease) -> Held:
    return Held(
        f"{partition} is being worked on by {owner}; wait for it or stop it: the lease of a run that died ends by "
        "itself"
    )


def _body(lease: Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()
