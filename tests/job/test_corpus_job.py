"""A whole job over pictures that were collected to break readers: nothing is lost, nothing twice, nothing unnamed."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from corpora import pillow_test_images
from models import threshold_model

from unet_batch.errors import Reason
from unet_batch.store.storage import canonical

pytestmark = pytest.mark.real


@pytest.fixture
def corpus(project) -> Path:
    """A copy of Pillow's test images, with three links added: to a file of it, out of it, and to nothing."""
    any_size = threshold_model("nchw", 1, 2)  # tiles of 32 pixels would make most of the time
    (project.folder / "any.onnx").write_bytes(any_size.data)
    (project.folder / "any.yaml").write_text(any_size.contract_yaml)
    folder = project.folder / "corpus"
    shutil.copytree(pillow_test_images(), folder, symlinks=True)
    (folder / "link-inside.png").symlink_to(folder / "hopper.png")
    (folder / "link-outside.png").symlink_to(project.put("secret.png"))
    (folder / "link-nowhere.png").symlink_to(folder / "nowhere.png")
    return folder


def test_every_file_of_pillows_collection_gets_its_rows(project, corpus, capsys):
    """One undated archive: all files have rows, all pages, and every rejection a reason that is known."""
    job = [f"input.uri={corpus}", "limits.max_rejected=1.0", "tiling.size=256"]
    job.append(f"model.path={project.folder}/any.onnx")
    summary = project.run(*job)
    assert (summary.exit_code, summary.remaining, summary.published, summary.problems) == (0, 0, 1, [])
    rows = pq.ParquetFile(project.folder / "out/predictions/all/data.parquet").read().to_pylist()

    counted = [p for p in corpus.rglob("*") if not p.is_dir()]
    assert not [p for p in counted if any(part.startswith(".") for part in p.relative_to(corpus).parts)]
    assert {row["uri"] for row in rows} == {canonical(str(p)) for p in counted}
    assert len(counted) > 1000
    pages = defaultdict(list)
    for row in rows:
        pages[row["uri"], row["member"]].append((row["page"], row["pages"]))
    for source, found in pages.items():
        assert sorted(found) == [(page, len(found)) for page in range(len(found))], source
    assert len({row["image_key"] for row in rows}) == len(rows) == summary.ok + summary.rejected

    known = {str(reason) for reason in Reason}
    for row in rows:
        if row["status"] == "rejected":
            assert row["reason"] in known
            assert row["message"], row["uri"]
            assert row["classes"] is row["label"] is row["score"] is None
        else:
            assert (row["status"], row["reason"]) == ("ok", None)
            assert row["height"] > 0 < row["width"]
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    assert dict(reasons) == summary.reasons
    links = {row["uri"].rpartition("/link-")[2]: row["reason"] for row in rows if "/link-" in row["uri"]}
    assert links == {"outside.png": "read.denied", "nowhere.png": "read.not_found", "inside.png": None}

    assert project.verify(*job) == []
    assert project.run(*job).planned == 0
    with capsys.disabled():
        print(f"\n{len(counted)} files, {len(rows)} rows, {summary.ok} ok, {summary.score_s} s:", json.dumps(reasons))
