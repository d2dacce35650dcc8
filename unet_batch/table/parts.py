"""Staged parts: one object per unit, written once, named by its content.

A part holds exactly one row per image of its unit, so its existence proves that the unit is done. A second write gives
the same part, so "already exists" is a success. Faults of the infrastructure are not written into parts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from unet_batch.errors import AlreadyExists, NotFound, StorageError, UnetBatchError
from unet_batch.records import Unit
from unet_batch.store.storage import Storage
from unet_batch.table.output import Output
from unet_batch.table.rows import SCHEMA_VERSION, Provenance, to_table
from unet_batch.table.tally import TALLY_METADATA, Tally

log = logging.getLogger(__name__)

PART_METADATA = b"unet_batch.part"
GROUP_BYTES = 64 << 20
"""Uncompressed bytes of a row group, which is read and rewritten as a whole."""
MAX_GROUP_ROWS = 4096
"""Most rows of a row group."""
KEY_COLUMNS = ["image_key", "source_version", "page", "pages", "status", "reason"]


@dataclass(frozen=True, slots=True)
class RowKey:
    """The identity, reason and place of one row in its container."""

    source_key: str
    version: str
    page: int
    pages: int
    reason: str | None
    row: int
    weight: int = 0
    """Average uncompressed bytes of the rows in its row group."""


def source_key_of(key: str, page: int) -> str:
    """The source's key in an image key."""
    return key if page == 0 else key.removesuffix(f"#page={page}")


def write_part(
    output: Output,
    unit: Unit,
    rows: Sequence[dict[str, Any]],
    provenance: Provenance,
    *,
    compression: str,
    dim: int = 0,
) -> str:
    """Put the unit's part, create-only; returns its URI. The rows must cover every source, each page once.

    dim: number of predictions of dim images, for `Tally.dim`.
    """
    table = to_table(rows, unit.partition, provenance)
    problem = _coverage_problem(unit, table)
    if problem is not None:
        raise UnetBatchError(
            f"unit {unit.unit_id} of {unit.partition} would write a wrong part: {problem}; this is a bug"
        )
    metadata = {
        "unit": unit.unit_id,
        "fingerprint": provenance.fingerprint,
        "rows": len(rows),
        "ok": sum(row["status"] == "ok" for row in rows),
        "dim": dim,
        "schema": SCHEMA_VERSION,
    }
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, table.schema, compression=compression) as writer:
        writer.write_table(table, row_group_size=rows_within(table.nbytes, len(table)))
        writer.add_key_value_metadata({PART_METADATA.decode(): json.dumps(metadata)})
    uri = output.part(provenance.fingerprint, unit.partition, unit.unit_id)
    try:
        output.store.create(uri, sink.getvalue().to_pybytes())
    except AlreadyExists:
        log.info("%s already exists", uri)
    return uri


def parquet_writer(sink: Any, wanted: pa.Schema, *, compression: str) -> pq.ParquetWriter:
    """A writer with page checksums, and dictionaries only for repeated texts."""
    repeated = [field.name for field in wanted if pa.types.is_dictionary(field.type)]
    return pq.ParquetWriter(
        sink,
        wanted,
        compression=compression,
        use_dictionary=repeated,
        write_page_checksum=True,
        write_statistics=[f.name for f in wanted if not pa.types.is_nested(f.type)],
    )


