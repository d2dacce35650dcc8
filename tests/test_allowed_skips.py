"""A run of continuous integration fails when it skipped what it must not, and names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow

SKIPPING = """
import pytest

def test_that_runs():
    pass

def test_that_skips():
    pytest.skip({reason!r})
"""


def run(tmp_path: Path, reason: str, *options: str, module: bool = False, **environment: str):
    """The result of pytest on a file with a test, or a module, that is skipped."""
    text = SKIPPING.format(reason=reason)
    if module:
        text = f"import pytest\npytest.importorskip('no_such_module', reason={reason!r})\n" + text
    (tmp_path / "test_it.py").write_text(text)
    ours = ("CI", "UNET_BATCH_STRICT_SKIPS")
    inherited = {k: v for k, v in os.environ.items() if k not in ours and "PYTEST" not in k}
    plain = ["-p", "allowed_skips", "-c", os.devnull, "--rootdir", "."]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plain, "test_it.py", *options],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(HERE), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["one process", "xdist"])
@pytest.mark.parametrize("variable", ["CI", "UNET_BATCH_STRICT_SKIPS"])
def test_a_server_that_does_not_start_fails_the_run_and_is_named(tmp_path, options, variable):
    """Its suite would have been skipped, and the run been green."""
    done = run(tmp_path, "Azurite does not start here", *options, **{variable: "true"})
    assert done.returncode == 1, done.stdout
    assert "test_it.py::test_that_skips: Azurite does not start here" in done.stdout


def test_a_package_that_is_missing_for_a_whole_file_fails_the_run(tmp_path):
    """importorskip at the top of a file skips all of it before a test is known."""
    done = run(tmp_path, "OpenVINO is not installed", module=True, CI="1")
    assert done.returncode != 0
    assert "test_it.py: OpenVINO is not installed" in done.stdout


def test_a_fact_about_the_machine_is_allowed(tmp_path):
    """No installation gives it other instructions."""
    done = run(tmp_path, "this processor has no bf16", CI="true")
    assert (done.returncode, "allowed_skips" in done.stdout) == (0, False)


def test_by_hand_a_skip_is_a_skip(tmp_path):
    """The other tests run without npm."""
    assert run(tmp_path, "npm is not installed").returncode == 0
    assert run(tmp_path, "npm is not installed", CI="false").returncode == 0
