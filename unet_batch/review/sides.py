"""The two sides of a comparison: the rows that a name selects, and their masks.

Keeps the keys of a partition's rows in memory and reads masks on request. Of several rows of one image it uses the one
that publication would choose (`rowset`). Reads run records and the output, not the archive or a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unet_batch.errors import Damaged, JobError, ShapeMismatch
from unet_batch.imaging.masks import edges
from unet_batch.planning.prepare import Prepared
from unet_batch.planning.scope import Scope, without_bucket
from unet_batch.planning.survey import published_inside
from unet_batch.records import image_key
from unet_batch.review.agreement import OK, PLACE, Masks, MasksOrReason
from unet_batch.review.run_records import EXAMPLES, RunRecord, listed_record, run_names
from unet_batch.store.storage import Storage
from unet_batch.table.merge import RowReader
from unet_batch.table.parts import RowKey, read_parts
from unet_batch.table.publish import published_keys, read_commit
from unet_batch.table.rows import schema
from unet_batch.table.rowset import Name, choose

PUBLISHED, JOB = "published", "job"
AREAS_ONLY = "ok, areas only (output.masks without rle)"
NO_MASK = "ok, with runs that are not a mask"

_COLUMNS = pa.schema(
    [schema("all").field(name) for name in ("height", "width", "status", "reason", "label", "classes")]
)
_PLACES = pa.schema([schema("all").field(name) for name in PLACE])
_HEX = re.compile(r"[0-9a-f]{8,64}")


class Rows:
    """The rows of one side in one partition: keys in memory, masks in the store."""

    def __init__(self, store: Storage, containers: Sequence[tuple[str, int, Sequence[RowKey]]]) -> None:
        """containers: URI, number of the bucket and row keys of each object, published ones before staged ones."""
        self._places: dict[Name, tuple[int, RowKey]] = {}
        for winner in choose(keys for _, _, keys in containers).values():
            for page in winner.pages:
                self._places[image_key(page.source_key, page.page), page.version] = winner.container, page
        self._buckets = [bucket for _, bucket, _ in containers]
        self._store, self._uris = store, [uri for uri, _, _ in containers]
        self._files = RowReader(store, self._uris, _COLUMNS.names)
        self.names = self._places.keys()
        """Image key and version of every row."""

    def bucket(self, name: Name) -> int:
        """The bucket of a row. Rows are read fastest by bucket, in the order of names."""
        return self._buckets[self._places[name][0]]

    def are(self, others: Rows) -> bool:
        """Whether both sides read every row from the same object."""
        return self.names == others.names and all(self._uri(name) == others._uri(name) for name in self.names)

    def take(self, names: Sequence[Name]) -> Iterator[MasksOrReason]:
        """The masks in the rows of these names, in order. Raises Damaged or StorageError."""
        return _masks_of_rows(self._files.take([self._places[name] for name in names], _COLUMNS))

    def places(self, names: Sequence[Name]) -> list[dict[str, Any]]:
        """The columns PLACE of the rows of these names, in order. Raises Damaged or StorageError."""
        if not names:
            return []
        files = RowReader(self._store, self._uris, _PLACES.names)
        rows: list[dict[str, Any]] = files.take([self._places[name] for name in names], _PLACES).to_pylist()
        return rows

    def _uri(self, name: Name) -> str:
        return self._uris[self._places[name][0]]


class Side:
    """One side of a comparison: the rows that a name selects, with counts of the rows read so far."""

    def __init__(self, prepared: Prepared, asked: str, scope: Scope) -> None:
        """Lists the output. Raises JobError for an unknown name.

        asked: `published`, `job`, a run, or the first 8 or more hex digits of a fingerprint.
        """
        self._prepared = prepared
        named = None if asked == PUBLISHED else _named(prepared, asked)
        self.fingerprint = named[0] if named else None
        """The fingerprint of the rows that count; None: all published rows."""
        self._model = named[1] if named else ""
        self._visible = set(published_inside(prepared.output, scope))
        self._parts = self._staged(scope)
        self.asked = asked
        self.output = prepared.output.uri
        self.models: dict[str, str] = {}
        """Fingerprint of the rows → SHA-256 of their ONNX files."""
        self.images = 0
        """Number of rows read so far."""
        self.partitions: dict[str, list[str]] = {}
        """Partition → its buckets, or the partition itself."""
        for name in sorted(self._visible | self._parts.keys()):
            self.partitions.setdefault(without_bucket(name), []).append(name)

    def read(self, partition: str) -> Rows:
        """The rows of a partition. Raises StorageError; damaged staged parts are left out, as in a publication."""
        found = [
            (uri, bucket, keys)
            for bucket, name in enumerate(self.partitions.get(partition, ()))
            for uri, keys in self._containers(name)
        ]
        rows = Rows(self._prepared.output.store, found)
        self.images += len(rows.names)
        return rows

    def to_json(self) -> dict[str, Any]:
        """The side with the rows read so far, for `json.dumps`."""
        return {
            "asked": self.asked,
            "output": self.output,
            "fingerprints": sorted(self.models),
            "models": sorted(set(self.models.values())),
            "images": self.images,
        }

    def _containers(self, name: str) -> Iterator[tuple[str, Sequence[RowKey]]]:
        """URI and row keys of the objects that hold rows of a bucket."""
        output = self._prepared.output
        published = read_commit(output, name) if name in self._visible else None
        if published is not None and self.fingerprint in (None, published.commit.fingerprint):
            try:
                yield output.published(name), published_keys(output, name)
            except (pa.ArrowException, OSError) as error:
                raise Damaged(f"{output.published(name)} is damaged ({error}); move it away and run again") from error
            self.models[published.commit.fingerprint] = published.commit.model_digest
        if self.fingerprint is not None:
            for uri, keys in read_parts(output.store, self._parts.get(name, ()), self.fingerprint, repair=False):
                yield uri, keys
                self.models[self.fingerprint] = self._model

    def _staged(self, scope: Scope) -> dict[str, list[str]]:
        """URIs of the staged parts of the fingerprint, by bucket."""
        if self.fingerprint is None:
            return {}
        root = self._prepared.output.parts(self.fingerprint, "")
        parts: dict[str, list[str]] = {}
        for found in self._prepared.output.store.list(root.rstrip("/")):
            name = found.uri.removeprefix(root).rpartition("/")[0]
            if found.uri.endswith(".part") and scope.holds(name):
                parts.setdefault(name, []).append(found.uri)
        return {name: sorted(uris) for name, uris in parts.items()}


def _masks_of_rows(table: pa.Table) -> Iterator[MasksOrReason]:
    """The masks of each row of a table with _COLUMNS, read by column, which is several times faster than by row."""
    classes = table.column("classes").combine_chunks()
    fields = ("name", "area_px", ["rle", "size"], ["rle", "counts"])
    cells = list(zip(*(pc.struct_field(classes.values, field).to_pylist() for field in fields), strict=True))
    columns = [table.column(name).to_pylist() for name in ("height", "width", "status", "reason", "label")]
    spans = pairwise(classes.offsets.to_pylist())
    for height, width, status, reason, label, (begin, end) in zip(*columns, spans, strict=True):
        if status != OK:
            yield reason
        elif begin < end and all(area is None for _, area, _, _ in cells[begin:end]):
            yield _label_as_mask(label)
        else:
            yield _masks([(name, size, counts) for name, _, size, counts in cells[begin:end]], (height, width))


def _label_as_mask(label: str | None) -> Masks:
    """The label of a classifier as a mask of one pixel: pixels and their agreement are those of images."""
    return Masks({} if label is None else {label: np.array([0, 1])}, (1, 1))


def _masks(cells: Sequence[tuple[str, list[int] | None, str | None]], source_hw: tuple[int, int]) -> MasksOrReason:
    """The masks of a row. cells: name, size and COCO counts of each class."""
    found, sizes = {}, {source_hw} if not cells else set()
    for name, size, counts in cells:
        if size is None or counts is None:
            return AREAS_ONLY
        sizes.add((size[0], size[1]))
        try:
            found[name] = edges(counts, (size[0], size[1]))
        except ShapeMismatch:
            return NO_MASK
    return Masks(found, sizes.pop()) if len(sizes) == 1 else NO_MASK


def _named(prepared: Prepared, asked: str) -> tuple[str, str]:
    """The fingerprint of a name, and its model. Raises JobError for an unknown or ambiguous name."""
    if asked == JOB:
        return prepared.fingerprint, prepared.model.sha256
    runs = run_names(prepared.output)
    if asked in runs:
        record = listed_record(prepared.output, asked)
        return record.fingerprint, record.model
    known = {prepared.fingerprint: prepared.model.sha256}
    digits = asked.lower()
    if _HEX.fullmatch(digits):
        records = prepared.output.store.map_bounded(partial(_record, prepared, run) for run in runs)
        known |= {record.fingerprint: record.model for record in records if record is not None}
    found = sorted(name for name in known if _HEX.fullmatch(digits) and name.startswith(digits))
    if len(found) > 1:
        several = ", ".join(found[:EXAMPLES])
        raise JobError(f"{asked} is the beginning of several fingerprints ({several}): write more digits")
    if not found:
        last = f"its last runs are {', '.join(runs[:EXAMPLES])}" if runs else "it has no runs yet"
        raise JobError(
            f"no run and no fingerprint of {prepared.output.uri} is called {asked}: {last}; write a run, 8 or more "
            f"hex digits of a fingerprint, {PUBLISHED} or {JOB}"
        )
    return found[0], known[found[0]]


def _record(prepared: Prepared, run: str) -> RunRecord | None:
    try:
        return listed_record(prepared.output, run)
    except JobError:
        return None