def rows_within(size_bytes: int, rows: int) -> int:
    """Number of rows per row group, at least one, for rows with this total size."""
    return max(1, min(MAX_GROUP_ROWS, GROUP_BYTES * rows // max(size_bytes, 1)))


def open_rows(text: bytes) -> pq.ParquetFile:
    """A part or published object from its bytes, with page checksums verified. Raises ArrowInvalid or OSError."""
    return pq.ParquetFile(pa.BufferReader(text), page_checksum_verification=True)


def open_stream(stream: BinaryIO) -> pq.ParquetFile:
    """The same from an open object; only the requested parts are read."""
    return pq.ParquetFile(stream, page_checksum_verification=True)


def row_keys(file: pq.ParquetFile) -> list[RowKey]:
    """The keys of all rows, in file order."""
    return _keys(file.read(columns=KEY_COLUMNS), file)


def _keys(table: pa.Table, file: pq.ParquetFile) -> list[RowKey]:
    groups = (file.metadata.row_group(group) for group in range(file.metadata.num_row_groups))
    weights = chain.from_iterable(repeat(g.total_byte_size // max(g.num_rows, 1), g.num_rows) for g in groups)
    columns = [table.column(name).to_pylist() for name in KEY_COLUMNS]
    return [
        RowKey(source_key_of(key, page), version, page, pages, reason, row, weight)
        for row, (key, version, page, pages, _, reason, weight) in enumerate(zip(*columns, weights, strict=True))
    ]


def read_parts(
    store: Storage, uris: Sequence[str], fingerprint: str, *, repair: bool
) -> Iterator[tuple[str, list[RowKey]]]:
    """Every valid part among the URIs, with its rows' keys.

    repair: delete a damaged part, so that its unit is scored again under the same name; otherwise it is left out.
    """
    for uri, text in zip(uris, store.read_many([(uri, None) for uri in uris]), strict=True):
        if isinstance(text, NotFound):
            continue
        if isinstance(text, StorageError):
            raise text
        try:
            yield uri, _checked_keys(open_rows(text), fingerprint)
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            log.warning("the part %s is damaged and ignored; its images are scored again (%s)", uri, error)
            if repair:
                store.delete(uri)


def _checked_keys(file: pq.ParquetFile, fingerprint: str) -> list[RowKey]:
    """The part's keys, after reading all of it, so that every page checksum is verified."""
    declared = json.loads((file.metadata.metadata or {})[PART_METADATA])
    keys = sound_keys(file)
    if declared["rows"] != len(keys) or declared["fingerprint"] != fingerprint:
        raise ValueError(f"it declares {declared['rows']} rows and holds {len(keys)}")
    return keys


def sound_keys(file: pq.ParquetFile) -> list[RowKey]:
    """The keys of all rows, after reading all columns by row group. Raises as `open_rows`."""
    groups = range(file.metadata.num_row_groups)
    # Arrow's threads make reading small objects 25 % slower.
    tables = [file.read_row_group(group, use_threads=False).select(KEY_COLUMNS) for group in groups]
    return _keys(pa.concat_tables(tables), file) if tables else []


def dim_share(footer: Mapping[bytes, bytes]) -> float:
    """Share of dim images among the predictions of a part or published object, from its footer; 0 if unknown."""
    if TALLY_METADATA in footer:
        tally = Tally.from_json(footer[TALLY_METADATA])
        return tally.dim / max(tally.ok, 1)
    declared = json.loads(footer.get(PART_METADATA, b"{}"))
    return float(declared.get("dim", 0) / max(declared.get("ok", 0), 1))


def _coverage_problem(unit: Unit, table: pa.Table) -> str | None:
    """Why these rows are not exactly one per page of each source; None if they are."""
    pages: dict[str, list[tuple[int, int]]] = {}
    for key, page, count in zip(
        table.column("image_key").to_pylist(),
        table.column("page").to_pylist(),
        table.column("pages").to_pylist(),
        strict=True,
    ):
        pages.setdefault(source_key_of(key, page), []).append((page, count))
    wanted = {source.key for source in unit.sources}
    if len(wanted) != len(unit.sources):
        return "a source is listed twice"
    if wanted != pages.keys():
        return f"{len(wanted - pages.keys())} sources without a row, {len(pages.keys() - wanted)} rows of other sources"
    wrong = [key for key, found in pages.items() if sorted(found) != [(i, len(found)) for i in range(len(found))]]
    return f"pages of {wrong[0]} are not 0 to n − 1" if wrong else None
