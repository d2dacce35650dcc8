"""Publishes large partitions in processes beside the driver, which takes receipts meanwhile.

Each process publishes one partition at a time. Which rows become visible, and whether, is decided there by the same
function as in the driver, so results do not depend on where a partition is published.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from unet_batch.errors import Incomplete
from unet_batch.job.cores import cores
from unet_batch.job.processes.child import ChildProcess
from unet_batch.job.publishing.process import Request, published_of, request_of
from unet_batch.planning.groups import MEMORY_SHARE, memory_bytes
from unet_batch.spec import JobSpec
from unet_batch.table.publish import Publication, Published
from unet_batch.worker.environment import ONE_THREAD

FEWEST_IMAGES = 100_000
"""Images of a group of partitions from which processes pay: starting one takes about a second of processor time."""
PARTITION_IMAGES = 5_000
"""Smaller partitions are published by the driver: half a second each."""
MOST = 16
"""Most processes."""
ROW_BYTES = 1536
"""Memory of a process for each row of its partition (measured; see docs/performance.md)."""
KILLED_S = 5.0
"""How long a killed process may take to end."""


class Beside:
    """Processes that publish. They start as they are needed, and live as long as the run."""

    def __init__(self, job: JobSpec, most: int) -> None:
        self._job = job.model_dump_json().encode()
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="publish")
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    def publish(self, wanted: Publication) -> Future[Published]:
        """Begin a publication. The result, or the error, is that of `publish`; Incomplete if its process died."""
        return self._threads.submit(self._publish, wanted)

    def close(self) -> None:
        """End all processes at once. Publications under way are lost, and their rows stay staged."""
        with self._lock:
            self._closed = True
            processes = list(self._all)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        self._threads.shutdown(wait=True)
        for process in processes:
            process.end()

    def _publish(self, wanted: Publication) -> Published:
        try:
            process = self._taken()
        except OSError as error:
            raise Incomplete(
                f"{wanted.partition}: no process can be started to publish it ({error}); its rows stay staged, so run "
                "the same command again"
            ) from error
        try:
            answer = process.ask(request_of(wanted))
        except (EOFError, OSError) as error:
            with self._lock:
                self._all.discard(process)
            raise Incomplete(
                f"{wanted.partition}: the process that published it died ({process.end()}); its rows stay staged, so "
                "run the same command again"
            ) from error
        with self._lock:
            self._idle.append(process)
        return published_of(answer)

    def _taken(self) -> _Process:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if self._closed:
                raise Incomplete("the run ends, so no more partitions are published")
            process = _Process(self._job)
            self._all.add(process)
            return process


class _Process:
    """One process behind its pipe, used by one thread at a time."""

    def __init__(self, job: bytes) -> None:
        """Raises OSError if no process can be started."""
        self._child = ChildProcess("unet_batch.job.publishing.process", ONE_THREAD)
        self._child.pipe.send_bytes(job)

    def ask(self, request: Request) -> bytes:
        """Send a request and wait for its answer. Raises EOFError or OSError if the process dies."""
        for frame in request:
            self._child.pipe.send_bytes(frame)
        return self._child.pipe.recv_bytes()

    def kill(self) -> None:
        """End it; a thread that waits for its answer gets an EOFError."""
        self._child.kill()

    def end(self) -> str:
        """Kill what is left of it; returns how it ended."""
        return self._child.end(KILLED_S)


def beside(job: JobSpec, sizes: Sequence[int]) -> Beside | None:
    """The processes for some partitions, or None if the driver publishes them itself. sizes: their images."""
    most = processes_for(sizes, cores(), memory_bytes())
    return Beside(job, most) if most else None


def processes_for(sizes: Sequence[int], core_count: int, memory: int | None) -> int:
    """How many processes publish partitions with so many images; 0 if it does not pay, or if one does not fit.

    memory: bytes of this machine; None: unknown.
    """
    large = [size for size in sizes if size >= PARTITION_IMAGES]
    if len(large) < 2 or sum(large) < FEWEST_IMAGES:
        return 0
    fit = MOST if memory is None else memory // (MEMORY_SHARE * ROW_BYTES * max(large))
    return min(len(large), core_count, MOST, fit)
