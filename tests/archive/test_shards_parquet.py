"""Parquet shards: one source per row, from the footer only; cells are read by row group."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unet_batch.archive.inventory import inventory
from unet_batch.archive.shards import read_unit
from unet_batch.errors import ImageError, JobError
from unet_batch.planning.plan import plan_partition, units
from unet_batch.records import Source, Unit
from unet_batch.spec import InputSpec, JobSpec, LimitsSpec
from unet_batch.store.storage import Object, Storage, join

SPEC = InputSpec(uri="/unused", format="parquet")


def parquet_of(column: pa.Array, *, name: str = "image", rows: int = 4) -> bytes:
    """A file with an image column and another column, with `rows` rows in each row group."""
    out = io.BytesIO()
    table = pa.table({"id": range(len(column)), name: column})
    pq.write_table(table, out, row_group_size=rows, write_page_checksum=True, compression="none")
    return out.getvalue()


def binary(*cells: bytes | None) -> pa.Array:
    return pa.array(cells, pa.binary())


@pytest.fixture
def storage() -> Storage:
    return Storage(threads=2)


@pytest.fixture
def put(storage: Storage, tmp_path: Path) -> Callable[[bytes], Object]:
    folder = f"file://{tmp_path}/archive"

    def put(body: bytes) -> Object:
        storage.put(join(folder, "shard.parquet"), body)
        found = storage.head(join(folder, "shard.parquet"))
        assert found is not None
        return found

    return put


def sources(storage: Storage, shard: Object, spec: InputSpec = SPEC) -> list[Source]:
    return inventory(storage, spec, [shard]).partitions["all"]


def read(storage: Storage, found: list[Source], spec: InputSpec = SPEC, **limits: int) -> list[bytes | str]:
    unit = Unit("0", "all", "parquet", tuple(found))
    answers = list(read_unit(storage, spec, unit, LimitsSpec(**limits)))
    assert [source for source, _ in answers] == found
    return [str(content.reason) if isinstance(content, ImageError) else content for _, content in answers]


@pytest.mark.parametrize(
    "column",
    [
        binary(*(b"%d" % i for i in range(11))),
        pa.array([b"%d" % i for i in range(11)], pa.large_binary()),
        pa.array([{"bytes": b"%d" % i, "path": "x.png"} for i in range(11)]),
        binary(*(b"%d" % i for i in range(11))).dictionary_encode(),
    ],
    ids=["binary", "large_binary", "struct", "dictionary"],
)
def test_every_row_is_one_source_with_its_bytes(storage: Storage, put: Callable, column: pa.Array) -> None:
    """Rows are numbered through the row groups and sorted as numbers."""
    found = sources(storage, put(parquet_of(column)))
    assert [s.member for s in found] == [str(i) for i in range(11)]
    assert read(storage, found) == [b"%d" % i for i in range(11)]


def test_files_of_the_datasets_package_are_read(storage: Storage, put: Callable) -> None:
    """Hugging Face writes images as a struct of bytes and path."""
    datasets = pytest.importorskip("datasets")
    out = io.BytesIO()
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = {"image": [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": "b.png"}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(out)
    assert read(storage, sources(storage, put(out.getvalue()))) == [b"one", b"two"]


def test_rows_are_given_in_the_units_order(storage: Storage, put: Callable) -> None:
    """A unit may hold any rows in any order."""
    found = sources(storage, put(parquet_of(binary(*(b"%d" % i for i in range(40))))))
    picked = [found[i] for i in (37, 2, 10, 3, 0)]
    assert read(storage, picked) == [b"37", b"2", b"10", b"3", b"0"]


def test_null_and_empty_cells_are_errors_of_their_row(storage: Storage, put: Callable) -> None:
    """The neighbours are read."""
    found = sources(storage, put(parquet_of(binary(b"a", None, b"", b"b"))))
    assert read(storage, found) == [b"a", "cell.null", "cell.empty", b"b"]


def test_null_structs_and_paths_without_bytes_are_null(storage: Storage, put: Callable) -> None:
    """A path in a cell is never opened."""
    column = pa.array(
        [None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"", "path": None}, {"bytes": b"x", "path": ""}]
    )
    found = sources(storage, put(parquet_of(column)))
    assert read(storage, found) == ["cell.null", "cell.null", "cell.empty", b"x"]


def test_a_cell_above_the_limit_is_too_large(storage: Storage, put: Callable) -> None:
    """The footer holds no cell sizes, so the limit is checked when the cell is read."""
    found = sources(storage, put(parquet_of(binary(b"a" * 11, b"b" * 10))))
    assert read(storage, found, max_image_bytes=10) == ["read.too_large", b"b" * 10]


def test_only_the_footer_is_read_for_the_inventory(storage: Storage, put: Callable, ranges_asked: list[int]) -> None:
    """A shard of gigabytes costs kilobytes to list."""
    shard = put(parquet_of(binary(*(os.urandom(100_000) for _ in range(20)))))
    ranges_asked.clear()
    sources(storage, shard)
    assert sum(ranges_asked) < 200_000


def test_only_the_row_groups_needed_are_read(storage: Storage, put: Callable, ranges_asked: list[int]) -> None:
    """One row of ten groups of 800 kB costs about one of them."""
    found = sources(storage, put(parquet_of(binary(*(os.urandom(200_000) for _ in range(40))))))
    ranges_asked.clear()
    read(storage, [found[21]])
    assert sum(ranges_asked) < 3_000_000


def test_another_column_can_be_named(storage: Storage, put: Callable) -> None:
    """`input.column`."""
    spec = SPEC.model_copy(update={"column": "jpg"})
    found = sources(storage, put(parquet_of(binary(b"a"), name="jpg")), spec)
    assert read(storage, found, spec) == [b"a"]


def test_a_missing_column_is_an_error_of_the_job_that_names_the_existing_ones(storage: Storage, put: Callable) -> None:
    """Otherwise every image would be a rejection."""
    with pytest.raises(JobError, match="it has id, jpg"):
        sources(storage, put(parquet_of(binary(b"a"), name="jpg")))


@pytest.mark.parametrize("column", [pa.array(["a.png"]), pa.array([1]), pa.array([{"path": "a"}]), pa.array([[b"a"]])])
def test_a_column_without_bytes_is_an_error_of_the_job(storage: Storage, put: Callable, column: pa.Array) -> None:
    """Paths, numbers and lists are not encoded images."""
    with pytest.raises(JobError, match="id: int64"):
        sources(storage, put(parquet_of(column)))


def test_two_columns_of_one_name_are_an_error_of_the_job(storage: Storage, put: Callable) -> None:
    """Arrow raises KeyError for them."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([binary(b"a"), binary(b"b")], ["image", "image"]), out)
    with pytest.raises(JobError, match="has several columns 'image'"):
        sources(storage, put(out.getvalue()))


