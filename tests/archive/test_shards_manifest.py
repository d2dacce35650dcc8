"""Manifests: untrusted lists of URIs, and which URIs are allowed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unet_batch.archive.inventory import inventory
from unet_batch.archive.manifest import ManifestRow, sources_of
from unet_batch.archive.shards import read_unit
from unet_batch.archive.window import Window
from unet_batch.errors import ImageError, JobError
from unet_batch.records import Source, Unit
from unet_batch.spec import InputSpec, LimitsSpec
from unet_batch.store.storage import Object, Storage, join


@pytest.fixture
def storage() -> Storage:
    return Storage(threads=2)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"file://{tmp_path}/archive"


@pytest.fixture
def put(storage: Storage, folder: str) -> Callable[..., Object]:
    """Puts images a.png and b.png, and a manifest of this text."""

    def put(text: str | bytes, name: str = "list.csv") -> Object:
        storage.put(join(folder, "a.png"), b"A")
        storage.put(join(folder, "sub/b.png"), b"B")
        storage.put(join(folder, name), text.encode() if isinstance(text, str) else text)
        found = storage.head(join(folder, name))
        assert found is not None
        return found

    return put


def spec_of(**fields: object) -> InputSpec:
    return InputSpec(uri="/unused", format="manifest", **fields)


def sources(storage: Storage, manifest: Object, **fields: object) -> list[Source]:
    return inventory(storage, spec_of(**fields), [manifest]).partitions["all"]


def read(storage: Storage, found: list[Source]) -> list[bytes | str]:
    unit = Unit("0", "all", "manifest", tuple(found))
    answers = [content for _, content in read_unit(storage, spec_of(), unit, LimitsSpec())]
    return [str(content.reason) if isinstance(content, ImageError) else content for content in answers]


def parquet_of(**columns: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "uri,label\na.png,1\nsub/b.png,2\n"),
        ("list.csv", "\ufeffuri\r\na.png\r\n./sub/b.png\r\n"),
        ("list.csv", 'label,uri\n"multi\nline",a.png\n2,"sub/b.png"'),
        ("list.jsonl", '{"uri": "a.png"}\n\n{"uri": "sub/b.png", "label": 2}'),
        ("list.parquet", parquet_of(uri=["a.png", "sub/b.png"])),
    ],
)
def test_rows_name_objects_relative_to_the_manifest(
    storage: Storage, folder: str, put: Callable, name: str, text: str | bytes
) -> None:
    """In CSV, JSON lines and Parquet; with current versions and sizes."""
    found = sources(storage, put(text, name))
    assert [s.uri for s in found] == [join(folder, "a.png"), join(folder, "sub/b.png")]
    assert [s.size_bytes for s in found] == [1, 1]
    assert found[0].version == storage.head(found[0].uri).version
    assert read(storage, found) == [b"A", b"B"]


def test_absolute_uris_below_the_roots_are_read(storage: Storage, folder: str, put: Callable, tmp_path: Path) -> None:
    """`input.roots` allows other folders."""
    other = f"file://{tmp_path}/other"
    storage.put(f"{other}/in/c.png", b"C")
    storage.put(f"{other}/out/d.png", b"D")
    manifest = put(f"uri\n{folder}/a.png\n{other}/in/c.png\n{other}/out/d.png\n")
    found = {s.uri: s for s in sources(storage, manifest, roots=(f"{other}/in/",))}
    assert found[f"{folder}/a.png"].problem is None
    assert found[f"{other}/in/c.png"].problem is None
    assert found[f"{other}/out/d.png"].problem[0] == "read.denied"


def test_a_query_in_a_relative_name_is_denied_in_an_object_store(storage: Storage) -> None:
    """On a disk a question mark is a letter of a name; elsewhere it may begin a signature."""
    manifest, entry = Object("s3://bucket/list.csv", 1, "v1"), ManifestRow(0, "a.png?sig=hunter2", None, None)
    (found,) = sources_of(storage, InputSpec(uri="s3://bucket", format="manifest"), manifest, [entry])
    assert found.problem[0] == "read.denied"
    assert "hunter2" not in f"{found.key} {found.problem[1]}"


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "simplecache::file:///etc/passwd",
        "filecache::s3://bucket/x",
        "../other/a.png",
        "sub/../../other/a.png",
        "http://169.254.169.254/latest/meta-data",
        "https://host/a.png",
        "reference://x",
        "s3://user:hunter2@bucket/a.png",
        "s3://bucket/a.png?X-Amz-Signature=hunter2",
        "s3://elsewhere/a.png",
        "gs://other/a.png",
        "../a.png?sig=hunter2",
        "https://hunter2@host/a.png",
        "pipe:cat /etc/passwd",
        "data:image/png;base64,AAAA",
        "a\0b.png",
    ],
)
def test_uris_that_a_manifest_must_not_hold_are_denied(storage: Storage, put: Callable, uri: str) -> None:
    """One rejection each; nothing is opened, and no secret is repeated."""
    manifest = put(parquet_of(uri=[uri, "a.png"]), "list.parquet")
    found = sources(storage, manifest)
    denied = [s for s in found if s.problem is not None]
    assert [s.problem[0] for s in denied] == ["read.denied"]
    assert "hunter2" not in str(denied)
    assert len(found) == 2
    assert sorted(read(storage, found), key=str) == sorted([b"A", "read.denied"], key=str)


def test_a_root_is_a_folder_not_a_prefix_of_letters(storage: Storage, put: Callable, folder: str) -> None:
    """`…/day` does not open `…/day-secret`."""
    storage.put(f"{folder}-secret/a.png", b"S")
    (found,) = sources(storage, put(f"uri\n{folder}-secret/a.png\n"))
    assert found.problem[0] == "read.denied"


def test_a_local_link_that_leads_out_is_denied(storage: Storage, tmp_path: Path) -> None:
    """Local files are read below the manifest's folder only, links resolved."""
    (tmp_path / "secret").write_bytes(b"S")
    top = tmp_path / "archive"
    top.mkdir()
    (top / "a.png").write_bytes(b"A")
    (top / "in.png").symlink_to(top / "a.png")
    (top / "out.png").symlink_to(tmp_path / "secret")
    (top / "list.csv").write_text("uri\na.png\nin.png\nout.png\n")
    found = sources(storage, storage.head(f"file://{top}/list.csv"))
    assert read(storage, found) == [b"A", b"A", "read.denied"]


