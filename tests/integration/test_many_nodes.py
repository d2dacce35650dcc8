"""Jobs that are submitted to a cluster of three nodes: equal rows, exact exit codes, and nodes and drivers that die."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from remote_job import DAY, KEYS, PATIENCE_S, UNIT
from small_cluster import CORES, LARGE, three_nodes

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.s3]

AT_ONCE = 2
"""Units that one actor works on; there is an actor for each core."""


def test_a_submitted_job_gives_the_rows_of_the_plain_loop(job):
    """Scored on both nodes, row by row the same; exit codes 5, then 0; the second submission only publishes.

    Of the keys that it took along nothing is told, and nothing is in any file of the cluster: logs, packages, sockets.
    """
    job.fill(40)
    job.put(f"archive/{DAY}/bad.png", b"no image")
    job.slow(1)  # while one actor waits for the store, the others start
    code, last, said = job.submit("limits.max_rejected=0").ended()
    assert (code, last["status"], last["exit_code"]) == (5, "FAILED", 5), said
    assert [last["result"][k] for k in ("ok", "rejected", "published", "executor")] == [40, 1, 0, "ray"]
    told, secret = job.asked(f"/api/jobs/{last['id']}"), KEYS["AWS_SECRET_ACCESS_KEY"]
    assert secret not in said + repr(last) + repr(told)
    assert job.cluster.files_with(secret) == []
    assert len(job.cluster.files_with(last["id"])) > 3  # the search sees Ray's log files
    assert len(job.nodes_that_scored(last["id"])) == 2
    assert set(job.reads().values()) == {1}

    job.slow(0)
    again = job.submit()
    here = job.run_here(f"output.uri=s3://{job.bucket}/here")
    assert (here.executor, here.published) == ("local", 1)
    code, last, said = again.ended()
    assert (code, last["status"], last["exit_code"]) == (0, "SUCCEEDED", 0), said
    assert [last["result"][k] for k in ("planned", "published")] == [0, 1]
    assert job.verify() == []
    assert job.rows() == job.rows("here")


def test_mistakes_are_exit_code_2_wherever_they_are_seen(job):
    """Another token: by the job server. A model that is not in the store: by the run."""
    job.fill(1)
    run = job.submit(f"model.path=s3://{job.bucket}/other.onnx")
    code, last, said = job.submit(token="0" * 64).ended()
    assert (code, last) == (2, {})
    [sentence] = [line for line in said.splitlines() if " WARNING " not in line]
    assert sentence.startswith(f"error [job.invalid]: {job.cluster.address} refuses this token")
    code, last, said = run.ended()
    assert (code, last["status"], last["result"]) == (2, "FAILED", None)
    assert f"error [job.invalid]: model.path: there is no s3://{job.bucket}/other.onnx" in said


@pytest.mark.matrix
def test_a_killed_driver_costs_the_units_in_flight(job):
    """Ctrl-C does not end the job; the same submission is refused while it runs, and goes on after the kill."""
    images = 48
    job.fill(images)
    job.slow(1)
    first = job.submit()
    first.wait_until(lambda: job.parts() >= 2)
    job.slow(PATIENCE_S)  # what is not read yet waits for the kill
    first.process.send_signal(signal.SIGINT)
    code, last, said = first.ended()
    assert (code, last["status"]) == (3, "RUNNING"), said
    code, _, said = job.submit().ended()
    assert code == 4
    assert f"{last['id']} is RUNNING" in said

    [driver] = job.cluster.pids("head", "-m unet_batch run job.yaml", without="/bin/sh")
    os.kill(driver, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while job.status(last["id"]) == "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert job.status(last["id"]) == "FAILED"
    assert job.asked(f"/api/jobs/{last['id']}")["driver_exit_code"] in (-signal.SIGKILL, 128 + signal.SIGKILL)
    staged = job.parts()
    assert 2 <= staged < images // UNIT, "the driver was to be killed in the middle"

    job.slow(0)
    code, again, said = job.submit().ended()
    assert (code, again["id"]) == (0, last["id"].removesuffix("-1") + "-2"), said
    assert again["result"]["planned"] == images - staged * UNIT
    redone = job.reads().total() - images
    assert 0 < redone <= CORES * AT_ONCE * UNIT
    assert len(job.rows()) == images
    assert job.verify() == []
    assert job.left_after_sweep() == []


def test_a_job_that_is_stopped_ends_in_order(job):
    """`ray job stop` sends SIGTERM: the record is ended, leases are given back, its JSON line is there.

    The next run, anywhere, does the rest.
    """
    job.fill(24)
    job.slow(1)
    run = job.submit()
    run.wait_until(lambda: job.parts() >= 1)
    job.stop(job.running())
    code, last, said = run.ended()
    assert (code, last["status"]) == (3, "STOPPED"), said
    assert (last["result"]["exit"], last["result"]["published"]) == ("unfinished", 0)
    assert any(problem.startswith("stopped by SIGTERM;") for problem in last["result"]["problems"])
    assert [json.loads(record)["did"]["exit_code"] for record in job.work("runs")] == [3]
    assert job.work("leases") == []
    job.slow(0)
    again = job.run_here()
    assert (again.exit_code, again.published) == (0, 1)
    assert again.planned <= last["result"]["remaining"]  # a unit in flight may have been put after the run ended


@pytest.mark.matrix
def test_a_lost_node_costs_the_units_in_flight_on_it(job):
    """The run completes without help, with exit code 0, while the node is away."""
    images = 48
    job.fill(images)
    job.slow(3)
    running = job.submit()
    # More units under way than the other node's one actor can hold: some are on the node that is lost.
    running.wait_until(lambda: job.parts() >= 2 and job.reads().total() > (job.parts() + AT_ONCE) * UNIT)
    job.cluster.kill("large")
    try:
        job.slow(0)
        assert job.parts() < images // UNIT, "the node was to be lost in the middle"
        code, last, said = running.ended()
    finally:
        job.cluster.add("large", cpus=LARGE)
    assert (code, last["result"]["published"], last["result"]["remaining"]) == (0, 1, 0), said
    redone = job.reads().total() - images
    assert 0 < redone <= LARGE * AT_ONCE * UNIT
    assert len(job.rows()) == images
    assert job.verify() == []
    assert job.left_after_sweep() == []


@pytest.mark.matrix
def test_a_submission_after_a_lost_head_resumes(job):
    """The driver dies with the head's node; another cluster scores what was not staged, while the first one's workers
    may still be at it."""
    images = 48
    job.fill(images)
    job.slow(1)
    with three_nodes() as (head_lost, variables):
        job.cluster, job.token = head_lost, variables["RAY_AUTH_TOKEN"]
        first = job.submit()
        first.wait_until(lambda: job.parts() >= 2)
        job.slow(PATIENCE_S)  # what is not read yet waits for the end of its cluster
        head_lost.kill("head")
        first.process.kill()
        first.process.wait()
        staged = job.parts()
        assert 2 <= staged < images // UNIT, "the head was to be lost in the middle"

        job.slow(0)
        with three_nodes() as (again, its_variables):
            job.cluster, job.token = again, its_variables["RAY_AUTH_TOKEN"]
            code, last, said = job.submit().ended()
            assert code == 0, said
            assert last["result"]["planned"] <= images - staged * UNIT  # orphaned workers end what they have read
            assert job.reads().total() - images <= CORES * AT_ONCE * UNIT
            assert len(job.rows()) == images
            assert job.verify() == []
            assert job.left_after_sweep() == []
