"""Tars: no member of a damaged file is lost silently, and members are read byte for byte."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from unet_batch.archive.inventory import StoredIndex, inventory
from unet_batch.archive.shards import read_unit
from unet_batch.archive.tar import TarIndex, index_tar
from unet_batch.errors import ImageError
from unet_batch.records import NOTHING_PASSED, Source, Unit
from unet_batch.spec import InputSpec, LimitsSpec
from unet_batch.store.storage import Object, Storage, join

MEMBERS = [("a.jpg", b"A" * 700), ("b.png", b"B" * 512), ("c.tif", b""), ("d.JPG", b"D" * 1500), ("e.npy", b"E")]
SPEC = InputSpec(uri="/unused", format="webdataset")


def tar_of(members: list[tuple[str, bytes]], *, form: int = tarfile.USTAR_FORMAT, compressed: bool = False) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, body in members:
            header = tarfile.TarInfo(name)
            header.size = len(body)
            tar.addfile(header, io.BytesIO(body))
    return gzip.compress(out.getvalue()) if compressed else out.getvalue()


def tar_with(*headers: tarfile.TarInfo) -> bytes:
    """A tar of one image between special members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for header in headers:
            tar.addfile(header)
        image = tarfile.TarInfo("image.png")
        image.size = 3
        tar.addfile(image, io.BytesIO(b"abc"))
    return out.getvalue()


@pytest.fixture
def storage() -> Storage:
    return Storage(threads=2)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"file://{tmp_path}/archive"


@pytest.fixture
def put(storage: Storage, folder: str) -> Callable[..., Object]:
    """Put a shard; returns its object as a listing would."""

    def put(body: bytes, name: str = "shard.tar") -> Object:
        storage.put(join(folder, name), body)
        found = storage.head(join(folder, name))
        assert found is not None
        return found

    return put


def index_of(body: bytes) -> TarIndex:
    return index_tar(io.BytesIO(body))


def sources(storage: Storage, shard: Object, spec: InputSpec = SPEC) -> list[Source]:
    return inventory(storage, spec, [shard]).partitions["all"]


def read(storage: Storage, found: list[Source], **limits: int) -> list[bytes | str]:
    """The bytes of each source, or its reason."""
    unit = Unit("0", "all", "webdataset", tuple(found))
    answers = list(read_unit(storage, SPEC, unit, LimitsSpec(**limits)))
    assert [source for source, _ in answers] == found
    return [str(content.reason) if isinstance(content, ImageError) else content for _, content in answers]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compressed", [False, True])
def test_members_come_back_byte_for_byte(storage: Storage, put: Callable, form: int, compressed: bool) -> None:
    """In every tar format, gzipped or not; long and foreign names too."""
    long = "x" * 90 + "/" + "y" * (90 if form == tarfile.USTAR_FORMAT else 200) + ".png"
    members = [*MEMBERS, (long, b"L" * 5), ("ü 漢.png", b"U")]
    found = sources(storage, put(tar_of(members, form=form, compressed=compressed)))
    assert [s.member for s in found] == sorted(name for name, _ in members)
    assert read(storage, found) == [body for _, body in sorted(members)]
    assert [s.offset is None for s in found] == [compressed] * len(found)


@pytest.mark.parametrize("cut", range(0, len(tar_of(MEMBERS)) + 1, 512))
def test_a_cut_tar_loses_nothing_silently(cut: int) -> None:
    """At every block: the members before the cut are complete, and the cut is a problem unless it is in the padding."""
    whole = tar_of(MEMBERS)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [header.offset_data + header.size for header in tar]
        end_of_last = tar.offset
    index = index_of(whole[:cut])
    intact = [name for (name, _), end in zip(MEMBERS, ends, strict=True) if end <= cut]
    assert [m.name for m in index.members] == intact
    assert (index.problem is None) == (cut >= end_of_last + 1024)
    if index.problem is not None:
        assert index.problem[0] in ("shard.truncated", "shard.corrupt")


