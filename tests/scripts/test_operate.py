"""What the benchmark of large archives and long backfills computes, without an archive."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

PARTS = Path(__file__).resolve().parents[2] / "scripts" / "bench_parts"


def load(name: str) -> ModuleType:
    spec = spec_from_file_location(name, PARTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backfill(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load("backfill")
    monkeypatch.setitem(sys.modules, "backfill", module)
    return module


@pytest.fixture
def operate(backfill: ModuleType) -> ModuleType:
    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc here")
    return load("operate")


def test_growth_is_the_cost_of_ten_times_the_images(operate):
    """From 100 to 400 images, eight times the seconds are twenty for ten times the images."""
    rows = {
        100: {name: {"seconds": 1.0, "cpu_s": 2.0, "peak_mib": 100} for name in operate.CASES},
        400: {name: {"seconds": 8.0, "cpu_s": 8.0, "peak_mib": 120} for name in operate.CASES},
    }
    assert operate.growth(rows)["plan"] == {"100->400": {"seconds": 20.0, "cpu_s": 10.0, "peak_mib": 3.0}}


def test_the_peak_is_that_of_the_process_itself(operate):
    """Sixty-four MiB that are touched show up, within a few MiB."""
    # A process of its own: a peak never falls, and that of this one may be gigabytes already.
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; import operate\n"
        "before = operate.peak_mib(); held = b'1' * (64 << 20); print(operate.peak_mib() - before)"
    )
    parts, root = Path(operate.__file__).parent, Path(operate.__file__).parents[2]
    command = [sys.executable, "-c", program, str(parts), str(root), str(root / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 60 <= float(done.stdout) <= 80


def test_the_dice_fall_as_often_as_the_shares_say(backfill):
    """Ten thousand throws of two shares, by a seed."""
    dice = random.Random(1)
    thrown = [backfill.drawn({"a": 0.1, "b": 0.2}, dice) for _ in range(10_000)]
    assert [round(thrown.count(name) / 10_000, 2) for name in ("a", "b", None)] == [0.1, 0.2, 0.7]


def test_an_object_that_was_put_again_counts_as_touched(backfill, tmp_path):
    """Equal bytes are no proof: its time and inode tell."""
    (tmp_path / "data").write_bytes(b"1")
    before = backfill.contents(tmp_path)
    (tmp_path / "other").write_bytes(b"1")
    (tmp_path / "other").replace(tmp_path / "data")
    after = backfill.contents(tmp_path)
    assert before.keys() == after.keys()
    assert before != after
