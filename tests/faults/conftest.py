"""Fixtures of the fault suite: processes that can be struck."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import Faulty
from project_fixture import Project

PRELOADED = ["strikes", "onnxruntime", "pyarrow.parquet", "PIL.Image", "pytest"]


@pytest.fixture(scope="session")
def fresh() -> multiprocessing.context.ForkServerContext:
    """Makes processes without threads or sessions in a tenth of a second each: a server has imported all they need."""
    tests = Path(__file__).parents[1]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests / "faults")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    multiprocessing.forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    return context


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What sessions learn under faults must not reach the ladders of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def faulty(project: Project, fresh: multiprocessing.context.ForkServerContext) -> Iterator[Faulty]:
    made = Faulty(project, fresh)
    yield made
    for child in made.children:
        if child.is_alive():
            child.kill()
            child.join(20)
