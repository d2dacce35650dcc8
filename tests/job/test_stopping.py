"""Signals: the first ends any command in order; a second one ends it at once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from forked import processes_of_session, wait_for_session
from PIL import Image

pytestmark = pytest.mark.slow

NAME = "2026-11-21"
IMAGES = 24
SIDE = 600
"""A picture of this size takes a tenth of a second or more: a run is still under way when it is signalled."""


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """PNG files of noise, whose masks have very many edges."""
    made = []
    for number in range(IMAGES):
        noise = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE), np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).save(out, "PNG", compress_level=0)
        made.append(out.getvalue())
    return made


@pytest.fixture
def slow(project, pictures):
    """A project whose run takes many seconds."""
    for number, picture in enumerate(pictures):
        project.put(f"2026/11/21/{number:03}.png", picture)
    return project


DEFAULTS = (
    "import signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_DFL)\n"
)
"""The tests themselves may run in the background or under nohup, where children ignore signals."""


def start(project, executor: str, *more: str, before: str = "", **how) -> subprocess.Popen[str]:
    """A run in a process of its own. before: Python that its process does first."""
    code = f"{DEFAULTS}{before}\nimport sys; from unet_batch.cli.main import main; main()"
    words = ["run", "job.yaml", "--window", "all", "--executor", executor, "--set", "limits.unit_images=2", *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=project.folder, stdout=pipe, stderr=pipe, text=True, **how
    )


def wait_for(done, process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 120
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)


def works(project) -> dict:
    """The one record, as JSON."""
    [path] = (project.folder / "out" / "_work" / "runs").glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("executor", "number", "name"),
    [
        ("local", signal.SIGINT, "Ctrl-C"),
        ("local", signal.SIGTERM, "SIGTERM"),
        ("local", signal.SIGHUP, "SIGHUP"),
        ("processes", signal.SIGINT, "Ctrl-C"),
        pytest.param("ray", signal.SIGINT, "Ctrl-C", marks=[pytest.mark.ray, pytest.mark.matrix]),
        pytest.param("ray", signal.SIGTERM, "SIGTERM", marks=[pytest.mark.ray, pytest.mark.matrix]),
        pytest.param("ray", signal.SIGHUP, "SIGHUP", marks=[pytest.mark.ray, pytest.mark.matrix]),
    ],
)
def test_a_signal_ends_a_run_in_order(slow, executor, number, name):
    """Exit code 3 and its JSON line, the record ended, the lease given back, no stack; the next run does the rest."""
    process = start(slow, executor)
    wait_for(lambda: len(slow.parts()) >= 2, process)
    process.send_signal(number)
    the_next_run_does_the_rest(slow, scored=ended_in_order(slow, process, name))


def ended_in_order(project, process: subprocess.Popen[str], name: str) -> int:
    """Assert what a signal in the middle of a run leaves; the number of images that were scored."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    [line] = out.splitlines()
    told = json.loads(line)
    assert (told["exit"], told["published"]) == ("unfinished", 0)
    assert told["remaining"] == IMAGES - told["ok"] > 0
    assert any(problem.startswith(f"stopped by {name};") for problem in told["problems"])
    assert "Traceback" not in err
    assert "PC: @" not in err
    assert works(project)["did"]["exit_code"] == 3
    assert list((project.folder / "out" / "_work" / "leases").glob("*")) == []
    assert list((project.folder / "out" / "_work").glob("attempts/*")) == []
    return told["ok"]


def the_next_run_does_the_rest(project, *, scored: int) -> None:
    again = project.run("limits.unit_images=2")
    assert (again.exit_code, again.published) == (0, 1)
    assert again.planned <= IMAGES - scored


@pytest.mark.ray
@pytest.mark.parametrize(
    "seconds", [pytest.param(0.0, marks=pytest.mark.matrix), 1.0, pytest.param(3.0, marks=pytest.mark.matrix)]
)
def test_a_signal_while_ray_starts_ends_the_command_in_order(slow, seconds):
    """Ray has handlers of its own by then."""
    process = start(slow, "ray")
    wait_for(lambda: list((slow.folder / "out" / "_work").glob("leases/*")), process)  # Ray is started then
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert json.loads(out.splitlines()[-1])["exit"] == "unfinished"
    assert "PC: @" not in err
    assert list((slow.folder / "out" / "_work").glob("leases/*")) == []


@pytest.mark.parametrize("executor", ["processes", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_signal_to_every_process_of_a_job_ends_it_in_order(slow, executor):
    """What `timeout`, service managers and batch systems send: the workers outlast it, and end with the run."""
    process = start(slow, executor, start_new_session=True)
    wait_for(lambda: len(slow.parts()) >= 2, process)
    if executor == "ray":
        os.killpg(process.pid, signal.SIGTERM)
    else:  # each worker has a process group of its own
        for pid in processes_of_session(process.pid):
            os.kill(pid, signal.SIGTERM)
    scored = ended_in_order(slow, process, "SIGTERM")
    wait_for_session(process.pid, timeout_s=5)
    the_next_run_does_the_rest(slow, scored=scored)


def test_a_second_signal_ends_the_command_at_once(slow):
    """The first one waits for something that does not come."""
    hang = "import time, unet_batch.job.run as r; r._Run.close = lambda self: time.sleep(60)"
    process = start(slow, "local", before=hang)
    wait_for(lambda: len(slow.parts()) >= 1, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, time.monotonic() - began < 5) == (3, True)
    assert "second signal (SIGTERM)" in err


def test_two_signals_at_once_are_one(slow):
    """Service managers send SIGTERM and SIGHUP: the record is ended nevertheless."""
    process = start(slow, "local")
    wait_for(lambda: len(slow.parts()) >= 1, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert json.loads(out)["exit"] == "unfinished"
    assert "ended" in works(slow)


def test_a_signal_that_was_ignored_from_the_start_stays_ignored(slow):
    """`nohup unet-batch run` outlives its terminal."""
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = start(slow, "local", before=ignore)
    wait_for(lambda: len(slow.parts()) >= 1, process)
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(slow.parts()) >= 4, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 3


def test_a_run_whose_terminal_is_closed_ends_in_order(slow):
    """Nothing can be written to it any more, and the record is ended nevertheless."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.chdir(slow.folder)
        words = ["run", "job.yaml", "--window", "all", "--executor", "local", "--set", "limits.unit_images=2"]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-m", "unet_batch", *words])
    give_up = time.monotonic() + 60
    while len(slow.parts()) < 2:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert works(slow)["did"]["problems"][0].startswith("stopped by SIGHUP;")


def test_a_signal_ends_other_commands_in_order(slow):
    """A command without a run says the same in its JSON line."""
    late = (
        "import time, unet_batch.planning.prepare as p;"
        "p.prepare = lambda job: (print('here', flush=True), time.sleep(60))"
    )
    process = start(slow, "local", before=late)
    assert process.stderr.readline() == "here\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, json.loads(out)["error"]) == (3, "run.stopped")
    assert "stopped by SIGTERM" in err
