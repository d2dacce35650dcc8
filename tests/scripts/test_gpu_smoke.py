"""The smoke test of GPUs: its sections as rehearsals on a CPU, its faults, and what it asks of a GPU's driver.

It runs rarely and for money, so it must work without repairs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "scripts" / "gpu_smoke"
sys.path.append(str(ROOT / "scripts"))

from gpu_parts import bottleneck, card, job, settings, speed, summary  # noqa: E402
from gpu_parts.results import Results  # noqa: E402

from unet_batch.session.batching import CPU_BATCH_MAX  # noqa: E402

TINY = ["--provider", "cpu", "--size", "32", "--base", "2", "--cap", "4", "--images", "8", "--architectures", ""]
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for a stand-in library")


def smoke(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SMOKE, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | environment)


def last_line(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("script_gpu_smoke", str(SMOKE))
    spec = spec_from_loader("script_gpu_smoke", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One run of all sections that need neither Ray nor a GPU."""
    out = tmp_path_factory.mktemp("smoke")
    return smoke(*TINY, "--only", "parity,speed,memory,peer", "--seconds", "120", "--out", out), out


# The sections -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_section_runs_to_its_end_on_a_cpu(rehearsal: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Without a GPU nothing is settled, but each section does its work; PyTorch's may be skipped, with a reason."""
    done, _ = rehearsal
    assert done.returncode == 0, done.stderr
    found = last_line(done)
    states = {name: section["state"] for name, section in found["sections"].items()}
    assert states.pop("peer") in ("done", "skipped")
    assert states.pop("memory") == ("done" if sys.platform == "linux" else "skipped")
    assert states == {"parity": "done", "speed": "done"}
    assert found["failed"] == []