def test_a_path_in_place_of_bytes_is_named(storage: Storage, put: Callable) -> None:
    """Hugging Face writes `bytes: null` and a path for files that were not embedded."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    found = sources(storage, put(parquet_of(pa.array([{"bytes": None, "path": "x.png"}], kind))))
    [(_, content)] = read_unit(storage, SPEC, Unit("0", "all", "parquet", tuple(found)), LimitsSpec())
    assert (content.reason, content.message) == ("cell.null", "its bytes are null; a path is not followed")


WHOLE = parquet_of(binary(*(random.Random(row).randbytes(300) for row in range(12))))


@pytest.mark.parametrize("cut", [0, 1, 4, 8, 100, len(WHOLE) // 2, len(WHOLE) - 9, len(WHOLE) - 4, len(WHOLE) - 1])
def test_a_cut_file_is_one_problem(storage: Storage, put: Callable, cut: int) -> None:
    """Its rows cannot be counted, so the partition is not published by default."""
    found = sources(storage, put(WHOLE[:cut]))
    assert [(s.member, s.problem[0]) for s in found] == [(None, "shard.corrupt")]


@pytest.mark.parametrize("place", [-5, -8, -20, -60, -200, -500])
def test_a_damaged_footer_never_gives_another_number_of_rows(storage: Storage, put: Callable, place: int) -> None:
    """The result is a problem, an error of the job about columns, or the same twelve rows."""
    body = bytearray(WHOLE)
    body[place] ^= 0xFF
    try:
        found = sources(storage, put(bytes(body)))
    except JobError:
        return
    assert found[0].problem is not None or len(found) == 12


def test_a_flipped_bit_in_a_page_with_a_checksum_is_noticed(storage: Storage, put: Callable) -> None:
    """Rows of the damaged group get a reason; the other groups are read."""
    body = bytearray(parquet_of(binary(*(b"%d" % i * 100 for i in range(8)))))
    found = sources(storage, put(bytes(body)))
    at = bytes(body).index(b"6" * 50)
    body[at] ^= 1
    damaged = put(bytes(body))
    again = [Source(s.uri, damaged.version, s.member) for s in found]
    assert read(storage, again) == [b"%d" % i * 100 for i in range(4)] + ["decode.corrupt"] * 4


def test_a_replaced_file_is_changed_not_read(storage: Storage, put: Callable) -> None:
    """Row numbers are valid for one version only."""
    found = sources(storage, put(parquet_of(binary(b"a", b"b"))))
    put(parquet_of(binary(b"x", b"y")))
    assert read(storage, found) == ["read.changed", "read.changed"]


def test_a_file_that_changes_while_it_is_read_is_changed(storage: Storage, put: Callable, monkeypatch) -> None:
    """An object error inside Arrow's reader becomes our error, for the rows not read yet."""
    found = sources(storage, put(parquet_of(binary(*(os.urandom(100_000) for _ in range(8))))))
    unit = Unit("0", "all", "parquet", tuple(found))
    answers = read_unit(storage, SPEC, unit, LimitsSpec())
    first = next(answers)[1]
    put(parquet_of(binary(b"x", b"y")))
    rest = [content for _, content in answers]
    assert isinstance(first, bytes)
    assert isinstance(rest[-1], ImageError)
    assert rest[-1].reason == "read.changed"


