"""What the README claims about surviving can be looked up: each claim links to a test, and no link leads nowhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "cluster/README.md", "docs/faults.md", "docs/security.md"]
SURVIVING = re.compile(r"\bkill|\bcrash|\bhang|\bdies?\b|half a day|never twice|fallback", re.IGNORECASE)
"""Words of a claim that something is survived."""


def claims() -> list[str]:
    """Bullets and paragraphs with such a word; code and tables show what is, and claim nothing."""
    prose = re.sub(r"^```.*?^```$|^\|[^\n]*$", "", README, flags=re.DOTALL | re.MULTILINE)
    blocks = re.split(r"\n\s*\n|\n(?=\* )", prose)
    return [" ".join(block.split()) for block in blocks if SURVIVING.search(block)]


def links(text: str) -> list[str]:
    """Files that a text links to, without their anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link.partition("#")[0] for link in found if "://" not in link and not link.startswith("#")]


def names_of_tests(path: Path) -> set[str]:
    """Names of a file's tests."""
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    return {node.name for node in functions if node.name.startswith("test_")}


def test_the_readme_claims_to_survive_something():
    """The words are those of the README: without a claim the next test could not fail."""
    assert len(claims()) >= 3


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim[:40])
def test_a_claim_about_surviving_links_to_its_test(claim):
    """To a file with tests, or to the page whose every row names one."""
    files = [link for link in links(claim) if link.startswith("tests/")]
    assert files or "docs/faults.md" in links(claim), claim
    assert [file for file in files if not names_of_tests(ROOT / file)] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_link_leads_nowhere(page):
    """Files that were renamed take their links along."""
    path = ROOT / page
    assert [link for link in links(path.read_text()) if not (path.parent / link).exists()] == []


def test_the_readme_is_read_to_its_end():
    """Short, and its picture is small: everything else has a page."""
    assert len(README.splitlines()) <= 120
    pictures = [ROOT / link for link in links(README) if link.endswith(".png")]
    assert pictures
    assert all(picture.stat().st_size < 300_000 for picture in pictures)
