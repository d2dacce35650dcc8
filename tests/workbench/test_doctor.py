"""The doctor tries everything, believes no list, and says why not in one sentence."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from unet_batch.errors import ProviderMissing
from unet_batch.session.engines import TABLE
from unet_batch.workbench import doctor as owner
from unet_batch.workbench.doctor import diagnose, machine


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")  # set by TensorRT's session, and put back by pytest


def test_every_row_of_the_table_is_tried(without_gpu: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Each has its line, and nothing but lines: no engine writes to the terminal."""
    findings = {finding.subject: finding for finding in diagnose()}
    assert set(findings) >= {"installation", *(f"{row.engine} {row.name}" for row in TABLE)}
    assert capfd.readouterr() == ("", "")
    json.dumps([finding.to_json() for finding in findings.values()])


def test_the_cpu_runs_and_a_gpu_that_is_not_there_does_not(without_gpu: None) -> None:
    """ONNX Runtime lists CUDA as available on this very machine; a tile was scored on the CPU only."""
    findings = {finding.subject: finding for finding in diagnose()}
    assert findings["installation"].runs
    assert findings["onnxruntime cpu"].runs
    assert not findings["onnxruntime cuda"].runs
    assert "pip install -e '.[cuda]'" in findings["onnxruntime cuda"].reason
    assert "onnxruntime cuda in tf32" not in findings


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_is_tried_in_each_arithmetic(without_gpu: None) -> None:
    """bf16 depends on the processor, and the finding agrees with its flags."""
    findings = {finding.subject: finding for finding in diagnose()}
    assert findings["openvino cpu"].runs
    assert findings["openvino cpu in bf16"].runs == machine().bf16


def test_further_providers_may_be_asked_after(without_gpu: None) -> None:
    """By ONNX Runtime's own names."""
    found = {finding.subject: finding for finding in diagnose(["CoreMLExecutionProvider"])}
    assert not found["onnxruntime CoreMLExecutionProvider"].runs


class Wrong:
    """A session that runs and is wrong."""

    provider, device_name = "cpu", "Wrong 1"

    def __init__(self, value: float) -> None:
        self._value = value

    def run(self, tiles: np.ndarray) -> np.ndarray:
        return np.full((1, 1, owner.SIDE, owner.SIDE), self._value, np.float32)


@pytest.mark.parametrize("value", [2.1, np.nan])
def test_an_engine_that_runs_and_is_wrong_does_not_run(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """0.5 · 2 + 1 is 2: anything else is a broken library or processor."""
    monkeypatch.setattr(owner, "open_session", lambda *a, **k: Wrong(value))
    assert all("do not use it" in f.reason for f in diagnose() if f.subject != "installation")
    assert [f.subject for f in diagnose() if f.runs] == ["installation"]


def test_an_engine_that_breaks_in_its_own_way_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that cannot be loaded raises what it likes."""

    def broken(*args: object, **kwargs: object) -> None:
        raise AttributeError("module 'onnxruntime' has no attribute 'SessionOptions'")

    monkeypatch.setattr(owner, "open_session", broken)
    assert "AttributeError: module 'onnxruntime' has no attribute" in diagnose()[1].reason


def test_a_broken_installation_is_the_first_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sentence that repairs it."""

    def two() -> None:
        raise ProviderMissing("exactly one distribution must own it, but 2 do")

    monkeypatch.setattr(owner, "check_installation", two)
    first = diagnose()[0]
    assert (first.subject, first.runs, first.reason) == (
        "installation",
        False,
        "exactly one distribution must own it, but 2 do",
    )


def test_this_machine_has_cores_and_memory() -> None:
    """Those that this process may use."""
    found = machine()
    assert found.cores >= 1
    assert found.memory_bytes is None or found.memory_bytes > 1 << 28
    assert found.processor
    json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("flags", "int8", "bf16"),
    [
        ("fpu avx2 avx512f avx512_vnni", True, False),
        ("fpu avx2 avx_vnni", True, False),
        ("avx512_bf16", False, True),
        ("amx_bf16 amx_tile", False, True),
        ("fpu sse2 avx2 not_avx_vnni", False, False),
    ],
)
def test_instructions_are_read_from_the_list_of_processors(
    tmp_path: Path, flags: str, *, int8: bool, bf16: bool
) -> None:
    """Whole words only."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Made 1\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    found = machine(cpuinfo)
    assert (found.int8, found.bf16) == (int8, bf16)


def test_a_machine_without_that_list_promises_nothing(tmp_path: Path) -> None:
    """macOS has none."""
    found = machine(tmp_path / "none")
    assert (found.int8, found.bf16) == (False, False)
