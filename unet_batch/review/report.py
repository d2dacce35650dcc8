"""The data of one run's report.

Two sources, which are not mixed: the run's record describes its work, and the published rows of its partitions describe
the images. A figure that neither source holds is None and is left out of the page. No HTML here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import pyarrow as pa

from unet_batch.errors import Reason, StorageError
from unet_batch.planning.prepare import Prepared
from unet_batch.records import image_key
from unet_batch.review.bottleneck import Bottleneck, StageTime, bottleneck, stage_times
from unet_batch.review.census import EXAMPLES, Census, Counts, Figures, Rejected
from unet_batch.review.pictures import ReportPicture, draw
from unet_batch.review.run_records import RunRecord, WorkedOn
from unet_batch.review.trend import Night, trend
from unet_batch.store.objects import redact
from unet_batch.table.parts import RowKey, open_rows, open_stream, row_keys
from unet_batch.table.publish import Published, read_commit
from unet_batch.table.rowset import choose

QUEUE = 20
"""Images in the review queue."""
STAGED_PARTS = 500
"""Most staged parts of one unpublished partition that are read for its rejections; each is a whole object."""
Now = Literal["published", "not published", "replaced", "gone", "damaged"]
DAMAGE = (pa.ArrowException, OSError, KeyError, ValueError, TypeError)


@dataclass(frozen=True, slots=True)
class PartitionLine:
    """A partition's line in the report."""

    partition: str
    before: str
    """Its state when the run began."""
    images: int
    """Sources of its inventory then."""
    open: int
    """Number of these that the run had to score."""
    now: Now
    """published: readers see rows of this run's fingerprint. replaced, gone: the run published it, but readers no
    longer see its rows."""
    counts: Counts | None
    """Counts of those rows; None if there are none."""
    notes: tuple[str, ...]
    """Why it is not published, or what happened to it later."""

    @property
    def published(self) -> bool:
        return self.now == "published"


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """One reason of rejections, over published or staged rows."""

    reason: str
    images: int
    can_help: bool
    """Whether another run over the same bytes may give another result."""
    examples: tuple[tuple[str, str], ...]
    """Image key and message."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The times in the record; None for figures that it does not hold."""

    images_per_s: float | None
    read_bytes: int | None
    seconds: tuple[tuple[str, float], ...]
    """The phases of the driver, in order: starting, scoring, publishing, stopping."""
    stages: tuple[StageTime, ...]
    bottleneck: Bottleneck | None
    workers: int | None
    loaders: int
    batches: tuple[tuple[int, int], ...]
    """(tiles in a batch, number of such batches)."""
    out_of_memory: int
    peak_worker_rss_bytes: int | None


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run and the current state of its partitions."""

    run: str
    job: str
    root: str
    """Common prefix of all image keys; the page leaves it out."""
    output: str
    started: datetime | None
    ended: datetime | None
    select: str
    exit_code: int | None
    """None if the record has no end: the run was killed, or is still running."""
    problems: tuple[str, ...]
    """Problems of the run as a whole; those of a partition are in its line."""
    hints: tuple[str, ...]
    """What may be wrong with the rows although nothing failed."""
    partitions: tuple[PartitionLine, ...]
    figures: Figures
    rejected: tuple[RejectedLine, ...]
    """Over published rows."""
    staged_rejected: tuple[RejectedLine, ...]
    """Over staged rows of partitions that are not published."""
    staged_unread: int
    """Number of staged parts that were not read, because a partition has more than STAGED_PARTS."""
    speed: Speed | None
    nights: tuple[Night, ...]
    """The last published nights up to the newest one of the run."""
    queue: tuple[ReportPicture, ...]
    sample: tuple[ReportPicture, ...]
    facts: tuple[tuple[str, str], ...]
    """Provenance of the rows: model, fingerprint, provider, versions."""
    fingerprint: str

    @property
    def published(self) -> int:
        """Number of partitions in which readers see rows of this run's fingerprint."""
        return sum(line.published for line in self.partitions)

    def shown(self, image_key: str) -> str:
        """An image key for the page: without the common prefix and without signatures."""
        return redact(image_key).removeprefix(self.root)


