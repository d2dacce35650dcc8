"""docs/security.md: one page, whose every claim names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text()


def references() -> list[tuple[str, str]]:
    """(file, test) of every `file::test`; `::test` is in the file that was named last."""
    found, file = [], ""
    for named, test in re.findall(r"`([\w/]*\.py)?::(\w+)`", PAGE):
        file = named or file
        found.append((file, test))
    return found


@pytest.mark.parametrize(("file", "test"), references())
def test_a_claims_test_exists(file, test):
    """Under the name that the page gives."""
    functions = {
        node.name for node in ast.walk(ast.parse((TESTS / file).read_text())) if isinstance(node, ast.FunctionDef)
    }
    assert test in functions


def test_every_row_of_a_table_names_a_test():
    """A claim without a test would be a promise."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line != "| claim | test |"]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []


def test_the_schemes_on_the_page_are_those_of_the_code():
    """The one list that people rely on."""
    from unet_batch.archive.objects import SCHEMES

    [told] = re.findall(r"schemes are (.*?):", PAGE)
    assert re.findall(r"\w+", told.replace("abfs(s)", "abfs abfss")) == list(SCHEMES)


def test_it_is_one_page():
    """Longer pages are not read."""
    assert len(PAGE.splitlines()) <= 100
