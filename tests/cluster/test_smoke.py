"""The smoke run takes overrides in both ways that a command line has for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from project_fixture import last_json

pytestmark = pytest.mark.slow


SMOKE = Path(__file__).parents[2] / "jobs" / "smoke.py"


@pytest.mark.parametrize("one_word", [False, True], ids=["--set KEY=VALUE", "--set=KEY=VALUE"])
def test_a_scratch_output_that_an_override_names_is_the_one_that_is_written(project, one_word):
    """Nothing is written where the job file alone would have it, and `verify` looks at the same place."""
    project.fill("2026/11/21", 2)
    setting = f"output.uri={project.folder}/elsewhere/"
    words = [f"--set={setting}"] if one_word else ["--set", setting]
    command = [sys.executable, str(SMOKE), "job.yaml", "--executor", "local", *words]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, last_json(done)["disagreements"]) == (0, 0), done.stderr
    assert not (project.folder / "out").exists()
    [scratch] = (project.folder / "elsewhere").iterdir()
    assert [path.name for path in (scratch / "predictions").rglob("*.parquet")] == ["data.parquet"]