@pytest.mark.slow
def test_parity_compares_logits_and_labels_with_the_cpu(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """In a rehearsal fp32 is the CPU itself, so it agrees to the last bit; fp16 does not."""
    found = last_line(rehearsal[0])["sections"]["parity"]["found"]
    rows = {row["precision"]: row for row in found["rows"]}
    assert (rows["fp32"]["max_abs_error"], rows["fp32"]["breaches"], rows["fp32"]["provider"]) == (0.0, [], "cpu")
    assert 0 < rows["fp16"]["max_abs_error"] < 0.1
    assert found["labels_in_the_graph"][0]["same_share"] == 1.0


@pytest.mark.slow
def test_speed_names_a_knee_for_each_precision_and_kind_of_output(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """The product's session at every size; bound buffers, graphs and the other layout at three."""
    found = last_line(rehearsal[0])["sections"]["speed"]["found"]
    rates = {row["name"]: row["tiles_per_s"] for row in found["rows"]}
    ways = ("session", "pinned", "on device", "graph", "nchw")
    assert {*rates} == {f"{way} {p} {kind}" for way in ways for p in ("fp32", "fp16") for kind in ("labels", "logits")}
    assert all([*sizes] == ["1", "2", "4"] or [*sizes] == ["1", "4"] for sizes in rates.values())
    assert all(rate > 0 for sizes in rates.values() for rate in sizes.values())
    assert found["knees"].keys() == {name for name in rates if name.startswith("session")}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of address space is Linux's")
def test_memory_that_is_gone_makes_batches_smaller_and_changes_no_label(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """In a rehearsal the address space is limited; on a GPU another process holds the card."""
    found = last_line(rehearsal[0])["sections"]["memory"]["found"]["unlimited"]
    assert found["out_of_memory"] >= 1
    assert found["labels_equal"] is True
    assert 1 <= found["largest_that_ran"] < CPU_BATCH_MAX


@pytest.mark.slow
@pytest.mark.ray
def test_the_job_and_its_bottleneck_are_rehearsed_on_ray(tmp_path: Path) -> None:
    """With the actors of a GPU: one with the session, one that loads. It is verified, and its report is read."""
    done = smoke(*TINY, "--images", "4", "--only", "job,bottleneck", "--seconds", "400", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    sections = last_line(done)["sections"]
    first = sections["job"]["found"]["rows"][0]
    [run] = first["runs"]
    assert (run["images"], run["summary"]["ok"], run["verified"]) == (4, 4, True)
    assert (run["summary"]["workers"], run["summary"]["loaders"]) == (1, 1)
    assert first["ratio"] == pytest.approx(first["images_per_s"] / first["bare_tiles_per_s"], abs=1e-3)
    assert sections["bottleneck"]["found"]["rows"][0]["name"] in (
        "read",
        "decode",
        "session",
        "encode",
        "idle",
        "start",
    )


# What is left of a call ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_are_on_disk_and_on_stdout_as_soon_as_a_section_has_ended(
    rehearsal: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """A call that is cut off loses nothing that was known: one line for each section before the last line."""
    done, out = rehearsal
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["section"] for line in lines[:-1]] == ["parity", "speed", "memory", "peer"]
    assert json.loads((out / "smoke.json").read_text()) == lines[-1]
    assert json.loads((out / "speed.json").read_text()) == lines[1]["found"]


@pytest.mark.slow
def test_the_page_for_people_fits_80_columns(rehearsal: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """On stderr, and in summary.txt."""
    done, out = rehearsal
    page = (out / "summary.txt").read_text()
    assert max(map(len, page.splitlines())) <= 80
    assert page in done.stderr
    assert "A rehearsal on the CPU" in page


def test_a_long_error_is_wrapped_for_people() -> None:
    """Words of a provider have no line breaks."""
    found = {
        "card": "none",
        "packages": [],
        "arguments": {"provider": "cuda"},
        "sections": {"parity": {"state": "failed", "seconds": 1.0, "found": {"errors": ["word " * 100]}}},
    }
    page = summary.text(found)
    assert max(map(len, page.splitlines())) <= 80
    assert page.count("word") == 100


@pytest.mark.slow
def test_a_section_that_fails_leaves_its_error_and_the_next_one_runs(tmp_path: Path) -> None:
    """Without a GPU every section on CUDA fails; the exit code says so, and stdout has all errors."""
    done = smoke(*TINY[2:], "--only", "memory,speed", "--out", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    found = last_line(done)
    assert found["failed"] == ["speed", "memory"]
    assert "CUDAExecutionProvider cannot run here" in found["sections"]["memory"]["found"]["errors"][0]


@pytest.mark.slow
def test_a_section_that_does_not_end_is_killed_with_its_children(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as cut off, and leaves what it had written."""
    monkeypatch.setattr(script, "GRACE_S", 0.3)
    (tmp_path / "speed.json").write_text('{"rows": [1]}')
    args = settings.parser(None).parse_args(TINY)
    done = script.in_a_process(settings.settings_of(args, tmp_path, tmp_path), "speed", TINY, 0.1)
    assert (done["state"], done["found"]) == ("cut off", {"rows": [1]})
    assert done["seconds"] < 3


def test_what_no_time_is_left_for_is_listed(tmp_path: Path) -> None:
    """A table with holes says why."""
    results = Results(tmp_path, "speed", until_s=time.time() + 1)
    assert results.has_time("a short row", 0.1)
    assert not results.has_time("a long row", 60)
    assert json.loads((tmp_path / "speed.json").read_text()) == {"left_out": ["a long row: no time is left"]}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "sped"], "--only names 'sped': write some of parity, speed"),
        (["--size", "100"], "--size is 100: the U-Net halves four times"),
        (["--cap", "0"], "--cap is 0: write a number of at least 1"),
        (["--model", "there-is.none"], "--model: there is no file there-is.none"),
        (["--photos", "nowhere"], "--photos: there is no *.jpg in nowhere"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_section_runs(
    arguments: list[str], sentence: str, script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """The machine's minutes are short."""
    monkeypatch.setattr(sys, "argv", ["gpu_smoke", *arguments])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


# Arithmetic -------------------------------------------------------------------------------------------------------


def test_the_knee_is_the_smallest_size_with_nearly_the_best_rate() -> None:
    """98 % of the best counts as the best, as in the product's ladder."""
    assert speed.knee({1: 100.0, 2: 180.0, 8: 400.0, 16: 589.0, 32: 600.0, 64: 595.0}) == 16


def test_a_steady_rate_leaves_out_what_each_run_costs_once() -> None:
    """10 s of start and 100 images a second: 1,000 pictures take 20 s, 4,000 take 50 s."""
    runs = [
        {"images": images, "summary": {"score_s": 10 + images / 100, "images_per_s": images / (10 + images / 100)}}
        for images in (1000, 4000)
    ]
    found = job.rates({"runs": runs, "bare_tiles_per_s": 125.0})
    assert (found["images_per_s"], found["ratio"]) == (80.0, 0.64)
    assert (found["steady_images_per_s"], found["steady_ratio"]) == (100.0, 0.8)


def test_the_bottleneck_is_that_of_the_report() -> None:
    """From the line that the run printed; keys that a summary does not have are passed over."""
    tree = {"run": "r", "ok": 10, "score_s": 10.0, "workers": 1, "loaders": 3, "executor": "ray", "unknown": 1}
    tree["stage_s"] = {"read_s": 1.0, "decode_s": 6.0, "session_s": 9.5, "encode_s": 2.0}
    assert bottleneck.bottleneck(bottleneck.summary_of(tree)).name == "session"


# The GPU beside it --------------------------------------------------------------------------------------------------

FAKE_SMI = """#!/bin/sh
echo "0, 900, 70.5, 345"
while true; do echo "80, 5000, 300.25, 1980"; echo "60, 5000, [N/A], 1980"; sleep 0.05; done
"""


def test_utilisation_is_sampled_while_something_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over all samples, and over those in which the GPU worked; what the GPU does not tell is left out."""
    (tmp_path / "nvidia-smi").write_text(FAKE_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with card.Sampler() as sampler:
        time.sleep(0.3)
    found = sampler.figures()
    assert found["busy_samples"] == found["samples"] - 1 >= 2
    assert (found["utilization.gpu"]["largest"], found["power.draw"]["largest"]) == (80.0, 300.2)
    assert 60 <= found["utilization.gpu"]["busy_mean"] <= 80


def test_without_nvidia_smi_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason stands in its place."""
    monkeypatch.setenv("PATH", "")
    with card.Sampler() as sampler:
        pass
    assert sampler.figures() == {"samples": 0, "why": "nvidia-smi gave no samples"}
    assert card.about() == "no nvidia-smi here"


FAKE_DRIVER = """
#include <stddef.h>
static size_t free_bytes = (size_t)1 << 30;
static int depth = 0, locked = 0;
int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 7; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x1234567890; return device != 7; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device != 7; }
int cuCtxPushCurrent_v2(void *context) { depth++; return context != (void *)0x1234567890; }
int cuCtxPopCurrent_v2(void **context) { depth--; return 0; }
int cuMemGetInfo_v2(size_t *left, size_t *total) { *left = free_bytes; *total = (size_t)4 << 30; return !depth; }
int cuMemAlloc_v2(unsigned long long *address, size_t size) {
  if (size > free_bytes) return 2;
  free_bytes -= size; *address = 1; return !depth;
}
int cuMemHostRegister_v2(void *address, size_t bytes, unsigned flags) { locked++; return !depth || !bytes || flags; }
int cuMemHostUnregister(void *address) { locked--; return !depth; }
int locked_now(void) { return locked; }
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stand-in for the CUDA driver: 4 GiB, of which 1 is free."""
    library = tmp_path / "libcuda.so"
    library.with_suffix(".c").write_text(FAKE_DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, library.with_suffix(".c")], check=True)
    monkeypatch.setattr(card, "DRIVER", str(library))
    return str(library)


@needs_cc
def test_memory_and_page_locked_arrays_go_through_the_driver(driver: str) -> None:
    """Each call has the context that it needs, and arrays are released at the end."""
    import ctypes

    assert card.memory() == (1 << 30, 4 << 30)
    with card.page_locked(np.zeros(100), np.zeros(50)):
        assert ctypes.CDLL(driver).locked_now() == 2
    assert ctypes.CDLL(driver).locked_now() == 0


@needs_cc
def test_memory_is_taken_until_only_the_rest_is_free(
    driver: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The holder of the memory says what it has, and stays until it is killed."""
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    card.hold(256 << 20)
    held = int(capsys.readouterr().out.removeprefix("holding "))
    assert card.memory()[0] == (1 << 30) - held
    assert 256 << 20 <= card.memory()[0] < 320 << 20


def test_without_a_driver_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no crash."""
    monkeypatch.setattr(card, "DRIVER", "libthere-is-none.so")
    with pytest.raises(OSError, match="there-is-none"):
        card.memory()
