"""Publication: the step that makes a partition's rows visible; it decides exactly-once.

It merges rows published under the same fingerprint with staged rows, chooses one per image of the inventory, drops
duplicates, and checks all counts. Then it puts one object once, on condition that the partition has not changed since
the run began. The commit record is in the file's footer.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from unet_batch.errors import (
    Conflict,
    Damaged,
    Held,
    Incomplete,
    NeedsAction,
    NotFound,
    PutUnknown,
    Reason,
    StorageError,
)
from unet_batch.records import Source, gc_paused, inventory_digest
from unet_batch.spec import LimitsSpec
from unet_batch.table.guard import ALONE, Others, refusal, too_many_rejected
from unet_batch.table.merge import RowReader, batches
from unet_batch.table.output import Output
from unet_batch.table.parts import RowKey, dim_share, open_stream, parquet_writer, read_parts, row_keys
from unet_batch.table.plausibility import Implausible, checked
from unet_batch.table.rows import SCHEMA_VERSION, schema
from unet_batch.table.rowset import ChosenRows, Name, choose
from unet_batch.table.rowset import may_pass as reason_may_pass
from unet_batch.table.scratch import scratch_folder
from unet_batch.table.tally import TALLY_METADATA, Tally

log = logging.getLogger(__name__)

COMMIT_METADATA = b"unet_batch.commit"
ROWS_PER_GROUP = 4096
MAX_OBJECT_BYTES = 2 << 30
"""S3 allows 5 GiB in one conditional put; half of that works in every store."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The commit record in a published object's footer."""

    generation: str
    """Hash of schema version, fingerprint and inventory. Equal generations hold the same rows, except for rejections
    that a retry replaced by predictions."""
    partition: str
    fingerprint: str
    model_digest: str
    inventory: str
    run_id: str
    sources: int
    rows: int
    rejected: int
    written_with: str
    """Versions of the packages that wrote it."""
    may_pass: int = 0
    """Images with a retryable rejection."""
    tried: dict[str, int] = field(default_factory=dict)
    """`short_name` of such images → number of retries, if any."""

    def tries(self, key: str, version: str) -> int:
        """Number of runs that retried an image whose rejection is published."""
        return self.tried.get(short_name(key, version), 0)


@dataclass(frozen=True, slots=True)
class Published:
    """The published object of a partition."""

    version: str
    """The store's version of the object, the condition of the next put."""
    commit: Commit
    tally: Tally | None = None
    """Counts over its rows; None if an earlier version wrote it."""
    warnings: tuple[Implausible, ...] = ()
    """What looks wrong in the rows, from the call that published them."""


@dataclass(frozen=True, slots=True)
class Publication:
    """The inputs of one publication."""

    partition: str
    sources: Sequence[Source]
    """The inventory."""
    fingerprint: str
    model_digest: str
    run_id: str
    base: str | None
    """Version of the object to replace, recorded when the run began; None if there was none."""
    parts: Sequence[str]
    """URIs of staged parts that may hold rows of the inventory."""
    afresh: bool = False
    """Whether published rows are ignored (`--rescore`), so that only the parts count."""
    compression: str = "zstd"
    single_writer: bool = False
    tried: Set[Name] = frozenset()
    """Images, by key and version, whose rejections this run retried."""
    others: Others = ALONE
    """The other buckets of the partition, for the guard."""
    classes: Mapping[int, str] = field(default_factory=dict)
    """Classes that get an entry in a row, for `plausibility`."""
    nights: Sequence[Tally] = ()
    """Tallies of other nights, for the same."""


def short_name(key: str, version: str) -> str:
    """16 hex digits for an image's key and version in a commit record."""
    return hashlib.sha256(f"{key}\0{version}".encode()).hexdigest()[:16]


def generation(fingerprint: str, inventory: str) -> str:
    """64 hex digits; a published object is a pure function of its generation."""
    return hashlib.sha256(f"{SCHEMA_VERSION}\0{fingerprint}\0{inventory}".encode()).hexdigest()


def read_commit(output: Output, partition: str) -> Published | None:
    """The published object of a partition, from its footer; None if there is none. Raises Damaged."""
    uri = output.published(partition)
    found = output.store.head(uri)
    if found is None:
        return None
    try:
        with output.store.open(uri) as stream:
            footer = pq.read_metadata(stream).metadata or {}
        tally = Tally.from_json(footer[TALLY_METADATA]) if TALLY_METADATA in footer else None
        return Published(found.version, Commit(**json.loads(footer[COMMIT_METADATA])), tally)
    except NotFound:
        return None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        text = f"{uri} is damaged or was not written by unet-batch ({error}); move it away and run the job again"
        raise Damaged(text) from error


