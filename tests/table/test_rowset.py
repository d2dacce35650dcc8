"""Which row wins, as a table; and every caller gets the same answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.table.parts import RowKey
from unet_batch.table.rowset import choose

GONE, BAD = "decode.timeout", "decode.corrupt"


def rows(verdicts: str, *, version: str = "v1", source: str = "a", pages: int | None = None) -> list[RowKey]:
    """`o` is a prediction, `t` a rejection that may pass, `x` one that does not, `.` a page without a row."""
    reasons = {"o": None, "t": GONE, "x": BAD}
    count = len(verdicts) if pages is None else pages
    return [
        RowKey(source, version, page, count, reasons[letter], page)
        for page, letter in enumerate(verdicts)
        if letter != "."
    ]


@pytest.mark.parametrize(
    ("containers", "winner"),
    [
        # one page
        (["o"], 0),
        (["x"], 0),
        (["o", "o"], 0),  # the first of equals: what is published before what is staged
        (["x", "x"], 0),
        (["x", "o"], 1),  # a prediction beats a rejection
        (["o", "x"], 0),
        (["x", "t", "o", "o"], 2),
        # several pages, all of one object
        (["oox", "ooo"], 1),
        (["ooo", "oox"], 0),
        (["oxx", "oox"], 1),  # the most predicted pages
        (["oox", "oxx"], 0),
        (["x", "oox"], 1),  # the whole file was rejected, then most of its pages were scored
        (["oox", "t"], 0),
        (["oxx", "x"], 0),
        (["xx", "x"], 1),  # of none predicted, the fewest rejected
        # a source without all of its pages never counts
        (["o.o", "oox"], 1),
        ([".oo"], None),
        (["oo."], None),
        (["o.", "x"], 1),
    ],
)
def test_the_row_that_wins(containers, winner):
    """A table: the pages of one source in each object, and the object whose rows count."""
    found = choose([rows(verdicts) for verdicts in containers])
    assert (found[("a", "v1")].container if found else None) == winner


def test_only_the_version_of_the_inventory_counts():
    """Rows of the image as it was are rows of another image."""
    containers = [rows("o", version="v1"), rows("x", version="v2")]
    assert choose(containers, {"a": "v2"}).keys() == {("a", "v2")}
    assert choose(containers, {}) == {}
    assert choose(containers).keys() == {("a", "v1"), ("a", "v2")}


def test_a_page_twice_in_one_object_is_no_row():
    """It is unknown which of them is right."""
    assert choose([rows("oo") + rows("o", pages=2)]) == {}
    assert choose([rows("o") + rows("o")]) == {}


def test_a_source_may_pass_where_any_of_its_pages_may():
    """The other pages were scored; another try scores the file."""
    assert choose([rows("oot")])["a", "v1"].may_pass
    assert not choose([rows("oox")])["a", "v1"].may_pass
    assert not choose([[RowKey("a", "v1", 0, 1, "reason.of_a_later_version", 0)]])["a", "v1"].may_pass


@given(st.lists(st.text("otx", min_size=1, max_size=4), min_size=1, max_size=5), st.randoms())
def test_the_order_of_objects_changes_no_verdict(verdicts, random):
    """The first of equal rows wins; as many pages are predicted, and as many rejected."""
    shuffled = list(verdicts)
    random.shuffle(shuffled)
    one, other = (choose([rows(v) for v in some])["a", "v1"] for some in (verdicts, shuffled))
    assert [p.reason is None for p in one.pages].count(True) == [p.reason is None for p in other.pages].count(True)
    assert len(one.pages) == len(other.pages)
