"""ONNX Runtime: the provider that was asked for or a refusal, its options, its installation, its lack of memory."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from contracts.session_suite import SessionSuite
from models import TinyModel, free_model, threshold_model, unet_model
from session.run_out_of_memory import run_out_of_memory

from unet_batch.errors import JobError, ProviderMissing
from unet_batch.model.contract import resolve
from unet_batch.model.model import Model
from unet_batch.session import gpu
from unet_batch.session import onnxruntime_session as owner
from unet_batch.session.engines import find
from unet_batch.session.model_files import read_model
from unet_batch.session.onnxruntime_options import cuda_options, provider_options
from unet_batch.session.onnxruntime_session import check_installation, describe
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device, Session
from unet_batch.spec import SessionSpec, TilingSpec

CPU = SessionSpec()
ONE_THREAD = Device(threads=1)
ENGINES = Path("/cache/engines")

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for a stand-in library")


def held(tiny: TinyModel, tiling: TilingSpec | None = None) -> Model:
    return resolve(tiny.contract, read_model(tiny.data, "tiny.onnx", None), tiling or TilingSpec())


def opened(tiny: TinyModel, spec: SessionSpec = CPU) -> Session:
    return open_session(tiny.data, held(tiny), spec, ONE_THREAD)


def compiled(source: str, library: Path) -> Path:
    library.with_suffix(".c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, library.with_suffix(".c")], check=True)
    return library


class TestOnnxRuntimeSession(SessionSuite):
    @pytest.fixture
    def session(self) -> Session:
        return opened(threshold_model())


# Providers -------------------------------------------------------------------------------------------------------


def test_cuda_without_a_gpu_is_provider_missing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing falls back in silence: reason and repair are in the message, and ONNX Runtime writes nothing itself."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it fails where there is a GPU as well
    with pytest.raises(ProviderMissing, match=r"(?s)CUDAExecutionProvider.*pip install -e '.\[cuda\]"):
        opened(threshold_model(), SessionSpec(providers=("cuda",)))
    assert capfd.readouterr() == ("", "")


def test_tensorrt_without_a_gpu_is_provider_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real parser takes our options (it reads them before it looks for a GPU), and the repair names TensorRT."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")  # set by the session, and put back by pytest
    spec = SessionSpec(
        providers=("tensorrt",), provider_options={"tensorrt": {"trt_builder_optimization_level": 4}}, batch_max=8
    )
    with pytest.raises(ProviderMissing, match=r"(?s)TensorrtExecutionProvider.*tensorrt-cu13") as raised:
        opened(threshold_model(size=32), spec)
    assert "[TensorRT]" not in str(raised.value), "an option or its value was refused"
    assert "Invalid TensorRT EP option" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_an_option_that_tensorrt_does_not_know_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the test above relies on: the parser speaks up, and its words reach the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    spec = SessionSpec(providers=("tensorrt",), provider_options={"tensorrt": {"trt_max_batch": 4}})
    with pytest.raises(ProviderMissing, match="Invalid TensorRT EP option: trt_max_batch"):
        opened(threshold_model(size=32), spec)


@pytest.mark.parametrize("name", ["CoreMLExecutionProvider", "NoSuchExecutionProvider"])
def test_a_provider_that_this_onnxruntime_was_not_built_with_is_missing(name: str) -> None:
    """Any provider may be named, and none is replaced."""
    with pytest.raises(ProviderMissing, match=f"{name} cannot run here.*built with {name}"):
        opened(threshold_model(), SessionSpec(providers=(name,)))


def test_onnxruntimes_own_name_of_the_cpu_means_the_cpu() -> None:
    """A row of the table has two names, and one label."""
    assert opened(threshold_model(), SessionSpec(providers=("CPUExecutionProvider",))).provider == "cpu"


def test_heavy_operators_elsewhere_are_found_by_name_and_count() -> None:
    """The check that guards a GPU session sees every heavy node of a CPU session, and no Slice."""
    unet, free = (
        owner._open(
            tiny.data, held(tiny), CPU, device=ONE_THREAD, provider=find("onnxruntime", "cpu"), precision="fp32"
        )
        for tiny in (unet_model(32, base=2, levels=1), free_model())
    )
    found = owner.elsewhere(unet, "CUDAExecutionProvider")
    assert (found["ConvTranspose"], found["MaxPool"]) == (1, 1)
    assert not owner.elsewhere(unet, "CPUExecutionProvider")
    assert not owner.elsewhere(free, "CUDAExecutionProvider").keys() & owner.HEAVY


# Options ---------------------------------------------------------------------------------------------------------


def test_cuda_options_follow_the_job_and_the_actors_share() -> None:
    """The arena gets its part of the share; tf32 is used only where the job says so."""
    device = Device(threads=1, gpu_memory_bytes=10_000)
    exact = cuda_options(SessionSpec(gpu_memory_share=0.5), device, precision="fp32")
    fast = cuda_options(SessionSpec(cudnn_search="EXHAUSTIVE"), Device(threads=1), precision="tf32")
    assert (exact["gpu_mem_limit"], exact["use_tf32"], exact["cudnn_conv_algo_search"]) == ("5000", "0", "HEURISTIC")
    assert (fast["use_tf32"], fast["cudnn_conv_algo_search"], "gpu_mem_limit" in fast) == ("1", "EXHAUSTIVE", False)


def test_a_share_of_the_gpu_limits_the_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a GPU of 1000 bytes, and 80 % of that for the arena."""
    monkeypatch.setattr(gpu, "ask_driver", lambda: gpu.Gpu("Fake 9", 1000))
    options = cuda_options(SessionSpec(gpu_memory_share=0.8), Device(threads=1, gpu_share=0.5), precision="fp32")
    assert options["gpu_mem_limit"] == "400"


