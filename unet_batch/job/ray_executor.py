"""The stages as Ray actors. The only module that knows Ray.

One Ray row is one unit and `batch_size` is 1, because blocks are no unit of commit: image rows in blocks were mixed
between units in half of the calls. Ray's own success proves nothing (it drops blocks), so this module only promises
receipts for what was really done; the caller compares them with its plan. Actors always come back (`max_restarts=-1`: a
bounded pool can be emptied and hangs, ray#62746), tasks do not (`max_task_retries=1`), so a poisonous unit ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from unet_batch.errors import JobError, SessionBroken, UnetBatchError
from unet_batch.job.loaded import Loaded, from_arrow, to_arrow
from unet_batch.job.plan import UNITS_AT_ONCE, Placement, place
from unet_batch.job.stages import Fetched
from unet_batch.job.worker import Settings, build_infer, build_load
from unet_batch.model.session import Device
from unet_batch.records import Receipt, Unit

log = logging.getLogger(__name__)

SILENCE_S = 1200.0
"""Without a receipt for this long beyond a unit's own limit, a pass is given up and its units are planned again."""
OBJECT_STORE_BYTES = 1 << 30
"""Embedded Ray: room for some tens of loaded units; the default would take a third of the machine."""
KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(256 << 20), "MALLOC_MMAP_THRESHOLD_": str(64 << 20)}
"""glibc's malloc(3): keep the pages of freed pictures for the next ones; handing them back cost a fifth of decoding."""
TELL_NOBODY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1"}
"""Embedded Ray reports nothing about an archive's work to its makers, and needs no actor that collects it."""
ACTOR_STARTS = 3
STOP_S = 10.0
"""How long a pass that is left early may take to end by itself: about the time of a unit."""


class _Deadlines:
    """Ends this process when a stage works on one unit for too long.

    faulthandler's timer lives in C, so it fires even when a decoder hangs with the GIL held. There is one timer per
    process: it is always set to the earliest deadline of the units that are being worked on.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ends: list[float] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        end = time.monotonic() + self._timeout_s
        self._change(add=end)
        try:
            yield
        finally:
            self._change(remove=end)

    def _change(self, *, add: float | None = None, remove: float | None = None) -> None:
        with self._lock:
            if add is not None:
                self._ends.append(add)
            if remove is not None:
                self._ends.remove(remove)
            if self._ends:
                left_s = max(min(self._ends) - time.monotonic(), 0.001)
                faulthandler.dump_traceback_later(left_s, exit=True)
            else:
                faulthandler.cancel_dump_traceback_later()


class LoadActor:
    """Load in a Ray actor: a unit in, its pixels out, as one row. While one unit is decoded, the next is fetched."""

    def __init__(self, settings: Settings) -> None:
        self._load = build_load(settings)
        self._deadline = _Deadlines(settings.job.limits.unit_timeout_s)
        self._core = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        fetched = self.fetch(table)
        with self._core:
            return to_arrow(self.decode(fetched))

    def fetch(self, table: pa.Table) -> Fetched:
        """The encoded images of a row's unit."""
        with self._deadline():
            return self._load.fetch(Unit.from_json(table.column("unit")[0].as_py()))

    def decode(self, fetched: Fetched) -> Loaded:
        """The pixels of a unit."""
        with self._deadline():
            return self._load.decode(fetched)


class InferActor:
    """Infer in a Ray actor: a loaded unit in, its receipt out, as one row."""

    def __init__(self, settings: Settings, threads: int, gpu_share: float) -> None:
        self._deadline = _Deadlines(settings.job.limits.unit_timeout_s)
        self._failure: tuple[str, str] | None = None
        try:
            self._infer = build_infer(settings, Device(threads=threads, gpu_share=gpu_share or None))
        except (
            UnetBatchError
        ) as error:  # told by every receipt: an actor whose start fails is retried by Ray without an end
            self._failure = (error.code, str(error))

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.score(from_arrow(table))

    def score(self, loaded: Loaded) -> pa.Table:
        """The receipt of a loaded unit, as one row."""
        if self._failure is not None:
            return _receipt_row(Receipt(loaded.unit.unit_id, loaded.unit.partition, 0, 0, 0, failure=self._failure))
        try:
            with self._deadline():
                return _receipt_row(self._infer(loaded))
        except SessionBroken:
            log.exception("the session is broken: this process leaves, and a fresh one takes its place")
            os._exit(1)  # an exception would keep the broken process; ray.actor.exit_actor() is not restarted


class ScoreActor:
    """Load and Infer in one Ray actor, where both want the same core: a unit in, its receipt out.

    One thread computes at a time (two that take turns at the interpreter's lock cost a fifth); the other fetches.
    """

    def __init__(self, settings: Settings, threads: int, gpu_share: float) -> None:
        self._loader = LoadActor(settings)
        self._scorer = InferActor(settings, threads, gpu_share)
        self._core = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        fetched = self._loader.fetch(table)
        with self._core:
            return self._scorer.score(self._loader.decode(fetched))