def test_a_path_with_dots_is_denied_even_if_it_stays_inside(storage: Storage, tmp_path: Path) -> None:
    """`sub/../a.png` is `a.png` in text, but not on a disk where `sub` is a link."""
    (tmp_path / "a.png").write_bytes(b"A")
    (tmp_path / "list.csv").write_text("uri\nsub/../a.png\n")
    assert read(storage, sources(storage, storage.head(f"file://{tmp_path}/list.csv"))) == ["read.denied"]


def test_a_missing_object_is_a_source_with_a_problem(storage: Storage, put: Callable) -> None:
    """It keeps its row, and gets another version when it appears."""
    (found,) = sources(storage, put("uri\ngone.png\n"))
    assert (found.version, found.problem[0]) == ("missing", "read.not_found")
    assert read(storage, [found]) == ["read.not_found"]


def test_the_same_object_twice_is_one_source(storage: Storage, folder: str, put: Callable) -> None:
    """One image, one row; also across two manifests of a partition."""
    first = put(f"uri\na.png\n./a.png\n{folder}/a.png\n", "one.csv")
    second = put("uri\na.png\nsub/b.png\n", "two.csv")
    found = inventory(storage, spec_of(), [first, second]).partitions["all"]
    assert [s.uri for s in found] == [join(folder, "a.png"), join(folder, "sub/b.png")]


def test_a_digest_is_checked(storage: Storage, put: Callable) -> None:
    """Bytes with another SHA-256 are not scored."""
    good, bad = hashlib.sha256(b"A").hexdigest().upper(), hashlib.sha256(b"X").hexdigest()
    found = sources(storage, put(f"uri,sha256\na.png,{good}\nsub/b.png,{bad}\n"))
    assert read(storage, found) == [b"A", "read.checksum_mismatch"]


def test_an_empty_digest_is_not_checked(storage: Storage, put: Callable) -> None:
    """The column may be filled for some rows only."""
    assert read(storage, sources(storage, put("uri,sha256\na.png,\n"))) == [b"A"]


def test_an_object_replaced_after_the_inventory_is_changed(storage: Storage, folder: str, put: Callable) -> None:
    """Versions are pinned from the inventory on."""
    found = sources(storage, put("uri\na.png\n"))
    storage.put(join(folder, "a.png"), b"Z")
    assert read(storage, found) == ["read.changed"]


def test_rows_without_a_uri_keep_their_row(storage: Storage, put: Callable) -> None:
    """Null, empty and foreign values are rejections, named by the row's number."""
    manifest = put('{"uri": null}\n{"uri": ""}\n{"uri": 5}\n{"uri": "a.png"}\n{}\n', "list.jsonl")
    found = {s.member: s.problem and s.problem[0] for s in sources(storage, manifest)}
    assert found == {
        None: None,
        "row 0": "cell.null",
        "row 1": "cell.empty",
        "row 2": "cell.type",
        "row 4": "cell.null",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.jsonl", '{"uri": "a.png"}\n{"uri": "sub/b'),
        ("list.jsonl", '{"uri": "a.png"}\n' + "[" * 100_000),
        ("list.csv", 'uri\na.png\n"sub/b.png'),
    ],
)
def test_a_cut_manifest_is_a_problem_beside_its_rows(storage: Storage, put: Callable, name: str, text: str) -> None:
    """The number of missing rows is unknown."""
    found = sources(storage, put(text, name))
    assert [s.problem and s.problem[0] for s in found] == [None, "shard.corrupt"]


