"""docs/security.md: one page, whose every claim names a test that runs and can fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from named_tests import asks, collected, with_helpers

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text()


def references() -> list[tuple[str, str]]:
    """(file, test) of every `file::test`; `::test` is in the file that was named last."""
    found, file = [], ""
    for named, test in re.findall(r"`([\w/]*\.py)?::(\w+)`", PAGE):
        file = named or file
        found.append((file, test))
    return found


@pytest.mark.slow
def test_every_claims_test_is_collected(pytestconfig):
    """By pytest itself: a function that it does not run is no test, whatever its name."""
    named = {(f"tests/{file}", test) for file, test in references()}
    assert named - collected(pytestconfig, (file for file, _ in named)) == set()


@pytest.mark.parametrize(("file", "test"), references())
def test_a_claims_test_can_fail(file, test):
    """It asserts something, itself or through a function of its file."""
    assert asks(with_helpers(f"tests/{file}", test))


def test_every_row_of_a_table_names_a_test():
    """A claim without a test would be a promise."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line != "| claim | test |"]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []


def test_the_schemes_on_the_page_are_those_of_the_code():
    """The one list that people rely on."""
    from unet_batch.store.objects import SCHEMES

    [told] = re.findall(r"schemes are (.*?):", PAGE)
    assert re.findall(r"\w+", told.replace("abfs(s)", "abfs abfss")) == list(SCHEMES)


def test_it_is_one_page():
    """Longer pages are not read."""
    assert len(PAGE.splitlines()) <= 100