def test_a_file_without_rows_holds_no_images(storage: Storage, put: Callable) -> None:
    """Zero rows are zero images, without a problem."""
    assert sources(storage, put(parquet_of(binary()))) == []


def test_a_bomb_is_refused_from_its_footer(storage: Storage, put: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the file limits the inflated size of the column."""
    monkeypatch.setattr("unet_batch.archive.inflate.RATIO_FROM_BYTES", 1000)
    monkeypatch.setattr("unet_batch.archive.inflate.MAX_INFLATED_RATIO", 10)
    out = io.BytesIO()
    table = pa.table({"image": binary(bytes(1 << 20))})
    pq.write_table(table, out, compression="zstd", use_dictionary=False)
    (found,) = sources(storage, put(out.getvalue()))
    assert found.problem[0] == "shard.corrupt"


CELLS = [b"A" * 10, b"B" * 20, b"C" * 30]
COLUMNS = {
    "binary": lambda: pa.array(CELLS, pa.binary()),
    "large_binary": lambda: pa.array(CELLS, pa.large_binary()),
    "binary_view": lambda: pa.array(CELLS, pa.binary_view()),
    "dictionary": lambda: pa.array(CELLS).dictionary_encode(),
    "dictionary of large": lambda: pa.array(CELLS, pa.large_binary()).dictionary_encode(),
    **{
        f"struct of {kind}": lambda kind=kind: pa.StructArray.from_arrays(
            [pa.array(CELLS, kind), pa.array([None] * 3, pa.string_view())], ["bytes", "path"]
        )
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
    },
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_bytes_are_read_from_every_binary_type(storage: Storage, put: Callable, kind: str) -> None:
    """As Arrow, Polars, DuckDB and Hugging Face's datasets write images."""
    out = io.BytesIO()
    pq.write_table(pa.table({"image": COLUMNS[kind]()}), out)
    assert read(storage, sources(storage, put(out.getvalue()))) == CELLS


@pytest.mark.parametrize(
    "column",
    [pa.array([[b"A"], [b"B"]]), pa.array(["a", "b"], pa.string_view()), pa.array([[{"bytes": b"A"}], []]), [1, 2]],
    ids=["list", "string_view", "list of structs", "numbers"],
)
def test_a_column_of_several_images_per_row_is_refused_in_one_sentence(
    storage: Storage, put: Callable, column: object
) -> None:
    """It is not dropped silently."""
    out = io.BytesIO()
    pq.write_table(pa.table({"image": column}), out)
    with pytest.raises(JobError, match=r"not bytes; there are .*set input\.column"):
        sources(storage, put(out.getvalue()))


def test_rows_have_the_average_size_of_their_row_group(storage: Storage, put: Callable) -> None:
    """Units can then be limited in bytes; an average rejects no image."""
    out = io.BytesIO()
    cells = [os.urandom(1000) for _ in range(4)] + [os.urandom(50_000) for _ in range(4)]
    table = pa.table({"image": cells, "other": [bytes(100_000)] * 8})
    pq.write_table(table, out, row_group_size=4, write_statistics=False)
    found = sources(storage, put(out.getvalue()))
    assert all(900 < s.size_bytes < 1300 for s in found[:4])
    assert all(49_000 < s.size_bytes < 52_000 for s in found[4:])
    assert read(storage, found, max_image_bytes=50_000) == cells
    assert read(storage, found, max_image_bytes=40_000)[4:] == ["read.too_large"] * 4
    job = JobSpec.model_validate(
        {"name": "j", "model": {"path": "m"}, "input": {"uri": "x", "format": "parquet"}, "output": {"uri": "o"}}
    )
    large = [replace(source, size_bytes=3 << 20) for source in found]
    plan = plan_partition("all", large, fingerprint="f", published=None, done=frozenset(), parts=())
    assert max(len(unit.sources) for unit in units(plan, job, "f", workers=1)) == 2


def test_large_cells_are_decoded_one_at_a_time(storage: Storage, put: Callable, monkeypatch) -> None:
    """The bytes of sixteen rows may be few or many."""
    asked = []
    real = pq.ParquetFile.iter_batches

    def noted(self, size, **how):
        asked.append(size)
        return real(self, size, **how)

    monkeypatch.setattr("unet_batch.archive.parquet._BATCH_BYTES", 100_000)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    out = io.BytesIO()
    cells = [bytes([n]) * 60_000 for n in range(8)]
    pq.write_table(pa.table({"image": cells}), out, use_dictionary=False)
    assert read(storage, sources(storage, put(out.getvalue()))) == cells
    assert asked == [1]