@pytest.mark.parametrize(("name", "body"), [("list.csv", b'uri\n"a\n'), ("list.parquet", b"PAR1junkPAR1")])
def test_a_manifest_that_cannot_be_read_is_one_problem(storage: Storage, put: Callable, name: str, body: bytes) -> None:
    """The partition gets one row with a reason."""
    (found,) = sources(storage, put(body, name))
    assert found.problem[0] == "shard.corrupt"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("uri\na.png\n".encode("utf-16"), "UTF-16"),
        ("uri\na.png\n".encode("utf-16-le"), "UTF-16 text without a mark"),
        (b"\xfe\xff" + "uri\na.png\n".encode("utf-16-be"), "UTF-16"),
        ("uri\na.png\n".encode("utf-32"), "UTF-32"),
        ("uri\na.png\ncafé.png\n".encode("latin-1"), "line 3 holds the byte 0xE9"),
        ("uri\n“a”.png\n".encode("cp1252"), "Latin-1 or Windows-1252"),
    ],
)
@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", "list.ndjson"])
def test_another_encoding_than_utf8_is_named(
    storage: Storage, put: Callable, name: str, body: bytes, named: str
) -> None:
    """Spreadsheets write them; nothing is scored, and the sentence names the encoding."""
    with pytest.raises(JobError, match=named):
        sources(storage, put(body, name))


@pytest.mark.parametrize("head", ["uri,uri", "uri,sha256,sha256"])
def test_two_columns_of_one_name_are_refused(storage: Storage, put: Callable, head: str) -> None:
    """A CSV reader would use the last one and drop the first silently."""
    with pytest.raises(JobError, match="several columns"):
        sources(storage, put(f"{head}\na.png,sub/b.png,\n"))


def test_a_compressed_manifest_is_named(storage: Storage, put: Callable) -> None:
    """Not as text in an unknown encoding."""
    with pytest.raises(JobError, match="compressed with gzip"):
        sources(storage, put(gzip.compress(b"uri\na.png\n"), "l.csv.gz"))


def test_a_byte_order_mark_is_not_part_of_a_name(storage: Storage, put: Callable) -> None:
    """In JSON lines too, and under the suffix .ndjson."""
    for name, text in (
        ("l.csv", "uri\na.png\n"),
        ("l.jsonl", '{"uri": "a.png"}\n'),
        ("l.ndjson", '{"uri": "a.png"}\n'),
    ):
        assert read(storage, sources(storage, put(text.encode("utf-8-sig"), name))) == [b"A"]


@pytest.mark.parametrize(
    "name",
    [
        "cam-2026-11-21T10:15:00.png",
        "A1:field2.png",
        "sub/B2:f1.png",
        "x:y:z.png",
        "C:a.png",
        "note:draft//1.png",
        "s3:1.png",
        "root:2.png",
        "blob:3.png",
    ],
)
def test_a_colon_in_a_name_is_not_a_scheme(storage: Storage, folder: str, put: Callable, name: str) -> None:
    """Times and plate positions contain colons; only known words before a colon are schemes."""
    storage.put(join(folder, name), b"C")
    assert read(storage, sources(storage, put(f"uri\n{name}\n"))) == [b"C"]


@pytest.mark.parametrize(
    "row", ['{"uri": "\\ud800.png"}', '{"uri": "../\\udfff"}', '"a.png"', "[1]", "no json", '{"uri": {"a": 1}}', "7"]
)
def test_only_the_row_of_a_bad_line_is_rejected(storage: Storage, put: Callable, row: str) -> None:
    """A lone surrogate, another type, or invalid JSON, between two good rows: the good rows are scored."""
    found = sources(storage, put(f'{{"uri": "a.png"}}\n{row}\n{{"uri": "sub/b.png"}}\n', "l.jsonl"))
    assert [s.problem is None for s in found].count(True) == 2
    (bad,) = (s for s in found if s.problem is not None)
    assert bad.problem[0] in ("cell.type", "read.denied")
    bad.key.encode()


@pytest.mark.parametrize("value", ["abc", 7, ["x"], "g" * 64, {"a": 1}])
def test_an_invalid_digest_is_refused_and_not_ignored(storage: Storage, put: Callable, value: object) -> None:
    """A digest in a manifest must be checked."""
    good = hashlib.sha256(b"B").hexdigest()
    rows = [{"uri": "a.png", "sha256": value}, {"uri": "sub/b.png", "sha256": f" {good.upper()} "}]
    found = sources(storage, put("\n".join(map(json.dumps, rows)), "l.jsonl"))
    assert read(storage, found) == ["cell.type", b"B"]
    assert "not 64 hex digits" in found[0].problem[1]


