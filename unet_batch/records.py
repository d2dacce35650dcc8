"""The records of a job: sources, units, receipts and what a listing passed over.

No files, no arrays and no engine here. All records are frozen and convert to JSON and back: units and receipts go
from process to process as bytes, never as pickles.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the job file needs pydantic, which `--help` must not load
    from unet_batch.spec import ShardFormat


@dataclass(frozen=True, slots=True)
class Source:
    """One file, tar member or Parquet row that holds one image, or several pages of which each is an image."""

    uri: str
    """Canonical URI of the object: no user info, no query, no fragment."""
    version: str
    """The store's ETag or generation of the object, else its size and modification time. A digest from a manifest is
    appended, so that another digest makes another version."""
    member: str | None = None
    """Tar member's name, or the row's number in a Parquet file."""
    ordinal: int = 0
    """How many members of the same name precede this one in its tar."""
    size_bytes: int = 0
    """Encoded size in bytes; 0 if the listing does not know it. For a Parquet row: the average of its row group."""
    offset: int | None = None
    """First byte of the member in its uncompressed tar; None if the tar must be read in order."""
    problem: tuple[str, str] | None = None
    """Reason and message of a rejection that the listing alone shows, e.g. the missing end of a truncated tar."""
    sha256: str | None = None
    """Hex digest of the bytes, from a manifest."""

    @property
    def stored_version(self) -> str:
        """The version in the store, without the digest from a manifest."""
        return self.version.partition(_DIGEST_MARK)[0]

    @property
    def key(self) -> str:
        """The text that names this source in tables; equal for equal sources only."""
        text = _escape(self.uri)
        if self.member is not None:
            text += "#" + _escape(self.member)
        return text if not self.ordinal else f"{text}#{self.ordinal + 1}"


_DIGEST_MARK = ",sha256:"


def version_with_digest(version: str, sha256: str | None) -> str:
    """The version of an object with its digest from a manifest. sha256: 64 hex digits, or None."""
    return version if sha256 is None else f"{version}{_DIGEST_MARK}{sha256[:16]}"


def image_key(source_key: str, page: int) -> str:
    """The text that names one image: its source's key, and `#page=n` from the second page on."""
    return source_key if page == 0 else f"{source_key}#page={page}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("#", "%23")  # "#" is the separator


PASSED_EXAMPLES = 3
"""Example names that are kept of each kind."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Names in an archive that are not images or shards: counts by kind, and a few examples of each."""

    kinds: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    """(kind, a noun such as `.txt file`; count; first names), sorted by kind."""

    @property
    def total(self) -> int:
        return sum(count for _, count, _ in self.kinds)

    def __add__(self, other: PassedOver) -> PassedOver:
        kinds = {what: (count, names) for what, count, names in self.kinds}
        for what, count, names in other.kinds:
            before, first = kinds.get(what, (0, ()))
            kinds[what] = before + count, (*first, *names)[:PASSED_EXAMPLES]
        return PassedOver(tuple((what, *found) for what, found in sorted(kinds.items())))

    def __str__(self) -> str:
        """One line: `passed over: 3 hidden names (.a, .b, …), 1 .txt file (a.txt)`; long lists end in `…`."""
        texts = []
        for what, count, names in self.kinds:
            shown = ", ".join(names) + (", …" if count > len(names) else "")
            texts.append(f"{count} {what}{'s' if count != 1 else ''} ({shown})")
        return f"passed over: {', '.join(texts)}" if texts else "passed over: nothing"

    def to_json(self) -> list[dict[str, Any]]:
        """For `json.dumps`."""
        return [{"what": what, "count": count, "examples": list(names)} for what, count, names in self.kinds]

    @staticmethod
    def from_json(found: Iterable[Mapping[str, Any]]) -> PassedOver:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for other input."""
        return PassedOver(tuple((str(f["what"]), int(f["count"]), tuple(map(str, f["examples"]))) for f in found))


NOTHING_PASSED = PassedOver()


@dataclass(frozen=True, slots=True)
class Unit:
    """The sources that one task scores: a slice of one shard, or of one partition's loose files."""

    unit_id: str
    """Hash of fingerprint, keys and versions: the name of the unit's part."""
    partition: str
    """`date=2026-11-21`, or `all` for an archive without dates."""
    format: ShardFormat
    sources: tuple[Source, ...]
    isolate: bool = False
    """Decode every image in a child process with limits, because an earlier try did not return."""
    settle: bool = False
    """Write a row for every image in any case: two processes have already given the same verdict."""
    confirms: bool = False
    """Another process rejected all these images. If this process rejects them too, write the rejections."""

    def to_json(self) -> bytes:
        # `asdict` copies every value on its own, which took a third of the time to plan an archive.
        sources = [{name: getattr(source, name) for name in _SOURCE_FIELDS} for source in self.sources]
        fields = {name: getattr(self, name) for name in _UNIT_FIELDS} | {"sources": sources}
        return json.dumps(fields, separators=(",", ":")).encode()

    def without(self, positions: Collection[int]) -> Unit:
        """The unit without the sources at these positions. Its id follows from this unit's id and those left."""
        if not positions:
            return self
        left = tuple(source for position, source in enumerate(self.sources) if position not in positions)
        return replace(self, unit_id=sub_unit_id(self.unit_id, self.unit_id, left), sources=left)

    @staticmethod
    def from_json(text: bytes) -> Unit:
        fields = json.loads(text)
        fields["sources"] = tuple(
            Source(**{**s, "problem": tuple(s["problem"]) if s["problem"] else None}) for s in fields["sources"]
        )
        return Unit(**fields)


