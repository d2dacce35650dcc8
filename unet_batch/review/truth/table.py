"""The truth of images from a column of a Parquet file: label images as bytes, or RLE by class.

The names of the images are read at once, the masks group by group of rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unet_batch.decode.labels import read_labels
from unet_batch.errors import ImageError, JobError, NotFound, ShapeMismatch
from unet_batch.imaging.masks import runs_by_label, unrle
from unet_batch.planning.prepare import Prepared
from unet_batch.review.agreement import Masks, MasksOrReason
from unet_batch.review.masks.names import archive_root, relative_name
from unet_batch.review.masks.rows import Labels
from unet_batch.review.originals import Row
from unet_batch.review.truth.images import NO_TRUTH, filled, masks_in
from unet_batch.store.storage import canonical
from unet_batch.table.parts import open_stream

TABLE = ".parquet#"
"""What a pattern with a table holds: the end of the file's name, and the mark before the column."""
KEYS = ("image_key", "file_name")
"""Columns that name the image, if the user names none."""
SEVERAL = "truth has several rows for the image"
GROUPS, TABLES = 4, 2
"""Groups of rows, and tables of a pattern with fields, that are in memory at a time."""


class TableTruth:
    """The masks in a column, `truth.parquet#mask`; the file's name may have fields, as that of a label image.

    A row of the table belongs to an image if its key is the `image_key` of the published row, else the image's name
    below the archive, else the last part of that name and no other row ends with it. One row of the table never
    belongs to two images. An image with several rows, or with none, is not compared.
    """

    def __init__(self, prepared: Prepared, pattern: str, key_column: str | None) -> None:
        """pattern: read with `input.options`. Raises JobError if it names no column."""
        uri, _, self._column = pattern.rpartition("#")
        if not self._column:
            raise JobError(f"--truth {pattern} names no column: write e.g. truth.parquet#mask")
        self._pattern = canonical(uri)
        self._prepared, self._key_column = prepared, key_column
        self._root = archive_root(prepared.job.input.uri)
        self._labels = Labels.of(prepared.model.contract.output)
        self._tables: OrderedDict[str, _Table | None] = OrderedDict()
        self._owners: dict[tuple[str, int], str] = {}
        """URI and row of a table → the image key of the published row that it belongs to."""
        self._foreign: Counter[str] = Counter()

    @property
    def notes(self) -> tuple[str, ...]:
        """About classes of the truth that the model does not have, as far as it was read."""
        return tuple(
            f"{count} mask(s) of {name} do not count: the model has no such class"
            for name, count in self._foreign.most_common()
        )

    def of(self, row: Row, partition: str) -> MasksOrReason:
        """The masks of a row's image, or a word why there are none. Raises JobError for the truth of two images."""
        uri = filled(self._pattern, row, partition, self._root)
        table = self._table(uri)
        if table is None:
            return NO_TRUTH
        found = table.rows_of(row["image_key"], relative_name(row, self._root))
        if len(found) != 1:
            return SEVERAL if found else NO_TRUTH
        owner = self._owners.setdefault((uri, found[0]), row["image_key"])
        if owner != row["image_key"]:
            raise JobError(
                f"--truth {uri}: row {found[0]} belongs to {owner} and to {row['image_key']}: write names with their "
                "folders below the archive, or image_key"
            )
        value, size_hw = table.value(found[0])
        try:
            return self._masks(value, size_hw or (row["height"], row["width"]))
        except ImageError as error:
            return f"truth cannot be read: {error.message} ({error.reason})"
        except (ShapeMismatch, KeyError, TypeError) as error:
            return f"truth cannot be read: {error}"

    def _table(self, uri: str) -> _Table | None:
        """The table of a URI; None if there is none where the name has fields."""
        if uri not in self._tables:
            try:
                self._tables[uri] = _Table(self._prepared, uri, self._column, self._key_column)
            except NotFound as error:
                if uri == self._pattern:
                    raise JobError(f"--truth {uri} does not exist") from error
                self._tables[uri] = None
            while len(self._tables) > TABLES:
                self._tables.popitem(last=False)
        return self._tables[uri]

    def _masks(self, value: Any, size_hw: tuple[int, int]) -> MasksOrReason:
        """The masks in a cell. Raises ImageError, ShapeMismatch, KeyError or TypeError for what cannot be read."""
        if isinstance(value, Mapping):
            value = value["bytes"]
        if value is None:
            return NO_TRUTH
        if isinstance(value, bytes):
            turned = self._prepared.model.contract.input.exif == "apply"
            return masks_in(read_labels(value, self._prepared.job.limits, turned=turned), self._labels)
        if isinstance(value, str):
            value = [{"name": self._only_class(), "rle": {"size": size_hw, "counts": value}}]
        masks: dict[str, NDArray[np.bool_]] = {}
        sizes: set[tuple[int, int]] = set()
        for area in value:
            name, rle = area["name"], area["rle"]
            if name not in self._labels.names.values():
                self._foreign[name] += 1
                continue
            size_hw = (int(rle["size"][0]), int(rle["size"][1]))
            if len(sizes | {size_hw}) > 1:
                raise ShapeMismatch(f"an RLE has the size {size_hw}, another one {sizes.pop()}")
            sizes.add(size_hw)
            mask_hw = unrle(rle["counts"], size_hw)  # a class may have several: one for each object
            masks[name] = masks[name] | mask_hw if name in masks else mask_hw
        runs = {name: runs_by_label(mask_hw).get(1) for name, mask_hw in masks.items()}
        return Masks({name: found.edges() for name, found in runs.items() if found}, size_hw)

    def _only_class(self) -> str:
        if len(self._labels.names) != 1:
            raise JobError(
                f"--truth: the column {self._column} has one RLE for each image, but the model has "
                f"{len(self._labels.names)} classes: write a list of name and rle, as in the column `classes`"
            )
        return next(iter(self._labels.names.values()))


