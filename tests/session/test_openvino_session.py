"""OpenVINO against ONNX Runtime, and the ways in which it fails in silence, which ours does not."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from contracts.session_suite import SessionSuite, tiles_of
from models import TinyModel, threshold_model, unet_model
from onnx import TensorProto, helper
from session.run_out_of_memory import run_out_of_memory

from unet_batch.errors import ContractError, ModelFailed, ProviderMissing, ShapeMismatch
from unet_batch.model.contract import resolve
from unet_batch.model.model import Model
from unet_batch.session import openvino_session as owner
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.spec import Engine, Precision, SessionSpec, TilingSpec

pytest.importorskip("openvino", reason="OpenVINO is not installed")

CPU = SessionSpec()


def held(tiny: TinyModel) -> Model:
    return resolve(tiny.contract, read_model(tiny.data, "tiny.onnx", None), TilingSpec())


def opened(tiny: TinyModel, *, engine: Engine = "openvino", precision: Precision = "fp32", threads: int = 1) -> Session:
    return open_session(tiny.data, held(tiny), CPU, Device(threads), engine=engine, precision=precision)


class TestOpenVinoSession(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return opened(threshold_model())


class TestOpenVinoSessionOnTwoThreads(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return opened(threshold_model(), threads=2)


UNETS = {"nchw": unet_model(64, base=8, levels=3), "any size": unet_model(None, base=8, levels=3)}


@pytest.mark.parametrize("tiny", UNETS.values(), ids=UNETS.keys())
@pytest.mark.parametrize("count", [1, 3])
def test_fp32_logits_are_those_of_onnxruntime(tiny: TinyModel, count: int) -> None:
    """Within 1e-4 of logits of about 10, on a U-Net with transposed convolutions, for every batch size."""
    tiles = tiles_of(5, count, side=64)
    exact = opened(tiny, engine="onnxruntime").run(tiles)
    np.testing.assert_allclose(opened(tiny).run(tiles), exact, atol=1e-4 * np.abs(exact).max())


def test_fp32_is_not_bf16() -> None:
    """OpenVINO's own default on a processor with bf16 is 100 times as far away; ours is told."""
    import openvino

    tiny, tiles = UNETS["nchw"], tiles_of(5, 2, side=64)
    exact = opened(tiny, engine="onnxruntime").run(tiles)
    error = np.abs(opened(tiny).run(tiles) - exact).max()
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16 that could be chosen by default")
    half = np.abs(opened(tiny, precision="bf16").run(tiles) - exact).max()
    assert half > 20 * error


def test_bf16_labels_are_nearly_all_those_of_onnxruntime() -> None:
    """The model has random weights, so its classes are closer to each other than any trained one's."""
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    tiny, tiles = UNETS["nchw"], tiles_of(5, 2, side=64)
    exact = opened(tiny, engine="onnxruntime").run(tiles)
    labels = opened(tiny, precision="bf16").run(tiles).argmax(axis=1)
    assert (labels == exact.argmax(axis=1)).mean() > 0.99


