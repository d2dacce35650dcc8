"""Parquet files with a column of encoded images: the number of rows, and the cells of given rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from unet_batch.archive.container import Content, Listing, Reading, by_shard, check_readable, image_error
from unet_batch.archive.inflate import inflated_limit
from unet_batch.errors import ImageError, JobError, Reason
from unet_batch.records import Source
from unet_batch.spec import InputSpec
from unet_batch.store.storage import OBJECT_ERRORS, Object, Storage

FOREIGN = (pa.ArrowException, OSError, ValueError)
"""Arrow's errors on damaged files."""

IMAGE_COLUMN = "image"
"""Default of `input.column`."""

MAX_ROWS = 10_000_000
"""Most rows in a footer; a damaged footer may hold any number."""

_BATCH_ROWS = 16
_BATCH_BYTES = 32 << 20
"""Cells that are decoded together, if their average size allows it."""
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group."""

    rows: int
    bytes_per_row: int
    """Average encoded size of the column's cells."""


def parquet_sources(listing: Listing) -> dict[str, list[Source]]:
    """One source per row of each file."""
    check_readable(listing.objects)
    calls = [partial(_rows_of, listing.storage, listing.spec, found) for found in listing.objects]
    return {listing.partition: list(chain.from_iterable(listing.storage.map_bounded(calls)))}


def parquet_contents(reading: Reading) -> Iterator[tuple[Source, Content]]:
    """The cells of rows, file by file."""
    column = reading.spec.column or IMAGE_COLUMN
    for uri, sources in by_shard(reading.sources):
        by_row = {int(source.member or 0): source for source in sources}
        try:
            with reading.storage.open(uri, version=sources[0].version) as stream:
                for row, cell in read_cells(stream, column, list(by_row), uri=uri):
                    yield by_row.pop(row), cell
        except OBJECT_ERRORS as error:
            fact = image_error(error)
            yield from ((source, fact) for source in by_row.values())


def _rows_of(storage: Storage, spec: InputSpec, shard: Object) -> list[Source]:
    with storage.open(shard.uri, version=shard.version) as stream:
        groups, problem = row_groups(stream, spec.column or IMAGE_COLUMN, uri=shard.uri)
    if problem is not None:
        return [Source(shard.uri, shard.version, problem=problem)]
    sizes = chain.from_iterable(repeat(group.bytes_per_row, group.rows) for group in groups)
    return [Source(shard.uri, shard.version, str(row), size_bytes=size) for row, size in enumerate(sizes)]


def row_groups(stream: BinaryIO, column: str, *, uri: str) -> tuple[list[RowGroup], tuple[str, str] | None]:
    """The row groups of the file, from its footer; an empty list and the problem if the file is damaged.

    Raises JobError if the column is missing or holds neither bytes nor a struct with bytes.
    """
    try:
        file = _opened(stream)
        size_bytes = stream.seek(0, 2)
    except FOREIGN as error:
        return [], (Reason.SHARD_CORRUPT, f"this is not a readable Parquet file: {_line(error)}")
    _path(file, column, uri=uri)
    metadata = file.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows or metadata.num_rows > MAX_ROWS:
        return [], (Reason.SHARD_CORRUPT, f"its footer declares {metadata.num_rows} rows, which is impossible")
    sizes = [_column_bytes(group, column) for group in groups]
    if sum(sizes) > (limit := inflated_limit(size_bytes)):
        return [], (Reason.SHARD_CORRUPT, f"its column {column} inflates to {sum(sizes)} bytes, above {limit}")
    return [RowGroup(g.num_rows, size // max(g.num_rows, 1)) for g, size in zip(groups, sizes, strict=True)], None


def _column_bytes(group: Any, column: str) -> int:
    """Bytes of a column's cells in a row group, including cells inside a struct."""
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] == column)


def read_cells(
    stream: BinaryIO, column: str, rows: Sequence[int], *, uri: str
) -> Iterator[tuple[int, bytes | ImageError]]:
    """The cells of the given rows, in ascending order; reads only their row groups.

    Null cells, empty cells and cells of a damaged row group are an ImageError. Raises JobError as `row_groups`.
    """
    wanted = sorted(set(rows))
    try:
        file = _opened(stream)
    except FOREIGN as error:
        failure = ImageError(Reason.DECODE_CORRUPT, f"the Parquet file cannot be read: {_line(error)}")
        yield from ((row, failure) for row in wanted)
        return
    path = _path(file, column, uri=uri)
    first = 0
    for number in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(number).num_rows
        inside = [row for row in wanted if first <= row < end]
        if inside:
            yield from _cells_of_group(file, path, number, [row - first for row in inside], first=first)
        first = end


def _cells_of_group(
    file: Any, path: str, number: int, rows: Sequence[int], *, first: int
) -> Iterator[tuple[int, bytes | ImageError]]:
    left = list(rows)
    at = 0
    group = file.metadata.row_group(number)
    average = _column_bytes(group, path.partition(".")[0]) // max(group.num_rows, 1)
    size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(average, 1)))
    try:
        for batch in file.iter_batches(size, row_groups=[number], columns=[path], use_threads=False):
            while left and left[0] < at + batch.num_rows:
                cell = batch.column(0)[left[0] - at].as_py()
                yield first + left.pop(0), _content(cell)
            at += batch.num_rows
            if not left:
                return
    except FOREIGN as error:
        failure = ImageError(Reason.DECODE_CORRUPT, f"row group {number} cannot be read: {_line(error)}")
        yield from ((first + row, failure) for row in left)


def _content(cell: bytes | dict[str, bytes | None] | None) -> bytes | ImageError:
    body = cell["bytes"] if isinstance(cell, dict) else cell
    if body is None:
        what = "its bytes are null; a path is not followed" if isinstance(cell, dict) else "the cell is null"
        return ImageError(Reason.CELL_NULL, what)
    return body or ImageError(Reason.CELL_EMPTY, "the cell holds no bytes")


def _opened(stream: BinaryIO) -> Any:
    # No pre-buffering, so that a row group is not held in memory whole. Checksums detect flipped bits.
    return pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)


def _path(file: Any, column: str, *, uri: str) -> str:
    """The path of the cells for Arrow: the column, or the bytes in its struct (as Hugging Face writes images)."""
    schema = file.schema_arrow
    if column not in schema.names:
        raise JobError(f"{uri} has no column {column!r}; it has {', '.join(schema.names)}: set input.column")
    if schema.names.count(column) > 1:
        raise JobError(f"{uri} has several columns {column!r}: keep one of them")
    found = schema.field(column).type
    if pa.types.is_struct(found) and found.get_field_index("bytes") >= 0 and _is_bytes(found.field("bytes").type):
        return f"{column}.bytes"
    if not _is_bytes(found):
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise JobError(
            f"the column {column!r} of {uri} holds {found}, not bytes; there are {columns}: set input.column"
        )
    return column


def _is_bytes(found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        return _is_bytes(found.value_type)
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(kind(found) for kind in kinds)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
