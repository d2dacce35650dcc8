"""Sessions: the real one on the CPU and the fake pass one suite; what cannot run says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from contracts.session_suite import FakeSession, SessionSuite, tiles_of
from models import TinyModel, free_model, nan_model, threshold_model, unet_model

from unet_batch.errors import ContractError, ProviderMissing, ShapeMismatch
from unet_batch.model import session as owner
from unet_batch.model.contract import Model, read_model, resolve
from unet_batch.model.session import Device, Session, check_installation, open_session
from unet_batch.spec import SessionSpec, TilingSpec

ROOT = Path(__file__).resolve().parents[2]
CPU = SessionSpec()
ONE_THREAD = Device(threads=1)


def opened(tiny: TinyModel, spec: SessionSpec = CPU) -> Session:
    return open_session(tiny.data, held(tiny), spec, ONE_THREAD)


def held(tiny: TinyModel) -> Model:
    return resolve(tiny.contract, read_model(tiny.data, "tiny.onnx", None), TilingSpec())


class TestOnnxRuntimeSession(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return opened(threshold_model())


class TestFakeSession(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return FakeSession()


QUIRKS = {
    "nhwc": threshold_model("nhwc"),
    "softmax": threshold_model(activation="softmax"),
    "fixed batch": threshold_model(batch=2),
    "two outputs": threshold_model(two_outputs=True),
    "lying symbols": threshold_model(lying_symbols=True),
    "unnamed axes": threshold_model(unnamed_axes=True),
}


@pytest.mark.parametrize("tiny", QUIRKS.values(), ids=QUIRKS.keys())
def test_odd_files_give_the_same_labels(tiny: TinyModel) -> None:
    """Layout, names, symbols and activation of a file do not change what is class 1."""
    tiles = tiles_of(11, 2)
    logits = opened(tiny).run(tiles)
    np.testing.assert_array_equal(logits.argmax(axis=1), tiles.mean(axis=3) > 0.5)
    assert logits.flags.c_contiguous


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_label_maps_come_back_with_one_channel(layout: str) -> None:
    """A graph that ends in ArgMax returns (N, H, W), and we return (N, 1, H, W)."""
    pixels = np.array([[[[0, 0, 0], [90, 90, 90]], [[170, 170, 170], [255, 255, 255]]]], np.uint8)
    labels = opened(threshold_model(layout, classes=3, activation="labels", dtype="uint8")).run(pixels)
    np.testing.assert_array_equal(labels, [[[[0, 1], [1, 2]]]])
    assert labels.dtype == np.float32


def test_a_mask_of_half_the_size_is_returned_as_it_is() -> None:
    """The model decides the size of its masks."""
    tiles = np.zeros((1, 4, 4, 3), np.float32)
    tiles[0, :2, :2] = 1.0
    labels = opened(threshold_model(half_size=True)).run(tiles).argmax(axis=1)
    np.testing.assert_array_equal(labels, [[[1, 0], [0, 0]]])


def test_nan_logits_are_returned_and_not_hidden() -> None:
    """Whether a NaN costs an image is decided behind the session."""
    tiles = np.array([[[[0.25] * 3, [0.75] * 3]]], np.float32)
    np.testing.assert_array_equal(np.isnan(opened(nan_model()).run(tiles)), [[[[False, True]]] * 2])


def test_other_tiles_than_the_fixed_size_are_a_shape_mismatch() -> None:
    """The size that the file fixes is said in the message."""
    with pytest.raises(ShapeMismatch, match="32x32, not 16x16"):
        opened(threshold_model(size=32)).run(tiles_of(1, 1, side=16))


def test_other_batches_than_the_fixed_one_are_a_shape_mismatch() -> None:
    """A batch axis of 1 takes 1."""
    with pytest.raises(ShapeMismatch, match="fixed at 1, but 2"):
        opened(threshold_model(batch=1)).run(tiles_of(1, 2))


def test_tiles_off_the_multiple_are_refused_before_the_model_sees_them() -> None:
    """A U-Net halves four times: 24 is not a multiple of 16."""
    with pytest.raises(ShapeMismatch, match="multiple of 16"):
        opened(unet_model(None, base=2)).run(tiles_of(1, 1, side=24))


def test_an_odd_size_that_fails_inside_the_net_is_a_shape_mismatch() -> None:
    """Where the contract's multiple is wrong, ONNX Runtime's text about a Concat becomes ours and names the repair."""
    tiny = unet_model(None, base=2)
    wrong = tiny.contract.model_copy(update={"input": tiny.contract.input.model_copy(update={"multiple": 1})})
    with pytest.raises(ShapeMismatch, match=r"check input\.multiple"):
        opened(TinyModel(tiny.data, wrong)).run(tiles_of(1, 1, side=24))


def test_an_output_with_other_channels_than_the_contract_is_a_shape_mismatch() -> None:
    """A file that does not declare its channels is found out at the first run."""
    tiny = free_model(3, 3)
    model = held(tiny)
    two = model.contract.output.model_copy(update={"classes": ("background", "cell")})
    lying = Model.from_json(model.to_json().replace(b'"class_1","class_2"', b'"class_1"'))
    assert lying.planes == len(two.classes)
    with pytest.raises(ShapeMismatch, match=r"2 channel\(s\), but has shape \(1, 3, 8, 8\)"):
        open_session(tiny.data, lying, CPU, ONE_THREAD).run(tiles_of(1, 1))


def test_cuda_without_a_gpu_is_provider_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing falls back in silence: the reason and the repair are in the message, and stdout stays clean."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it fails where there is a GPU as well
    with pytest.raises(ProviderMissing, match=r"(?s)CUDAExecutionProvider.*pip install unet-batch\[cuda\]"):
        opened(threshold_model(), SessionSpec(providers=("cuda",)))


def test_a_provider_listed_behind_cuda_is_used_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A fallback that the job asked for is taken, logged with its reason, and recorded as what really ran."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    session = opened(threshold_model(), SessionSpec(providers=("cuda", "cpu")))
    assert session.provider == "cpu"
    assert "runs on cpu, because the CUDA provider cannot run here" in caplog.text
    assert capfd.readouterr().out == ""


def test_heavy_operators_on_the_cpu_are_found_by_name_and_count() -> None:
    """The check that guards a CUDA session sees every heavy node of a CPU session, and no Slice."""
    unet = owner._open(unet_model(32, base=2, levels=1).data, CPU, ONE_THREAD, provider="cpu")
    free = owner._open(free_model().data, CPU, ONE_THREAD, provider="cpu")
    found = owner._placement_problems(unet)
    assert "ConvTranspose x1" in found
    assert "MaxPool x1" in found
    assert owner._placement_problems(free) == []


def test_cuda_options_follow_the_job_and_the_actors_share() -> None:
    """The arena gets its part of the share; tf32 is used only where the job says so."""
    device = Device(threads=1, gpu_memory_bytes=10_000)
    exact = owner._cuda_options(SessionSpec(gpu_memory_share=0.5), device)
    fast = owner._cuda_options(SessionSpec(precision="tf32", cudnn_search="EXHAUSTIVE"), Device(threads=1))
    assert (exact["gpu_mem_limit"], exact["use_tf32"], exact["cudnn_conv_algo_search"]) == ("5000", "0", "HEURISTIC")
    assert (fast["use_tf32"], fast["cudnn_conv_algo_search"], "gpu_mem_limit" in fast) == ("1", "EXHAUSTIVE", False)


FAKE_DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 7; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Fake 9", length); return device != 7; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return device != 7; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stand-in driver")
def test_the_driver_says_name_and_memory_of_the_gpu(tmp_path: Path) -> None:
    """Through the CUDA driver's own calls, here against a stand-in that was compiled for the test."""
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so"
    source.write_text(FAKE_DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    gpu = owner._ask_driver(str(library))
    assert (gpu.name, gpu.memory_bytes) == ("Fake 9 (CUDA 13010)", 80 << 30)


def test_a_gpu_without_a_driver_still_has_a_name() -> None:
    """The ladder's memory needs a name, never an exception; a limit needs a known size, and is left out."""
    gpu = owner._ask_driver("libthere-is-none.so")
    assert (gpu.name, gpu.memory_bytes) == ("CUDA device", None)


def test_a_share_of_the_gpu_limits_the_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a GPU of 1000 bytes, and 80 % of that for the arena."""
    monkeypatch.setattr(owner, "_ask_driver", lambda: owner._Gpu("Fake 9", 1000))
    options = owner._cuda_options(SessionSpec(gpu_memory_share=0.8), Device(threads=1, gpu_share=0.5))
    assert options["gpu_mem_limit"] == "400"


def test_bytes_that_are_no_model_are_a_contract_error() -> None:
    """Opening junk names the provider and ONNX Runtime's own words."""
    model = held(threshold_model())
    with pytest.raises(ContractError, match="cannot be opened on the CPU: InvalidProtobuf"):
        open_session(b"junk", model, CPU, ONE_THREAD)


def distribution(folder: Path, name: str, file: str) -> None:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{file},,\n")


def test_two_onnxruntime_wheels_in_one_folder_are_refused(tmp_path: Path) -> None:
    """Both install the same folder, so the last one wins; pip does not notice, and we do."""
    distribution(tmp_path, "onnxruntime", "onnxruntime/capi/a.so")
    distribution(tmp_path, "onnxruntime-gpu", "onnxruntime/capi/a.so")
    with pytest.raises(ProviderMissing, match=r"2 do .*`pip uninstall -y onnxruntime onnxruntime-gpu`"):
        check_installation(tmp_path)


def test_one_onnxruntime_wheel_beside_its_extensions_is_fine(tmp_path: Path) -> None:
    """onnxruntime-extensions has a folder of its own."""
    distribution(tmp_path, "onnxruntime-gpu", "onnxruntime/capi/a.so")
    distribution(tmp_path, "onnxruntime-extensions", "onnxruntime_extensions/a.so")
    check_installation(tmp_path)


def test_no_onnxruntime_wheel_is_refused(tmp_path: Path) -> None:
    """A folder left over by an uninstallation is no installation."""
    with pytest.raises(ProviderMissing, match=r"0 do \(\)"):
        check_installation(tmp_path)


def test_importing_the_package_loads_no_engine() -> None:
    """`import unet_batch.model.*` costs no ONNX Runtime, and `onnx` is never used at run time."""
    code = (
        "import sys, unet_batch.model.contract, unet_batch.model.session, unet_batch.model.batching\n"
        "sys.exit(bool({'onnxruntime', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


OUT_OF_MEMORY = """
import resource, sys
import numpy as np
from models import unet_model
from unet_batch.errors import OutOfMemory
from unet_batch.model.contract import read_model, resolve
from unet_batch.model.session import Device, open_session
from unet_batch.spec import SessionSpec, TilingSpec

tiny = unet_model(128, base=16, levels=2)
model = resolve(tiny.contract, read_model(tiny.data, "unet.onnx", None), TilingSpec())
session = open_session(tiny.data, model, SessionSpec(), Device(threads=1))
alone = session.run(np.zeros((1, 128, 128, 3), np.float32))
tiles = np.zeros((128, 128, 128, 3), np.float32)


def taken():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()


before = taken()
resource.setrlimit(resource.RLIMIT_AS, (before + (256 << 20),) * 2)
try:
    session.run(tiles)
    sys.exit("128 tiles fitted")
except OutOfMemory as error:
    assert "batch of 128 tiles of 128x128" in str(error), error
assert taken() < before + (32 << 20), f"{taken() - before} bytes were kept by the arena"
np.testing.assert_array_equal(session.run(tiles[:1]), alone)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is Linux's")
def test_real_lack_of_memory_is_out_of_memory_and_the_session_survives() -> None:
    """ONNX Runtime's own text is recognised, the arena gives back what it took, and one tile runs as before."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    child = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
