"""The page `docs/faults.md` and this folder say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"


def names_in(path: Path) -> set[str]:
    """Names of the test functions of a file."""
    found = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def on_the_page() -> set[tuple[str, str]]:
    """File, from the root, and test of every name on the page."""
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text())
    return {(name if "/" in name else f"tests/faults/{name}", test) for name, test in named}


def test_every_test_on_the_page_exists():
    """A promise whose test was renamed or removed is no promise."""
    assert {(file, test) for file, test in on_the_page() if test not in names_in(ROOT / file)} == set()


def test_every_test_of_the_suite_is_on_the_page():
    """Whoever adds a fault says what happens."""
    here = {
        (f"tests/faults/{path.name}", test)
        for path in Path(__file__).parent.glob("test_*.py")
        for test in names_in(path)
    }
    assert here - on_the_page() == set()