class Calibration:
    """Four batches of noise."""

    def __init__(self) -> None:
        self._feeds = iter([{"image": tiles_of(n, 1, side=32).transpose(0, 3, 1, 2)} for n in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@pytest.mark.usefixtures("exact_int8")
def test_an_int8_file_with_weights_in_8_bits_is_computed_as_onnxruntime_does(tmp_path: Path) -> None:
    """Where 8-bit products are exact."""
    assert_int8_agrees(tmp_path, reduce_range=False)


def test_an_int8_file_is_computed_as_onnxruntime_does(tmp_path: Path) -> None:
    """Weights in 7 bits, on every processor."""
    assert_int8_agrees(tmp_path, reduce_range=True)


def assert_int8_agrees(tmp_path: Path, *, reduce_range: bool) -> None:
    """Quantised by ONNX Runtime's own tool: the same labels, and not those of a float model in disguise."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    tiny = unet_model(32, base=8, levels=2)
    quantize_static(
        onnx.load_from_string(tiny.data),
        tmp_path / "int8.onnx",
        Calibration(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range,
    )
    small = TinyModel((tmp_path / "int8.onnx").read_bytes(), tiny.contract)
    tiles = tiles_of(9, 2, side=32)
    theirs = opened(small, engine="onnxruntime", precision="int8").run(tiles)
    ours = opened(small, precision="int8").run(tiles)
    exact = opened(tiny, engine="onnxruntime").run(tiles)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.99
    assert np.abs(ours - theirs).mean() < 0.3 * np.abs(exact - theirs).mean()


def test_bf16_without_its_instructions_is_provider_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO would compute in fp32 and say nothing."""
    import openvino

    class OldCore(openvino.Core):
        def get_property(self, device: str, name: str) -> object:
            return ["FP32", "INT8"] if name == "OPTIMIZATION_CAPABILITIES" else super().get_property(device, name)

    monkeypatch.setattr(openvino, "Core", OldCore)
    with pytest.raises(ProviderMissing, match="has no bf16 instructions"):
        opened(threshold_model(), precision="bf16")


def test_settings_are_said_and_never_left_to_openvino() -> None:
    """Threads are the actor's; arithmetic is the job's; cores are the scheduler's."""
    assert owner.properties(Device(3), "int8") == {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": 3,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    assert owner.properties(Device(1), "bf16")["INFERENCE_PRECISION_HINT"] == "bf16"


def test_a_size_that_does_not_fit_raises_and_the_session_goes_on() -> None:
    """Found out before anything runs: no batch after it is wrong."""
    tiny = unet_model(None, base=4, levels=2)
    loose = tiny.contract.model_copy(update={"input": tiny.contract.input.model_copy(update={"multiple": 1})})
    session = opened(TinyModel(tiny.data, loose))
    good, odd = tiles_of(1, 2, side=32), tiles_of(2, 2, side=30)
    before = session.run(good)
    for _ in range(2):
        with pytest.raises(ShapeMismatch, match=r"does not accept tiles of 30x30; check input\.multiple"):
            session.run(odd)
        np.testing.assert_array_equal(session.run(good), before)


def failing_model() -> TinyModel:
    """The threshold model, which fails on a picture whose largest value is 2: it would need twice the pixels."""
    tiny = threshold_model(size=8, batch=1)
    model = onnx.load_from_string(tiny.data)
    model.graph.node[-1].output[0] = "plain"
    model.graph.initializer.append(helper.make_tensor("sides", TensorProto.INT64, [3], [1, 2, 8]))
    model.graph.initializer.append(helper.make_tensor("eight", TensorProto.INT64, [1], [8]))
    model.graph.initializer.append(helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["image"], ["top"], keepdims=0),
            helper.make_node("Cast", ["top"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["whole", "one"], ["times"]),
            helper.make_node("Mul", ["times", "eight"], ["columns"]),
            helper.make_node("Concat", ["sides", "columns"], ["shape"], axis=0),
            helper.make_node("Reshape", ["plain", "shape"], ["mask"]),
        ]
    )
    return TinyModel(model.SerializeToString(), tiny.contract)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_fails_raises_and_never_returns_an_earlier_batch(threads: int) -> None:
    """With one thread, OpenVINO's `infer` says nothing and hands out the tensors of the batch before."""
    session = opened(failing_model(), threads=threads)
    good, ill = tiles_of(1, 1), tiles_of(2, 1)
    good[0, 0, 0, 0], ill[0, 0, 0, 0] = 1.0, 2.0
    before = session.run(good)
    for _ in range(2):
        with pytest.raises((ShapeMismatch, ModelFailed), match="batch of 1 tiles of 8x8"):
            session.run(ill)
        np.testing.assert_array_equal(session.run(good), before)


def test_a_fixed_size_that_does_not_fit_is_a_contract_error() -> None:
    """Found out when the session is opened, before any image is read."""
    tiny = unet_model(None, base=4, levels=2)
    changes = {"multiple": 1, "height": 30, "width": 30}
    wrong = tiny.contract.model_copy(update={"input": tiny.contract.input.model_copy(update=changes)})
    with pytest.raises(ContractError, match="does not accept tiles of 30x30"):
        opened(TinyModel(tiny.data, wrong))


def test_every_shape_of_a_model_that_takes_any_is_right_though_few_stay_compiled() -> None:
    """Six sizes, twice: compiled models come and go, answers do not change."""
    session = opened(threshold_model())
    sides = [4, 6, 8, 10, 12, 14] * 2
    batches = [tiles_of(side, 2, side=side) for side in sides]
    wrong = [len(t[0]) for t in batches if not np.array_equal(session.run(t).argmax(axis=1), t.mean(axis=3) > 0.5)]
    assert wrong == []
    assert len(session._requests) == owner.KEPT_SHAPES


def test_the_models_bytes_may_go() -> None:
    """The session keeps what it needs: the caller's buffer is freed and written over."""
    tiny = unet_model(32, base=8, levels=1)
    data = bytes(bytearray(tiny.data))
    session = open_session(data, held(tiny), CPU, Device(1), engine="openvino")
    tiles = tiles_of(3, 1, side=32)
    before = session.run(tiles)
    del data
    gc.collect()
    junk = [bytes(len(tiny.data)) for _ in range(50)]
    np.testing.assert_array_equal(session.run(tiles), before)
    assert len(junk) == 50


def test_weights_in_another_file_are_never_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From bytes, too, OpenVINO reads files below the working directory that a model names; ours refuses the model."""
    np.arange(3, dtype=np.float32).tofile(tmp_path / "secret.bin")
    monkeypatch.chdir(tmp_path)
    tiny = threshold_model()
    model = onnx.load_from_string(tiny.data)
    bias = next(t for t in model.graph.initializer if t.name == "bias")
    bias.ClearField("raw_data")
    bias.data_location = TensorProto.EXTERNAL
    bias.external_data.add(key="location", value="secret.bin")
    with pytest.raises(ContractError, match="stores bias in another file"):
        open_session(model.SerializeToString(), held(tiny), CPU, Device(1), engine="openvino")


def test_an_operator_that_openvino_does_not_know_is_a_contract_error() -> None:
    """Its own words are in the sentence, on one line."""
    graph = helper.make_graph(
        [helper.make_node("Sparkle", ["image"], ["mask"], domain="my.own")],
        "own",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 2, 8, 8])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
    data = helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()
    with pytest.raises(ContractError, match=r"cannot be opened in OpenVINO: .*Sparkle") as raised:
        open_session(data, held(threshold_model(size=8)), CPU, Device(1), engine="openvino")
    assert "\n" not in str(raised.value)


def test_openvino_that_is_not_installed_is_provider_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repair is in the sentence."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ProviderMissing, match=r"pip install -e '.\[openvino\]"):
        opened(threshold_model())


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is Linux's")
def test_real_lack_of_memory_is_out_of_memory_and_the_session_survives() -> None:
    """A failed batch leaves neither its memory nor its shape behind: the next one is right."""
    assert run_out_of_memory("openvino", kept_mib=200) == ""