def test_binary_digests_are_refused_with_a_sentence(storage: Storage, put: Callable) -> None:
    """A column of bytes would never equal a text."""
    body = parquet_of(uri=["a.png"], sha256=[hashlib.sha256(b"A").digest()])
    with pytest.raises(JobError, match=r"the column sha256 .* holds binary, not text"):
        sources(storage, put(body, "l.parquet"))
    text = pa.array([hashlib.sha256(b"A").hexdigest()]).dictionary_encode()
    assert read(storage, sources(storage, put(parquet_of(uri=["a.png"], sha256=text), "l.parquet"))) == [b"A"]


def test_another_digest_is_another_version_of_the_same_object(storage: Storage, put: Callable) -> None:
    """An image with a corrected digest is scored again; without a digest the version is the store's."""
    wrong, right = (hashlib.sha256(body).hexdigest() for body in (b"X", b"A"))
    texts = ["uri\na.png\n", *(f"uri,sha256\na.png,{digest}\n" for digest in (wrong, right, right.upper()))]
    lists = [put(text, f"{number}.csv") for number, text in enumerate(texts)]  # every put writes the images again
    plain, first, second, again = (sources(storage, listed)[0] for listed in lists)
    assert len({plain.version, first.version, second.version}) == 3
    assert second.version == again.version
    assert {s.stored_version for s in (plain, first, second)} == {plain.version}
    assert read(storage, [first]) == ["read.checksum_mismatch"]
    assert read(storage, [second]) == [b"A"]


@pytest.mark.parametrize(("name", "text"), [("l.csv", "path\na.png\n"), ("l.parquet", parquet_of(path=["a.png"]))])
def test_a_missing_column_is_an_error_of_the_job(storage: Storage, put: Callable, name: str, text: str) -> None:
    """The message names the existing columns."""
    with pytest.raises(JobError, match="it has path"):
        sources(storage, put(text, name))
    assert len(sources(storage, put(text, name), column="path")) == 1


ROWS = "uri,day\na.png,2026-11-20\nsub/b.png,2026-11-21\nc.png,2026-11-20\n"


def partitions(storage: Storage, manifest: Object, window: Window | None) -> dict[str, list[str]]:
    found = inventory(storage, spec_of(partition_column="day"), [manifest], window=window).partitions
    return {name: [s.uri.rpartition("/")[2] for s in members] for name, members in found.items()}


def test_a_column_can_be_the_partition(storage: Storage, put: Callable) -> None:
    """Each value is one partition."""
    expected = {"day=2026-11-20": ["a.png", "c.png"], "day=2026-11-21": ["b.png"]}
    assert partitions(storage, put(ROWS), None) == expected
    assert partitions(storage, put(ROWS), Window(None, None, "all")) == expected


def test_a_window_picks_days_of_the_column(storage: Storage, put: Callable) -> None:
    """Ranges, and the newest day; values that are not days count only in `all`."""
    manifest = put(ROWS + "d.png,night\n")
    day = Window(date(2026, 11, 19), date(2026, 11, 20), "range")
    assert partitions(storage, manifest, day) == {"day=2026-11-20": ["a.png", "c.png"]}
    assert partitions(storage, manifest, Window(None, None, "last")) == {"day=2026-11-21": ["b.png"]}
    assert "day=night" in partitions(storage, manifest, Window(None, None, "all"))


def test_days_of_a_parquet_manifest_are_days(storage: Storage, put: Callable) -> None:
    """Typed dates read like ISO text."""
    manifest = put(parquet_of(uri=["a.png"], day=pa.array([date(2026, 11, 21)])), "list.parquet")
    assert partitions(storage, manifest, Window(None, None, "last")) == {"day=2026-11-21": ["a.png"]}


@pytest.mark.parametrize("value", ["", "../up", "a/b", ".hidden", "ü"])
def test_a_value_that_is_not_a_folder_name_is_an_error_of_the_job(storage: Storage, put: Callable, value: str) -> None:
    """Partitions become folders of the output."""
    with pytest.raises(JobError, match="row 0"):
        partitions(storage, put(f"uri,day\na.png,{value}\n"), None)


def test_a_broken_manifest_of_many_partitions_stops_the_job(storage: Storage, put: Callable) -> None:
    """Each partition may miss rows."""
    with pytest.raises(JobError, match="repair"):
        partitions(storage, put('{"uri": "a.png", "day": "2026-11-20"}\n{"uri', "list.jsonl"), None)
