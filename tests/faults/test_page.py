"""The page `docs/faults.md` and this folder say the same: tests that run, can fail, and ask for these exit codes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from named_tests import ROOT, asks, collected, functions, with_helpers

import unet_batch.errors
from unet_batch.errors import ExitCode, UnetBatchError

PAGE = (ROOT / "docs" / "faults.md").read_text()
CODES = {code.name: int(code) for code in ExitCode} | {
    name: int(found.exit_code)
    for name, found in vars(unet_batch.errors).items()
    if isinstance(found, type) and issubclass(found, UnetBatchError)
}
"""What a test may write instead of a number."""


def rows(page: str) -> Iterator[tuple[str, str, str]]:
    """File from the root, test, and the row's text, for every test that the page names."""
    for line in page.splitlines():
        for name, test in re.findall(r"`([\w/]+\.py)::(\w+)`", line):
            yield name if "/" in name else f"tests/faults/{name}", test, line


def codes_of(row: str) -> set[int]:
    """The exit codes that a row promises, but for 0."""
    return {int(code) for code in re.findall(r"\bexits? (?:code )?(\d)", row)} - {0}


def numbers_in(nodes: list[ast.FunctionDef]) -> set[int]:
    """Numbers that functions and their parameters hold, and exit codes that they name."""
    inner = [node for outer in nodes for node in ast.walk(outer)]
    written = {node.value for node in inner if isinstance(node, ast.Constant) and type(node.value) is int}
    names = {node.id for node in inner if isinstance(node, ast.Name)}
    names |= {node.attr for node in inner if isinstance(node, ast.Attribute)}
    return written | {CODES[name] for name in names & CODES.keys()}


@pytest.mark.slow
def test_every_test_on_the_page_is_collected(pytestconfig):
    """By pytest itself: a function that it does not run is no test."""
    named = {(file, test) for file, test, _ in rows(PAGE)}
    assert named - collected(pytestconfig, (file for file, _ in named)) == set()


@pytest.mark.parametrize(
    ("file", "test", "row"), rows(PAGE), ids=lambda value: value if value.startswith("test_") else ""
)
def test_a_test_on_the_page_can_fail_and_asks_for_the_exit_codes_of_its_row(file, test, row):
    """A row that promises exit code 5 stands for a test that asks for 5."""
    nodes = with_helpers(file, test)
    assert asks(nodes)
    assert codes_of(row) - numbers_in(nodes) == set()


def test_a_row_that_promises_another_exit_code_is_found():
    """The check above can fail."""
    file, test, row = next(entry for entry in rows(PAGE) if "exit 5" in entry[2])
    assert codes_of(row) - numbers_in(with_helpers(file, test)) == set()
    assert codes_of(row.replace("exit 5", "exit 4")) - numbers_in(with_helpers(file, test)) == {4}


def test_every_test_of_the_suite_is_on_the_page():
    """Every fault has a row that says what happens."""
    here = {
        (f"tests/faults/{path.name}", name)
        for path in Path(__file__).parent.glob("test_*.py")
        for name in functions(f"tests/faults/{path.name}")
        if name.startswith("test_")
    }
    assert here - {(file, test) for file, test, _ in rows(PAGE)} == set()