@pytest.mark.parametrize("cut", [1, 100, 511, 513, 700, 1025, 3000])
def test_a_cut_inside_a_block_is_noticed_too(cut: int) -> None:
    """Downloads end at any byte."""
    index = index_of(tar_of(MEMBERS)[:cut])
    assert index.problem is not None
    assert len(index.members) < len(MEMBERS)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9, 0.999])
def test_a_cut_gzip_loses_nothing_silently(share: float) -> None:
    """Complete members stay, the rest is a problem; even the last byte of the trailer is needed."""
    members = [(f"{i:03}.png", os.urandom(2000)) for i in range(20)]
    whole = tar_of(members, compressed=True)
    index = index_of(whole[: int(len(whole) * share)])
    names = [m.name for m in index.members]
    assert names == [name for name, _ in members][: len(names)]
    assert len(names) >= int(20 * share) - 2
    assert index.problem is not None
    assert index.problem[0] == "shard.truncated"


def test_the_trailer_of_a_gzip_is_reached() -> None:
    """All members are present, but not verified: cut by one byte, and with a wrong checksum."""
    whole = tar_of(MEMBERS, compressed=True)
    wrong = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    assert index_of(whole).problem is None
    assert index_of(whole[:-1]).problem == ("shard.truncated", index_of(whole[:-1]).problem[1])
    assert index_of(wrong).problem[0] == "shard.corrupt"
    assert len(index_of(wrong).members) == len(MEMBERS)


def test_a_flipped_bit_in_a_header_is_noticed() -> None:
    """tarfile alone would end there without an error."""
    body = bytearray(tar_of(MEMBERS))
    with tarfile.open(fileobj=io.BytesIO(bytes(body))) as tar:
        third = tar.getmembers()[2].offset
    body[third + 5] ^= 4
    index = index_of(bytes(body))
    assert [m.name for m in index.members] == ["a.jpg", "b.png"]
    assert index.problem is not None
    assert index.problem[0] == "shard.truncated"


def test_a_hole_of_zeros_is_not_an_end() -> None:
    """A lost disk extent reads as zeros; the members after it would be lost."""
    body = bytearray(tar_of(MEMBERS))
    with tarfile.open(fileobj=io.BytesIO(bytes(body))) as tar:
        third = tar.getmembers()[2].offset
    body[third : third + 512] = bytes(512)
    assert [m.name for m in index_of(bytes(body)).members] == ["a.jpg", "b.png"]
    assert index_of(bytes(body)).problem[0] == "shard.truncated"


def test_concatenated_tars_are_noticed() -> None:
    """`cat a.tar b.tar` hides the second tar from readers that stop at the first end."""
    index = index_of(tar_of(MEMBERS[:2]) + tar_of(MEMBERS[2:]))
    assert [m.name for m in index.members] == ["a.jpg", "b.png"]
    assert index.problem is not None


def test_an_empty_tar_is_valid_and_an_empty_file_is_not() -> None:
    """Zero members with a proper end are zero images; zero bytes are a failed upload."""
    assert index_of(tar_of([])) == TarIndex((), NOTHING_PASSED, None)
    assert index_of(tar_of([], compressed=True)) == TarIndex((), NOTHING_PASSED, None)
    assert index_of(b"").problem[0] == "shard.corrupt"


@pytest.mark.parametrize(
    "junk",
    [
        b"not a tar",
        b"\xff" * 5000,
        b"\x1f\x8bjunk" * 10,
        gzip.compress(b"no tar in here" * 100),
        b"PK\x03\x04" + bytes(2000),
    ],
    ids=["text", "ones", "gzip's first bytes", "gzip", "zip"],
)
def test_a_shard_that_is_not_a_tar_is_one_problem(storage: Storage, put: Callable, junk: bytes) -> None:
    """It gives one row with a reason; the job goes on."""
    (found,) = sources(storage, put(junk))
    assert (found.member, found.problem[0]) == (None, "shard.corrupt")
    assert read(storage, [found]) == ["shard.corrupt"]


