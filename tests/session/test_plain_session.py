"""The yardstick session: named tensors in, named tensors out, errors that are ours."""

from __future__ import annotations

import os
import subprocess
import sys

import models
import numpy as np
import pytest
from onnx import load_from_string

from unet_batch.errors import ContractError, ModelFailed, ShapeMismatch
from unet_batch.session.plain_session import PlainSession

TILES = np.full((2, 3, 8, 8), 0.75, np.float32)


def test_all_outputs_come_back_by_name():
    """Both of a model with two."""
    result = PlainSession(models.threshold_model(two_outputs=True).data).run({"image": TILES})
    assert list(result) == ["features", "mask"]
    assert np.array_equal(result["features"], TILES)
    assert (result["mask"].argmax(1) == 1).all()


def test_only_the_outputs_that_are_asked_for_come_back():
    """By name, in the order of the names."""
    session = PlainSession(models.threshold_model(two_outputs=True).data)
    assert list(session.run({"image": TILES}, ["mask"])) == ["mask"]


def test_a_file_that_cannot_be_opened_is_a_contract_error():
    """The same class as for a job's own session."""
    with pytest.raises(ContractError, match="cannot be opened on the CPU"):
        PlainSession(b"not a model")


def test_tiles_that_the_model_refuses_are_a_shape_mismatch():
    """The message says what was fed."""
    with pytest.raises(ShapeMismatch, match=r"image float32 of \(2, 1, 8, 8\)"):
        PlainSession(models.threshold_model().data).run({"image": TILES[:, :1]})


def test_a_missing_input_is_a_failure_of_the_run():
    """ONNX Runtime raises a ValueError, which never escapes."""
    with pytest.raises((ModelFailed, ShapeMismatch)):
        PlainSession(models.threshold_model().data).run({})


def test_placement_counts_the_operators_that_the_cpu_took():
    """Identities are folded away; what computes is the CPU's."""
    made = models.unet_model(64, 4, 2)
    written = [node.op_type for node in load_from_string(made.data).graph.node]
    placed = PlainSession(made.data).placement()
    assert list(placed) == ["CPUExecutionProvider"]
    for name in ("Conv", "ConvTranspose", "Concat", "MaxPool"):
        assert placed["CPUExecutionProvider"][name] == written.count(name)


def test_without_optimisation_the_result_is_the_same_up_to_rounding():
    """ONNX Runtime's fused kernels round differently in the last bits."""
    made = models.unet_model(64, 4, 2)
    tiles = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    results = [PlainSession(made.data, optimise=on).run({"image": tiles})["mask"] for on in (True, False)]
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "from unet_batch.session.onnxruntime_session import version; version()",
        "from unet_batch.session.onnxruntime_session import describe; describe(data, 'the model')",
        "from unet_batch.session.plain_session import PlainSession; PlainSession(data)",
    ],
)
def test_onnx_runtime_reports_nothing_to_its_makers(tmp_path, code):
    """Where it reports, the library keeps an id of the machine in the cache folder as soon as it is loaded."""
    (tmp_path / "model.onnx").write_bytes(models.threshold_model().data)
    kept = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("ORT_")}
    script = f"data = open('model.onnx', 'rb').read(); {code}"
    environment = {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert list((tmp_path / "cache").rglob("*")) == []
