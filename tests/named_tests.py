"""Tests that a page names: whether pytest runs them, and whether they can fail."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from collection import COLLECTED

ROOT = Path(__file__).parents[1]


def functions(file: str) -> dict[str, ast.FunctionDef]:
    """The functions of a file, by name."""
    found = ast.walk(ast.parse((ROOT / file).read_text()))
    return {node.name: node for node in found if isinstance(node, ast.FunctionDef)}


def with_helpers(file: str, test: str) -> list[ast.FunctionDef]:
    """A test and the functions of its file that it reaches."""
    known, reached = functions(file), [test]
    for name in reached:
        used = {node.id for node in ast.walk(known[name]) if isinstance(node, ast.Name)}
        reached += sorted((used & known.keys()) - set(reached))
    return [known[name] for name in reached]


def asks(nodes: list[ast.FunctionDef]) -> bool:
    """Whether functions assert anything, or hand it to something that does."""
    calls = ("raises", "run_state_machine_as_test")
    inner = [node for outer in nodes for node in ast.walk(outer)]
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(calls))
        for node in inner
    )


def collected(config: pytest.Config, files: Iterable[str]) -> set[tuple[str, str]]:
    """File and name of every test that pytest finds in some files, without its parameters.

    A run of all tests has collected them already; otherwise a process of its own does it.
    """
    wanted, here = set(files), config.stash[COLLECTED]
    whole = any((config.invocation_params.dir / argument).resolve() == ROOT / "tests" for argument in config.args)
    rest = wanted - {file for file, _ in here} if whole else wanted
    return {(file, test) for file, test in here if file in wanted - rest} | _collected_apart(rest)


def _collected_apart(files: set[str]) -> set[tuple[str, str]]:
    if not files:
        return set()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "addopts=-q", "--collect-only", *sorted(files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    names = (line.partition("[")[0].split("::") for line in done.stdout.splitlines() if "::" in line)
    return {(name[0], name[-1]) for name in names}
