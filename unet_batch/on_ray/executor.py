"""Scores units with a Ray Data pipeline of actors.

One Ray row is one unit and `batch_size` is 1, because blocks do not follow units: with image rows in blocks, half of
the calls mixed units. In long passes a block holds several units, which one task scores in turn. Ray may drop blocks
and still report success, so this module only guarantees that receipts are true; the caller compares them with its plan.
Actors restart without limit (`max_restarts=-1`: a limited pool can become
empty and hang, ray#62746); tasks do not (`max_task_retries=1`), so a unit that kills its process ends.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unet_batch.errors import HandoverFailed, JobError, RayUnavailable, StorageError, UnetBatchError
from unet_batch.on_ray.actors import InferActor, LoadActor, ScoreActor
from unet_batch.on_ray.losses import Losses
from unet_batch.on_ray.nodes import Pulse, node_id, node_name, resources
from unet_batch.on_ray.start import start
from unet_batch.planning.plan import UNITS_AT_ONCE, Placement, place
from unet_batch.records import Receipt, Unit
from unet_batch.table.output import Output
from unet_batch.worker.notes import StoredNotes, silence
from unet_batch.worker.starts import Starts
from unet_batch.worker.watchdog import Note
from unet_batch.worker.worker import Settings

log = logging.getLogger(__name__)

SILENCE_S = 1200.0
"""Without a receipt for this long, beyond the limit of a unit, a pass is aborted and its units are planned again."""
ACTOR_STARTS = 3
LOOK_EVERY_S = 30.0
"""Interval of checks without receipts: on a full disk, Ray restarts processes that die at once, forever."""
FULL_BYTES = 1 << 20
"""A disk with less free space counts as full: Ray's processes cannot even start their logs."""
TASKS_PER_ACTOR = 16
"""Fewest tasks of an actor before tasks hold several units, so that all actors end at nearly the same time."""
UNITS_PER_TASK = 8
"""Most units of one task, unless a pass has more than `TASKS` such tasks.

Ray Data's driver pays for tasks, not for rows: measured with 1,000 units and actors that do nothing, 11.6 ms of
processor time a unit with one unit in a task, 2.9 ms with eight.
"""
TASKS = 4000
"""Longer passes have larger tasks, because Ray Data sends the metadata of all input blocks to an actor every 5 s."""
STOP_S = 10.0
"""How long a pass that is left early may take to end: about the time of a unit."""


