"""What is to be done, as pure functions: open sources, units, placement.

Knows nothing of stores, Ray or pixels, and is small enough to print. Work is skipped by image key
and version, never by the name of a part, so slices may shift between two runs without an image being scored twice.
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
"""How the names of units begin that score again what has rows."""
UNIT_IMAGES = 64
"""A unit costs the driver about 18 ms; a larger one is lost whole, and reported late, when its model is slow."""
UNIT_ENCODED_BYTES = 8 << 20
"""A plan knows encoded sizes only; JPEGs inflate about tenfold, so a unit stays near 100 MiB decoded."""
SMALLEST_UNIT_IMAGES = 4
GZIP_STRETCH = 8
UNITS_AT_ONCE = 2
GPU_GRAINS = 10_000
"""In which Ray counts a GPU (FixedPoint, ray 2.60)."""


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """One partition: what it should hold, what is there, and what is left to score."""

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
    """Why the guard does not let this inventory replace what is published; nothing is scored for it then."""
    others: Others = ALONE
    """The other buckets of the partition, for the guard."""
    retry: tuple[Source, ...] = ()
    """Rejected sources that are scored once more, because their reason may have passed."""
    better: bool = False
    """Whether staged rows hold predictions that the published ones lack."""
    afresh: bool = False
    """Whether every image is scored again: rows that are published or staged for another purpose do not count."""

    @property
    def up_to_date(self) -> bool:
        """Whether what is published is what the inventory and the fingerprint demand; rejections may still pass."""
        return self.state == "published"

    @property
    def todo(self) -> tuple[Source, ...]:
        """All sources that are scored."""
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
    """Compare an inventory with what is there.

    fingerprint: the job's. done: (source key, version) of all rows published under it or staged.
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
    """How the parts of a rescoring begin: named after the object that it replaces, so that another try finds them."""
    base = plan.published.version if plan.published is not None else ""
    return f"{RESCORED}{hashlib.sha256(base.encode()).hexdigest()[:12]}-"


def units(plan: PartitionPlan, job: JobSpec, salt: str, *, workers: int, again_salt: str | None = None) -> list[Unit]:
    """What is to score of a partition, in slices of one shard or of its loose files, largest first.

    salt: what the names of units depend on besides their images: the fingerprint. again_salt: of units that are tried
    once more, so that their parts lie apart from those of the first try; left out: `salt`.
    """
    cap = job.limits.unit_images or UNIT_IMAGES
    label = rescoring(plan) if plan.afresh else ""
    kinds = ((plan.open, salt, False), (plan.retry, again_salt or salt, True))
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
    """A gzipped tar is read from its start for every unit, so its units are larger."""
    has_offsets = CONTAINERS[format_of(source, job.input.format)].offsets
    return GZIP_STRETCH if has_offsets and source.offset is None else 1


def halves(unit: Unit, salt: str) -> list[Unit]:
    """The unit again in two, each to be decoded in isolation; a unit of one image is returned whole."""
    middle = (len(unit.sources) + 1) // 2
    pieces = [p for p in (unit.sources[:middle], unit.sources[middle:]) if p]
    return [
        replace(unit, unit_id=sub_unit_id(unit.unit_id, salt, piece), sources=piece, isolate=True) for piece in pieces
    ]


def _by_shard(sources: Sequence[Source]) -> Iterator[list[Source]]:
    """Loose files together, each container by itself."""
    loose = [s for s in sources if s.member is None]
    if loose:
        yield loose
    containers: dict[str, list[Source]] = {}
    for source in sources:
        if source.member is not None:
            containers.setdefault(source.uri, []).append(source)
    yield from containers.values()


def _slices(sources: Sequence[Source], *, cap: int, workers: int) -> Iterator[Sequence[Source]]:
    """Slices that shrink towards the end (guided self-scheduling), so that no actor works long after the others."""
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
    """Which actors a run asks for. CPU shares are the scheduler's accounting; threads are what a session uses."""

    load_actors: int
    """0: each session actor loads its own units."""
    load_cpus: float
    infer_actors: int
    infer_cpus: float
    infer_gpus: float
    threads: int
    units_at_once: int
    """Units in one session actor: while the session runs one, a thread reads, cuts or puts the other."""


def place(
    cpus: float, gpus: float, resources: ResourcesSpec, *, providers: Sequence[str], gpu_share: float
) -> Placement:
    """Actors that fit a cluster all at once, so that no stage waits for a CPU that another holds.

    On CPUs: a session actor per core with one thread each (two threads per actor on two cores were 33 % slower), which
    loads its own units: pixels that are scored by the core that decoded them need no way through the object store.
    On GPUs, or where `resources.load_actors` says so: a session actor per GPU share, and Load on all other cores.
    providers: in order of preference; GPUs are used where one that runs on them comes first and there are any.
    Raises JobError when the cluster cannot hold one actor of each kind.
    """
    if cpus < 1:
        raise JobError(f"the cluster offers {cpus:g} CPUs; one is the least that a run needs")
    if on_gpu(providers[0]) and (gpus >= gpu_share or all(on_gpu(name) for name in providers)):
        if gpus < gpu_share:
            raise JobError(
                f"session.providers asks for {', '.join(providers)}, and the cluster offers {gpus:g} GPUs: "
                "add a GPU node, or set session.providers=[cpu]"
            )
        fit = _actors_that_fit(gpus, gpu_share)
        infer = resources.infer_actors or fit
        if infer > fit:
            raise JobError(
                f"resources.infer_actors: {infer} do not fit: {gpus:g} GPU(s) hold {fit} actor(s) of "
                f"session.gpu_share: {gpu_share:g}, and none is split over two GPUs; ask for {fit}, or a smaller share"
            )
        infer_cpus = min(1.0, cpus / (2 * infer))
        left = cpus - infer * infer_cpus
        load = resources.load_actors or max(1, int(left - 1 if left > 4 else left))
        return Placement(load, min(1.0, left / load), infer, infer_cpus, gpu_share, 1, UNITS_AT_ONCE)
    infer = resources.infer_actors or max(1, int(cpus))
    load = resources.load_actors or 0
    share = _floor(min(1.0, cpus / (infer + load)))
    return Placement(
        load, share, infer, share, 0.0, max(1, int(cpus / infer)), 1 if load else UNITS_AT_ONCE
    )  # a session that only scores, on a CPU, has nothing to overlap with


def only_on_ray(job: JobSpec) -> str | None:
    """What a job asks for that only Ray has, as the beginning of a sentence; None where there is nothing."""
    if on_gpu(job.session.providers[0]):
        return f"session.providers asks for {job.session.providers[0]}, and GPUs are shared out among actors"
    if job.resources.load_actors:
        return "resources.load_actors asks for actors that only load"
    return None


def _actors_that_fit(gpus: float, gpu_share: float) -> int:
    """Actors that GPUs hold all at once. An actor has its share on one GPU: two thirds that are left over hold none."""
    whole, share = int(gpus + 0.5 / GPU_GRAINS), max(1, round(gpu_share * GPU_GRAINS))
    left = max(0, round((gpus - whole) * GPU_GRAINS))  # a part of one GPU, where a cluster offers such
    return whole * (GPU_GRAINS // share) + left // share


def _floor(share: float) -> float:
    return int(share * 1000) / 1000  # Ray counts CPUs in ten-thousandths; never ask for more than there is
