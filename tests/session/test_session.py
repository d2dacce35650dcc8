"""Sessions: every engine and the fake give one model's answers; what cannot run says so."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts.session_suite import THRESHOLD, FakeSession, SessionSuite, tiles_of
from models import TinyModel, free_model, nan_model, threshold_model, unet_model

from unet_batch.contract import Contract, ModelInput
from unet_batch.errors import ContractError, JobError, ProviderMissing, ShapeMismatch
from unet_batch.model.contract import resolve
from unet_batch.model.model import Model
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session, in_model_layout, stacked
from unet_batch.spec import Engine, Precision, SessionSpec, TilingSpec

ROOT = Path(__file__).resolve().parents[2]
CPU = SessionSpec()
ONE_THREAD = Device(threads=1)

ENGINES = [
    "onnxruntime",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"),
    ),
]
every_engine = pytest.mark.parametrize("engine", ENGINES)


def opened(tiny: TinyModel, engine: Engine = "onnxruntime", *, precision: Precision = "fp32") -> Session:
    return open_session(tiny.data, held(tiny), CPU, ONE_THREAD, engine=engine, precision=precision)


def held(tiny: TinyModel) -> Model:
    return resolve(tiny.contract, read_model(tiny.data, "tiny.onnx", None), TilingSpec())


class TestFakeSession(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return FakeSession()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "uint16"])
def test_stacked_tiles_are_a_batch_in_the_models_order_of_axes(layout: str, dtype: str) -> None:
    """The same values as a stack that is copied afterwards, with one copy less; tiles may be views."""
    picture = np.random.default_rng(0).integers(0, 255, (9, 14, 3)).astype(dtype)
    tiles = [picture[:6, :5], picture[3:, 9:], picture[::-1, ::-1][1:7, 2:7]]
    model = replace(THRESHOLD, contract=Contract(input=ModelInput(layout=layout, dtype=dtype)))
    batch = stacked(model, tiles)
    np.testing.assert_array_equal(batch, np.stack(tiles))
    sent = in_model_layout(model, batch)
    assert np.shares_memory(sent, batch)
    assert (sent.flags.c_contiguous, sent.dtype) == (True, np.dtype(dtype))
    np.testing.assert_array_equal(sent, in_model_layout(model, np.stack(tiles)))


QUIRKS = {
    "nhwc": threshold_model("nhwc"),
    "softmax": threshold_model(activation="softmax"),
    "fixed batch": threshold_model(batch=2),
    "fixed size": threshold_model(size=8),
    "two outputs": threshold_model(two_outputs=True),
    "lying symbols": threshold_model(lying_symbols=True),
    "unnamed axes": threshold_model(unnamed_axes=True),
}


@every_engine
@pytest.mark.parametrize("tiny", QUIRKS.values(), ids=QUIRKS.keys())
def test_odd_files_give_the_same_labels(tiny: TinyModel, engine: Engine) -> None:
    """Layout, names, symbols and activation of a file do not change what is class 1."""
    tiles = tiles_of(11, 2)
    logits = opened(tiny, engine).run(tiles)
    np.testing.assert_array_equal(logits.argmax(axis=1), tiles.mean(axis=3) > 0.5)
    assert logits.flags.c_contiguous


@every_engine
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_label_maps_come_back_with_one_channel(layout: str, engine: Engine) -> None:
    """A graph that ends in ArgMax returns (N, H, W), and we return (N, 1, H, W)."""
    pixels = np.array([[[[0, 0, 0], [90, 90, 90]], [[170, 170, 170], [255, 255, 255]]]], np.uint8)
    labels = opened(threshold_model(layout, classes=3, activation="labels", dtype="uint8"), engine).run(pixels)
    np.testing.assert_array_equal(labels, [[[[0, 1], [1, 2]]]])
    assert labels.dtype == np.float32


@every_engine
def test_a_mask_of_half_the_size_is_returned_as_it_is(engine: Engine) -> None:
    """The model decides the size of its masks."""
    tiles = np.zeros((1, 4, 4, 3), np.float32)
    tiles[0, :2, :2] = 1.0
    labels = opened(threshold_model(half_size=True), engine).run(tiles).argmax(axis=1)
    np.testing.assert_array_equal(labels, [[[1, 0], [0, 0]]])


@every_engine
def test_nan_logits_are_returned_and_not_hidden(engine: Engine) -> None:
    """Whether a NaN costs an image is decided behind the session."""
    tiles = np.array([[[[0.25] * 3, [0.75] * 3]]], np.float32)
    np.testing.assert_array_equal(np.isnan(opened(nan_model(), engine).run(tiles)), [[[[False, True]]] * 2])


@every_engine
def test_other_tiles_than_the_fixed_size_are_a_shape_mismatch(engine: Engine) -> None:
    """The size that the file fixes is said in the message."""
    with pytest.raises(ShapeMismatch, match="32x32, not 16x16"):
        opened(threshold_model(size=32), engine).run(tiles_of(1, 1, side=16))


@every_engine
def test_other_batches_than_the_fixed_one_are_a_shape_mismatch(engine: Engine) -> None:
    """A batch axis of 1 takes 1."""
    with pytest.raises(ShapeMismatch, match="fixed at 1, but 2"):
        opened(threshold_model(batch=1), engine).run(tiles_of(1, 2))


@every_engine
def test_tiles_off_the_multiple_are_refused_before_the_model_sees_them(engine: Engine) -> None:
    """A U-Net halves four times: 24 is not a multiple of 16."""
    with pytest.raises(ShapeMismatch, match="multiple of 16"):
        opened(unet_model(None, base=2), engine).run(tiles_of(1, 1, side=24))


@every_engine
def test_an_odd_size_that_fails_inside_the_net_is_a_shape_mismatch(engine: Engine) -> None:
    """Where the contract's multiple is wrong, the engine's text about a Concat becomes ours and names the repair."""
    tiny = unet_model(None, base=2)
    wrong = tiny.contract.model_copy(update={"input": tiny.contract.input.model_copy(update={"multiple": 1})})
    with pytest.raises(ShapeMismatch, match=r"check input\.multiple"):
        opened(TinyModel(tiny.data, wrong), engine).run(tiles_of(1, 1, side=24))


@every_engine
def test_an_output_with_other_channels_than_the_contract_is_a_shape_mismatch(engine: Engine) -> None:
    """A file that does not declare its channels is found out at the first run."""
    tiny = free_model(3, 3)
    model = held(tiny)
    two = model.contract.output.model_copy(update={"classes": ("background", "cell")})
    lying = Model.from_json(model.to_json().replace(b'"class_1","class_2"', b'"class_1"'))
    assert lying.planes == len(two.classes)
    with pytest.raises(ShapeMismatch, match=r"2 channel\(s\), but has shape \(1, 3, 8, 8\)"):
        open_session(tiny.data, lying, CPU, ONE_THREAD, engine=engine).run(tiles_of(1, 1))


@every_engine
def test_bytes_that_are_no_model_are_a_contract_error(engine: Engine) -> None:
    """Junk is refused before an engine sees it."""
    with pytest.raises(ContractError, match="cannot be opened as an ONNX model"):
        open_session(b"junk", held(threshold_model()), CPU, ONE_THREAD, engine=engine)


@every_engine
def test_a_model_of_another_precision_is_refused(engine: Engine) -> None:
    """An fp32 file under `precision: int8` would be scored in fp32 under an int8 fingerprint."""
    with pytest.raises(ContractError, match=r"is a model in fp32, but model\.precision says int8"):
        opened(threshold_model(), engine, precision="int8")


def test_a_provider_that_cannot_compute_in_the_precision_is_passed_over() -> None:
    """tf32 is CUDA's: without a GPU nothing is left, and the CPU does not quietly stand in."""
    tiny = threshold_model()
    with pytest.raises(ProviderMissing, match="onnxruntime on cpu does not compute in tf32"):
        opened(tiny, precision="tf32")