class _Table:
    """One Parquet file: the rows of each key, and the values of its column."""

    def __init__(self, prepared: Prepared, uri: str, column: str, key_column: str | None) -> None:
        """Raises NotFound, JobError for a file that is no such table, and StorageError."""
        try:
            self._file = open_stream(prepared.archive.open(uri))
            schema = self._file.schema_arrow
            _check_column(schema, column, uri)
            key = _key_of(schema, key_column, uri)
            names = self._file.read(columns=[key]).column(key).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise JobError(f"--truth {uri} cannot be read as Parquet: {error}") from error
        self._columns = [column, *(name for name in ("height", "width") if name in schema.names)]
        ends = [self._file.metadata.row_group(n).num_rows for n in range(self._file.num_row_groups)]
        self._starts = [0, *accumulate(ends)]
        self._groups: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()
        self._whole: defaultdict[str, list[int]] = defaultdict(list)
        self._last: defaultdict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(map(str, names)):
            self._whole[name].append(number)
            self._last[name.rpartition("/")[2]].append(number)

    def rows_of(self, image_key: str, name: str) -> list[int]:
        """The rows of an image. name: below the archive."""
        for key in (image_key, name):
            if key in self._whole:
                return self._whole[key]
        found = self._last.get(name.rpartition("/")[2], [])
        return found if len(found) == 1 else []

    def value(self, row: int) -> tuple[Any, tuple[int, int] | None]:
        """The value of a row, and the size of its image where the table says it."""
        group = bisect_right(self._starts, row) - 1
        if group not in self._groups:
            self._groups[group] = self._file.read_row_group(group, columns=self._columns).to_pylist()
            while len(self._groups) > GROUPS:
                self._groups.popitem(last=False)
        cells = self._groups[group][row - self._starts[group]]
        height, width = cells.get("height"), cells.get("width")
        return cells[self._columns[0]], (height, width) if height and width else None


def _key_of(schema: pa.Schema, wanted: str | None, uri: str) -> str:
    for name in KEYS if wanted is None else (wanted,):
        if name in schema.names:
            return name
    raise JobError(
        f"--truth {uri} has no column {wanted or ' or '.join(KEYS)}: its columns are {', '.join(schema.names)}; "
        "--truth-key names the one with the image's name"
    )


def _check_column(schema: pa.Schema, column: str, uri: str) -> None:
    """Raise JobError for a column that is not there, or whose type holds no masks."""
    if column not in schema.names:
        raise JobError(f"--truth {uri} has no column {column}: its columns are {', '.join(schema.names)}")
    found = schema.field(column).type
    fields = {entry.name for entry in found.value_type} if _is_list_of_structs(found) else set()
    is_image = pa.types.is_struct(found) and found.get_field_index("bytes") >= 0
    plain = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    if not (is_image or fields >= {"name", "rle"} or any(test(found) for test in plain)):
        raise JobError(
            f"--truth {uri}: the column {column} is {found}: masks are bytes of label images (also as a struct with "
            "`bytes`), a list of structs with `name` and `rle`, or for one class the text of an RLE"
        )


def _is_list_of_structs(found: pa.DataType) -> bool:
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
    return bool(is_list and pa.types.is_struct(found.value_type))
