"""The how-to pages, each followed from the folder that the tutorial leaves behind."""

from __future__ import annotations

import pytest
from blocks import ROOT, play
from folders import after_the_tutorial

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "page", ["nightly", "exit-3", "rollback", "read-the-table", "see-the-masks", "evaluate", "make-it-faster"]
)
def test_a_how_to_does_what_it_says(page, tmp_path):
    """Every command runs, ends with the code that the page gives and prints what it shows."""
    after_the_tutorial(tmp_path)
    play(ROOT / "docs" / "how-to" / f"{page}.md", tmp_path)