_SOURCE_FIELDS, _UNIT_FIELDS = (tuple(field.name for field in fields(kind)) for kind in (Source, Unit))


def unit_id(fingerprint: str, sources: Iterable[Source]) -> str:
    """32 hex digits over the fingerprint and the sorted keys and versions."""
    digest = hashlib.sha256(fingerprint.encode())
    for line in sorted(f"{s.key}\0{s.version}\n" for s in sources):
        digest.update(line.encode())
    return digest.hexdigest()[:32]


def sub_unit_id(unit: str, fingerprint: str, sources: Iterable[Source]) -> str:
    """The `unit_id` of some sources of a unit, with the label of the unit's own id, if any, in front.

    `--rescore` labels its units, so that parts of earlier runs are not taken for its own.
    """
    label, dash, _ = unit.rpartition("-")
    return label + dash + unit_id(fingerprint, sources)


def inventory_digest(sources: Sequence[Source]) -> str:
    """64 hex digits over all keys and versions of a partition; the order of the sources does not matter."""
    digest = hashlib.sha256()
    for line in sorted(f"{s.key}\0{s.version}\n" for s in sources):
        digest.update(line.encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class DoubtfulSource:
    """A source whose rejection may come from the machine and not from its bytes."""

    position: int
    """Position in its unit."""
    pages: int
    reason: str
    """Reason of the first page in doubt."""
    message: str
    """Message of that page."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a worker reports about one unit: its counts, times and failure, and that its part is staged."""

    unit_id: str
    partition: str
    rows: int
    ok: int
    rejected: int
    images_read_bytes: int = 0
    provider: str = ""
    read_s: float = 0.0
    """Seconds waiting for bytes."""
    decode_s: float = 0.0
    """Seconds decoding and fitting."""
    session_s: float = 0.0
    """Seconds inside session.run."""
    encode_s: float = 0.0
    """Seconds stitching, reducing, encoding and putting the part."""
    batches: tuple[tuple[int, int], ...] = ()
    """(tiles in the batch, number of such batches)."""
    out_of_memory: int = 0
    """Batches that did not fit into memory and ran again in smaller ones."""
    reasons: tuple[tuple[str, int], ...] = ()
    failure: tuple[str, str] | None = None
    """Code and message of an error that left no part (storage, session): the unit stays open."""
    held: tuple[DoubtfulSource, ...] = ()
    """Sources that have no row yet, because their rejection is in doubt. The part is that of `unit.without` them; there
    is no part if the unit holds no other source."""
    suspect: int | None = None
    """Position in the unit of the image in work when the unit failed, if known."""
    node: str = ""
    """Ray's id of the node that sent the receipt; empty without Ray."""
    pid: int = 0
    """Id of the process that ran the session."""
    peak_rss_bytes: int = 0
    """Largest resident memory of that process so far."""
    dim_images: int = 0
    """Images whose largest value is above 0 and below 5 % of the normalisation's divisor."""
    range_used: float | None = None
    """Largest share of that divisor that an image of the unit reaches; None if nothing is divided."""

    @property
    def work_s(self) -> float:
        """Seconds of work on the unit, in all stages."""
        return self.read_s + self.decode_s + self.session_s + self.encode_s

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> Receipt:
        fields: dict[str, Any] = json.loads(text)
        fields["batches"] = tuple((a, b) for a, b in fields["batches"])
        fields["reasons"] = tuple((a, b) for a, b in fields["reasons"])
        fields["failure"] = tuple(fields["failure"]) if fields["failure"] else None
        fields["held"] = tuple(DoubtfulSource(**held) for held in fields["held"])
        return Receipt(**fields)


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Pause Python's cycle collector while very many records are made.

    Records form no cycles. For 10⁶ planned images the collector's passes took a quarter of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
