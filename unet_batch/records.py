"""The nouns that travel through a job: sources, units, pictures and rejections.

Knows no files, no arrays and no engine. Everything here is frozen and turns into JSON and back, because units and
receipts cross process borders as bytes (never as pickles).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

ShardFormat = Literal["images", "webdataset", "parquet", "manifest"]


@dataclass(frozen=True, slots=True)
class Source:
    """One file, tar member or Parquet row that holds one image, or several pages of which each is an image."""

    uri: str
    """Canonical URI of the object: no user info, no query, no fragment."""
    version: str
    """The store's ETag or generation of the object, else its size and modification time; behind it the digest that a
    manifest promises, so that another promise makes another version."""
    member: str | None = None
    """Tar member's name, or the row's number in a Parquet file."""
    ordinal: int = 0
    """How many members of the same name precede this one in its tar."""
    size_bytes: int = 0
    """Encoded size; 0 where the listing does not know it, and an average of its row group in a Parquet file."""
    offset: int | None = None
    """Where the member's bytes begin in its uncompressed tar; None where it must be read in order."""
    problem: tuple[str, str] | None = None
    """Reason and message of a rejection that is known from the listing alone, e.g. the lost tail of a cut tar."""
    sha256: str | None = None
    """Hex digest that a manifest promises for the bytes."""

    @property
    def stored_version(self) -> str:
        """The version as the store knows it, without the digest that a manifest promises."""
        return self.version.partition(_PROMISE)[0]

    @property
    def key(self) -> str:
        """The text that names this source in tables; equal for equal sources only."""
        text = _escape(self.uri)
        if self.member is not None:
            text += "#" + _escape(self.member)
        return text if not self.ordinal else f"{text}#{self.ordinal + 1}"


_PROMISE = ",sha256:"


def promised_version(version: str, sha256: str | None) -> str:
    """The version of an object whose digest a manifest promises. sha256: 64 hex digits, or None for no promise."""
    return version if sha256 is None else f"{version}{_PROMISE}{sha256[:16]}"


def image_key(source_key: str, page: int) -> str:
    """The text that names one image: its source's key, and the page from the second page on."""
    return source_key if page == 0 else f"{source_key}#page={page}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("#", "%23")  # so that "#" only ever separates


PASSED_EXAMPLES = 3
"""Names that stand for all that were passed over alike."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """What lies in an archive and was not taken for an image or a shard: how many of what, and a few names of each."""

    kinds: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    """(a noun such as `.txt file`, how many, the first names), in the order of the nouns."""

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
        """One line: `passed over: 3 hidden names (.a, .b, …), 1 .txt file (a.txt)`; what is long ends in `…`."""
        said = []
        for what, count, names in self.kinds:
            shown = ", ".join(names) + (", …" if count > len(names) else "")
            said.append(f"{count} {what}{'s' if count != 1 else ''} ({shown})")
        return f"passed over: {', '.join(said)}" if said else "passed over: nothing"

    def to_json(self) -> list[dict[str, Any]]:
        """For `json.dumps`."""
        return [{"what": what, "count": count, "examples": list(names)} for what, count, names in self.kinds]

    @staticmethod
    def from_json(found: Iterable[Mapping[str, Any]]) -> PassedOver:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return PassedOver(tuple((str(f["what"]), int(f["count"]), tuple(map(str, f["examples"]))) for f in found))


NOTHING_PASSED = PassedOver()


@dataclass(frozen=True, slots=True)
class Unit:
    """The sources that one task scores: a slice of one shard, or of one partition's loose files."""

    unit_id: str
    """Hash of fingerprint, keys and versions: the name of the part that the unit leaves."""
    partition: str
    """`date=2026-11-21`, or `all` for an archive without dates."""
    format: ShardFormat
    sources: tuple[Source, ...]
    isolate: bool = False
    """Decode every image in a child process with limits, because an earlier try did not come back."""
    settle: bool = False
    """Write a row whatever the verdict is: it was given twice, by two processes, and judged."""
    confirms: bool = False
    """An earlier process rejected all these images by their bytes: where this one does so too, that is a row."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    def without(self, positions: Collection[int]) -> Unit:
        """The unit of the other sources; its name follows from this one's and from what is left."""
        if not positions:
            return self
        left = tuple(source for position, source in enumerate(self.sources) if position not in positions)
        return replace(self, unit_id=name_within(self.unit_id, self.unit_id, left), sources=left)

    @staticmethod
    def from_json(text: bytes) -> Unit:
        fields = json.loads(text)
        fields["sources"] = tuple(
            Source(**{**s, "problem": tuple(s["problem"]) if s["problem"] else None}) for s in fields["sources"]
        )
        return Unit(**fields)


