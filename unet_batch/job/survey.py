"""What the archive holds and what the output already has: the two sides that a plan compares."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime

import pyarrow as pa

from unet_batch.archive.discovery import Window, discover, parse_window
from unet_batch.archive.shards import StoredIndex, inventory
from unet_batch.errors import Damaged, Reason, StorageError
from unet_batch.job.plan import PartitionPlan, Select, again_plan, plan_partition, wants
from unet_batch.job.prepare import Prepared
from unet_batch.records import Source, uncollected
from unet_batch.table.parts import RowKey, read_parts
from unet_batch.table.publish import Published, published_keys, read_commit
from unet_batch.table.rows import partition_values

log = logging.getLogger(__name__)


def window_of(text: str) -> Window:
    """A window as people write it; `today` and `yesterday` are UTC."""
    return parse_window(text, datetime.now(UTC).date())


def inside(window: Window, partition: str) -> bool:
    """Whether a partition belongs to a window; those without a date belong to every window that is no range."""
    day = partition_values(partition).get("date")
    if window.kind != "range":
        return True
    try:
        return day is not None and window.holds(date.fromisoformat(day))
    except ValueError:
        return False


class _ReadOnlyIndex(StoredIndex):
    """Uses what runs have indexed and keeps nothing: for commands that promise to change nothing."""

    def put(self, uri: str, version: str, index: bytes) -> None:
        """Keep nothing."""


@uncollected()
def archive_partitions(prepared: Prepared, window: Window, *, keep: bool) -> dict[str, list[Source]]:
    """The inventory of every partition of the window; lists only the window's prefixes.

    keep: whether the member lists of tars are kept in the output, so that a tar is walked once.
    """
    objects = discover(prepared.archive, prepared.job.input, window)
    cache = (StoredIndex if keep else _ReadOnlyIndex)(prepared.output, prepared.layout.index)
    found: dict[str, list[Source]] = {}
    for partition, shards in objects.items():
        for name, sources in inventory(
            prepared.archive, prepared.job.input, shards, partition=partition, window=window, cache=cache
        ).items():
            found |= _buckets(name, sources, prepared.job.output.buckets)
    return dict(sorted(found.items()))


def survey(prepared: Prepared, window: Window, *, repair: bool) -> list[PartitionPlan]:
    """Every partition of the window compared with the output.

    repair: whether damaged parts are deleted (a run) or only left out (a plan).
    """
    return [
        survey_partition(prepared, partition, sources, repair=repair)
        for partition, sources in archive_partitions(prepared, window, keep=repair).items()
    ]


def glance(prepared: Prepared, partition: str, sources: Sequence[Source], select: Select) -> bool:
    """Whether a run with this selection may have work in a partition, as far as its footer tells."""
    try:
        published = read_commit(prepared.output, prepared.layout, partition)
    except StorageError:
        return True  # the run says what is wrong
    plan = plan_partition(
        partition, sources, mark=prepared.fingerprint, published=published, done=frozenset(), parts=()
    )
    if plan.up_to_date and published is not None:
        return select in ("failed", "all") and published.commit.rejected > 0
    return select == "failed" or wants(select, plan)


def selected(prepared: Prepared, window: Window, select: Select) -> list[PartitionPlan]:
    """What a run with this selection would work on now; changes nothing."""
    plans = survey(prepared, window, repair=False)
    if select in ("failed", "all"):
        plans = [survey_again(prepared, plan) for plan in plans]
    return [plan for plan in plans if wants(select, plan)]


@uncollected()
def survey_partition(prepared: Prepared, partition: str, sources: Sequence[Source], *, repair: bool) -> PartitionPlan:
    """One partition compared with what is published and staged under this job's fingerprint."""
    mark = prepared.fingerprint
    published = read_commit(prepared.output, prepared.layout, partition)
    plan = plan_partition(partition, sources, mark=mark, published=published, done=set(), parts=())
    if plan.up_to_date:
        return plan
    done = _published_versions(prepared, partition, published)
    sound = []
    for uri, keys in read_parts(prepared.output, _part_uris(prepared, partition), mark, repair=repair):
        sound.append(uri)
        done |= {(key.source_key, key.version) for key in keys}
    return plan_partition(partition, sources, mark=mark, published=published, done=done, parts=sound)


@uncollected()
def survey_again(prepared: Prepared, plan: PartitionPlan) -> PartitionPlan:
    """The plan of a complete partition whose rejections may end differently now; the plan as it is for any other."""
    published = plan.published
    if plan.open or (plan.up_to_date and published is not None and not published.commit.rejected):
        return plan
    visible: list[RowKey] = []
    if published is not None and published.commit.fingerprint == prepared.fingerprint:
        try:
            visible = published_keys(prepared.output, prepared.layout, plan.partition)
        except (pa.ArrowException, OSError, ValueError) as error:
            uri = prepared.layout.published(plan.partition)
            raise Damaged(f"{uri} is published but damaged ({error}); move it away and run the job again") from error
    parts = _part_uris(prepared, plan.partition)
    staged = [key for _, keys in read_parts(prepared.output, parts, prepared.fingerprint, repair=False) for key in keys]
    verdicts: dict[tuple[str, str], Reason | None] = {}
    for key in (*visible, *staged):
        name = (key.source_key, key.version)
        if key.reason is None or name not in verdicts:
            verdicts[name] = Reason(key.reason) if key.reason else None
    better = any(key.reason is not None and verdicts[key.source_key, key.version] is None for key in visible)
    return again_plan(plan, verdicts, better=better, parts=parts)


def published_partitions(prepared: Prepared) -> Iterator[str]:
    """Names of all partitions that readers see."""
    root = prepared.layout.predictions + "/"
    for found in prepared.output.list(prepared.layout.predictions):
        if found.uri.startswith(root) and found.uri.endswith("/data.parquet"):
            yield found.uri.removeprefix(root).removesuffix("/data.parquet")


def _published_versions(prepared: Prepared, partition: str, published: Published | None) -> set[tuple[str, str]]:
    if published is None or published.commit.fingerprint != prepared.fingerprint:
        return set()
    try:
        keys = published_keys(prepared.output, prepared.layout, partition)
    except (pa.ArrowException, OSError, ValueError, StorageError) as error:
        log.warning("%s is published but cannot be read (%s): its images are scored again", partition, error)
        return set()
    return {(key.source_key, key.version) for key in keys}


def _part_uris(prepared: Prepared, partition: str) -> list[str]:
    folder = prepared.layout.parts(prepared.fingerprint, partition)
    return sorted(o.uri for o in prepared.output.list(folder) if o.uri.endswith(".part"))


def _buckets(partition: str, sources: Sequence[Source], count: int) -> dict[str, list[Source]]:
    """The partition as it is, or split by a hash of the key that never changes for an image."""
    if count == 1:
        return {partition: list(sources)}
    width = len(str(count - 1))
    split: dict[str, list[Source]] = {f"{partition}/bucket={number:0{width}}": [] for number in range(count)}
    for source in sources:
        number = int.from_bytes(hashlib.sha256(source.key.encode()).digest()[:8], "big") % count
        split[f"{partition}/bucket={number:0{width}}"].append(source)
    return split
