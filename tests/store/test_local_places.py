"""Puts to places of the wrong kind on a local disk: one sentence, and no retry that cannot help."""

from __future__ import annotations

import errno

import pytest

from unet_batch.errors import Denied, ExitCode
from unet_batch.store.faults import translated
from unet_batch.store.storage import Storage


@pytest.fixture
def store() -> Storage:
    return Storage(threads=1)


@pytest.mark.parametrize("below", ["a.png", "sub/a.png", "sub/deeper/a.png"])
def test_a_put_below_a_file_says_what_is_no_folder(store, tmp_path, below):
    (tmp_path / "out").write_text("a file")
    for put in (store.put, store.create):
        with pytest.raises(Denied) as found:
            put(f"file://{tmp_path}/out/{below}", b"1")
        assert f"because {tmp_path}/out is no folder" in str(found.value)
        assert found.value.exit_code == ExitCode.SETUP
    assert (tmp_path / "out").read_text() == "a file"


def test_a_put_onto_a_folder_says_so_and_leaves_nothing(store, tmp_path):
    """A create took the folder for the object, a replacement for another writer's."""
    (tmp_path / "data.parquet").mkdir()
    uri = f"file://{tmp_path}/data.parquet"
    for put in (store.put, store.create, lambda uri, body: store.replace(uri, body, version=None)):
        with pytest.raises(Denied, match="because it is a folder"):
            put(uri, b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


def test_a_put_through_a_link_that_leads_nowhere_is_refused(store, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "unmounted")
    with pytest.raises(Denied, match="out is no folder"):
        store.put(f"file://{tmp_path}/out/a.png", b"1")


@pytest.mark.parametrize("number", [errno.EROFS, errno.ELOOP, errno.EACCES])
def test_a_disk_that_takes_no_file_is_a_wrong_setup(number):
    """A read-only disk, a link to itself, a folder without permission: the same command again cannot help."""
    assert translated(OSError(number, "no"), "file:///a").exit_code == ExitCode.SETUP