@pytest.mark.parametrize(("free", "limit"), [(200, 160), (500, 400), (900, 400), (None, 400)])
def test_a_card_that_others_use_limits_the_arena_to_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int | None, limit: int
) -> None:
    """80 % of half a GPU of 1000 bytes, or of what no other process holds, if that is less."""
    monkeypatch.setattr(gpu, "ask_driver", lambda: gpu.Gpu("Fake 9", 1000))
    monkeypatch.setattr(gpu, "free_memory", lambda: free)
    options = cuda_options(SessionSpec(gpu_memory_share=0.8), Device(threads=1, gpu_share=0.5), precision="fp32")
    assert options["gpu_mem_limit"] == str(limit)


def chosen(tiny: TinyModel, provider: str, spec: SessionSpec, *, precision: str = "fp32", **device: int) -> list:
    return provider_options(
        held(tiny),
        spec,
        device=Device(1, **device),
        provider=find("onnxruntime", provider),
        precision=precision,
        engines=ENGINES,
    )


@pytest.mark.parametrize(("layout", "sides"), [("nchw", "3x32x32"), ("nhwc", "32x32x3")])
def test_tensorrt_has_one_profile_over_the_whole_ladder(layout: str, sides: str) -> None:
    """Every batch size from 1 to the largest runs on one engine, which is kept from run to run."""
    tiny = threshold_model(layout, size=32)
    (name, options), (behind, cuda) = chosen(tiny, "tensorrt", SessionSpec(batch_max=16), gpu_memory_bytes=1000)
    source = "image" if layout == "nchw" else "input:0"
    assert (name, behind) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options == {
        "device_id": "0",
        "trt_fp16_enable": "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "/cache/engines",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": "/cache/engines",
        "trt_max_workspace_size": "850",
        "trt_profile_min_shapes": f"{source}:1x{sides}",
        "trt_profile_opt_shapes": f"{source}:16x{sides}",
        "trt_profile_max_shapes": f"{source}:16x{sides}",
    }
    assert cuda["use_tf32"] == "0"


