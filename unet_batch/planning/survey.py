"""The survey: the archive's images in a window and the output's rows, which the plan compares."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from unet_batch.archive.nearest import nearest
from unet_batch.archive.window import Window
from unet_batch.errors import Damaged, ExitCode, StorageError, overall
from unet_batch.planning.holdings import Holdings, archive_partitions
from unet_batch.planning.layout import doubled
from unet_batch.planning.owners import of_another_job, of_other_images
from unet_batch.planning.plan import PartitionPlan, plan_partition, rescoring, wants
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.scope import Scope, window_of, without_bucket
from unet_batch.planning.selection import Select
from unet_batch.records import PassedOver, Source, gc_paused
from unet_batch.spec import JobSpec, LimitsSpec
from unet_batch.store.objects import parent
from unet_batch.store.storage import Storage
from unet_batch.table.guard import ALONE, Others, refusal, too_many_rejected
from unet_batch.table.output import Output
from unet_batch.table.parts import RowKey, read_parts
from unet_batch.table.publish import Commit, Published, published_keys, read_commit
from unet_batch.table.rowset import ChosenRows, Name, choose

__all__ = ["Holdings", "Planned", "archive_partitions", "planned", "selected", "window_of"]

log = logging.getLogger(__name__)

EXAMPLES = 3
RETRYING: tuple[Select, ...] = ("due", "failed", "all")
"""Selections that retry rejections of partitions that are up to date."""


@dataclass(frozen=True, slots=True)
class Planned:
    """The work of a run, and its messages."""

    work: list[PartitionPlan]
    passed: PassedOver
    problems: list[str]
    """What the run would refuse, and why."""
    exit_code: ExitCode
    """What the run would end with for these reasons."""


def nothing_found(job: JobSpec, archive: Storage, holdings: Holdings) -> str | None:
    """A sentence with hints if a window holds no image; None if it holds images, or if empty windows are allowed."""
    if holdings.images or job.limits.allow_empty:
        return None
    spec, window = job.input, holdings.scope.window
    where = spec.uri.removeprefix("file://")
    near = nearest(archive, spec.uri, window)
    hints = [
        f"nearest: {near}" if near else "look for a lost mount, or another input.uri, input.pattern or input.members"
    ]
    if spec.partition_column is not None and window.kind != "all":
        hints = [f"no {spec.partition_column} is a day of this window: write --window all"]
    if holdings.passed.total:
        hints.append(str(holdings.passed))
    return f"nothing was found: nothing matches {where} in the window; {'; '.join(hints)}"


def vanished(output: Output, limits: LimitsSpec, holdings: Holdings) -> str | None:
    """A sentence about published partitions of the window without images in the archive, or None."""
    if limits.allow_removed or holdings.scope.window.kind == "last":
        return None
    groups = {without_bucket(name) for name in holdings.partitions}
    lost: dict[str, int] = {}
    for name in published_inside(output, holdings.scope):
        group = without_bucket(name)
        if group not in groups and (images := _published_images(output, name)):
            lost[group] = lost.get(group, 0) + images
    if not lost:
        return None
    shown = ", ".join(f"{name} ({images} images)" for name, images in sorted(lost.items())[:EXAMPLES])
    more = " …" if len(lost) > EXAMPLES else ""
    return (
        f"{len(lost)} partition(s) are published, but the archive holds no image of them now: {shown}{more}; their "
        "rows stay: look for a lost mount or folder; if this is right, set limits.allow_removed: true, or remove them "
        "with `unet-batch sweep JOB --vanished A..B`"
    )


def twice(prepared: Prepared, holdings: Holdings) -> str | None:
    """A sentence about images of the window that readers would count twice after a run; None if there are none."""
    published = published_partitions(prepared.output)
    return doubled(prepared.output, prepared.job, holdings.partitions, published)


def surveyed(
    prepared: Prepared, holdings: Holdings, select: Select, *, repair: bool, rescore: bool = False
) -> list[PartitionPlan]:
    """The plans of all partitions of a listing, compared with the output.

    repair: whether damaged parts are deleted (a run) or only left out (a plan).
    """
    buckets = Buckets(prepared.output, holdings.partitions)
    return [
        survey_partition(
            prepared,
            name,
            sources,
            select=select,
            others=buckets.others(name),
            unsplit=buckets.unsplit(name, prepared.fingerprint),
            repair=repair,
            rescore=rescore,
        )
        for name, sources in holdings.partitions.items()
    ]


def may_have_work(prepared: Prepared, partition: str, sources: Sequence[Source], select: Select) -> bool:
    """Whether a run with this selection may have work in a partition, by the footer of its published object."""
    sources = tuple(sources)
    try:
        published = read_commit(prepared.output, partition)
    except StorageError:
        return True  # the run reports the error
    plan = plan_partition(
        partition, sources, fingerprint=prepared.fingerprint, published=published, done=frozenset(), parts=()
    )
    if plan.up_to_date and published is not None:
        return select in RETRYING and _may_be_tried(published.commit, select, prepared.job.limits)
    return select == "failed" or wants(select, plan)


def planned(prepared: Prepared, window: Window, select: Select, *, rescore: bool = False) -> Planned:
    """The work of a run with this selection, and what it would refuse; changes nothing."""
    holdings = archive_partitions(prepared, window, keep=False)
    plans = surveyed(prepared, holdings, select, repair=False, rescore=rescore)
    if rescore:
        plans = [plan_rescore(prepared.output, prepared.fingerprint, plan, repair=False) for plan in plans]
    wanted = [plan for plan in plans if wants(select, plan)]
    empty = nothing_found(prepared.job, prepared.archive, holdings)
    refusing = [plan for plan in wanted if plan.refused is not None and (plan.published or empty is None)]
    refused = [plan.refused for plan in refusing]
    lost = vanished(prepared.output, prepared.job.limits, holdings) if select != "failed" else None
    problems = [sentence for sentence in (empty, *refused, lost, twice(prepared, holdings)) if sentence is not None]
    others = [ExitCode.NEEDS_ACTION for plan in refusing if plan.another_jobs]
    return Planned(
        [plan for plan in wanted if plan.refused is None],
        holdings.passed,
        problems,
        overall([*others, *([ExitCode.UNFINISHED] if len(problems) > len(others) else [])]),
    )


def selected(prepared: Prepared, window: Window, select: Select) -> list[PartitionPlan]:
    """The work of a run with this selection; changes nothing."""
    return planned(prepared, window, select).work


@gc_paused()
def survey_partition(
    prepared: Prepared,
    partition: str,
    sources: Sequence[Source],
    *,
    select: Select = "due",
    others: Others = ALONE,
    unsplit: Sequence[str] = (),
    repair: bool,
    rescore: bool = False,
) -> PartitionPlan:
    """The plan of one partition, compared with the rows published and staged under this job's fingerprint.

    select: decides which rejections are retried. others: the other buckets of the partition, for the guard. unsplit:
    parts that were staged before the partition was split into buckets. rescore: whether all images are asked for again,
    so that rows of another job are replaced too (`owners`).
    Raises Damaged if the rejections are in an unreadable object.
    """
    output, fingerprint, limits = prepared.output, prepared.fingerprint, prepared.job.limits
    sources = tuple(sources)
    published = read_commit(output, partition)
    plan = plan_partition(partition, sources, fingerprint=fingerprint, published=published, done=set(), parts=())
    commit = published.commit if published is not None else None
    keeps_others = select == "due" and not rescore
    if plan.up_to_date and commit is not None and not _may_be_tried(commit, select, limits):
        return plan
    if not plan.up_to_date:
        there = (commit.sources if commit else 0) + others.published
        refused = refusal(partition, there, len(sources) + others.now, limits)
        if refused is not None:
            return replace(plan, refused=refused, others=others)
        if keeps_others and commit is not None:
            refused = of_another_job(partition, prepared.job, commit, fingerprint)
            if refused is not None:
                return replace(plan, refused=refused, another_jobs=True, others=others)
    visible = _visible(
        output,
        fingerprint,
        partition,
        published,
        strict=select == "failed" or (select == "all" and plan.up_to_date),
    )
    if visible is None and plan.up_to_date:
        return plan
    if keeps_others and visible and commit is not None and not plan.up_to_date:
        refused = of_other_images(partition, prepared.job, commit, visible, sources)
        if refused is not None:
            return replace(plan, refused=refused, another_jobs=True, others=others)
    names: list[str] = []

    def containers() -> Iterator[Sequence[RowKey]]:
        yield visible or ()
        uris = sorted({*unsplit, *_part_uris(output, fingerprint, partition)})
        for uri, keys in read_parts(output.store, uris, fingerprint, repair=repair):
            names.append(uri)
            yield keys

    rows = choose(containers(), {source.key: source.version for source in sources})
    plan = plan_partition(
        partition, sources, fingerprint=fingerprint, published=published, done=rows.keys(), parts=names
    )
    seen = {(key.source_key, key.version) for key in visible or ()}
    held_back = not plan.open and _are_held_back(rows, limits)

    def is_due_again(source: Source) -> bool:
        """Whether a rejection is retryable and within the limit; problems from the listing are already current."""
        name = (source.key, source.version)
        if source.problem is not None or name not in rows or not rows[name].may_pass:
            return False
        if select in ("failed", "all"):
            return True
        return (commit.tries(*name) < limits.retries) if commit is not None and name in seen else held_back

    return replace(
        plan,
        others=others,
        retry=tuple(source for source in sources if is_due_again(source)),
        better=any(winner.container > 0 and name in seen for name, winner in rows.items()),
    )


def _are_held_back(rows: Mapping[Name, ChosenRows], limits: LimitsSpec) -> bool:
    """Whether only rejections keep the rows from being published; otherwise rows are published first, then retried."""
    pages = [page.reason for winner in rows.values() for page in winner.pages]
    return too_many_rejected(sum(reason is not None for reason in pages), len(pages), limits)


def _may_be_tried(commit: Commit, select: Select, limits: LimitsSpec) -> bool:
    """Whether a partition that is up to date holds rejections that a run with this selection retries."""
    if select in ("failed", "all"):
        return commit.rejected > 0
    return select == "due" and commit.may_pass > sum(tries >= limits.retries for tries in commit.tried.values())


@gc_paused()
def plan_rescore(output: Output, fingerprint: str, plan: PartitionPlan, *, repair: bool) -> PartitionPlan:
    """The plan of `--rescore`: score every image of a partition again, although rows exist.

    Parts of an earlier try of the same rescoring count: their names depend on the object to replace.
    """
    if plan.refused is not None:
        return plan
    label = rescoring(plan)
    ours = [uri for uri in _part_uris(output, fingerprint, plan.partition) if uri.rpartition("/")[2].startswith(label)]
    parts = list(read_parts(output.store, ours, fingerprint, repair=repair))
    done = {(key.source_key, key.version) for _, keys in parts for key in keys}
    left = tuple(s for s in plan.sources if (s.key, s.version) not in done)
    scored, sound = len(plan.sources) - len(left), tuple(uri for uri, _ in parts)
    return replace(plan, open=left, scored=scored, parts=sound, retry=(), better=False, afresh=True)


def published_partitions(output: Output) -> Iterator[str]:
    """Names of all published partitions."""
    root = output.predictions + "/"
    for found in output.store.list(output.predictions):
        if found.uri.startswith(root) and found.uri.endswith("/data.parquet"):
            yield found.uri.removeprefix(root).removesuffix("/data.parquet")


def published_inside(output: Output, scope: Scope) -> list[str]:
    """Names of the published partitions of a scope."""
    return [name for name in published_partitions(output) if scope.holds(name)]


class Buckets:
    """Numbers of images of all buckets of a partition, published and in the archive, before a run."""

    def __init__(self, output: Output, partitions: Mapping[str, Sequence[Source]]) -> None:
        self._output = output
        self._now = {name: len(sources) for name, sources in partitions.items()}
        self._groups: dict[str, list[str]] = {}
        for name in partitions:
            self._groups.setdefault(without_bucket(name), []).append(name)
        self._published: dict[str, int] = {}
        self._unsplit: dict[str, list[str]] = {}

    def others(self, partition: str) -> Others:
        """The other buckets of a partition; ALONE if it is not split."""
        rest = [name for name in self._groups[without_bucket(partition)] if name != partition]
        for name in (*rest, partition) if rest else ():
            if name not in self._published:
                self._published[name] = _published_images(self._output, name)
        return Others(sum(self._published[name] for name in rest), sum(self._now[name] for name in rest))

    def unsplit(self, partition: str, fingerprint: str) -> Sequence[str]:
        """Parts that were staged before a partition was split into buckets, such as this one."""
        whole = without_bucket(partition)
        if whole == partition:
            return ()
        if whole not in self._unsplit:  # buckets of a partition come one after the other
            self._unsplit = {whole: _part_uris(self._output, fingerprint, whole)}
        return self._unsplit[whole]


def _published_images(output: Output, partition: str) -> int:
    """Number of images of a published partition; 0 if it is not published or unreadable."""
    try:
        published = read_commit(output, partition)
    except StorageError:
        return 0  # the run reports it when it works on this partition
    return published.commit.sources if published else 0


def _visible(
    output: Output, fingerprint: str, partition: str, published: Published | None, *, strict: bool
) -> list[RowKey] | None:
    """The published rows of this job's fingerprint; None if there are none, or if they are unreadable.

    strict: raise Damaged for unreadable rows.
    """
    if published is None or published.commit.fingerprint != fingerprint:
        return None
    uri = output.published(partition)
    try:
        return published_keys(output, partition)
    except (pa.ArrowException, OSError, ValueError, StorageError) as error:
        if strict:
            raise Damaged(f"{uri} is published but damaged ({error}); move it away and run the job again") from error
        log.warning("%s is published but cannot be read (%s): its rows do not count", partition, error)
        return None


def _part_uris(output: Output, fingerprint: str, partition: str) -> list[str]:
    """Staged parts of a partition, without those of its buckets."""
    folder = output.parts(fingerprint, partition)
    return sorted(o.uri for o in output.store.list(folder) if o.uri.endswith(".part") and parent(o.uri) == folder)
