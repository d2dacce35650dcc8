"""A process of its own for each measurement: its memory, and what became of it."""

from __future__ import annotations

import pytest
from models import unet_model

from unet_batch.errors import ModelFailed
from unet_batch.model.contract import resolve
from unet_batch.session.model_files import read_model
from unet_batch.spec import SessionSpec, TilingSpec
from unet_batch.workbench import peak as module
from unet_batch.workbench.peak import crash_message, peak_bytes

SHAPE = (1, 16, 16, 3)


@pytest.fixture(scope="module")
def tiny():
    return unet_model(16, base=2, levels=1)


@pytest.fixture(scope="module")
def model(tiny):
    return resolve(tiny.contract, read_model(tiny.data, "the model", None), TilingSpec())


@pytest.mark.slow
def test_a_larger_batch_needs_more_memory(tiny, model):
    """Both beyond what the process held before it opened the session."""
    small, before = peak_bytes(tiny.data, model, SessionSpec(), shape_nhwc=SHAPE)
    large, _ = peak_bytes(tiny.data, model, SessionSpec(), shape_nhwc=(4096, *SHAPE[1:]))
    assert before < small
    assert large - small > 4096 * 16 * 16 * 3 * 4  # the tiles alone


def test_what_fails_is_told_in_the_words_of_the_process(tiny, model):
    """Tiles of another size: an error, and no crash."""
    with pytest.raises(ModelFailed, match=r"cannot be measured: .*16x16"):
        peak_bytes(tiny.data, model, SessionSpec(), shape_nhwc=(1, 8, 8, 3))
    wrong = {"shape_nhwc": (1, 8, 8, 3), "engine": "onnxruntime", "precision": "fp32"}
    assert crash_message(tiny.data, model, SessionSpec(), **wrong) is None


def test_an_engine_that_crashes_is_named_with_what_killed_it(tiny, model, monkeypatch, tmp_path):
    """The child kills itself with the signal of a wrong address, as OpenVINO's compiler does on some 8-bit files."""
    (tmp_path / "crash.sh").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "crash.sh").chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / "crash.sh"))
    asked = {"shape_nhwc": SHAPE, "engine": "openvino", "precision": "int8"}
    assert "openvino crashes on this file in int8 (Segmentation fault)" in crash_message(
        tiny.data, model, SessionSpec(), **asked
    )
    with pytest.raises(ModelFailed, match="crashes on this file"):
        peak_bytes(tiny.data, model, SessionSpec(), **asked)
