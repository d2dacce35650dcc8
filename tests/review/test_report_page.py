"""The page: well-formed, whole in itself, and deaf to what other people write into names and messages."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from project_fixture import Project, png

from unet_batch.planning.survey import window_of
from unet_batch.review.bottleneck import Bottleneck
from unet_batch.review.page import PARTITIONS_SHOWN, _bytes, _percent, _seconds, queries, render, run_state
from unet_batch.review.report import PartitionLine, RunReport, gather
from unet_batch.review.run_records import newest_record

DAY = "2026/11/21"
EMPTY = {"meta", "img", "br", "link", "input", "hr"}
"""HTML's elements without an end."""
SVG_EMPTY = {"rect", "line"}
NOW = datetime(2026, 11, 22, 6, tzinfo=UTC)


class Page(HTMLParser):
    """A page that was read strictly: every element ends where its parent has not yet ended."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SVG_EMPTY, f"<{tag}/> is no element without an end"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], f"</{tag}> ends another element"
        self.open.pop()

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open[-1:]):
            self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def report_of(project: Project, *overrides: str, pictures: int = 4) -> RunReport:
    prepared = project.prepared(*overrides)
    return gather(prepared, newest_record(prepared, window_of("all")), pictures=pictures)


@pytest.fixture
def report(project) -> RunReport:
    """Three images, one of them with an empty mask, and one rejection."""
    project.fill(DAY, 3)
    project.put(f"{DAY}/dark.png", png(1, bright_rows=0))
    project.put(f"{DAY}/notes.png", b"no image")
    project.run()
    return report_of(project)


def test_the_page_is_well_formed_and_has_one_heading_of_the_first_level(report):
    """Sections follow below it, each named by its own heading, and no identifier is there twice."""
    page = Page(render(report))
    assert (page.count("h1"), page.count("main"), page.all("html")) == (1, 1, [{"lang": "en"}])
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(names)) == len(names)
    assert [section["aria-labelledby"] for section in page.all("section")] == names
    assert names == ["partitions", "rejected", "speed", "classes", "queue", "sample", "facts", "again"]


def test_the_page_needs_nothing_else(report):
    """No script, no address, no event: pictures are inside, and a policy forbids the rest."""
    page = Page(render(report))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    places = [v for _, found in page.tags for name, v in found.items() if name in ("src", "href", "srcset", "action")]
    assert places
    assert all(place.startswith("data:image/jpeg;base64,") for place in places)
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    assert "url(" not in render(report).decode()
    assert "@import" not in render(report).decode()
    [policy] = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_tables_and_pictures_can_be_read_without_seeing_them(report):
    """Every table has a caption and heads with a scope; every picture and chart says in words what it shows."""
    page = Page(render(report))
    assert page.count("caption") == page.count("table") >= 4
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(chart.get("aria-label") or chart.get("aria-hidden") == "true" for chart in page.all("svg"))
    assert any("outlined: class_1 25.0%" in image["alt"] for image in page.all("img"))


def test_names_with_html_in_them_are_text(project):
    """A file may be called anything, and so may a message, a class or a job."""
    nasty = '<script>alert(1)</script>"><img src=x onerror=alert(2)>.png'.replace("/", "∕")
    project.put(f"{DAY}/{nasty}", png(3))
    project.put(f"{DAY}/bad{nasty}", b"no image")
    project.run()
    found = report_of(project)
    found = replace(found, job="<b>job</b>", problems=('<script src="//x">',), facts=(("model", "</dd><script>"),))
    page = Page(render(found))
    assert page.count("script") == 0
    assert "<script>alert(1)" in page.words
    assert "<b>job</b>" in page.words
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert [image["src"][:23] for image in page.all("img")] == ["data:image/jpeg;base64,"] * 2


def test_what_is_signed_is_not_shown(project):
    """Problems may quote a store that answered with a signed address; the record is redacted, and so is the page."""
    project.fill(DAY, 1)
    run = project.run().run
    path = project.folder / "out" / "_work" / "runs" / f"{run}.json"
    tree = json.loads(path.read_text())
    tree["did"]["problems"] = [
        "date=2026-11-21: https://me:hunter2@store.example/?sig=hunter4",
        "cannot read https://me:hunter2@store.example/x?X-Amz-Signature=hunter3",
    ]
    path.write_text(json.dumps(tree))
    page = render(report_of(project)).decode()
    assert "hunter" not in page
    assert "store.example/x" in page


def test_a_run_without_published_rows_still_has_a_page(project):
    """Problems and reasons, and none of the sections that count rows."""
    project.put(f"{DAY}/notes.png", b"no image")
    project.run("limits.max_rejected=0")
    page = Page(render(report_of(project, "limits.max_rejected=0")))
    assert "✕ Incomplete" in page.words
    assert "they wait in staged parts" in page.words
    assert {"classes", "queue", "again"}.isdisjoint(section["aria-labelledby"] for section in page.all("section"))


def test_several_classes_have_colours_of_their_own(report):
    """A swatch beside the name is the colour of the outline."""
    one, *_ = report.figures.classes
    many = replace(report.figures, classes=tuple(replace(one, id=n, name=f"kind {n}") for n in range(1, 5)))
    page = Page(render(replace(report, figures=many)))
    swatches = [mark["style"] for mark in page.all("i")]
    assert len(set(swatches)) == 4


def test_without_pictures_the_queue_is_a_list(project):
    """`--pictures 0`: the page still says whom to look at."""
    project.fill(DAY, 2)
    project.run()
    page = Page(render(report_of(project, pictures=0)))
    assert (page.count("img"), page.all("details")[0]) == (0, {"open": None})
    assert "2026/11/21/001.png" in page.words


def test_many_partitions_show_those_that_need_somebody(report):
    """A year of days: the two that are not published are in the list."""
    [line] = report.partitions
    days = [replace(line, partition=f"date=2025-{n // 28 + 1:02}-{n % 28 + 1:02}") for n in range(300)]
    days[5] = PartitionLine(days[5].partition, "missing", 3, 3, "not published", None, ("one image has no row",))
    page = Page(render(replace(report, partitions=tuple(days))))
    assert "one image has no row" in page.words
    assert "2025-11-20" in page.words
    assert f"{300 - PARTITIONS_SHOWN} more partitions are not listed here" in page.words


def test_the_verdict_comes_first(report):
    """One sentence for every way in which a night may end."""
    missing = PartitionLine("date=2026-11-22", "missing", 3, 3, "not published", None, ("x",))
    assert run_state(report).sentence == "Every image that was listed in 1 partition has exactly one row."
    both = replace(report, exit_code=3, partitions=(*report.partitions, missing))
    assert run_state(both).sentence == "1 of 2 partitions is not published."
    met = replace(report, exit_code=3)
    assert run_state(met).sentence == "Its partitions were published, but the run had a problem."
    assert run_state(replace(report, exit_code=None)).state == "unknown"


def test_queries_quote_what_they_name(report):
    """A folder with an apostrophe is no end of a text."""
    text = queries(replace(report, output="file:///nights/o'clock"))
    assert "'/nights/o''clock/predictions/date=2026-11-21/data.parquet'" in text


def test_the_page_says_when_it_was_made(report):
    """The rows may be others by the time it is read."""
    assert "Made 2026-11-22 06:00 UTC." in Page(render(report, now=NOW)).words


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.123, "12.3%"), (0.0234, "2.3%"), (0.00023, "0.023%"), (1e-9, "<0.0001%")],
)
def test_shares_have_two_figures_that_mean_something(share, text):
    """A class that covers a ten-thousandth of a picture is not 0%."""
    assert _percent(share) == text


def test_durations_and_sizes_are_written_for_people():
    """Seconds below a minute, minutes below an hour."""
    assert [_seconds(s) for s in (3.14, 61, 3600, 7260)] == ["3.1 s", "1 min 01 s", "1 h 00 min", "2 h 01 min"]
    assert [_bytes(n) for n in (999, 1500, 2.5e9, 3e12)] == ["999 B", "1.5 kB", "2.5 GB", "3.0 TB"]


def test_what_is_to_be_typed_stands_out(report):
    """Advice names keys and commands between backticks; the page shows them as code, and escaped like all else."""
    stuck = Bottleneck("read", "It is slow.", "use `a<b` & go")
    page = render(replace(report, speed=replace(report.speed, bottleneck=stuck))).decode()
    assert "<b>It is slow.</b> use <code>a&lt;b</code> &amp; go" in page
