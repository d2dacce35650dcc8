"""How drivers start the processes that they talk to over a pipe: worker processes, and those that publish."""

from __future__ import annotations

import json

import pytest

from unet_batch.job.processes.child import ChildProcess
from unet_batch.job.stopping import SIGNALS


@pytest.fixture
def child(monkeypatch):
    monkeypatch.setenv("OURS", "the driver's")
    started = ChildProcess("telling", {"GIVEN": "given", "OURS": "given"}, frame_s=20)
    yield started
    started.end()


def test_a_child_is_beyond_the_signals_of_the_terminal_and_of_the_batch_system(child):
    """A process group of its own, and stop signals blocked: only its pipe and its driver end it."""
    told = json.loads(child.pipe.recv_bytes())
    assert told["group"] == told["pid"] == child.process.pid
    assert set(told["blocked"]) >= set(SIGNALS)
    assert told["stdin"] == ""


def test_a_childs_variables_are_the_drivers_where_both_have_one(child):
    """So a person can set what a child is given."""
    assert json.loads(child.pipe.recv_bytes())["variables"] == {"GIVEN": "given", "OURS": "the driver's"}


def test_a_child_sees_its_pipe_close_and_ends_by_itself(child):
    """Nothing else holds the driver's end open."""
    child.pipe.recv_bytes()
    child.pipe.close()
    assert child.process.wait(20) == 7
    assert child.end() == "exit status 7"


def test_a_child_that_is_killed_says_how_it_ended(child):
    child.pipe.recv_bytes()
    assert child.end() == "signal SIGKILL"
    with pytest.raises(OSError, match="closed"):
        child.pipe.send_bytes(b"more")
