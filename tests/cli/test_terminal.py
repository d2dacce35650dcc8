"""What people see of many partitions."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from unet_batch.cli.terminal import MARKS, plain, print_status, print_table
from unet_batch.job.verify import PartitionStatus


def day(number: int, state: str = "published") -> PartitionStatus:
    name = date(2026, 10, 30) + timedelta(days=number)
    return PartitionStatus(f"date={name}", state, 10, 10 * (state == "published"), 0, 0, None)


@pytest.fixture
def shown(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def show(found, **options) -> str:
        print_status("status of x", found, every=options.get("every", False))
        return capfd.readouterr().err

    return show


def test_many_days_are_a_calendar_with_a_list_of_what_is_not_published(shown):
    """A month on a line, a letter for a day, a dot where the archive has nothing."""
    found = [day(n) for n in range(20) if n != 4] + [day(20, "missing"), day(21, "held")]
    lines = shown(found).splitlines()
    october = next(line for line in lines if line.startswith("2026-10"))
    november = next(line for line in lines if line.startswith("2026-11"))
    assert october.split()[-2:] == ["P", "P"]
    assert november.split()[1:22] == ["P", "P", "·", *["P"] * 15, "-", "H", "·"]
    assert {"P published 19", "- missing 1", "H held 1"} <= {e for line in lines for e in line.split("   ")}
    assert sum("date=" in line for line in lines) == 2


def test_few_days_and_partitions_without_days_are_a_list(shown):
    """A calendar would hide their figures."""
    assert shown([day(n) for n in range(4)]).count("date=") == 4
    sites = [PartitionStatus(f"site={n}", "published", 1, 1, 0, 0, None) for n in range(30)]
    assert shown(sites).count("site=") == 30
    assert shown([day(n) for n in range(30)], every=True).count("date=") == 30


def test_a_calendar_fits_80_columns_and_its_legend_is_complete(shown):
    """Day numbers stand above their days; every letter that can be shown is explained, and so is the dot."""
    lines = shown([day(n) for n in range(40)]).splitlines()
    assert max(len(line) for line in lines) <= 80
    heading = next(line for line in lines if line.split()[:2] == ["1", "5"])
    november = next(line for line in lines if line.startswith("2026-11"))
    assert heading[: heading.index("30") + 2].rstrip().endswith("30")
    assert november[heading.index("30") + 1] == "P"
    legend = {entry.rpartition(" ")[0] for line in lines for entry in line.strip().split("   ")}
    assert {f"{mark} {state}" for state, (mark, _) in MARKS.items()} | {"· no"} <= legend


@pytest.mark.parametrize("text", ["[cuda]", "o[/x]", "[red]gone[/red]", "[link=http://x]a", ":smile:", "a\\[b]"])
def test_what_is_printed_is_text_and_never_markup(capfd, monkeypatch, text):
    """Title, heading and cell: names and messages come from other people."""
    monkeypatch.setenv("COLUMNS", "80")
    print_table(f"title {text}", [f"heading {text}"], [[text]])
    err = capfd.readouterr().err
    assert err.count(text) == 3


def test_a_long_path_in_a_table_is_folded_and_not_cut(capfd, monkeypatch):
    """A name that ends in an ellipsis cannot be searched for."""
    monkeypatch.setenv("COLUMNS", "40")
    print_table("t", ["subject", "reason"], [["job archive", "x" * 100]])
    err = capfd.readouterr().err
    assert (err.count("x"), "…" in err) == (100, False)


def test_what_a_terminal_would_obey_is_shown():
    """Escape sequences and lone surrogates in a file's name."""
    assert plain("a\x1b[31mb\r\udc80é\n") == "a\\x1b[31mb\\r\\udc80é\n"
