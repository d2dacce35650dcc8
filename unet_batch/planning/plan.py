"""The plan, as pure functions: open sources, units, placement.

Work is skipped by image key and version, not by the name of a part, so units may be cut differently in two runs without
scoring an image twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from unet_batch.archive.formats import CONTAINERS, format_of
from unet_batch.errors import JobError
from unet_batch.planning.selection import Select
from unet_batch.records import Source, Unit, inventory_digest, sub_unit_id, unit_id
from unet_batch.session.engines import on_gpu
from unet_batch.spec import JobSpec, ResourcesSpec
from unet_batch.table.guard import ALONE, Others
from unet_batch.table.publish import Published, generation

State = Literal["published", "stale", "partial", "missing"]
RESCORED = "rescore-"
"""Prefix of the ids of units of `--rescore`."""
UNIT_IMAGES = 64
"""A unit takes the driver about 18 ms. A larger unit loses more work in a crash, and reports later for a slow model."""
UNIT_ENCODED_BYTES = 8 << 20
"""The plan knows only encoded sizes. JPEGs grow about tenfold, so a unit has about 100 MiB decoded."""
SMALLEST_UNIT_IMAGES = 4
GZIP_STRETCH = 8
UNITS_AT_ONCE = 2
SCORING_CORES = 4
"""Most cores beside one GPU for cutting, measuring and encoding, one thread each; they share an interpreter."""
SCORING_SHARE = 1 / 4
"""Share of a GPU's cores for it; the others decode. Measured on CPUs, for pictures of 512²: 2.6 ms to decode and resize
one, and 1.6 to 11 ms to measure and encode its mask."""
GPU_GRAINS = 10_000
"""Units in which Ray counts a GPU (FixedPoint, ray 2.60)."""


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """The plan of one partition: its inventory, its existing rows, and the sources to score."""

    partition: str
    sources: tuple[Source, ...]
    """The inventory."""
    published: Published | None
    state: State
    scored: int
    """Sources that already have rows, published under this fingerprint or staged."""
    open: tuple[Source, ...]
    """Sources without a row."""
    parts: tuple[str, ...]
    """Staged parts of this fingerprint."""
    refused: str | None = None
    """Why this inventory may not replace the published rows; then nothing is scored for it."""
    another_jobs: bool = False
    """Whether that is because the rows are of another job: then only a person can help."""
    others: Others = ALONE
    """The other buckets of the partition, for the guard."""
    retry: tuple[Source, ...] = ()
    """Rejected sources to retry, because the cause may have been temporary."""
    better: bool = False
    """Whether staged rows have predictions that the published rows do not have."""
    afresh: bool = False
    """Whether every image is scored again (`--rescore`): existing rows do not count."""

    @property
    def up_to_date(self) -> bool:
        """Whether the published rows match inventory and fingerprint; they may include retryable rejections."""
        return self.state == "published"

    @property
    def todo(self) -> tuple[Source, ...]:
        """All sources to score."""
        return (*self.open, *self.retry)


def plan_partition(
    partition: str,
    sources: Sequence[Source],
    *,
    fingerprint: str,
    published: Published | None,
    done: Set[tuple[str, str]],
    parts: Sequence[str],
) -> PartitionPlan:
    """Compare an inventory with the existing rows.

    fingerprint: of the job. done: (source key, version) of all rows published under it or staged.
    """
    remaining = tuple(s for s in sources if (s.key, s.version) not in done)
    if published is not None and published.commit.generation == generation(fingerprint, inventory_digest(sources)):
        return PartitionPlan(partition, tuple(sources), published, "published", len(sources), (), tuple(parts))
    state: State = "stale" if published is not None else "partial" if len(remaining) < len(sources) else "missing"
    return PartitionPlan(
        partition, tuple(sources), published, state, len(sources) - len(remaining), remaining, tuple(parts)
    )


def wants(select: Select, plan: PartitionPlan) -> bool:
    """Whether a run with this selection works on a partition."""
    if plan.afresh:
        return True
    again = bool(plan.retry) or plan.better
    if select == "failed":
        return again and not plan.open
    if plan.up_to_date:
        return again and select in ("due", "all")
    return select in ("due", "all") or (select == "missing") == (plan.published is None)


def rescoring(plan: PartitionPlan) -> str:
    """Prefix of the parts of a rescoring. It depends on the object to replace, so that a second try finds them."""
    base = plan.published.version if plan.published is not None else ""
    return f"{RESCORED}{hashlib.sha256(base.encode()).hexdigest()[:12]}-"


def units(plan: PartitionPlan, job: JobSpec, salt: str, *, workers: int, retry_salt: str | None = None) -> list[Unit]:
    """The units of a partition: slices of one shard or of its loose files, largest first.

    salt: enters the ids of units in addition to their images: the fingerprint. retry_salt: for retried rejections, so
    that their parts have other names than those of the first try; default: `salt`.
    """
    cap = job.limits.unit_images or UNIT_IMAGES
    label = rescoring(plan) if plan.afresh else ""
    if job.input.partition_column is not None:  # a manifest may list an image in several partitions
        label += hashlib.sha256(plan.partition.encode()).hexdigest()[:12] + "-"
    kinds = ((plan.open, salt, False), (plan.retry, retry_salt or salt, True))
    found = [
        Unit(
            label + unit_id(name, piece),
            plan.partition,
            format_of(piece[0], job.input.format),
            tuple(piece),
            isolate=isolate,
        )
        for sources, name, isolate in kinds
        for shard in _by_shard(sources)
        for piece in _slices(shard, cap=cap * _stretch(shard[0], job), workers=workers)
    ]
    return sorted(found, key=lambda unit: -len(unit.sources))


def _stretch(source: Source, job: JobSpec) -> int:
    """Factor for the size of units: a gzipped tar is read from its start for every unit, so its units are larger."""
    has_offsets = CONTAINERS[format_of(source, job.input.format)].offsets
    return GZIP_STRETCH if has_offsets and source.offset is None else 1


def halves(unit: Unit, salt: str) -> list[Unit]:
    """The unit in two halves, to be decoded in isolation; a unit of one image stays whole."""
    middle = (len(unit.sources) + 1) // 2
    pieces = [p for p in (unit.sources[:middle], unit.sources[middle:]) if p]
    return [
        replace(unit, unit_id=sub_unit_id(unit.unit_id, salt, piece), sources=piece, isolate=True) for piece in pieces
    ]


def _by_shard(sources: Sequence[Source]) -> Iterator[list[Source]]:
    """Groups of sources: all loose files together, and each container."""
    loose = [s for s in sources if s.member is None]
    if loose:
        yield loose
    containers: dict[str, list[Source]] = {}
    for source in sources:
        if source.member is not None:
            containers.setdefault(source.uri, []).append(source)
    yield from containers.values()


def _slices(sources: Sequence[Source], *, cap: int, workers: int) -> Iterator[Sequence[Source]]:
    """Slices that get smaller towards the end (guided self-scheduling), so that all actors end at about one time."""
    begin = 0
    while begin < len(sources):
        left = len(sources) - begin
        count = max(1, min(cap, max(SMALLEST_UNIT_IMAGES, left // (4 * workers))))
        end, size = begin, 0
        while end < min(begin + count, len(sources)):
            size += sources[end].size_bytes
            if end > begin and size > UNIT_ENCODED_BYTES:
                break
            end += 1
        yield sources[begin:end]
        begin = end


@dataclass(frozen=True, slots=True)
class Placement:
    """The actors of a run on Ray. CPU shares are for Ray's accounting; `threads` is what a session uses."""

    load_actors: int
    """Number of actors that only load; 0: each session actor loads its own units."""
    load_cpus: float
    """CPUs of one load actor, for Ray's accounting."""
    infer_actors: int
    """Number of actors with a session."""
    infer_cpus: float
    """CPUs of one session actor, for Ray's accounting."""
    infer_gpus: float
    """Share of a GPU of one session actor; 0 on CPUs."""
    threads: int
    """Threads of one session, at least 1."""
    units_at_once: int
    """Units in one session actor: while the session runs one, a thread reads, cuts or puts the other."""