def gather(prepared: Prepared, record: RunRecord, *, pictures: int) -> RunReport:
    """The report of a run. Raises StorageError if the output's store fails.

    pictures: most thumbnails of the review queue, and of the sample.
    """
    names = _class_names(prepared, record)
    census = Census(record.run, queue=max(QUEUE, pictures), sample=pictures, classes=names)
    lines = tuple(_line(prepared, record, worked, census) for worked in record.partitions)
    figures = census.figures()
    open_ones = [line.partition for line in lines if not line.published]
    did = record.did
    staged, unread = _staged_rejected(prepared, record.fingerprint, open_ones)
    return RunReport(
        run=record.run,
        job=str(record.job.get("name", prepared.job.name)),
        root=_root(prepared.job.input.uri),
        output=redact(prepared.output.uri),
        started=record.started,
        ended=record.ended,
        select=record.select,
        exit_code=did.exit_code if did else None,
        problems=tuple(_problems_of_all(record)),
        hints=tuple(did.hints) if did else (),
        partitions=lines,
        figures=figures,
        rejected=tuple(_rejected_line(found) for found in figures.rejected),
        staged_rejected=staged,
        staged_unread=unread,
        speed=_speed(record),
        nights=_nights(prepared, record),
        queue=draw(prepared, figures.queue[:pictures]) if pictures else (),
        sample=draw(prepared, figures.sample) if pictures else (),
        facts=tuple(_facts(record)),
        fingerprint=record.fingerprint,
    )


def _class_names(prepared: Prepared, record: RunRecord) -> dict[int, str]:
    """The classes of the run's rows, by id; empty if the job now has another fingerprint."""
    if prepared.fingerprint != record.fingerprint:
        return {}
    return prepared.model.contract.output.in_rows


def _nights(prepared: Prepared, record: RunRecord) -> tuple[Night, ...]:
    last = max((worked.partition for worked in record.partitions), default="")
    return trend(prepared.output, last, record.fingerprint) if last else ()


def _root(uri: str) -> str:
    """The folder above the days of an archive, or the archive's folder."""
    before, day, _ = uri.partition("{")
    return redact((before.rpartition("/")[0] if day else uri.rstrip("/")) + "/")


# Partitions -------------------------------------------------------------------------------------------------------


def _line(prepared: Prepared, record: RunRecord, worked: WorkedOn, census: Census) -> PartitionLine:
    """A partition's line; its rows are counted if they have the run's fingerprint."""
    name, notes = worked.partition, _problems_of(record, worked.partition)
    counts: Counts | None = None
    now: Now = "not published"
    try:
        published = read_commit(prepared.output, name)
        if published is not None and published.commit.fingerprint == record.fingerprint:
            counts = census.add(name, open_stream(prepared.output.store.open(prepared.output.published(name))))
            now = "published"
        elif record.did is not None and name in record.did.partitions:
            now = "replaced" if published else "gone"
        notes += _since(record, published)
    except (StorageError, *DAMAGE) as error:
        now = "damaged"
        notes.append(f"its published rows cannot be read ({redact(' '.join(str(error).split())[:200])})")
    return PartitionLine(name, worked.state, worked.images, worked.open, now, counts, tuple(notes))


def _problems_of(record: RunRecord, partition: str) -> list[str]:
    """The run's problems with a partition, without its name."""
    problems = record.did.problems if record.did else []
    return [redact(text.removeprefix(f"{partition}: ")) for text in problems if _is_of(text, partition)]


def _problems_of_all(record: RunRecord) -> Iterator[str]:
    """The run's problems that do not belong to a single partition."""
    names = [worked.partition for worked in record.partitions]
    for text in record.did.problems if record.did else []:
        if not any(_is_of(text, name) for name in names):
            yield redact(text)


def _is_of(problem: str, partition: str) -> bool:
    return problem.startswith((f"{partition}: ", f"{partition} "))