def unit_id(fingerprint: str, sources: Iterable[Source]) -> str:
    """32 hex digits over the fingerprint and the sorted keys and versions."""
    digest = hashlib.sha256(fingerprint.encode())
    for line in sorted(f"{s.key}\0{s.version}\n" for s in sources):
        digest.update(line.encode())
    return digest.hexdigest()[:32]


def name_within(unit: str, fingerprint: str, sources: Iterable[Source]) -> str:
    """The `unit_id` of some sources of a unit, behind the label that the unit's own name begins with, if any.

    A rescoring labels its units, so that no part of an earlier one is taken for what it scored.
    """
    label, dash, _ = unit.rpartition("-")
    return label + dash + unit_id(fingerprint, sources)


def inventory_digest(sources: Sequence[Source]) -> str:
    """64 hex digits over all keys and versions of a partition, in any order."""
    digest = hashlib.sha256()
    for line in sorted(f"{s.key}\0{s.version}\n" for s in sources):
        digest.update(line.encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Held:
    """A source whose verdict may be a machine's."""

    position: int
    """In its unit."""
    pages: int
    reason: str
    """Of the first page that is in doubt, and its message."""
    message: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one unit left behind: proof of a part, and figures for progress and report."""

    unit_id: str
    partition: str
    rows: int
    ok: int
    rejected: int
    images_read_bytes: int = 0
    provider: str = ""
    read_s: float = 0.0
    """Waiting for bytes."""
    decode_s: float = 0.0
    """Decoding and fitting."""
    session_s: float = 0.0
    """Inside session.run."""
    encode_s: float = 0.0
    """Stitching, reducing, encoding and putting the part."""
    batches: tuple[tuple[int, int], ...] = ()
    """(tiles in the batch, how often)."""
    out_of_memory: int = 0
    """Batches that did not fit and ran again in smaller ones."""
    reasons: tuple[tuple[str, int], ...] = ()
    failure: tuple[str, str] | None = None
    """Code and message of an error that left no part (storage, session): the unit is simply not done yet."""
    held: tuple[Held, ...] = ()
    """Sources that have no row yet, because a verdict on them is in doubt. The part is that of `unit.without` them;
    there is none where nothing else was in the unit."""
    suspect: int | None = None
    """Position in the unit of the one image that was worked on when it failed, where that is known."""
    node: str = ""
    """Ray's id of the node that answered; empty without Ray."""
    pid: int = 0
    """Process that ran the session."""
    peak_rss_bytes: int = 0
    """Largest resident memory of that process so far."""
    dim_images: int = 0
    """Pictures whose largest value is below 5 % of what their normalisation divides by, black ones aside."""
    range_used: float | None = None
    """The largest such share of the unit; None where nothing is divided."""

    @property
    def work_s(self) -> float:
        """How long the unit was worked on, in all stages."""
        return self.read_s + self.decode_s + self.session_s + self.encode_s

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> Receipt:
        fields: dict[str, Any] = json.loads(text)
        fields["batches"] = tuple((a, b) for a, b in fields["batches"])
        fields["reasons"] = tuple((a, b) for a, b in fields["reasons"])
        fields["failure"] = tuple(fields["failure"]) if fields["failure"] else None
        fields["held"] = tuple(Held(**held) for held in fields["held"])
        return Receipt(**fields)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """While very many records are made, the cycle collector rests: they form no cycles, and its walks over all of them
    are what grows faster than their number (10⁶ planned images: a quarter of the time)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