def test_a_provider_listed_behind_cuda_is_used_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A fallback that the job asked for is taken, logged with its reason, and recorded as what really ran."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it fails where there is a GPU as well
    tiny = threshold_model()
    session = open_session(tiny.data, held(tiny), SessionSpec(providers=("cuda", "cpu")), ONE_THREAD)
    assert session.provider == "cpu"
    assert "runs on cpu, because CUDAExecutionProvider cannot run here" in caplog.text
    assert capfd.readouterr().out == ""


def test_an_engine_without_the_provider_is_a_job_error() -> None:
    """OpenVINO runs on the CPU here, and the sentence says so."""
    tiny = threshold_model()
    with pytest.raises(JobError, match=r"openvino does not run on cuda: write session.providers: \[cpu\]"):
        open_session(tiny.data, held(tiny), SessionSpec(providers=("cuda",)), ONE_THREAD, engine="openvino")


def test_sessions_of_one_actor_share_its_memory() -> None:
    """Members of an ensemble hold their memory at once, so each may take its part only."""
    assert Device(2, 1000, 0.5).divided(4) == Device(2, 250, 0.125)
    assert Device(2).divided(4) == Device(2)


def test_importing_the_package_loads_no_engine() -> None:
    """`import unet_batch.model.*` costs neither ONNX Runtime nor OpenVINO, nor `onnx`."""
    code = (
        "import sys, unet_batch.model.contract, unet_batch.session.session, unet_batch.session.batching\n"
        "import unet_batch.session.combined.mirroring, unet_batch.session.openvino_session\n"
        "import unet_batch.workbench.doctor\n"
        "sys.exit(bool({'onnxruntime', 'onnx', 'openvino'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
