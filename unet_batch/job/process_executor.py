"""Units through worker processes on this machine, one for each core.

The default executor on one machine. Stages, receipts and guarantees are those on Ray, without Ray's daemons and object
store. If a process dies, its active units have one more try in this pass; a unit that is lost twice has no receipt, and
the caller compares receipts with its plan. A unit that the process had not started does not lose a try.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait

from unet_batch.errors import Incomplete, JobError, UnetBatchError, class_of
from unet_batch.job.cores import cores
from unet_batch.job.processes.worker_process import Death, WorkerProcess
from unet_batch.planning.plan import only_on_ray, place
from unet_batch.records import Receipt, Unit
from unet_batch.worker.notes import silence
from unet_batch.worker.process import LEAVE_S, UNITS_AT_ONCE, Refusal, WorkerSetup
from unet_batch.worker.starts import back_off_s
from unet_batch.worker.watchdog import Note
from unet_batch.worker.worker import Settings

log = logging.getLogger(__name__)

SILENCE_S = 1200.0
"""A process without a message for this long, beyond the limit of a unit, is killed: it is stopped or stuck."""
STARTS = 3
"""Consecutive starts that end in a crash, after which the process counts as unable to start."""
LOOK_EVERY_S = 0.2
"""Interval at which the thread checks whether to stop, and for silent processes."""
KILL_S = 1.0
"""Seconds that a process may take beyond LEAVE_S after its pipe was closed."""


class ProcessExecutor:
    """Scores units in processes that live as long as the run."""

    name = "processes"
    loaders = 0

    def __init__(self, settings: Settings) -> None:
        """Raises JobError if the job needs Ray. Processes start with the first units."""
        job = settings.job
        if (wish := only_on_ray(job)) is not None:
            raise JobError(f"{wish}, which --executor processes does not support: use --executor ray")
        placed = place(
            cores(),
            0.0,
            job.resources,
            providers=job.session.providers,
            gpu_share=1.0,
            threads=job.session.threads,
        )
        self.workers = placed.infer_actors
        self._unit_timeout_s = job.limits.unit_timeout_s
        setup = WorkerSetup(settings, placed.threads).to_json()
        self._processes = [WorkerProcess(setup) for _ in range(self.workers)]
        self._some_started = False
        self._feeder: threading.Thread | None = None
        self._stopping = threading.Event()

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """Receipts as they arrive, in any order; units whose process died twice have none.

        Raises the error of the starts if no process can start.
        """
        arrived: queue.SimpleQueue[Receipt | Exception | None] = queue.SimpleQueue()
        self._stop_feeding()
        self._stopping = threading.Event()
        self._feeder = threading.Thread(target=self._feed, args=(_Pass(units, arrived),), daemon=True)
        self._feeder.start()
        try:
            while (found := arrived.get()) is not None:
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            self._stop_feeding()

    def close(self) -> None:
        """End the processes; an active unit may finish within LEAVE_S."""
        self._stop_feeding()
        for worker in self._processes:
            worker.close_pipe()
        until_s = time.monotonic() + LEAVE_S + KILL_S
        for worker in self._processes:
            worker.wait(until_s)

    def _stop_feeding(self) -> None:
        self._stopping.set()
        if self._feeder is not None:
            self._feeder.join()
            self._feeder = None

    def _feed(self, some: _Pass) -> None:
        """Body of the thread that serves the processes, so that the caller can publish meanwhile."""
        try:
            while some.left and not self._stopping.is_set():
                self._start_some(some)
                self._hand_out(some)
                self._listen(some)
                self._end_silent()
            some.arrived.put(None)
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            some.arrived.put(error)

    def _start_some(self, some: _Pass) -> None:
        """Start as many processes as needed for the units. Raises if none can be started."""
        idle = sum(worker.is_alive and not worker.units for worker in self._processes)
        now_s = time.monotonic()
        for worker in self._processes:
            if len(some.waiting) > idle and not worker.is_alive and self._may_start(worker, now_s):
                idle += 1
                try:
                    worker.start()
                except OSError as error:
                    text = f"no more processes can be started on this machine ({error})"
                    self._refused(worker, Refusal(Incomplete.code, text, may_pass=True))
        if not any(worker.is_alive for worker in self._processes):
            refusals = [worker.refusal for worker in self._processes if worker.refusal is not None]
            if refusals:
                raise _as_error(refusals[0])

    def _may_start(self, worker: WorkerProcess, now_s: float) -> bool:
        """Whether to try a start: after a failed start, other starts wait until one has succeeded."""
        if worker.refusal is None:
            return self._some_started or all(other.refusal is None for other in self._processes)
        return (
            self._some_started
            and worker.refusal.may_pass
            and now_s > worker.last_message_s + back_off_s(worker.refusals)
        )

    def _refused(self, worker: WorkerProcess, refusal: Refusal) -> None:
        """Record that a process has no session. Others score its units; they do not lose a try."""
        worker.refuse(refusal)
        if worker.refusals == 1:
            log.error("a worker process cannot score: %s: %s", refusal.code, refusal.text)

    def _hand_out(self, some: _Pass) -> None:
        """Give a unit to each idle process, then a second unit to each."""
        for depth in range(UNITS_AT_ONCE):
            for worker in self._processes:
                empty = sum(other.is_alive and not other.units for other in self._processes)
                if worker.is_ready and len(worker.units) == depth and len(some.waiting) > (empty if depth else 0):
                    worker.give(some.waiting.popleft())

    def _listen(self, some: _Pass) -> None:
        """Receive messages of the processes."""
        owners: dict[object, WorkerProcess] = {
            channel: worker for worker in self._processes for channel in worker.channels()
        }
        for channel in wait(
            [channel for worker in self._processes for channel in worker.channels()], timeout=LOOK_EVERY_S
        ):
            worker = owners[channel]
            found = worker.receive(channel)
            self._some_started |= worker.is_ready
            if isinstance(found, Receipt):
                some.take(found)
            elif isinstance(found, Note):
                log.info("%s", found)
            elif isinstance(found, Refusal):
                self._refused(worker, found)
            elif isinstance(found, Death):
                self._handle_death(worker, found, some)

    def _handle_death(self, worker: WorkerProcess, death: Death, some: _Pass) -> None:
        """Return the units of a dead process: to other processes, or to the caller."""
        some.give_back(death.waiting)
        for unit in death.begun:
            if death.note is not None and death.note.unit_id == unit.unit_id:
                some.take(silence(unit, death.note, self._unit_timeout_s))
            else:
                some.lose(unit)
        if death.started:
            log.warning("a worker process died (%s); a new one replaces it", death.how)
        elif worker.refusal is None and worker.deaths_at_start >= STARTS:
            text = f"its process died {STARTS} times before it could score ({death.how})"
            self._refused(worker, Refusal(Incomplete.code, text, may_pass=True))

    def _end_silent(self) -> None:
        """Kill processes that have work but send no messages."""
        patience_s = SILENCE_S + self._unit_timeout_s
        for worker in self._processes:
            if worker.is_busy and time.monotonic() - worker.last_message_s > patience_s:
                log.error("worker process %d sent no message for %.0f s and is killed", worker.pid, patience_s)
                worker.kill()


class _Pass:
    """The units of one pass, and the queue for their receipts."""

    def __init__(self, units: Sequence[Unit], arrived: queue.SimpleQueue[Receipt | Exception | None]) -> None:
        self.waiting = deque(units)
        self.left = {unit.unit_id for unit in units}
        """Ids of units that may still get a receipt."""
        self.arrived = arrived
        self._lost_once: set[str] = set()

    def take(self, receipt: Receipt) -> None:
        """Put a receipt into the queue."""
        self.left.discard(receipt.unit_id)
        self.arrived.put(receipt)

    def give_back(self, units: Sequence[Unit]) -> None:
        """Take back units that were not started; they are next."""
        self.waiting.extendleft(unit for unit in reversed(units) if unit.unit_id in self.left)

    def lose(self, unit: Unit) -> None:
        """Take a unit whose process died: it has a second try, after the first tries of all others."""
        if unit.unit_id in self._lost_once:
            self.left.discard(unit.unit_id)
        elif unit.unit_id in self.left:  # otherwise it belongs to an earlier pass
            self._lost_once.add(unit.unit_id)
            self.waiting.append(unit)


def _as_error(refusal: Refusal) -> UnetBatchError:
    return class_of(refusal.code)(f"no worker process can score: {refusal.text}")