class RayExecutor:
    """Scores units with one Ray Data pipeline per pass, on an embedded Ray or on a cluster."""

    name = "ray"

    def __init__(self, settings: Settings, *, address: str | None = None) -> None:

        self._settings = settings
        self._address = address
        self._losses = Losses()
        output = settings.job.output
        self._notes = StoredNotes(Output.of(output), settings.run_id)
        started = time.perf_counter()
        self._ray = start(address)
        self.start_s = time.perf_counter() - started
        self._pulse, self._lost = Pulse(), False
        self._starts = Starts(node_name)
        self._left_out: frozenset[str] = frozenset()
        self.placement = self._placed()
        self.workers = self.placement.infer_actors
        self.loaders = self.placement.load_actors
        _quiet_ray_data()
        self._losses.listen()

    def run(self, units: Sequence[Unit]) -> Iterator[Receipt | HandoverFailed]:
        """Receipts as they arrive, in any order; units of processes that died have none.

        Raises HandoverFailed if nothing arrives because the disk is full.
        """
        self._losses.take()  # drop those of an unfinished pass
        yield from self._receipts(units)
        fault = self._losses.take() or _full_disk()
        if fault is not None:
            yield fault

    def _receipts(self, units: Sequence[Unit]) -> Iterator[Receipt]:
        """The receipts of a pass."""
        if self._starts.left_out() != self._left_out:
            self._leave_out(self._starts.left_out())
        self._starts.begin(min(self.placement.infer_actors, len(units)))
        receipts: queue.Queue[Receipt | BaseException | None] = queue.Queue()
        stopping = threading.Event()
        feeder = threading.Thread(target=self._consume, args=(units, receipts, stopping), daemon=True)
        feeder.start()
        threading.Thread(
            target=self._pulse.watch, args=(lambda what: receipts.put(_lost(what)), stopping), daemon=True
        ).start()
        per_task = units_per_task(units, self.placement)
        patience_s = SILENCE_S + per_task * self._settings.job.limits.unit_timeout_s
        heard_s = time.monotonic()
        missing = {unit.unit_id: unit for unit in units}
        slow: dict[str, Note] = {}
        try:
            while True:
                try:
                    found = receipts.get(timeout=LOOK_EVERY_S)
                    heard_s = time.monotonic()
                except queue.Empty:
                    if (full := _full_disk()) is not None:
                        raise full from None
                    if (now := self._slow(missing)) != slow:  # a large image makes progress without receipts
                        slow, heard_s = now, time.monotonic()
                    if time.monotonic() - heard_s < patience_s:
                        continue
                    log.error(
                        "no unit was finished for %.0f s; this pass is aborted and its open units are planned again",
                        patience_s,
                    )
                    self.close()  # otherwise the pass's actors keep their CPUs
                    self._ray = start(self._address)
                    self._pulse = Pulse()
                    return
                if found is None:
                    yield from self._ended_by_limits(missing)
                    return
                if isinstance(found, BaseException):
                    self._lost = isinstance(found, RayUnavailable)
                    raise found if self._lost else _full_disk() or found
                self._starts.take(found)
                missing.pop(found.unit_id, None)
                yield found
                heard_s = time.monotonic()  # the caller may have published meanwhile
        finally:
            stopping.set()
            feeder.join(0 if self._lost else STOP_S)  # without a cluster the pipeline would wait

    def _placed(self) -> Placement:
        job, have = self._settings.job, resources(self._left_out)
        return place(
            have["CPU"],
            have["GPU"],
            job.resources,
            providers=job.session.providers,
            gpu_share=job.session.gpu_share,
            threads=job.session.threads,
        )

    def _leave_out(self, nodes: frozenset[str]) -> None:
        """Plan the next passes without some nodes, if the others can hold a run."""
        before, self._left_out = self._left_out, nodes
        try:
            self.placement = self._placed()
        except JobError as error:
            log.warning("nodes on which no session starts are used again: %s", error)
            self._left_out = before

    def _slow(self, missing: Mapping[str, Unit]) -> dict[str, Note]:
        """The notes about slow units, which are also logged; empty if the store does not answer."""
        try:
            found = {note.unit_id: note for note in self._notes.all() if note.unit_id in missing}
        except StorageError as error:
            log.debug("no notes: %s", error)
            return {}
        for note in found.values():
            log.info("%s", note)
        return found

    def _ended_by_limits(self, missing: Mapping[str, Unit]) -> Iterator[Receipt]:
        """Receipts of the units whose process the watchdog ended, from their notes."""
        for note in [note for note in (self._slow(missing) if missing else {}).values() if note.ended]:
            self._notes.remove(note.unit_id)
            yield silence(missing[note.unit_id], note, self._settings.job.limits.unit_timeout_s)

    def close(self) -> None:
        """Leave the cluster; an embedded Ray ends. A lost Ray is not called, because its native code would wait."""
        if self._lost:
            self._pulse.kill_rest()
        else:
            self._ray.close()

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
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            receipts.put(_explained(error))

    def _pipeline(self, units: Sequence[Unit]) -> Any:
        """The pipeline of a pass. `from_items` has no read tasks, which would wait for the actors' CPUs (measured)."""
        import ray

        where = self.placement
        others = {"ray.io/node-id": f"!in({','.join(sorted(self._left_out))})"} if self._left_out else None
        rows = [{"unit": unit.to_json()} for unit in units]
        blocks = -(-len(rows) // units_per_task(units, where))
        loaded: Any = ray.data.from_items(rows, override_num_blocks=blocks)
        if where.load_actors:
            loaded = loaded.map_batches(
                LoadActor,
                fn_constructor_args=(self._settings,),
                batch_size=1,
                batch_format="pyarrow",
                compute=_pool(min(where.load_actors, blocks), UNITS_AT_ONCE),
                num_cpus=where.load_cpus,
                label_selector=others,
                max_restarts=-1,
                max_task_retries=1,
            )
        return loaded.map_batches(
            InferActor if where.load_actors else ScoreActor,
            fn_constructor_args=(self._settings, where.threads, where.infer_gpus, node_id),
            batch_size=1,
            batch_format="pyarrow",
            compute=_pool(min(where.infer_actors, blocks), where.units_at_once),
            num_cpus=where.infer_cpus,
            label_selector=others,
            num_gpus=where.infer_gpus or None,
            max_restarts=-1,
            max_task_retries=1,
        )


def units_per_task(units: Sequence[Unit], where: Placement) -> int:
    """How many units one task of an actor scores, one after the other; its receipts arrive together, at its end.

    1 where pixels cross the object store, because the pixels of a task's units would be one block; where units run
    again in isolation, so that a task that dies costs one unit; and in short passes.
    """
    if where.load_actors or any(unit.isolate for unit in units):
        return 1
    most = max(UNITS_PER_TASK, len(units) // TASKS)
    return max(1, min(most, len(units) // (TASKS_PER_ACTOR * where.infer_actors)))


def _lost(what: str) -> RayUnavailable:
    return RayUnavailable(
        f"Ray was lost: {what} no longer answers (killed, or its node is gone); finished units are staged, so run the "
        "same command again"
    )


def _pool(actors: int, units_at_once: int) -> Any:
    """A fixed pool. Each actor has one waiting unit, so that it does not wait for the driver."""
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(
        size=actors,
        max_tasks_in_flight_per_actor=units_at_once + 1,
        max_concurrent_calls_per_actor=units_at_once,
        enable_true_multi_threading=units_at_once > 1,
    )


def _full_disk() -> HandoverFailed | None:
    """The fault if the disk of this node's Ray folder is full, else None; disks of other nodes are unknown here."""
    import ray

    if not ray.is_initialized():
        return None
    folder = os.path.realpath(ray.get_runtime_context().get_temp_dir())
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None  # the folder does not exist here
    if usage.free >= FULL_BYTES:
        return None
    return HandoverFailed(
        f"the disk of Ray's folder {folder} is full: free some space, or set RAY_TMPDIR to a folder on another disk"
    )


def _quiet_ray_data() -> None:
    """Configure Ray Data: no limit on errors (the caller reconciles), no progress bars, waiting for GPUs allowed."""
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
