"""Asking the autoscaler for nodes: what is asked, and what is still missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_launcher import ask_for_nodes

SCRIPT = Path(__file__).parents[2] / "cluster" / "ask_for_nodes.py"


def test_every_gpu_comes_with_a_core():
    """Its session needs one."""
    assert ask_for_nodes().bundles(2, 1) == [{"CPU": 1}, {"CPU": 1}, {"CPU": 1, "GPU": 1}]


@pytest.mark.parametrize(
    ("have", "lacking"),
    [
        ({}, {"CPU": 3, "GPU": 1}),
        ({"CPU": 3.0}, {"GPU": 1}),
        ({"CPU": 2.0, "GPU": 4.0}, {"CPU": 1}),
        ({"CPU": 3.0, "GPU": 1.0, "memory": 1e9}, {}),
        ({"CPU": 64.0, "GPU": 8.0}, {}),
    ],
)
def test_what_is_missing_is_counted(have, lacking):
    """More than enough is enough."""
    script = ask_for_nodes()
    assert script.missing(have, script.bundles(2, 1)) == lacking


def test_asking_for_nothing_is_never_short_of_anything():
    """That is how a request is taken back."""
    script = ask_for_nodes()
    assert script.missing({}, script.bundles(0, 0)) == {}


@pytest.mark.parametrize(
    "arguments", [(), ("--cpus", "4"), ("--cpus", "-1", "--gpus", "0"), ("--cpus", "x", "--gpus", "0")]
)
def test_wrong_arguments_are_refused_before_any_cluster_is_touched(arguments):
    """Exit code 2, and a sentence."""
    result = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--cpus" in result.stderr


@pytest.mark.ray
@pytest.mark.cluster
def test_a_cluster_that_has_enough_is_asked_and_answers_at_once(three_ray_nodes):
    """On a cluster without an autoscaler, too: exit code 0 where all is there, 3 where it never comes."""
    cluster, variables = three_ray_nodes
    answers = []
    for wanted in (["--cpus", "2", "--gpus", "0"], ["--cpus", "1", "--gpus", "1", "--wait-s", "1"]):
        result = subprocess.run(
            [sys.executable, SCRIPT, *wanted],
            env={**os.environ, **variables, "RAY_ADDRESS": cluster.head},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.stdout, result.stderr
        answers.append((result.returncode, json.loads(result.stdout.splitlines()[-1])["missing"]))
    assert answers == [(0, {}), (3, {"GPU": 1.0})]