def test_tensorrt_computes_in_fp16_where_the_job_says_so() -> None:
    """The file is fp16 then, and so is its engine."""
    [(_, options), _] = chosen(threshold_model(size=32), "tensorrt", SessionSpec(), precision="fp16")
    assert options["trt_fp16_enable"] == "True"


def test_a_fixed_batch_axis_needs_no_profile() -> None:
    """TensorRT reads the one shape from the file."""
    [(_, options), _] = chosen(threshold_model(size=32, batch=4), "tensorrt", SessionSpec())
    assert [name for name in options if "profile" in name] == []


def test_an_option_of_the_job_wins_over_ours_and_is_text() -> None:
    """Options reach ONNX Runtime as its parsers read them: True in words, numbers in digits."""
    spec = SessionSpec(providers=("cuda",), provider_options={"cuda": {"prefer_nhwc": False, "fuse_conv_bias": True}})
    [(name, options)] = chosen(threshold_model(), "cuda", spec)
    assert (name, options["prefer_nhwc"], options["fuse_conv_bias"]) == ("CUDAExecutionProvider", "False", "True")


def test_a_provider_without_a_row_gets_its_options_and_nothing_else() -> None:
    """The user names it, so it is used."""
    spec = SessionSpec(
        providers=("CoreMLExecutionProvider",),
        provider_options={"CoreMLExecutionProvider": {"ModelFormat": "MLProgram"}},
    )
    found = chosen(threshold_model(), "CoreMLExecutionProvider", spec)
    assert found == [("CoreMLExecutionProvider", {"ModelFormat": "MLProgram"})]


# A stand-in for ONNX Runtime on a machine with a GPU --------------------------------------------------------------


class Node:
    def __init__(self, op_type: str) -> None:
        self.op_type = op_type


class Assigned:
    def __init__(self, ep_name: str, *op_types: str) -> None:
        self.ep_name = ep_name
        self._nodes = [Node(op_type) for op_type in op_types]

    def get_nodes(self) -> list[Node]:
        return self._nodes


class FakeOnnxRuntime(types.ModuleType):
    """What `_open` touches of ONNX Runtime, with the providers and placement that a test chooses."""

    def __init__(self, running: list[str], placement: list[Assigned]) -> None:
        super().__init__("onnxruntime")
        self.__spec__ = importlib.util.find_spec("onnxruntime")  # the installation's check looks at the real one
        self.__version__ = "9.9"
        self.added: list[tuple[str, dict[str, str]]] = []
        self.tf32: str | None = None
        self.inside: list[object] = []
        self.at_once: list[int] = []
        """For each run, the number of runs before it that had not ended."""
        fake = self

        class SessionOptions:
            def add_session_config_entry(self, name: str, value: str) -> None: ...

            def add_provider(self, name: str, options: dict[str, str]) -> None:
                fake.added.append((name, options))
                fake.tf32 = os.environ.get("NVIDIA_TF32_OVERRIDE")

        class InferenceSession:
            def __init__(self, data: bytes, options: SessionOptions, *, enable_fallback: int) -> None: ...

            def run(self, names: list[str], feed: dict[str, np.ndarray], options: object) -> list[np.ndarray]:
                fake.at_once.append(len(fake.inside))
                fake.inside.append(feed)
                time.sleep(0.01)
                fake.inside.pop()
                [tiles] = feed.values()
                return [np.zeros((len(tiles), 2, *tiles.shape[2:]), np.float32)]

            def get_outputs(self) -> list[object]:
                return []

            def get_providers(self) -> list[str]:
                return running

            def get_provider_graph_assignment_info(self) -> list[Assigned]:
                return placement

        class RunOptions: ...

        self.SessionOptions, self.InferenceSession, self.RunOptions = SessionOptions, InferenceSession, RunOptions

    def preload_dlls(self) -> None: ...

    def set_default_logger_severity(self, severity: int) -> None: ...