def place(
    cpus: float,
    gpus: float,
    resources: ResourcesSpec,
    *,
    providers: Sequence[str],
    gpu_share: float,
    threads: int | None = None,
) -> Placement:
    """The placement of actors that all fit into the cluster at once, so that no stage waits for another's CPUs.

    On CPUs: one session actor per core with one thread (two threads per actor on two cores were 33 % slower). It loads
    its own units, so that pixels do not pass through the object store. On GPUs, or with `resources.load_actors`: one
    session actor per GPU share, and load actors on all other cores. On GPUs the session actor has some cores, too.
    cpus, gpus: of the cluster. providers: in order of preference; GPUs are used if the cluster has some and the first
    provider runs on them. gpu_share: of one session actor. threads: of one session, which then has as many cores; None:
    the cores that an actor has. Raises JobError if the cluster cannot hold one actor of each kind.
    """
    if cpus < 1:
        raise JobError(f"the cluster has {cpus:g} CPUs; a run needs at least one")
    if on_gpu(providers[0]) and (gpus >= gpu_share or all(on_gpu(name) for name in providers)):
        if gpus < gpu_share:
            raise JobError(
                f"session.providers is {', '.join(providers)}, but the cluster has {gpus:g} GPUs: "
                "add a GPU node, or set session.providers=[cpu]"
            )
        fit = _actors_that_fit(gpus, gpu_share)
        infer = resources.infer_actors or fit
        if infer > fit:
            raise JobError(
                f"resources.infer_actors: {infer} do not fit: {gpus:g} GPU(s) hold {fit} actor(s) of "
                f"session.gpu_share: {gpu_share:g}, and no actor uses two GPUs; set {fit}, or a smaller share"
            )
        infer_cpus = _scoring_cores(cpus / infer)
        left = cpus - infer * infer_cpus
        load = resources.load_actors or max(1, int(left - 1 if left > 4 else left))
        units = max(UNITS_AT_ONCE, int(infer_cpus) + 1)
        return Placement(load, min(1.0, left / load), infer, infer_cpus, gpu_share, threads or 1, units)
    if (threads or 1) > cpus:
        raise JobError(f"session.threads is {threads}, but there are {cpus:g} cores: write at most {int(cpus)}")
    infer = resources.infer_actors or max(1, int(cpus / (threads or 1)))
    load = resources.load_actors or 0
    share = _floor(min(1.0, cpus / (infer * (threads or 1) + load)))
    infer_cpus = share * (threads or 1)
    return Placement(
        load, share, infer, infer_cpus, 0.0, threads or max(1, int(cpus / infer)), 1 if load else UNITS_AT_ONCE
    )  # a session that only scores, on a CPU, has no work to overlap


def only_on_ray(job: JobSpec) -> str | None:
    """Why a job needs Ray, as the beginning of a sentence; None if it does not."""
    if on_gpu(job.session.providers[0]):
        return f"session.providers asks for {job.session.providers[0]}, and GPUs are shared out among actors"
    if job.resources.load_actors:
        return "resources.load_actors asks for actors that only load"
    return None


def _scoring_cores(cpus: float) -> float:
    """Cores of a session actor on a GPU. cpus: of the cluster for each such actor."""
    return max(min(1.0, cpus / 2), float(min(SCORING_CORES, int(SCORING_SHARE * cpus))))


def _actors_that_fit(gpus: float, gpu_share: float) -> int:
    """Number of actors that fit on the GPUs at once. An actor uses one GPU: free shares of two GPUs do not add up."""
    whole, share = int(gpus + 0.5 / GPU_GRAINS), max(1, round(gpu_share * GPU_GRAINS))
    left = max(0, round((gpus - whole) * GPU_GRAINS))  # a cluster may have a fraction of a GPU
    return whole * (GPU_GRAINS // share) + left // share


def _floor(share: float) -> float:
    return int(share * 1000) / 1000  # Ray counts CPUs in ten-thousandths; round down, so that the sum fits