def read_tally(output: Output, partition: str, fingerprint: str) -> Tally | None:
    """The tally of a published partition; None without one, or under another fingerprint. Raises as `read_commit`."""
    found = read_commit(output, partition)
    return found.tally if found is not None and found.commit.fingerprint == fingerprint else None


def published_keys(output: Output, partition: str) -> list[RowKey]:
    """The keys of all published rows, with page checksums verified. Raises ArrowException or OSError."""
    return row_keys(open_stream(output.store.open(output.published(partition))))


def publish(output: Output, wanted: Publication, limits: LimitsSpec) -> Published:
    """Make the partition's rows visible.

    Raises Incomplete if rows are missing or far fewer would be visible than now (NeedsAction if a limit forbids it),
    Held if another run published first, Damaged, StorageError.
    """
    digest = inventory_digest(wanted.sources)
    target = generation(wanted.fingerprint, digest)
    now = read_commit(output, wanted.partition)
    _check_shrink(wanted, now, limits)
    chosen, containers = _choose_rows(output, wanted, now)
    rows = [(winner.container, page) for _, winner in sorted(chosen.items()) for page in winner.pages]
    rejected = [reason for _, key in rows if (reason := key.reason) is not None]
    may_pass = [name for name, winner in chosen.items() if winner.may_pass]
    _check_limits(wanted.partition, len(rows), rejected, limits)
    _check_pages(wanted, now, len(rows), limits)
    commit = Commit(
        generation=target,
        partition=wanted.partition,
        fingerprint=wanted.fingerprint,
        model_digest=wanted.model_digest,
        inventory=digest,
        run_id=wanted.run_id,
        sources=len(wanted.sources),
        rows=len(rows),
        rejected=len(rejected),
        may_pass=len(may_pass),
        tried=_tried(wanted, now, may_pass),
        written_with=f"pyarrow {pa.__version__}",
    )
    try:
        with scratch_folder() as folder:
            path = folder / "data.parquet"
            tally = _write(path, wanted, commit, rows, RowReader(output.store, containers))
            warnings = checked(wanted.partition, tally, wanted.classes, wanted.nights, limits=limits)
            return replace(_swap(output, wanted, commit, path), tally=tally, warnings=warnings)
    except (pa.ArrowException, OSError) as error:  # errors of the store were converted before
        raise StorageError(
            f"the rows of {wanted.partition} cannot be merged on the local disk ({error}): free some space there"
        ) from error


@gc_paused()
def _choose_rows(
    output: Output, wanted: Publication, now: Published | None
) -> tuple[dict[Name, ChosenRows], list[str]]:
    """The chosen rows of every image of the inventory, and the objects that may hold them. Raises Incomplete."""
    versions = {source.key: source.version for source in wanted.sources}
    containers: list[str] = []

    def keys() -> Iterator[list[RowKey]]:
        for uri, found in _row_keys(output, wanted, now):
            containers.append(uri)
            yield found

    chosen = choose(keys(), versions)
    missing = versions.keys() - {key for key, _ in chosen}
    if missing:
        raise Incomplete(
            f"{wanted.partition}: {len(missing)} of {len(versions)} images have no row yet, e.g. {min(missing)}; "
            "nothing was published: run the same command again"
        )
    return chosen, containers


def _row_keys(output: Output, wanted: Publication, now: Published | None) -> Iterator[tuple[str, list[RowKey]]]:
    if now is not None and now.commit.fingerprint == wanted.fingerprint and not wanted.afresh:
        uri = output.published(wanted.partition)
        try:
            visible = published_keys(output, wanted.partition)
        except (pa.ArrowException, OSError) as error:
            log.warning("%s is damaged, so only staged rows count (%s)", uri, error)
        else:
            yield uri, visible
    yield from read_parts(output.store, sorted(wanted.parts), wanted.fingerprint, repair=True)


def _tried(wanted: Publication, now: Published | None, may_pass: Sequence[Name]) -> dict[str, int]:
    """Number of retries of each retryable rejection, including those of this run."""
    before = now.commit if now is not None and now.commit.fingerprint == wanted.fingerprint else None
    counts = ((name, (before.tries(*name) if before else 0) + (name in wanted.tried)) for name in may_pass)
    return {short_name(*name): count for name, count in counts if count}


def _check_shrink(wanted: Publication, now: Published | None, limits: LimitsSpec) -> None:
    """Check the guard against the rows that are published now, not against those when the run began."""
    published = now.commit.sources if now is not None else 0
    others = wanted.others
    refused = refusal(wanted.partition, published + others.published, len(wanted.sources) + others.now, limits)
    if refused is not None:
        raise Incomplete(refused)


