"""What the benchmark of object stores computes, without a server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PARTS = Path(__file__).resolve().parents[2] / "scripts" / "bench_parts"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The module, which names the others of the benchmark without a package."""
    sys.path.insert(0, str(PARTS))
    try:
        spec = importlib.util.spec_from_file_location("bench_store", PARTS / "store.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(PARTS))


def test_a_median_is_taken_of_each_figure(bench: ModuleType) -> None:
    """One slow block of a shared machine moves none of them."""
    runs = [{"a": 1.0, "b": 30.0}, {"a": 9.0, "b": 10.0}, {"a": 2.0, "b": 20.0}]
    assert bench.medians(runs) == {"a": 2.0, "b": 20.0}


def test_only_a_bucket_gets_the_servers_address(bench: ModuleType) -> None:
    """The job from disk has no options of a store."""
    disk, s3 = (bench.bench_job("http://127.0.0.1:1", uri, "m.onnx", "/out") for uri in ("/photos", "s3://photos"))
    assert (disk.input.uri, disk.input.options) == ("/photos", {})
    assert (s3.input.uri, s3.input.options) == ("s3://photos", {"endpoint_url": "http://127.0.0.1:1"})


def test_every_part_has_a_child(bench: ModuleType) -> None:
    """A part that no process runs would fail after the others were measured."""
    assert set(bench.PARTS) <= set(bench.CHILDREN)
