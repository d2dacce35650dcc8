"""What people see of many partitions."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from unet_batch.job.verify import PartitionStatus
from unet_batch.terminal import print_status


def day(number: int, state: str = "published") -> PartitionStatus:
    name = date(2026, 10, 30) + timedelta(days=number)
    return PartitionStatus(f"date={name}", state, 10, 10 * (state == "published"), 0, 0, None)


@pytest.fixture
def shown(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")

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
    assert any("published 19" in line and "missing 1" in line and "held 1" in line for line in lines)
    assert sum("date=" in line for line in lines) == 2


def test_few_days_and_partitions_without_days_are_a_list(shown):
    """A calendar would hide their figures."""
    assert shown([day(n) for n in range(4)]).count("date=") == 4
    sites = [PartitionStatus(f"site={n}", "published", 1, 1, 0, 0, None) for n in range(30)]
    assert shown(sites).count("site=") == 30
    assert shown([day(n) for n in range(30)], every=True).count("date=") == 30