def _check_pages(wanted: Publication, now: Published | None, rows: int, limits: LimitsSpec) -> None:
    """The same for pages, if both counts have the same fingerprint: a stack may have lost its pages."""
    if now is not None and now.commit.fingerprint == wanted.fingerprint and wanted.others == ALONE and rows:
        refused = refusal(wanted.partition, now.commit.rows, rows, limits)
        if refused is not None:
            raise Incomplete(refused)


def _check_limits(partition: str, rows: int, rejected: Sequence[str], limits: LimitsSpec) -> None:
    broken = [reason for reason in rejected if Reason(reason).shard_level]
    if broken and limits.broken_shards == "refuse":
        raise NeedsAction(
            f"{partition}: {len(broken)} shard(s) are truncated or corrupt ({', '.join(sorted(set(broken)))}), so an "
            "unknown number of images is lost; nothing was published: repair the shard, or set limits.broken_shards: "
            "publish"
        )
    if too_many_rejected(len(rejected), rows, limits):
        described = ", ".join(f"{n} × {reason}" for reason, n in sorted(Counter(rejected).items()))
        of_them = " of them" if isinstance(limits.max_rejected, float) else ""
        passing = sum(reason_may_pass(reason) for reason in rejected)
        text = (
            f"{partition}: {len(rejected)} of {rows} images were rejected ({described}); "
            f"limits.max_rejected allows {limits.max_rejected}{of_them}; nothing was published: "
        )
        if not too_many_rejected(len(rejected) - passing, rows, limits):
            raise Incomplete(
                f"{text}{passing} of them may be temporary, so run the same command again when the "
                "cause is gone, or raise the limit"
            )
        raise NeedsAction(f"{text}look at the reasons, repair the archive or raise the limit")


def _write(
    path: Path, wanted: Publication, commit: Commit, rows: Sequence[tuple[int, RowKey]], containers: RowReader
) -> Tally:
    """Write the chosen rows into one file, one row group at a time, in key order; returns their tally."""
    own, tally = schema(wanted.partition), Tally()
    with parquet_writer(str(path), own, compression=wanted.compression) as writer:
        for some in batches(rows, ROWS_PER_GROUP):
            table = containers.take(some, own)
            tally.add(table)
            writer.write_table(table)
        tally.dim = _dim_images(rows, containers)
        footer = {COMMIT_METADATA: json.dumps(asdict(commit)).encode(), TALLY_METADATA: tally.to_json()}
        writer.add_key_value_metadata({name.decode(): text.decode() for name, text in footer.items()})
    size = path.stat().st_size
    if size > MAX_OBJECT_BYTES:
        raise NeedsAction(
            f"{wanted.partition} has {size} bytes of rows; one object holds at most {MAX_OBJECT_BYTES}: "
            f"set output.buckets to {-(-size // (MAX_OBJECT_BYTES // 2))} or more and run again (staged rows are kept)"
        )
    return tally


def _dim_images(rows: Sequence[tuple[int, RowKey]], containers: RowReader) -> int:
    """Number of dim images among the chosen rows, from the share that each container declares."""
    predictions = Counter(container for container, key in rows if key.reason is None)
    return round(sum(count * dim_share(containers.footers[container]) for container, count in predictions.items()))


def _swap(output: Output, wanted: Publication, commit: Commit, path: Path) -> Published:
    """Put the object once, conditionally; after a refusal or an unknown outcome, read the object back."""
    uri = output.published(wanted.partition)
    if wanted.single_writer:
        return Published(output.store.put(uri, path), commit)
    try:
        return Published(output.store.replace(uri, path, version=wanted.base), commit)
    except (Conflict, PutUnknown) as error:
        now = read_commit(output, wanted.partition)
        if (
            now is not None
            and now.commit.generation == commit.generation
            and (now.commit.run_id == commit.run_id or not wanted.afresh)  # else it may be the old rows
            and now.commit.rejected <= commit.rejected  # otherwise our retried rejections would be lost
        ):
            log.info("%s already holds this generation, put by run %s", uri, now.commit.run_id)
            return now
        if isinstance(error, PutUnknown) and (now.version if now else None) == wanted.base:
            raise Incomplete(
                f"{uri}: the store did not answer and nothing changed ({error}); run the same command again"
            ) from error
        winner = f"run {now.commit.run_id}" if now else "a removal of the object"
        raise Held(
            f"{wanted.partition} was changed by {winner} while this run was scoring it; its rows stay. "
            "Run the command again if this job's rows should replace them"
        ) from error
