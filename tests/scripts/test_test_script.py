"""What `scripts/test` starts, and that it fails where any of it fails. Python is a stand-in that shows its markers."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "test"
OFF_RAY = "not ray"
CLUSTER = "(ray) and not alone and cluster"
EMBEDDED = "(ray) and not alone and not cluster"
ALONE = "(ray) and alone"
PYTHON = """\
#!/usr/bin/env bash
while [[ "$1" != -m ]]; do shift; done; shift 2  # -m pytest
while [[ "$1" != -m ]]; do shift; done
echo "output of $2"
if [[ "$2" == "${WAITS:-}" ]]; then echo $$ > pid; exec sleep 60; fi
if [[ -n "${WAITS:-}" ]]; then until [[ -s pid ]]; do sleep 0.02; done; fi
if [[ "$2" == "${FAILS:-}" ]]; then exit "${CODE:-1}"; fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the script and stand-ins for what it calls."""
    for name, text in {
        "scripts/setup": "#!/bin/sh\n",
        "scripts/matrix_due": "#!/bin/sh\n",
        ".venv/bin/python": PYTHON,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text("pytestmark = pytest.mark.ray\n")
    return tmp_path


def run(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words, surroundings = [checkout / "scripts" / "test"], {**os.environ, **environment}
    return subprocess.run(words, env=surroundings, capture_output=True, text=True, check=False, timeout=60)


def test_every_test_is_in_one_of_four_runs_and_all_output_is_shown(checkout):
    """Off Ray, on a cluster, on an embedded Ray, and what wants no other Ray beside it."""
    done = run(checkout)
    assert done.returncode == 0, done.stderr
    shown = [line.removeprefix("output of ") for line in done.stdout.splitlines()]
    assert (shown[0], shown[-1]) == (OFF_RAY, ALONE)
    assert set(shown[1:-1]) == {CLUSTER, EMBEDDED}
    assert len(shown) == 4


@pytest.mark.parametrize("markers", [OFF_RAY, CLUSTER, EMBEDDED, ALONE])
def test_a_failure_in_any_run_is_a_failure(checkout, markers):
    """The other runs go on."""
    done = run(checkout, FAILS=markers)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 4


def test_ctrl_c_ends_the_runs_in_the_background_too(checkout):
    """pytest's exit code is 2 then. A process in the background of a script would ignore the signal."""
    done = run(checkout, FAILS=OFF_RAY, CODE="2", WAITS=CLUSTER)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [f"output of {OFF_RAY}"]
    left, give_up = (checkout / "pid").read_text().strip(), time.monotonic() + 20
    while subprocess.run(["kill", "-0", left], capture_output=True, check=False).returncode == 0:
        assert time.monotonic() < give_up
        time.sleep(0.02)
