"""The rows of one fingerprint in one partition, wherever they lie: in a published object, or in staged parts.

Keeps the keys of all rows in memory and reads a row itself on request; the row groups in memory are bounded in bytes.
Of several rows of one image it takes the one that publication takes (`rowset`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unet_batch.errors import NotFound, StorageError
from unet_batch.records import image_key
from unet_batch.review.agreement import OK, ClassMask, Row
from unet_batch.table.parts import RowKey, open_rows, open_stream, row_keys
from unet_batch.table.publish import Store
from unet_batch.table.rowset import choose

ROW_COLUMNS = ["uri", "member", "page", "height", "width", "status", "reason", "classes"]
DAMAGE = (pa.ArrowException, OSError, KeyError, ValueError, TypeError)
"""What reading raises for a Parquet object that is cut, changed, or not written by unet-batch."""

KEPT_BYTES = 64 << 20
"""Row groups of published objects that are kept for the next rows; the last one always is."""

Name = tuple[str, str]
"""Image key and version: what makes two rows rows of the same image."""


@dataclass(frozen=True, slots=True)
class Containers:
    """The objects of one partition that may hold rows of a side."""

    published: str | None
    """URI of the published object."""
    parts: Sequence[str] = ()
    """URIs of staged parts."""


class Place(NamedTuple):
    """Where a row lies."""

    container: int
    row: int
    ok: bool


class ScoredRows:
    """The rows of one side: keys in memory, everything else in the store."""

    def __init__(self, store: Store, partition: Sequence[Containers], fingerprint: str | None) -> None:
        """Reads all keys. Raises StorageError where the store fails; what is damaged is noted and left out.

        partition: the containers of its buckets, or of the partition itself. fingerprint: whose rows count, as full
        hex or the beginning of it; None takes every published row.
        """
        self.places: dict[Name, Place] = {}
        self.fingerprints: set[str] = set()
        self.models: set[str] = set()
        self.damaged: list[str] = []
        """URIs of objects that were left out."""
        self._store = store
        self._fingerprint = fingerprint or ""
        self._uris: list[str] = []
        self._keys: list[list[RowKey]] = []
        self._buckets: list[int] = []
        self._published: dict[int, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        for bucket, containers in enumerate(partition):
            if containers.published is not None:
                self._add_published(containers.published, bucket)
        for bucket, containers in enumerate(partition):
            for uri, text in zip(containers.parts, store.read_many([(u, None) for u in containers.parts]), strict=True):
                self._add_part(uri, text, bucket)
        self._choose()

    @property
    def published(self) -> int:
        """Rows of `places` that readers see."""
        return sum(place.container in self._published for place in self.places.values())

    def bucket(self, place: Place) -> int:
        """The bucket of a row: rows of one bucket are read fastest together, in the order of keys."""
        return self._buckets[place.container]

    def take(self, places: Sequence[Place]) -> list[Row | None]:
        """The rows at these places, in their order; None where the object is damaged there."""
        rows: list[Row | None] = [None] * len(places)
        wanted: dict[int, dict[int, int]] = {}
        for position, place in enumerate(places):
            wanted.setdefault(place.container, {})[place.row] = position
        for container, file in self._opened(sorted(wanted)):
            for group, first, count in _groups(file):
                inside = {row - first: at for row, at in wanted[container].items() if first <= row < first + count}
                if not inside:
                    continue
                try:
                    found = rows_of(self._group(container, group, file).take(pa.array(list(inside), pa.int64())))
                except DAMAGE:
                    self._note_damage(self._uris[container])
                    continue
                for at, row in zip(inside.values(), found, strict=True):
                    rows[at] = row
        return rows

    def _add_published(self, uri: str, bucket: int) -> None:
        try:
            file = open_stream(self._store.open(uri))
            if self._add_keys(uri, file, bucket):
                self._published[len(self._uris) - 1] = file
        except NotFound:
            return
        except DAMAGE:
            self._note_damage(uri)

    def _add_part(self, uri: str, text: bytes | StorageError, bucket: int) -> None:
        if isinstance(text, NotFound):
            return
        if isinstance(text, StorageError):
            raise text
        try:
            file = open_rows(text)
            file.read(columns=ROW_COLUMNS)  # looks at every page checksum, as a run does before it trusts a part
            self._add_keys(uri, file, bucket)
        except DAMAGE:
            self._note_damage(uri)

    def _add_keys(self, uri: str, file: pq.ParquetFile, bucket: int) -> bool:
        """Whether the object holds rows of the fingerprint; notes where they are."""
        marks = file.read(columns=["fingerprint"]).column("fingerprint")
        mine = {mark for mark in marks.unique().to_pylist() if mark is not None and mark.startswith(self._fingerprint)}
        if not mine:
            return False
        rows = pc.is_in(marks.cast(pa.string()), pa.array(sorted(mine))).to_pylist()
        self._keys.append([key for key in row_keys(file) if rows[key.row]])
        table = file.read(columns=["model_digest"]).filter(pa.array(rows))
        self._uris.append(uri)
        self._buckets.append(bucket)
        self.fingerprints |= mine
        self.models |= set(table.column("model_digest").unique().to_pylist())
        return True

    def _choose(self) -> None:
        """Note where the rows lie that the next publication would take."""
        for winner in choose(self._keys).values():
            for page in winner.pages:
                name = image_key(page.source_key, page.page), page.version
                self.places[name] = Place(winner.container, page.row, page.reason is None)
        self._keys = []

    def _opened(self, containers: Sequence[int]) -> Iterator[tuple[int, pq.ParquetFile]]:
        """Published objects as they are, parts read whole and several at a time."""
        yield from ((c, self._published[c]) for c in containers if c in self._published)
        parts = [c for c in containers if c not in self._published]
        for container, text in zip(parts, self._store.read_many([(self._uris[c], None) for c in parts]), strict=True):
            if isinstance(text, StorageError):
                raise text
            try:
                yield container, open_rows(text)
            except DAMAGE:
                self._note_damage(self._uris[container])

    def _group(self, container: int, group: int, file: pq.ParquetFile) -> pa.Table:
        """A row group; those of published objects are kept, because the next rows lie in them, too."""
        if container not in self._published:
            return file.read_row_group(group, columns=ROW_COLUMNS)
        kept, place = self._groups, (container, group)
        if place in kept:
            kept.move_to_end(place)
            return kept[place]
        while kept and sum(table.nbytes for table in kept.values()) > KEPT_BYTES:
            kept.popitem(last=False)
        kept[place] = file.read_row_group(group, columns=ROW_COLUMNS)
        return kept[place]

    def _note_damage(self, uri: str) -> None:
        if uri not in self.damaged:
            self.damaged.append(uri)


def rows_of(table: pa.Table) -> list[Row]:
    """Every row of a table that has ROW_COLUMNS. Raises KeyError or ArrowException where it has other ones."""
    columns = {name: table.column(name).to_pylist() for name in ROW_COLUMNS if name != "classes"}
    cells = list(_cells(table.column("classes").combine_chunks()))
    return [
        Row(
            uri=uri,
            member=member,
            page=page,
            verdict=OK if status == OK else reason or status,
            source_px=(height or 0) * (width or 0),
            classes=classes,
        )
        for uri, member, page, height, width, status, reason, classes in zip(*columns.values(), cells, strict=True)
    ]


def _cells(classes: pa.ListArray) -> Iterator[Mapping[str, ClassMask]]:
    """The classes of every row, by name; read by column, which is several times as fast as row by row."""
    fields = ("name", "area_px", ["rle", "size"], ["rle", "counts"])
    columns = [pc.struct_field(classes.values, field).to_pylist() for field in fields]
    masks = [
        (name, ClassMask(area, None if size is None else (size[0], size[1]), counts))
        for name, area, size, counts in zip(*columns, strict=True)
    ]
    for begin, end in pairwise(classes.offsets.to_pylist()):
        yield dict(masks[begin:end])


def _groups(file: pq.ParquetFile) -> Iterator[tuple[int, int, int]]:
    """Number, first row and count of every row group."""
    first = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        yield group, first, count
        first += count
