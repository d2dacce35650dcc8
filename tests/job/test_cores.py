"""How many cores a process may use: its affinity, and what a container's limit pays for."""

from __future__ import annotations

import pytest

from unet_batch.job import cores as module
from unet_batch.job.cores import cores


@pytest.fixture(autouse=True)
def eight(monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
        ("", 8),
    ],
)
def test_a_limit_of_control_groups_2_is_kept(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    assert cores(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3)])
def test_a_limit_of_control_groups_1_is_kept(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cores(tmp_path) == expected


def test_without_limits_the_affinity_counts(tmp_path):
    assert cores(tmp_path) == 8
