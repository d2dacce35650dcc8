"""Children that nobody ends: their parent was killed, and they compute, sleep or hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import poison
import pytest
from forked import processes_of_session, wait_for_session

from unet_batch import lifeline

TESTS = Path(__file__).parent
SLEEPS = "import time\nopen('begun', 'w').close()\ntime.sleep(600)\n"
COMMAND = "from unet_batch import lifeline; lifeline.run('sleeping')"
DECODER = (
    "from unet_batch.contract import ModelInput\n"
    "from unet_batch.decode.isolate import IsolatedDecoder\n"
    "from unet_batch.spec import LimitsSpec\n"
    "IsolatedDecoder(ModelInput(), LimitsSpec(), decoder='poison:decode').decode(b'<hang>')\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("parent", [COMMAND, DECODER], ids=["a command's child", "an isolated decoder"])
def test_a_child_ends_when_its_parent_is_killed(parent, tmp_path):
    """A command's child that sleeps, and an isolated decoder that hangs in the middle of an image."""
    (tmp_path / "sleeping.py").write_text(SLEEPS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS)])}
    environment[poison.LOG_VARIABLE] = str(tmp_path / "begun")
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment, cwd=tmp_path, start_new_session=True)
    give_up = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert len(processes_of_session(process.pid)) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for_session(process.pid, 20)


def test_what_a_child_prints_and_how_it_ends_is_told(tmp_path):
    """As with `subprocess.run`."""
    (tmp_path / "saying.py").write_text("import sys\nprint(sys.argv)\nprint('no', file=sys.stderr)\nsys.exit(7)\n")
    done = lifeline.run("saying", "a", "b", folder=tmp_path)
    assert done.returncode == 7
    assert (done.stdout.endswith("'a', 'b']\n"), done.stderr) == (True, "no\n")


def test_a_child_that_takes_too_long_is_ended(tmp_path):
    (tmp_path / "sleeping.py").write_text(SLEEPS)
    with pytest.raises(subprocess.TimeoutExpired):
        lifeline.run("sleeping", folder=tmp_path, timeout_s=0.5)
