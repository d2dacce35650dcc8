"""Loose images: the listing is the inventory, and every object gets its bytes or a reason."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from unet_batch.archive.discovery import discover
from unet_batch.archive.inventory import inventory
from unet_batch.archive.shards import read_unit
from unet_batch.archive.window import Window
from unet_batch.errors import Denied, ImageError, Unavailable
from unet_batch.records import Source, Unit
from unet_batch.spec import InputSpec, LimitsSpec
from unet_batch.store.storage import Object, Storage, join

SPEC = InputSpec(uri="/unused")


@pytest.fixture
def storage() -> Storage:
    return Storage(threads=2)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"file://{tmp_path}/archive"


def read(storage: Storage, found: list[Source], **limits: int) -> list[bytes | str]:
    unit = Unit("0", "all", "images", tuple(found))
    answers = list(read_unit(storage, SPEC, unit, LimitsSpec(**limits)))
    assert [source for source, _ in answers] == found
    return [str(content.reason) if isinstance(content, ImageError) else content for _, content in answers]


def test_every_object_is_one_source(storage: Storage, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions and sizes come from the listing; nothing is read."""
    objects = [Object(join(folder, name), 3, "etag:1") for name in ("b.png", "a.png")]
    monkeypatch.setattr(Storage, "read", None)
    assert inventory(storage, SPEC, objects, partition="date=2026-11-21").partitions == {
        "date=2026-11-21": [
            Source(join(folder, "a.png"), "etag:1", size_bytes=3),
            Source(join(folder, "b.png"), "etag:1", size_bytes=3),
        ]
    }


def test_each_image_gets_its_bytes_or_its_reason(storage: Storage, folder: str) -> None:
    """Deleted, replaced, too large, or with a known problem: one reason each; the others are read."""
    for name, body in [("a", b"A"), ("gone", b"G"), ("changed", b"C"), ("large", b"L" * 11), ("z", b"Z")]:
        storage.put(join(folder, name), body)
    found = inventory(storage, SPEC, list(storage.list(folder))).partitions["all"]
    found.append(Source(join(folder, "~"), "link", problem=("read.denied", "a link that leads out of the archive")))
    storage.delete(join(folder, "gone"))
    storage.put(join(folder, "changed"), b"c")
    assert read(storage, found, max_image_bytes=10) == [
        b"A",
        "read.changed",
        "read.not_found",
        "read.too_large",
        b"Z",
        "read.denied",
    ]


def test_an_object_that_grew_is_rejected(storage: Storage, folder: str) -> None:
    """A listing's size may be unknown or wrong: the limit is checked while reading."""
    version = storage.put(join(folder, "a"), b"L" * 11)
    assert read(storage, [Source(join(folder, "a"), version)], max_image_bytes=10) == ["read.too_large"]


def test_an_unavailable_store_stops_the_unit(storage: Storage, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infrastructure never becomes a rejection."""
    version = storage.put(join(folder, "a"), b"A")

    def down(*args: object, **kwargs: object) -> bytes:
        raise Unavailable("503")

    monkeypatch.setattr(Storage, "read", down)
    with pytest.raises(Unavailable):
        read(storage, [Source(join(folder, "a"), version)])


def test_a_link_out_of_a_local_archive_is_a_rejection(storage: Storage, tmp_path: Path) -> None:
    """From the listing to the unit; the target of the link is not read."""
    (tmp_path / "secret.png").write_bytes(b"S")
    top = tmp_path / "archive"
    top.mkdir()
    (top / "a.png").write_bytes(b"A")
    (top / "b.png").symlink_to("../secret.png")
    objects = discover(storage, InputSpec(uri=str(top)), Window(None, None, "all")).partitions["all"]
    assert read(storage, inventory(storage, SPEC, objects).partitions["all"]) == [b"A", "read.denied"]


@pytest.mark.parametrize("form", ["webdataset", "images"])
def test_a_shard_behind_a_link_out_of_the_archive_stops_the_job(storage: Storage, tmp_path: Path, form: str) -> None:
    """The number of its images cannot be read."""
    (tmp_path / "secret.tar").write_bytes(b"S")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/a.tar").symlink_to("../secret.tar")
    spec = InputSpec(uri=str(tmp_path / "archive"), format=form)
    objects = discover(storage, spec, Window(None, None, "all")).partitions["all"]
    with pytest.raises(Denied):
        inventory(storage, spec, objects)


def test_a_tar_among_loose_images_is_a_shard(storage: Storage, folder: str) -> None:
    """Its members are sources beside the files; how a unit of them is read is the plan's decision."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("in.png"))
    storage.put(join(folder, "b.tar"), body.getvalue())
    storage.put(join(folder, "a.png"), b"A")
    found = inventory(storage, SPEC, list(storage.list(folder))).partitions["all"]
    assert [(s.uri.removeprefix(folder), s.member) for s in found] == [("/a.png", None), ("/b.tar", "in.png")]