def _since(record: RunRecord, published: Published | None) -> list[str]:
    """What other runs published in the partition."""
    if published is None:
        return []
    commit = published.commit
    if commit.fingerprint != record.fingerprint:
        return [f"readers see rows of another model or other settings, published by run {commit.run_id}"]
    return [f"published by run {commit.run_id}"] if commit.run_id != record.run else []


# Rejections -------------------------------------------------------------------------------------------------------


def _rejected_line(found: Rejected) -> RejectedLine:
    known = found.reason in {str(reason) for reason in Reason}
    examples = tuple((key, redact(message)) for key, message in found.examples)
    return RejectedLine(found.reason, found.images, known and Reason(found.reason).retryable, examples)


def _staged_rejected(
    prepared: Prepared, fingerprint: str, partitions: Sequence[str]
) -> tuple[tuple[RejectedLine, ...], int]:
    """Rejections in staged parts of partitions that are not published, and the number of parts that were not read."""
    reasons: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str]]] = {}
    unread = 0
    for partition in partitions:
        folder = prepared.output.parts(fingerprint, partition)
        uris = sorted(found.uri for found in prepared.output.store.list(folder) if found.uri.endswith(".part"))
        unread += len(uris[STAGED_PARTS:])
        for key, reason, message in _staged(prepared, uris[:STAGED_PARTS]):
            reasons[reason] += 1
            examples.setdefault(reason, []).append((key, message))
    lines = [Rejected(reason, images, tuple(sorted(examples[reason])[:EXAMPLES])) for reason, images in reasons.items()]
    return tuple(_rejected_line(line) for line in sorted(lines, key=lambda line: (-line.images, line.reason))), unread


def _staged(prepared: Prepared, uris: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Key, reason and message of every image in some parts whose chosen row is a rejection."""
    keys: list[list[RowKey]] = []
    messages: list[list[str | None]] = []
    for text in prepared.output.store.read_many([(uri, None) for uri in uris]):
        if isinstance(text, StorageError):
            continue
        try:
            file = open_rows(text)
            found = row_keys(file), file.read(columns=["message"]).column("message").to_pylist()
        except DAMAGE:
            continue  # the next run reports the damaged part and scores its images again
        keys.append(found[0])
        messages.append(found[1])
    for winner in choose(keys).values():
        for page in winner.pages:
            if page.reason is not None:
                message = messages[winner.container][page.row]
                yield image_key(page.source_key, page.page), page.reason, message or ""


# Speed and provenance ---------------------------------------------------------------------------------------------


def _speed(record: RunRecord) -> Speed | None:
    did = record.did
    if did is None or not did.ok + did.rejected:
        return None
    named = (
        ("starting the executor", did.start_s),
        ("scoring", did.score_s),
        ("publishing", did.publish_s),
        ("stopping the executor", did.stop_s),
    )
    return Speed(
        images_per_s=did.images_per_s or None,
        read_bytes=did.read_bytes or None,
        seconds=tuple((name, seconds) for name, seconds in named if seconds),
        stages=stage_times(did),
        bottleneck=bottleneck(did),
        workers=did.workers or None,
        loaders=did.loaders,
        batches=tuple(sorted(did.batches.items())),
        out_of_memory=did.out_of_memory,
        peak_worker_rss_bytes=did.peak_worker_rss_bytes or None,
    )


def _facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    model: Mapping[str, object] = record.job.get("model") or {}
    if record.passed.total:
        yield "the archive", redact(str(record.passed))
    yield "model", redact(str(model.get("path", "")))
    yield "model digest", record.model
    yield "fingerprint", record.fingerprint
    yield "engine", str(model.get("engine", ""))
    yield "precision", str(model.get("precision", ""))
    if record.did is not None and record.did.provider:
        yield "provider", record.did.provider
    if record.did is not None and record.did.executor:
        yield "executor", record.did.executor
    yield "unet-batch", record.version
    yield from record.versions.items()
