"""The last nights of a report: read from footers, up to the run's newest day, and shown with a y axis."""

from __future__ import annotations

from project_fixture import png, project
from test_report_page import Page, report_of

from unet_batch.review.page import _short, render
from unet_batch.review.trend import trend

__all__ = ["project"]


def test_nights_up_to_the_newest_of_the_run_are_counted(project):
    """Two nights, one of them with an empty mask and a rejection, and another model's night after them."""
    project.fill("2026/11/20", 2)
    project.fill("2026/11/21", 2)
    project.put("2026/11/21/dark.png", png(1, bright_rows=0))
    project.put("2026/11/21/notes.png", b"no image")
    fingerprint = project.run().fingerprint
    project.fill("2026/11/22", 1)
    project.run("tiling.overlap=0.5", window="2026-11-22")
    output = project.prepared().output
    first, second = trend(output, "date=2026-11-21", fingerprint)
    assert (first.rows, first.rejected, first.empty, first.same) == (2, 0, 0, True)
    assert (second.rows, second.rejected, second.empty) == (4, 0.25, 1 / 3)
    assert 0.5 < second.confidence < 1
    assert [night.same for night in trend(output, "date=2026-11-22", fingerprint)] == [True, True, False]


def test_one_night_is_no_trend_and_a_damaged_one_is_left_out(project):
    for day in (20, 21, 22):
        project.fill(f"2026/11/{day}", 1)
    fingerprint = project.run().fingerprint
    output = project.prepared().output
    assert trend(output, "date=2026-11-20", fingerprint) == ()
    assert trend(output, "all", fingerprint) == ()
    project.data("2026-11-21").write_bytes(b"damaged")
    assert [n.partition[-2:] for n in trend(output, "date=2026-11-22", fingerprint)] == ["20", "22"]


def test_the_page_shows_the_nights_in_charts_and_in_a_table(project):
    for day in (20, 21):
        project.fill(f"2026/11/{day}", 2)
    project.run()
    page = Page(render(report_of(project)))
    assert "2 published nights up to 2026-11-21" in page.words
    names = [chart["aria-label"] for chart in page.all("svg") if "nights" in chart.get("aria-label", "")]
    assert [name.split(" of ")[0] for name in names] == ["Rows", "Share", "Share", "Median confidence"]


def test_a_histogram_has_a_y_axis_and_counts(project):
    """Two images of one area: the axis has 0, 1 and 2, and the bar its count."""
    project.fill("2026/11/21", 2)
    project.run()
    chart = render(report_of(project)).decode().partition('aria-label="Area of class_1')[2].partition("</svg>")[0]
    assert all(f'text-anchor="end">{tick}</text>' in chart for tick in (0, 1, 2))
    assert 'class="count">2</text>' in chart


def test_counts_on_charts_have_four_characters_at_most():
    counts = (0, 999, 1234, 9_960, 123_456, 1_500_000)
    assert [_short(n) for n in counts] == ["0", "999", "1.2k", "10k", "123k", "1.5M"]


def test_every_landmark_has_a_name_of_its_own(project):
    """axe's rule landmark-unique: a table that scrolls is not called as its section is."""
    project.fill("2026/11/21", 2)
    project.put("2026/11/21/notes.png", b"no image")
    project.run()
    text = render(report_of(project)).decode()
    page = Page(text.encode())
    headings = {part.partition("<")[0] for part in (p.partition(">")[2] for p in text.split("<h2 ")[1:])}
    regions = [found["aria-label"] for found in page.all("div") if found.get("role") == "region"]
    assert len({*headings, *regions}) == len(headings) + len(regions)