def opened_on(monkeypatch: pytest.MonkeyPatch, fake: FakeOnnxRuntime, provider: str) -> Session:
    tiny = threshold_model(size=32)
    model = held(tiny)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    owner._preload.cache_clear()
    try:
        return open_session(tiny.data, model, SessionSpec(providers=(provider,)), ONE_THREAD)
    finally:
        owner._preload.cache_clear()


GPU_PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def test_a_tensorrt_session_asks_for_tensorrt_first_and_never_for_tf32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA stands behind it, engines are kept by model and version, and fp32 means fp32: the driver's switch is off."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake = FakeOnnxRuntime(GPU_PROVIDERS, [Assigned("TensorrtExecutionProvider", "Conv"), Assigned("", "Shape")])
    session = opened_on(monkeypatch, fake, "tensorrt")
    assert session.provider == "tensorrt"
    assert [name for name, _ in fake.added] == GPU_PROVIDERS[:2]
    assert fake.tf32 == "0"
    [folder] = (tmp_path / "unet-batch" / "tensorrt").iterdir()
    assert folder.name == f"{session.model.sha256[:32]}-fp32-9.9"
    assert fake.added[0][1]["trt_engine_cache_path"] == str(folder)


def test_a_convolution_that_tensorrt_leaves_to_cuda_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was got is what was asked for: half of a model on another provider is not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake = FakeOnnxRuntime(GPU_PROVIDERS, [Assigned("CUDAExecutionProvider", "Conv", "Conv", "Cast")])
    with pytest.raises(ProviderMissing, match="TensorrtExecutionProvider does not run Conv x2"):
        opened_on(monkeypatch, fake, "tensorrt")


def test_small_operators_that_cuda_leaves_to_the_cpu_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are right and run all the same, but every one of them costs copies between host and device."""
    placement = [
        Assigned("CUDAExecutionProvider", "Conv"),
        Assigned("CPUExecutionProvider", "Gather", "Shape", "Shape"),
    ]
    assert opened_on(monkeypatch, FakeOnnxRuntime(GPU_PROVIDERS[1:], placement), "cuda").provider == "cuda"
    assert "does not run Gather x1, Shape x2" in caplog.text


def test_a_gpu_runs_one_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads send some: two would hold the GPU's memory twice."""
    fake = FakeOnnxRuntime(GPU_PROVIDERS[1:], [Assigned("CUDAExecutionProvider", "Conv")])
    session = opened_on(monkeypatch, fake, "cuda")
    with ThreadPoolExecutor(4) as pool:
        shapes = {found.shape for found in pool.map(session.run, [np.zeros((2, 32, 32, 3), np.float32)] * 8)}
    assert shapes == {(2, 2, 32, 32)}
    assert fake.at_once == [0] * 8


@pytest.mark.parametrize("provider", ["cuda", "CoreMLExecutionProvider"])
def test_a_session_that_came_up_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """An ONNX Runtime that falls back in silence is found out by its own list."""
    fake = FakeOnnxRuntime(["CPUExecutionProvider"], [])
    with pytest.raises(ProviderMissing, match="was requested, but ONNX Runtime chose CPUExecutionProvider"):
        opened_on(monkeypatch, fake, provider)


def test_a_cache_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Building the engine again in every process, for minutes, is nothing to do in silence."""
    (tmp_path / "unet-batch").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake = FakeOnnxRuntime(GPU_PROVIDERS, [])
    with pytest.raises(JobError, match="TensorRT's engines cannot be stored in"):
        opened_on(monkeypatch, fake, "tensorrt")


# Operators of one's own -------------------------------------------------------------------------------------------

NO_OPERATORS = """
#include <stdio.h>
void *RegisterCustomOps(void *options, const void *api) {
  FILE *proof = fopen(PROOF, "w");
  fclose(proof);
  return 0;
}
"""


@needs_cc
def test_a_library_of_operators_is_registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a path relative to the working directory; for the session and for the first look into the file."""
    proof = tmp_path / "registered"
    compiled(f'#define PROOF "{proof}"\n{NO_OPERATORS}', tmp_path / "libfoo.so")
    monkeypatch.chdir(tmp_path)
    opened(threshold_model(), SessionSpec(custom_ops=("libfoo.so",)))
    assert proof.exists()
    proof.unlink()
    describe(threshold_model().data, "tiny.onnx", ["libfoo.so"])
    assert proof.exists()