def test_a_repeated_name_gets_ordinals(storage: Storage, put: Callable) -> None:
    """Both are images, with keys of their own."""
    found = sources(storage, put(tar_of([("a.png", b"1"), ("b.png", b"2"), ("a.png", b"3")])))
    assert [(s.member, s.ordinal) for s in found] == [("a.png", 0), ("a.png", 1), ("b.png", 0)]
    assert len({s.key for s in found}) == 3
    assert read(storage, found) == [b"1", b"3", b"2"]


def test_a_repeated_name_in_a_gzip_too(storage: Storage, put: Callable) -> None:
    """The streaming reader counts like the index."""
    found = sources(storage, put(tar_of([("a.png", b"1"), ("a.png", b"3")], compressed=True)))
    assert read(storage, found) == [b"1", b"3"]


def test_names_are_text_never_paths(storage: Storage, put: Callable, tmp_path: Path) -> None:
    """Absolute names and `..` are read like any other; nothing is written anywhere."""
    found = sources(storage, put(tar_of([("/etc/passwd.png", b"1"), ("../../up.png", b"2"), ("./a.png", b"3")])))
    assert [s.member for s in found] == ["../../up.png", "./a.png", "/etc/passwd.png"]
    assert read(storage, found) == [b"2", b"3", b"1"]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


def test_only_members_with_bytes_are_images(storage: Storage, put: Callable) -> None:
    """Symbolic links and devices with an image's name are counted and never followed; folders are neither."""
    body = tar_with(
        special("dir.png", tarfile.DIRTYPE),
        special("soft.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "image.png"),
        special("device.png", tarfile.CHRTYPE),
        special("pipe.png", tarfile.FIFOTYPE),
    )
    shard = put(body)
    assert [s.member for s in sources(storage, shard)] == ["hard.png", "image.png"]
    assert index_of(body).others.kinds == (
        ("special member", 2, ("device.png", "pipe.png")),
        ("symlinked member", 1, ("soft.png",)),
    )
    assert inventory(storage, SPEC, [shard]).passed == index_of(body).others


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda body: pa.compress(body, "zstd", asbytes=True),
}


@pytest.mark.parametrize("packing", PACKED)
def test_a_compressed_tar_is_read(storage: Storage, put: Callable, packing: str) -> None:
    """gzip, bzip2, xz and Zstandard, in one stream or in two, as parallel compressors write them."""
    members = [(f"{n:03}.png", os.urandom(5000)) for n in range(30)]
    plain, pack = tar_of(members), PACKED[packing]
    for number, body in enumerate((pack(plain), pack(plain[:70_000]) + pack(plain[70_000:]))):
        found = sources(storage, put(body, f"{number}.tar.{packing}"))
        assert [s.member for s in found] == [name for name, _ in members]
        assert read(storage, found) == [body for _, body in members]


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_compressed_tar_loses_nothing_silently(packing: str, share: float) -> None:
    """Complete members stay, the rest is a problem."""
    members = [(f"{i:03}.png", os.urandom(2000)) for i in range(20)]
    whole = PACKED[packing](tar_of(members))
    index = index_of(whole[: int(len(whole) * share)])
    names = [m.name for m in index.members]
    assert names == [name for name, _ in members][: len(names)]
    assert index.problem is not None


