"""A table whose layout changed: no image is published beside an older row of it under another name."""

from __future__ import annotations

import pytest
from project_fixture import project

from unet_batch.errors import JobError
from unet_batch.job.verify import overview
from unet_batch.planning.layout import bucket_names
from unet_batch.planning.survey import planned, window_of

__all__ = ["project"]

DAY, NAME = "2026/11/21", "2026-11-21"


@pytest.mark.parametrize(
    ("before", "after", "window"),
    [
        ("output.buckets=1", "output.buckets=2", "all"),
        ("output.buckets=2", "output.buckets=1", "last"),
        ("output.buckets=3", "output.buckets=2", "2026-11-21"),
    ],
)
def test_another_number_of_buckets_is_refused_before_scoring(project, before, after, window):
    """Readers glob every data.parquet, so a day in two layouts would be counted twice."""
    project.fill(DAY, 6)
    project.run(before)
    published = sorted(project.folder.rglob("data.parquet"))
    with pytest.raises(JobError, match="is of another layout than this job's"):
        project.run(after, window=window)
    assert sorted(project.folder.rglob("data.parquet")) == published
    assert project.run(before, window=window).problems == []


@pytest.mark.parametrize("window", ["all", "last", NAME])
def test_a_date_that_the_uri_got_later_is_refused(project, window):
    """Every command says it, and the same job goes on once the old object is away."""
    project.fill(DAY, 2)
    project.run(f"input.uri={project.folder}/archive")
    prepared = project.prepared()
    said = "predictions/all/data.parquet is of another layout"
    assert any(said in problem for problem in planned(prepared, window_of(window), "due").problems)
    assert any(said in problem for problem in overview(prepared, window_of(window)).problems)
    assert any(said in finding.kind for finding in project.verify(window=window))
    with pytest.raises(JobError, match=said):
        project.run(window=window)
    (project.folder / "out/predictions/all/data.parquet").unlink()
    assert project.run(window=window).partitions == [f"date={NAME}"]


def test_an_object_of_another_layout_with_other_images_is_left_alone(project):
    """Two archives may share an output under different names."""
    project.put("others/a.png")
    project.run(f"input.uri={project.folder}/archive/others")
    project.fill(DAY, 2)
    summary = project.run(window=NAME)
    assert (summary.partitions, summary.problems) == ([f"date={NAME}"], [])


def test_a_bucket_is_named_by_its_number():
    """As wide as the largest number, so that names sort."""
    assert bucket_names("all", 1) == ["all"]
    assert bucket_names("all", 12)[:2] == ["all/bucket=00", "all/bucket=01"]