def test_a_missing_library_of_operators_is_a_job_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sentence says where it was looked for."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=f"custom_ops: there is no library {tmp_path}/libfoo.so"):
        opened(threshold_model(), SessionSpec(custom_ops=("libfoo.so",)))


def test_a_file_that_is_no_library_is_a_job_error(tmp_path: Path) -> None:
    """ONNX Runtime's reason is in the sentence."""
    library = tmp_path / "libfoo.so"
    library.write_bytes(b"no ELF")
    with pytest.raises(JobError, match=r"libfoo\.so is not a library of operators for ONNX Runtime"):
        opened(threshold_model(), SessionSpec(custom_ops=(str(library),)))


# The GPU's driver -------------------------------------------------------------------------------------------------

FAKE_DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 7; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Fake 9", length); return device != 7; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return device != 7; }
"""


FAKE_CONTEXT = """
static int depth = 0, kept = 0;
int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)0x1234567890; kept++; return device != 7;
}
int cuDevicePrimaryCtxRelease_v2(int device) { kept--; return device != 7; }
int cuCtxPushCurrent_v2(void *context) { depth++; return context != (void *)0x1234567890; }
int cuCtxPopCurrent_v2(void **context) { depth--; return 0; }
int cuMemGetInfo_v2(size_t *left, size_t *total) {
  *left = (size_t)7 << 30; *total = (size_t)80 << 30; return depth != 1 || kept != 1;
}
int contexts(void) { return depth + kept; }
"""


@needs_cc
def test_the_driver_says_how_much_memory_no_process_holds(tmp_path: Path) -> None:
    """In this process's context, which is given back."""
    library = str(compiled(FAKE_DRIVER + FAKE_CONTEXT, tmp_path / "libcuda.so"))
    assert gpu.free_memory(library) == 7 << 30
    assert ctypes.CDLL(library).contexts() == 0


@needs_cc
def test_a_driver_without_these_calls_leaves_the_free_memory_unknown(tmp_path: Path) -> None:
    """So does a machine without a driver; the limit is then the share of all memory."""
    assert gpu.free_memory(str(compiled(FAKE_DRIVER, tmp_path / "libcuda.so"))) is None
    assert gpu.free_memory("libthere-is-none.so") is None


@needs_cc
def test_the_driver_says_name_and_memory_of_the_gpu(tmp_path: Path) -> None:
    """Through the CUDA driver's own calls, here against a stand-in that was compiled for the test."""
    found = gpu.ask_driver(str(compiled(FAKE_DRIVER, tmp_path / "libcuda.so")))
    assert (found.name, found.memory_bytes) == ("Fake 9 (CUDA 13010)", 80 << 30)


def test_a_gpu_without_a_driver_still_has_a_name() -> None:
    """The ladder's memory needs a name, never an exception; a limit needs a known size, and is left out."""
    found = gpu.ask_driver("libthere-is-none.so")
    assert (found.name, found.memory_bytes) == ("CUDA device", None)


# The installation -------------------------------------------------------------------------------------------------


def distribution(folder: Path, name: str, file: str) -> None:
    """An installed distribution with one file. From Python 3.12 on, a file that is not there is not listed."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).touch()
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


# Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is Linux's")
def test_real_lack_of_memory_is_out_of_memory_and_the_session_survives() -> None:
    """ONNX Runtime's own text is recognised, the arena gives back what it took, and one tile runs as before."""
    assert run_out_of_memory("onnxruntime", kept_mib=32) == ""
