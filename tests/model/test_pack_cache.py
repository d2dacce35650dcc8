"""The cache of packed graphs: made once, never trusted blindly, never in the way."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import models
import numpy as np
import pytest
from packing import changed, noise, resolved, run, scores_of

from unet_batch.errors import ModelRefused
from unet_batch.model.contract import find_contract, read_model, resolve
from unet_batch.model.pack import PackSpec
from unet_batch.model.pack_cache import cache_folder, folded
from unet_batch.spec import TilingSpec

UNET = models.unet_model(32, 4, 2)
MODEL = resolved(UNET.data, UNET.contract)
INPUT = PackSpec(post=False)


def test_a_graph_that_was_packed_gives_the_same_scores(tmp_path):
    """To the bit: bytes in, and the network's own output."""
    data, packed = folded(UNET.data, MODEL, INPUT, folder=tmp_path)
    pixels = noise((2, 32, 32, 3))
    assert np.array_equal(
        run(data, {packed.input_name: pixels})[packed.output_name], scores_of(UNET.data, MODEL, pixels)
    )
    assert (packed.contract.input.dtype, packed.contract.output.activation) == ("uint8", "logits")


def test_the_file_says_itself_what_it_takes(tmp_path):
    """Its contract lies in its metadata, so that whoever finds it in the cache can open it."""
    data, packed = folded(UNET.data, MODEL, INPUT, folder=tmp_path)
    file = read_model(data, "packed.onnx", packed.sha256)
    assert resolve(find_contract(file, None, "nowhere"), file, TilingSpec()) == packed


def test_the_second_process_reads_the_file_of_the_first(tmp_path):
    """Not packed again: what cannot be packed any more is still found."""
    first, _ = folded(UNET.data, MODEL, INPUT, folder=tmp_path)
    assert folded(b"gone", MODEL, INPUT, folder=tmp_path)[0] == first


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"x" + data[1:]])
def test_a_file_that_is_not_what_was_written_is_made_again(tmp_path, caplog, damage):
    """Cut, emptied or changed."""
    first, _ = folded(UNET.data, MODEL, INPUT, folder=tmp_path)
    [path] = tmp_path.glob("*.onnx")
    path.write_bytes(damage(first))
    with caplog.at_level(logging.WARNING):
        assert folded(UNET.data, MODEL, INPUT, folder=tmp_path)[0] == first
    assert "is not what was written" in caplog.text
    assert [found.read_bytes() for found in tmp_path.glob("*.onnx")] == [first]


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (MODEL, PackSpec(post=False, source_dtype="uint16")),
        (MODEL, PackSpec()),
        (resolved(UNET.data, changed(UNET.contract, source={"normalize": {"kind": "scale", "scale": 2.0}})), INPUT),
    ],
    ids=["another type", "labels", "another rule"],
)
def test_what_is_packed_otherwise_is_another_file(tmp_path, model, spec):
    """Type of pixels, parts and contract are in the name."""
    folded(UNET.data, MODEL, INPUT, folder=tmp_path)
    folded(UNET.data, model, spec, folder=tmp_path)
    assert len(list(tmp_path.glob("*.onnx"))) == 2


def test_a_refusal_is_remembered_with_its_reason(tmp_path):
    """Nobody proves in vain at every start."""
    labels = models.threshold_model(activation="labels")
    model = resolved(labels.data, labels.contract)
    for data in (labels.data, b"gone"):
        with pytest.raises(ModelRefused, match="returns finished labels already"):
            folded(data, model, PackSpec(), folder=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".refused"]


def test_masks_of_another_size_are_no_labels(tmp_path):
    """They go back to a tile's size as scores."""
    half = models.threshold_model(half_size=True)
    with pytest.raises(ModelRefused, match="its masks are 128x128"):
        folded(half.data, resolved(half.data, half.contract), PackSpec(), folder=tmp_path)


def test_a_folder_that_cannot_be_written_costs_a_log_line(tmp_path, caplog):
    """The graph is there all the same."""
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert folded(UNET.data, MODEL, INPUT, folder=blocked / "packed")[0]
    assert "packs again" in caplog.text


def test_the_folder_lies_with_the_other_caches(monkeypatch):
    """XDG's, or below the home."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/unet-batch/packed")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path(os.path.expanduser("~/.cache/unet-batch/packed"))
