"""Sources in compressed columns: a tenth of the memory of records, and the form in which processes exchange them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import pyarrow as pa

from unet_batch.records import Source

_COLUMNS = pa.schema(
    [
        ("uri", pa.large_string()),  # 10⁷ URIs may have more than 2 GiB, the most of a plain string column
        ("version", pa.large_string()),
        ("member", pa.large_string()),
        ("ordinal", pa.int64()),
        ("size_bytes", pa.int64()),
        ("offset", pa.int64()),
        ("reason", pa.large_string()),
        ("message", pa.large_string()),
        ("sha256", pa.large_string()),
    ]
)
_ROWS = 1 << 16
"""Sources that are compressed together, and unpacked at a time."""


class PackedSources(Sequence[Source]):
    """A partition's sources, packed. Its length costs nothing; iterate over it once, and do not index it in a loop."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._count = len(sources)
        self._packed = pack(sources)

    @property
    def packed_bytes(self) -> int:
        """What they take in memory."""
        return len(self._packed)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Source]:
        return unpacked(self._packed)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...
    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        return list(self)[index]


def pack(sources: Sequence[Source]) -> bytes:
    """The sources as one Arrow stream with compressed buffers; `unpacked` returns equal ones."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _COLUMNS, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        for begin in range(0, len(sources), _ROWS):
            stream.write_batch(_batch(sources[begin : begin + _ROWS]))
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpacked(packed: bytes) -> Iterator[Source]:
    """The sources of `pack`, in order."""
    with pa.ipc.open_stream(pa.py_buffer(packed)) as stream:
        for batch in stream:
            columns = [column.to_pylist() for column in batch.columns]
            for uri, version, member, ordinal, size_bytes, offset, reason, message, sha256 in zip(
                *columns, strict=True
            ):
                problem = None if reason is None else (reason, message)
                yield Source(uri, version, member, ordinal, size_bytes, offset, problem, sha256)


def _batch(sources: Sequence[Source]) -> pa.RecordBatch:
    problems = [source.problem or (None, None) for source in sources]
    columns = (
        [source.uri for source in sources],
        [source.version for source in sources],
        [source.member for source in sources],
        [source.ordinal for source in sources],
        [source.size_bytes for source in sources],
        [source.offset for source in sources],
        [reason for reason, _ in problems],
        [message for _, message in problems],
        [source.sha256 for source in sources],
    )
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _COLUMNS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_COLUMNS)