class RayExecutor:
    """Scores units with one Ray Data pipeline per pass, on an embedded Ray or on a cluster."""

    name = "ray"

    def __init__(self, settings: Settings, *, address: str | None = None) -> None:
        import ray

        self._settings = settings
        self._address = address
        started = time.perf_counter()
        _connect(address)
        self.start_s = time.perf_counter() - started
        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        job = settings.job
        self.placement: Placement = place(
            have.get("CPU", 0.0),
            have.get("GPU", 0.0),
            job.resources,
            providers=job.session.providers,
            gpu_share=job.session.gpu_share,
        )
        self.workers = self.placement.infer_actors
        _quiet_ray_data()

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """Receipts as they arrive, in any order; units of processes that died have none."""
        receipts: queue.Queue[Receipt | BaseException | None] = queue.Queue()
        stopping = threading.Event()
        feeder = threading.Thread(target=self._consume, args=(units, receipts, stopping), daemon=True)
        feeder.start()
        patience_s = SILENCE_S + self._settings.job.limits.unit_timeout_s
        try:
            while True:
                try:
                    found = receipts.get(timeout=patience_s)
                except queue.Empty:
                    log.error(
                        "no unit was finished for %.0f s; this pass is given up and its open units are planned again",
                        patience_s,
                    )
                    self.close()  # the actors of the silent pass would keep their CPUs
                    _connect(self._address)
                    return
                if found is None:
                    return
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            stopping.set()
            feeder.join(STOP_S)  # a pipeline that outlives its cluster asks a dead one for news

    def close(self) -> None:
        """Leave the cluster; an embedded one ends."""
        import ray

        ray.shutdown()

    def _consume(
        self, units: Sequence[Unit], receipts: queue.Queue[Receipt | BaseException | None], stopping: threading.Event
    ) -> None:
        try:
            for batch in self._pipeline(units).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for text in batch.column("receipt").to_pylist():
                    receipts.put(Receipt.from_json(text))
                if stopping.is_set():
                    return
            receipts.put(None)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises ends the pass in the caller's thread
            receipts.put(_explained(error))

    def _pipeline(self, units: Sequence[Unit]) -> Any:
        """from_items has no read tasks: they would wait for CPUs that the actors hold (measured on 2 CPUs)."""
        import ray

        where = self.placement
        rows = [{"unit": unit.to_json()} for unit in units]
        loaded: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
        if where.load_actors:
            loaded = loaded.map_batches(
                LoadActor,
                fn_constructor_args=(self._settings,),
                batch_size=1,
                batch_format="pyarrow",
                compute=_pool(min(where.load_actors, len(rows)), UNITS_AT_ONCE),
                num_cpus=where.load_cpus,
                max_restarts=-1,
                max_task_retries=1,
            )
        return loaded.map_batches(
            InferActor if where.load_actors else ScoreActor,
            fn_constructor_args=(self._settings, where.threads, where.infer_gpus),
            batch_size=1,
            batch_format="pyarrow",
            compute=_pool(min(where.infer_actors, len(rows)), where.units_at_once),
            num_cpus=where.infer_cpus,
            num_gpus=where.infer_gpus or None,
            max_restarts=-1,
            max_task_retries=1,
        )


def _pool(actors: int, units_at_once: int) -> Any:
    """A fixed pool. One more unit than are worked on waits at each actor, so that none waits for the driver."""
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(
        size=actors,
        max_tasks_in_flight_per_actor=units_at_once + 1,
        max_concurrent_calls_per_actor=units_at_once,
        enable_true_multi_threading=units_at_once > 1,
    )


def _connect(address: str | None) -> None:
    """Join a cluster, or start an own Ray on this machine's cores, silent: its log files keep what it has to say."""
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a late call after shutdown must not start or join a cluster by itself
    import ray

    if address is not None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise JobError(f"no Ray cluster takes this run at --address {address}: {reason}") from error
        return
    for name, value in {"RAY_BACKEND_LOG_LEVEL": "fatal", **KEEP_PAGES, **TELL_NOBODY}.items():
        os.environ.setdefault(name, value)  # workers inherit it
    with _native_stderr_closed():
        ray.init(
            address="local",  # a bare init joins whatever cluster happens to run on the machine
            num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )


@contextlib.contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Ray's C++ part announces its own log level on file descriptor 2; failures to start still raise."""
    saved = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _receipt_row(receipt: Receipt) -> pa.Table:
    return pa.table({"receipt": pa.array([receipt.to_json()], pa.large_binary())})


def _quiet_ray_data() -> None:
    """Errors are ours to count (the caller reconciles), progress ours to draw; GPUs may be waited for."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.max_errored_blocks = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    context.actor_init_retry_on_errors = True
    context.actor_init_max_retries = ACTOR_STARTS
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message=".*ray_remote_args.*")  # max_restarts has no named parameter in Ray 2.60


def _explained(error: BaseException) -> BaseException:
    if isinstance(error, UnetBatchError):
        return error
    return (
        JobError(f"Ray could not run the pipeline: {' '.join(str(error).split())[:2000]}")
        if isinstance(error, ValueError)
        else error
    )
