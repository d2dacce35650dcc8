"""Reads rows from many Parquet objects in a given order, with limited memory."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from unet_batch.errors import Damaged, StorageError
from unet_batch.store.storage import Storage
from unet_batch.table.parts import GROUP_BYTES, RowKey, open_stream

OPEN_CONTAINERS = 64
"""Most open containers, and most cached row groups."""
KEPT_BYTES = 64 << 20
"""Most bytes of cached row groups: a published one may hold 4096 masks."""


def batches(rows: Sequence[tuple[int, RowKey]], most: int) -> Iterator[Sequence[tuple[int, RowKey]]]:
    """(container, row) in pieces to be read together: at most `most`, and limited by the average bytes of rows."""
    begin, size = 0, 0
    for end, (_, key) in enumerate(rows):
        size += key.weight
        if end > begin and (size > GROUP_BYTES or end - begin == most):
            yield rows[begin:end]
            begin, size = end, key.weight
    if begin < len(rows):
        yield rows[begin:]


class RowReader:
    """Reads rows from many Parquet objects; caches few open files and row groups."""

    def __init__(self, store: Storage, uris: Sequence[str], columns: Sequence[str] | None = None) -> None:
        """columns: those that are read; None: all."""
        self._store = store
        self._uris = uris
        self._columns = columns
        self._files: OrderedDict[int, tuple[pq.ParquetFile, list[int]]] = OrderedDict()
        """Open containers, each with the number of the first row after every row group."""
        self._groups: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._groups_bytes = 0
        self.footers: dict[int, Mapping[bytes, bytes]] = {}
        """The footers of the containers that were opened so far."""

    def take(self, rows: Sequence[tuple[int, RowKey]], wanted: pa.Schema) -> pa.Table:
        """The rows as one table, in the given order."""
        by_container: dict[int, list[tuple[int, int]]] = {}
        for position, (container, key) in enumerate(rows):
            by_container.setdefault(container, []).append((position, key.row))
        pieces, order = [], []
        for container, positions in by_container.items():  # by container, so that each is opened once
            places: dict[int, list[tuple[int, int]]] = {}
            for position, in_file in positions:
                group, row = self._place(container, in_file)
                places.setdefault(group, []).append((position, row))
            for group, found in places.items():
                pieces.append(self._group((container, group)).take(pa.array([row for _, row in found])))
                order += [position for position, _ in found]
        table = pa.concat_tables(pieces).unify_dictionaries().cast(wanted)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return table if inverse == list(range(len(order))) else table.take(pa.array(inverse))

    def _place(self, container: int, row: int) -> tuple[int, int]:
        """Row group of a row, and its number in it."""
        _, ends = self._file(container)
        group = bisect_right(ends, row)
        if group == len(ends):
            raise StorageError(f"{self._uris[container]} has fewer rows than before; run the same command again")
        return group, row - (ends[group - 1] if group else 0)

    def _group(self, place: tuple[int, int]) -> pa.Table:
        if place not in self._groups:
            try:
                table = self._file(place[0])[0].read_row_group(place[1], columns=self._columns)
            except (pa.ArrowException, OSError) as error:
                raise Damaged(f"{self._uris[place[0]]} is damaged: move it away and run again ({error})") from error
            self._groups_bytes += table.nbytes
            while self._groups and (self._groups_bytes > KEPT_BYTES or len(self._groups) >= OPEN_CONTAINERS):
                self._groups_bytes -= self._groups.popitem(last=False)[1].nbytes
            self._groups[place] = table
        self._groups.move_to_end(place)
        return self._groups[place]

    def _file(self, container: int) -> tuple[pq.ParquetFile, list[int]]:
        if container not in self._files:
            file = open_stream(self._store.open(self._uris[container]))
            self.footers[container] = file.metadata.metadata or {}
            groups = range(file.metadata.num_row_groups)
            ends = list(accumulate(file.metadata.row_group(group).num_rows for group in groups))
            self._files[container] = file, ends
            if len(self._files) > OPEN_CONTAINERS:
                self._files.popitem(last=False)
        self._files.move_to_end(container)
        return self._files[container]
