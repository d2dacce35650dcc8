"""8-bit files on unlike processors: right everywhere, or refused where they would be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import TinyModel, unet_model
from onnx import numpy_helper

from unet_batch.contract import Contract
from unet_batch.errors import ProviderMissing
from unet_batch.gate.parity import Tolerance
from unet_batch.model.contract import resolve
from unet_batch.session import machine
from unet_batch.session.int8 import wide_weights
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import SessionSpec, TilingSpec
from unet_batch.workbench.quantize import QUANTIZE_KEY, QuantizeSpec, quantize

VNNI, AMX, AVX2 = "fpu avx2 avx512f avx512_vnni", "fpu avx2 amx_int8", "fpu sse4_2 avx2 fma"


@pytest.fixture
def runs_on(tmp_path, monkeypatch):
    """Makes this machine say that it has these instructions; what it computes stays its own."""

    def change(flags: str, architecture: str = "x86_64") -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Made 1\nflags\t\t: {flags}\n")
        monkeypatch.setattr(machine, "CPUINFO", cpuinfo)
        monkeypatch.setattr(machine.platform, "machine", lambda: architecture)

    return change


@pytest.fixture(scope="module")
def tiny() -> TinyModel:
    return unet_model(32, base=4, levels=1)


def tiles(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(n).random((32, 32, 3), np.float32) for n in range(count)]


def quantised(tiny: TinyModel, **settings) -> bytes:
    model = resolve(tiny.contract, read_model(tiny.data, "tiny.onnx", None), TilingSpec())
    return quantize(tiny.data, model, tiles(6), QuantizeSpec(tolerance=Tolerance(1.0, 0.0), **settings)).data


def opened(data: bytes, contract: Contract, engine: str = "onnxruntime"):
    model = resolve(contract, read_model(data, "int8.onnx", None), TilingSpec())
    return open_session(data, model, SessionSpec(), Device(1), engine=engine, precision="int8")


def test_a_file_with_weights_in_8_bits_is_refused_without_exact_products(tiny, runs_on):
    """Two products of 255 · 127 do not fit into 16 bits: another mask, under the same fingerprint."""
    runs_on(VNNI)
    data = quantised(tiny)
    assert opened(data, tiny.contract).provider == "cpu"
    runs_on(AVX2)
    with pytest.raises(ProviderMissing, match=r"without AMX, AVX512-VNNI or AVX-VNNI.*--any-cpu"):
        opened(data, tiny.contract)


@pytest.mark.parametrize("flags", [VNNI, AMX, "avx_vnni"])
def test_each_instruction_for_dot_products_is_enough(tiny, runs_on, flags):
    """They add up in 32 bits."""
    runs_on(flags)
    assert opened(quantised(tiny, reduce_range=False), tiny.contract).provider == "cpu"


def test_a_file_for_every_processor_has_weights_in_7_bits(tiny, runs_on):
    """Made on a machine with VNNI by request, and on one without by itself."""
    runs_on(VNNI)
    by_request = quantised(tiny, reduce_range=True)
    runs_on(AVX2)
    by_itself = quantised(tiny)
    for data in (by_request, by_itself):
        assert wide_weights(onnx.load_from_string(data), "openvino") is None
        assert opened(data, tiny.contract).provider == "cpu"


def test_another_architecture_has_exact_products(tiny, runs_on):
    """ARM widens before it adds."""
    runs_on("", architecture="aarch64")
    assert opened(quantised(tiny, reduce_range=False), tiny.contract).provider == "cpu"


def test_the_file_says_where_it_was_verified(tiny, runs_on):
    """And whether its weights were reduced."""
    runs_on(VNNI)
    for settings, said in (({}, '"reduce_range":false'), ({"reduce_range": True}, '"reduce_range":true')):
        found = {e.key: e.value for e in onnx.load_from_string(quantised(tiny, **settings)).metadata_props}
        assert said in found[QUANTIZE_KEY]
        assert '"verified_on":"avx512_vnni"' in found[QUANTIZE_KEY]


def test_a_file_of_another_tool_is_judged_by_its_weights(tiny, tmp_path, runs_on):
    """ONNX Runtime's own quantiser leaves no word about it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(tiles(2))

        def get_next(self):
            tile = next(self._left, None)
            return None if tile is None else {"image": tile.transpose(2, 0, 1)[None]}

    found = {}
    for reduced in (False, True):
        target = tmp_path / f"{reduced}.onnx"
        quantize_static(
            onnx.load_from_string(tiny.data), target, Reader(), weight_type=QuantType.QInt8, reduce_range=reduced
        )
        found[reduced] = target.read_bytes()
    runs_on(AVX2)
    assert opened(found[True], tiny.contract).provider == "cpu"
    with pytest.raises(ProviderMissing, match="8-bit weights"):
        opened(found[False], tiny.contract)


@pytest.mark.parametrize(("bits", "wide"), [(8, True), (7, False)])
def test_weights_that_the_engine_quantises_are_as_wide_as_their_scale_makes_them(tiny, bits, wide):
    """Float weights behind a QuantizeLinear are quantised when the file is opened."""
    model = onnx.load_from_string(tiny.data)
    stored = next(t for t in model.graph.initializer if len(t.dims) == 4)
    scale = np.abs(numpy_helper.to_array(stored)).max(axis=(1, 2, 3)) / (2 ** (bits - 1) - 1)
    model.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), "scale"))
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", [stored.name, "scale"], ["q"], axis=0))
    assert (wide_weights(model, "onnxruntime") == stored.name) is wide


def test_weights_with_a_computed_scale_are_taken_for_wide(tiny):
    """The file does not say how they are quantised."""
    model = onnx.load_from_string(tiny.data)
    name = next(t.name for t in model.graph.initializer if len(t.dims) == 4)
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", [name, "computed"], ["q"]))
    assert wide_weights(model, "onnxruntime") == name


def test_an_optimised_file_for_every_processor_runs_without_exact_products(tiny, runs_on):
    """Its weights are fp32 in the file, and 7 bits wide when it is opened."""
    runs_on(AVX2)
    assert opened(quantised(tiny, float_weights=True), tiny.contract).provider == "cpu"
    runs_on(VNNI)
    wide = quantised(tiny, float_weights=True)
    runs_on(AVX2)
    with pytest.raises(ProviderMissing, match="8-bit weights"):
        opened(wide, tiny.contract)


def test_onednn_may_be_told_to_be_an_older_processor(monkeypatch, runs_on):
    """Then OpenVINO computes as that one does; ONNX Runtime has no such switch."""
    runs_on(VNNI)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert machine.int8_instruction(onednn=True) is None
    assert machine.int8_instruction() == "avx512_vnni"


def test_a_processor_says_nothing_where_there_is_no_list(monkeypatch):
    """macOS on Intel, Windows: nothing is promised."""
    monkeypatch.setattr(machine, "CPUINFO", Path("/nowhere"))
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert machine.int8_instruction() is None
    assert machine.processor_name()


@pytest.mark.parametrize(("variable", "expected"), [("/caches", "/caches"), ("", "/home/a/.cache")])
def test_what_a_machine_keeps_lies_in_one_cache_folder(monkeypatch, variable, expected):
    """As the XDG base directory specification says; an empty variable counts as none."""
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    monkeypatch.setenv("HOME", "/home/a")
    assert machine.cache_folder("ladders") == Path(expected) / "unet-batch" / "ladders"
