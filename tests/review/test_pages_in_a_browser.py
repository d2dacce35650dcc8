"""The pages of a run, an evaluation and a comparison in Chromium: on a screen, on a phone, on paper, and read aloud.

axe-core looks for what keeps people with other eyes, ears and hands out; it comes with axe-playwright-python.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import threshold_model
from PIL import Image
from project_fixture import SIZE, Project, new_project, png
from test_report_page import report_of

from unet_batch.planning.survey import window_of
from unet_batch.review import page as report_page
from unet_batch.review.compare import compare
from unet_batch.review.differences import page as difference_page
from unet_batch.review.differences.gather import comparison_page, evaluation_page
from unet_batch.review.evaluate import evaluate

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-quic", "--disable-sync"]
"""A browser asks servers of its makers for many things of its own accord."""
PHONE, DESKTOP = (390, 844), (1280, 900)
PAGES = ("report", "evaluation", "comparison")
DAYS, IMAGES = range(14, 22), range(4)
COLORS = ["color-contrast", "link-in-text-block"]
"""axe's rules that a scheme of other colours can break."""
PAPER_MM = (180, 220, 297)
"""Heights of paper: each puts the page breaks somewhere else."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three pages, of eight days with rejections, empty masks, and a second model with one class more."""
    folder = tmp_path_factory.mktemp("pages")
    project = new_project(folder)
    for day in DAYS:
        for number in IMAGES:
            project.put(f"2026/11/{day}/{number:03}.png", png(25 * number, bright_rows=4 * number))
            put_truth(folder / "truth" / f"2026-11-{day}" / f"{number:03}.png", rows=4 * number + day % 3 * 2)
    for name in ("20/notes.png", "21/a name that is quite long and has no end, of a file that is broken.png"):
        project.put(f"2026/11/{name}", b"no image")
    found = {}
    for name, body in bodies(project):
        found[name] = folder / f"{name}.html"
        found[name].write_bytes(body)
    return found


def bodies(project: Project) -> Iterator[tuple[str, bytes]]:
    """Name and HTML of each page."""
    prepared, window = project.prepared(), window_of("all")
    first = project.run().run
    yield "report", report_page.render(report_of(project, pictures=6))
    pattern = f"{project.folder}/truth/{{date}}/{{stem}}.png"
    wanted, asked = {"class_1": 0.9}, (("truth", pattern), ("window", "all"))
    evaluated = evaluate(prepared, window, pattern, top=10)
    yield "evaluation", difference_page.render(evaluation_page(prepared, evaluated, asked, wanted=wanted))
    made = threshold_model("nchw", 1, 3, size=SIZE)
    (project.folder / "three.onnx").write_bytes(made.data)
    (project.folder / "three.yaml").write_text(made.contract_yaml)
    second = project.run(f"model.path={project.folder}/three.onnx").run
    compared = compare(prepared, first, second, window)
    sides = (("A", first), ("B", second), ("window", "all"))
    yield "comparison", difference_page.render(comparison_page(prepared, compared, sides, wanted={}))


def put_truth(path: Path, rows: int) -> None:
    """A truth whose first rows are class 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[:rows] = 1
    Image.fromarray(labels).save(path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium as the system installs it."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield started
        started.close()


def opened(browser: Any, file: Path, size: tuple[int, int] = DESKTOP) -> Any:
    """The page in a context of its own, without a network. Its details are open, so that nothing is left out."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="light", offline=True, is_mobile=size == PHONE
    )
    page = context.new_page()
    page.goto(file.as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    return page


def findings(page: Any, **options: Any) -> list[str]:
    """What axe found: rule, the element, and what is wrong with it. options: axe's own."""
    found = axe.Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [f"{rule['id']}: {node['html'][:120]}: {node['failureSummary']}" for rule in found for node in rule["nodes"]]


# On a screen ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(browser, files, name, size):
    """Contrast, names of tables and pictures, headings, regions that scroll by keyboard, and some ninety rules more.

    The dark scheme has other colours and nothing else: there, the rules about colours. Wide tables scroll by
    themselves; the page is no wider than its screen.
    """
    page = opened(browser, files[name], size)
    assert findings(page) == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
    page.emulate_media(color_scheme="dark")
    assert findings(page, runOnly=COLORS) == []
    page.context.close()


def test_axe_would_find_something(browser, files):
    """A picture without words, and text that is pale in the dark, so that its silence means something."""
    page = opened(browser, files["evaluation"])
    page.add_style_tag(
        content=":root { --muted: #62676f } @media (prefers-color-scheme: dark) { :root { --muted: #445 } }"
    )
    page.eval_on_selector("img", "one => one.removeAttribute('alt')")
    assert {finding.partition(":")[0] for finding in findings(page)} == {"image-alt"}
    page.emulate_media(color_scheme="dark")
    assert {finding.partition(":")[0] for finding in findings(page, runOnly=COLORS)} == {"color-contrast"}
    page.context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_but_itself(browser, files, name):
    """No font, no script, no picture of anybody else; the console has nothing to say either."""
    context = browser.new_context()
    asked, said = [], []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(files[name].as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [files[name].as_uri()]
    assert said == []
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_is_shown(browser, files, name):
    """An embedded picture that cannot be decoded is a gap."""
    page = opened(browser, files[name])
    decode = "all => Promise.all(all.map(one => { one.loading = 'eager'; return one.decode() }))"
    page.eval_on_selector_all("img", decode)
    sizes = page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
    assert sizes
    assert all(size > 100 for size in sizes)
    page.context.close()


# On paper -------------------------------------------------------------------------------------------------------------


def text_of(sheet: Any) -> str:
    """All text of a sheet, without spaces, from the top; by its place, since the order of painting is another."""
    lines: dict[int, list[str]] = {}

    def note(text: str, canvas: list[float], place: list[float], _font: Any, _size: float) -> None:
        height = round(canvas[1] * place[4] + canvas[3] * place[5] + canvas[5])
        lines.setdefault(height, []).append("".join(text.split()))

    sheet.extract_text(visitor_text=note)
    return "".join("".join(lines[height]) for height in sorted(lines, reverse=True))


@pytest.mark.parametrize("name", PAGES)
def test_no_heading_is_the_last_line_of_a_sheet(browser, files, name):
    """On paper of three heights: what a heading or a caption names begins on the same sheet."""
    page = opened(browser, files[name])
    found = page.locator("h1, h2, h3, h2 + p, summary, caption, thead tr, .legend").all_text_contents()
    headings = {"".join(text.split()) for text in found}
    assert len(headings) >= 6
    stranded = {}
    for height in PAPER_MM:
        sheets = pypdf.PdfReader(io.BytesIO(page.pdf(width="210mm", height=f"{height}mm"))).pages
        assert len(sheets) > 1
        for number, sheet in enumerate(sheets, 1):
            text = text_of(sheet)
            if last := [heading for heading in headings if text.endswith(heading)]:
                stranded[f"{height} mm, sheet {number}"] = last
    assert stranded == {}
    page.context.close()