@pytest.mark.parametrize("packing", PACKED)
def test_a_damaged_compressed_tar_is_noticed(packing: str) -> None:
    """Bytes in the middle are changed: members after them are not used."""
    members = [(f"{i:03}.png", os.urandom(200_000)) for i in range(20)]
    whole = bytearray(PACKED[packing](tar_of(members)))
    for at in range(len(whole) // 2, len(whole) // 2 + 64):
        whole[at] ^= 0x5A
    index = index_of(bytes(whole))
    assert index.problem is not None or packing == "zst"  # Zstandard frames need not hold a checksum
    assert index_of(PACKED[packing](b"no tar in here" * 100)).problem[0] == "shard.corrupt"


@pytest.mark.parametrize("packing", ["bz2", "xz", "zst"])
def test_every_bomb_is_stopped(packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inflated bytes are counted, for every compression."""
    monkeypatch.setattr("unet_batch.archive.inflate.RATIO_FROM_BYTES", 1 << 20)
    index = index_of(PACKED[packing](tar_of([("a.png", bytes(8 << 20)), ("b.png", b"1")])))
    assert (index.members, index.problem[0]) == ((), "shard.corrupt")
    assert "inflates to more than" in index.problem[1]


def test_a_tar_whose_first_name_looks_packed_is_a_tar(storage: Storage, put: Callable) -> None:
    """The magic bytes of bzip2 are letters that may begin a name."""
    found = sources(storage, put(tar_of([("BZh1.png", b"1"), ("BZh9.png", b"2")])))
    assert read(storage, found) == [b"1", b"2"]


@pytest.mark.parametrize("packing", ["", *PACKED])
def test_a_hard_link_is_an_image_of_its_own(storage: Storage, put: Callable, packing: str) -> None:
    """GNU tar stores the second name of a file without bytes: it has the bytes of the first, also through links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in (("./a.png", b"A" * 600), ("b.png", b"B")):
            header = tarfile.TarInfo(name)
            header.size = len(body)
            tar.addfile(header, io.BytesIO(body))
        tar.addfile(special("link.png", tarfile.LNKTYPE, "a.png"))
        tar.addfile(special("again.png", tarfile.LNKTYPE, "./link.png"))
        tar.addfile(special("lost.png", tarfile.LNKTYPE, "gone.png"))
    body = PACKED[packing](out.getvalue()) if packing else out.getvalue()
    found = sources(storage, put(body))
    assert [s.member for s in found] == ["./a.png", "again.png", "b.png", "link.png", "lost.png"]
    assert read(storage, found) == [b"A" * 600, b"A" * 600, b"B", b"A" * 600, "decode.corrupt"]
    links = [s for s in found if s.member in ("link.png", "again.png")]  # a unit without the link's target
    assert read(storage, links) == [b"A" * 600] * 2


def tar_with_a_link(target: bytes, link: bytes, size: int) -> bytes:
    """a.png, a hard link to it with this size and these bytes, and b.png."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, body in (("a.png", b"0", target), ("link.png", b"1", link), ("b.png", b"0", b"B" * 513)):
            header = special(name, kind, "a.png" if kind == b"1" else "")
            header.size = size if kind == b"1" else len(body)
            out.write(header.tobuf(tarfile.PAX_FORMAT) + body + bytes(-len(body) % 512))
            tar.offset = out.tell()
    return out.getvalue()


@pytest.mark.parametrize("packing", ["", *PACKED])
@pytest.mark.parametrize("size", [1, 512, 600, 5000])
@pytest.mark.parametrize("has_bytes", [True, False])
def test_a_hard_link_with_a_size_is_read_with_bytes_and_without(
    storage: Storage, put: Callable, packing: str, size: int, has_bytes: bool
) -> None:
    """The pax format allows bytes after a link; older writers repeat the target's size and write none."""
    body = tar_with_a_link(b"A" * size, b"A" * size if has_bytes else b"", size)
    found = sources(storage, put(PACKED[packing](body) if packing else body))
    assert [(s.member, s.problem) for s in found] == [("a.png", None), ("b.png", None), ("link.png", None)]
    assert read(storage, found) == [b"A" * size, b"B" * 513, b"A" * size]


@pytest.mark.parametrize("after", [b"", bytes(512), b"Z" * 512])
def test_a_link_with_bytes_at_a_cut_loses_nothing_silently(after: bytes) -> None:
    """The tar ends in the bytes of the link, or before them."""
    whole = tar_with_a_link(b"A" * 600, b"A" * 600, 600)
    index = index_of(whole[: whole.index(b"link.png") + 512] + after)
    assert [m.name for m in index.members if m.target is None] == ["a.png"]
    assert index.problem is not None


@pytest.mark.parametrize("packing", ["", "zst"])
def test_a_member_without_a_suffix_is_recognised_by_its_first_bytes(
    storage: Storage, put: Callable, packing: str
) -> None:
    """DICOM exports and camera dumps have no suffixes; text members are counted as passed over."""
    members = [
        ("scan/IM0001", bytes(128) + b"DICM" + bytes(50)),
        ("scan/0001", b"\x89PNG\r\n\x1a\n" + bytes(50)),
        ("LICENSE", b"BMW and other letters"),
        ("empty", b""),
    ]
    body = tar_of(members)
    shard = put(PACKED[packing](body) if packing else body)
    found = sources(storage, shard)
    assert [s.member for s in found] == ["scan/0001", "scan/IM0001"]
    assert read(storage, found) == [members[1][1], members[0][1]]
    assert inventory(storage, SPEC, [shard]).passed.kinds == (("unsuffixed member", 2, ("LICENSE", "empty")),)
    named = SPEC.model_copy(update={"members": ("*.png",)})
    assert sources(storage, shard, named) == []


def test_hidden_and_excluded_members_are_counted(storage: Storage, put: Callable) -> None:
    """A tar that was made on a Mac holds a companion `._name` of every picture."""
    names = ["./shots/._1.png", "./shots/1.png", "__MACOSX/shots/1.png", ".git/x.png", "shots/1_mask.png", "a.b.JFIF"]
    shard = put(tar_of([(name, b"1") for name in names]))
    spec = SPEC.model_copy(update={"exclude": ("*_mask.png",)})
    found = inventory(storage, spec, [shard])
    assert [s.member for s in found.partitions["all"]] == ["./shots/1.png", "a.b.JFIF"]
    assert [(what, count) for what, count, _ in found.passed.kinds] == [("excluded member", 1), ("hidden member", 3)]


def test_members_that_are_not_images_are_left_out(storage: Storage, put: Callable) -> None:
    """WebDataset tars contain labels and metadata; globs select the images, in upper or lower case."""
    shard = put(tar_of([("1.jpg", b"1"), ("1.json", b"{}"), ("1.cls", b"3"), ("2.JPEG", b"2")]))
    assert [s.member for s in sources(storage, shard)] == ["1.jpg", "2.JPEG"]
    spec = SPEC.model_copy(update={"members": ("*.cls",)})
    assert [s.member for s in sources(storage, shard, spec)] == ["1.cls"]


def test_the_intact_members_of_a_cut_tar_are_scored_beside_its_problem(storage: Storage, put: Callable) -> None:
    """The problem is a source of its own, without a member."""
    found = sources(storage, put(tar_of(MEMBERS)[:2048]))
    assert [(s.member, s.problem and s.problem[0]) for s in found] == [("a.jpg", None), (None, "shard.truncated")]
    assert read(storage, found) == [b"A" * 700, "shard.truncated"]


def test_a_replaced_tar_is_changed_not_read(storage: Storage, put: Callable) -> None:
    """Offsets are valid for one version only."""
    found = sources(storage, put(tar_of([("a.png", b"1"), ("b.png", b"2")])))
    put(tar_of([("a.png", b"x"), ("b.png", b"y")]))
    assert read(storage, found) == ["read.changed", "read.changed"]


def test_a_replaced_gzip_is_changed_not_read(storage: Storage, put: Callable) -> None:
    """The same for tars that are streamed."""
    found = sources(storage, put(tar_of([("a.png", b"1"), ("b.png", b"2")], compressed=True)))
    put(tar_of([("a.png", b"x"), ("b.png", b"y")], compressed=True))
    assert read(storage, found) == ["read.changed", "read.changed"]


def test_a_deleted_tar_is_not_found(storage: Storage, put: Callable) -> None:
    """Each of its images has this reason."""
    shard = put(tar_of([("a.png", b"1"), ("b.png", b"2")]))
    found = sources(storage, shard)
    storage.delete(shard.uri)
    assert read(storage, found) == ["read.not_found", "read.not_found"]


def test_a_member_above_the_limit_is_not_read(storage: Storage, put: Callable, ranges_asked: list[int]) -> None:
    """The size is in the index, so no byte of it is read."""
    found = sources(storage, put(tar_of([("a.png", b"1" * 100_000), ("b.png", b"2")])))
    ranges_asked.clear()
    assert read(storage, found, max_image_bytes=1000) == ["read.too_large", b"2"]
    assert ranges_asked == [1]


def test_neighbours_are_one_request(storage: Storage, put: Callable, ranges_asked: list[int]) -> None:
    """Close members are read together, distant ones separately, in any order of the unit."""
    bodies = {name: os.urandom(size) for name, size in [("a", 9), ("b", 9), ("x", 200_000), ("c", 9), ("d", 9)]}
    shard = put(tar_of([(f"{name}.png", body) for name, body in bodies.items()]))
    found = [s for s in sources(storage, shard) if s.member != "x.png"]
    ranges_asked.clear()
    assert read(storage, found[::-1]) == [bodies[name] for name in "dcba"]
    assert len(ranges_asked) == 2


def test_an_unsorted_tar_is_read_in_the_units_order(storage: Storage, put: Callable) -> None:
    """The tar's order and the unit's order differ; every image gets its own bytes."""
    members = [(f"{name}.png", name.encode()) for name in "qazwsxedc"]
    for compressed in (False, True):
        found = sources(storage, put(tar_of(members, compressed=compressed), f"{compressed}.tar"))
        assert read(storage, found) == [name.encode() for name in sorted("qazwsxedc")]


def test_a_tar_is_walked_once_per_version(storage: Storage, folder: str, put: Callable) -> None:
    """The stored index answers the second time, and a new version is walked again."""
    cache = StoredIndex(storage, join(folder, "_work/index"))
    shard = put(tar_of(MEMBERS))
    first = inventory(storage, SPEC, [shard], cache=cache)
    storage.delete(shard.uri)  # only the index is left
    assert inventory(storage, SPEC, [shard], cache=cache) == first
    changed = put(tar_of(MEMBERS[:1]))
    assert [s.member for s in inventory(storage, SPEC, [changed], cache=cache).partitions["all"]] == ["a.jpg"]


def test_a_stored_index_that_cannot_be_read_is_made_again(storage: Storage, folder: str, put: Callable) -> None:
    """Junk and older formats in the cache are not trusted."""
    cache = StoredIndex(storage, join(folder, "_work/index"))
    shard = put(tar_of(MEMBERS[:1]))
    cache.put(shard.uri, shard.version, b'{"format": 0}')
    assert [s.member for s in inventory(storage, SPEC, [shard], cache=cache).partitions["all"]] == ["a.jpg"]


def test_an_index_survives_json() -> None:
    """What is stored is what was found, problem included."""
    index = index_of(tar_of(MEMBERS)[:2048])
    assert TarIndex.from_json(index.to_json()) == index
    assert TarIndex.from_json(b"[]") is None
    assert TarIndex.from_json(b"\xff") is None


def test_a_gzip_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inflated bytes are counted."""
    monkeypatch.setattr("unet_batch.archive.inflate.RATIO_FROM_BYTES", 1 << 20)
    bomb = tar_of([("a.png", bytes(4 << 20)), ("b.png", b"1")], compressed=True)
    monkeypatch.setattr("unet_batch.archive.inflate.MAX_INFLATED_RATIO", 10)
    index = index_of(bomb)
    assert index.members == ()
    assert index.problem[0] == "shard.corrupt"


class Watched(io.BytesIO):
    """Records the largest read."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        self.largest = max(self.largest, 1 << 62 if size is None or size < 0 else size)
        return super().read(size)


def test_a_header_that_claims_gigabytes_is_refused() -> None:
    """tarfile would read an extended header into memory; its size is untrusted."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 60 << 30
    stream = Watched(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    assert index_tar(stream).problem is not None
    assert stream.largest <= 16 << 20


def test_a_negative_size_does_not_loop() -> None:
    """A header that points back to itself would be read forever."""
    good = tar_of([("a.png", b"1")])[:1024]
    header = bytearray(tarfile.TarInfo("b.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # base 256: -512
    header[148:156] = b"%06o\x00 " % (256 + sum(header[:148]) + sum(header[156:]))
    index = index_of(good + bytes(header) + bytes(1024))
    assert [m.name for m in index.members] == ["a.png"]
    assert index.problem is not None


def test_a_sparse_member_is_read_whole(storage: Storage, put: Callable, tmp_path: Path) -> None:
    """Its bytes are not in one place, so it is read through tarfile. Written by GNU tar."""
    import shutil
    import subprocess

    if shutil.which("tar") is None:
        pytest.skip("GNU tar is not here")
    with open(tmp_path / "a.png", "wb") as file:
        file.write(b"head")
        file.seek(1 << 20)
        file.write(b"tail")
    made = subprocess.run(["tar", "-cSf", "s.tar", "a.png"], cwd=tmp_path, check=False, capture_output=True)
    if made.returncode:
        pytest.skip("this tar writes no sparse members")
    expected = (tmp_path / "a.png").read_bytes()
    found = sources(storage, put((tmp_path / "s.tar").read_bytes()))
    assert read(storage, found) == [expected]


def test_tars_of_the_webdataset_package_are_read(storage: Storage, put: Callable, tmp_path: Path) -> None:
    """The format's own writer, gzipped and not."""
    webdataset = pytest.importorskip("webdataset")
    for name in ("w.tar", "w.tar.gz"):
        with webdataset.TarWriter(str(tmp_path / name)) as writer:
            for i in range(5):
                writer.write({"__key__": f"sample{i:04}", "png": b"p%d" % i, "json": {"label": i}})
        found = sources(storage, put((tmp_path / name).read_bytes(), name))
        assert [s.member for s in found] == [f"sample{i:04}.png" for i in range(5)]
        assert read(storage, found) == [b"p%d" % i for i in range(5)]


def test_an_unavailable_store_does_not_reject_an_image(storage: Storage, put: Callable, monkeypatch) -> None:
    """The unit stays open: no image is yielded."""
    from unet_batch.errors import Unavailable

    found = sources(storage, put(tar_of(MEMBERS)))

    def down(*args: object, **kwargs: object) -> bytes:
        raise Unavailable("503")

    monkeypatch.setattr(Storage, "read_range", down)
    with pytest.raises(Unavailable):
        read(storage, found)


@pytest.mark.s3
def test_a_tar_in_s3_is_indexed_and_read(s3_options: dict, new_bucket: Callable[[], str]) -> None:
    """Headers and members by range requests, pinned by the ETag."""
    storage = Storage(s3_options, threads=4)
    uri = f"{new_bucket()}/day/shard.tar"
    members = [(f"{i:03}.png", os.urandom(3000)) for i in range(200)]
    storage.put(uri, tar_of(members))
    found = sources(storage, storage.head(uri))
    assert read(storage, found) == [body for _, body in members]
    storage.put(uri, tar_of(members[::-1]))
    assert set(read(storage, found)) == {"read.changed"}
