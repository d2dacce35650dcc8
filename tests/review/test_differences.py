"""The pages of `evaluate` and `compare`: the images that differ most in three pictures, and the gate of `compare`."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from models import threshold_model
from PIL import Image
from project_fixture import SIZE, Project, last_json, png, project
from test_report_page import Page

from unet_batch.imaging.masks import edges, filled, rle
from unet_batch.planning.survey import window_of
from unet_batch.review.compare import Comparison, compare
from unet_batch.review.differences.gather import comparison_page, evaluation_page
from unet_batch.review.differences.page import DifferencePage, render
from unet_batch.review.differences.pictures import A_COLOR, B_COLOR, BOTH_COLOR
from unet_batch.review.evaluate import evaluate

__all__ = ["project"]

DAY, NAME = "2026/11/21", "2026-11-21"


def put_truth(project: Project, stem: str, rows: int) -> None:
    """A truth whose first rows are class 1."""
    path = project.folder / "truth" / f"{stem}.png"
    path.parent.mkdir(exist_ok=True)
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[:rows] = 1
    Image.fromarray(labels).save(path)


@pytest.fixture
def scored(project) -> Project:
    """Predicted are the first 8 rows of 32; the truth of `001` is 16 rows, that of `000` is 4."""
    project.fill(DAY, 2)
    project.run()
    put_truth(project, "000", 4)
    put_truth(project, "001", 16)
    return project


def evaluated(project: Project, wanted: dict[str, float] | None = None) -> DifferencePage:
    prepared = project.prepared()
    found = evaluate(prepared, window_of("all"), f"{project.folder}/truth/{{stem}}.png", top=10)
    return evaluation_page(prepared, found, (("truth", "truth/{stem}.png"),), wanted=wanted or {})


def picture(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def nearest(pixel: np.ndarray, *colors: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour to whose hue a pixel is nearest: its shades over gray."""
    shades = [np.subtract(color, np.mean(color)) for color in colors]
    cosines = [s @ (pixel - pixel.mean()) / np.linalg.norm(s) for s in shades]
    return colors[int(np.argmax(cosines))]


def test_filled_is_the_inverse_of_edges():
    """For masks that begin or end inside, that are empty, and that are full."""
    random = np.random.default_rng(4).integers(0, 2, (7, 5)).astype(bool)
    for mask in (random, ~random, np.zeros((7, 5), bool), np.ones((7, 5), bool)):
        np.testing.assert_array_equal(filled(edges(rle(mask), (7, 5)), (7, 5)), mask)


def test_the_worst_images_have_three_pictures(scored):
    """Of `001`, rows 0 to 7 agree and rows 8 to 15 were missed; of `000`, rows 4 to 7 are false."""
    false, missed = evaluated(scored).pictures
    assert [p.pair.row["image_key"].rpartition("/")[2] for p in (false, missed)] == ["000.png", "001.png"]
    drawn = picture(missed.views.difference)
    row = drawn.shape[0] // SIZE
    colors = (A_COLOR, B_COLOR, BOTH_COLOR)
    assert nearest(drawn[2 * row, 100], *colors) == BOTH_COLOR
    assert nearest(drawn[12 * row, 100], *colors) == B_COLOR
    assert nearest(picture(false.views.difference)[6 * row, 100], *colors) == A_COLOR
    assert np.ptp(drawn[24 * row, 100]) < 12  # neither: gray as the image
    assert missed.shares == (0.25, 0.5)


def test_a_side_is_filled_and_outlined(scored):
    """The truth's border lies below row 16; its colour is full there and light inside."""
    _, missed = evaluated(scored).pictures
    drawn = picture(missed.views.b)
    row = drawn.shape[0] // SIZE
    assert np.abs(drawn[16 * row, 100] - B_COLOR).max() < 25
    assert np.abs(drawn[12 * row, 100] - B_COLOR).max() > 20
    assert nearest(drawn[12 * row, 100], A_COLOR, B_COLOR) == B_COLOR


def test_a_picture_that_cannot_be_had_is_a_sentence(scored):
    """One image was deleted, one was changed after it was scored: the figures stay."""
    (scored.folder / "archive" / DAY / "001.png").unlink()
    scored.put(f"{DAY}/000.png", png(50, bright_rows=20))
    found = evaluated(scored)
    assert [p.views for p in found.pictures] == [None, None]
    words = Page(render(found)).words
    assert words.count("no picture:") == 2
    assert "0.6666" in words


def test_the_page_is_well_formed_and_needs_nothing_else(scored):
    page = Page(render(evaluated(scored, {"class_1": 0.9})))
    assert [image["src"][:23] for image in page.all("img")] == ["data:image/jpeg;base64,"] * 6
    assert all("000.png" in i["alt"] or "001.png" in i["alt"] for i in page.all("img"))
    assert not {"script", "link", "iframe", "form"} & {tag for tag, _ in page.tags}
    assert page.count("caption") == page.count("table") == 3
    assert "✕ Not passed" in page.words
    assert "Mean Dice of class_1 is 0.6666, below --min-dice 0.9" in page.words


def test_names_and_patterns_with_html_in_them_are_text(project):
    nasty = "<script>alert(1)</script>".replace("/", "∕")
    project.put(f"{DAY}/{nasty}.png", png(3))
    project.run()
    put_truth(project, nasty, 4)
    page = Page(render(evaluated(project)))
    assert page.count("script") == 0
    assert "<script>alert(1)" in page.words


# compare --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(project) -> tuple[Project, str, str]:
    """Two runs over one picture more than the first fixture: `gray` is empty in A and full in B."""
    made = threshold_model("nchw", 1, 3, size=SIZE)
    (project.folder / "three.onnx").write_bytes(made.data)
    (project.folder / "three.yaml").write_text(made.contract_yaml)
    project.fill(DAY, 1)
    project.put(f"{DAY}/gray.png", png(90, bright_rows=0))
    a = project.run().run
    return project, a, project.run(f"model.path={project.folder}/three.onnx").run


def compared(project: Project, a: str, b: str, **options) -> Comparison:
    return compare(project.prepared(), a, b, window_of("all"), **options)


def test_the_images_that_differ_most_are_drawn_in_their_order(two):
    project, a, b = two
    found = compared(project, a, b)
    page = comparison_page(project.prepared(), found, (("A", a), ("B", b)), wanted={})
    assert [p.pair.row["image_key"].rpartition("/")[2] for p in page.pictures] == ["gray.png", "000.png"]
    assert [p.pair.dice for p in page.pictures] == [0.0, 0.0]
    assert page.pictures[0].shares == (0.0, 1.0)
    text = render(page).decode()
    jpegs = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert len(jpegs) == 6
    assert nearest(picture(base64.b64decode(jpegs[2]))[100, 100], A_COLOR, B_COLOR, BOTH_COLOR) == B_COLOR


def test_only_the_worst_are_kept_over_all_partitions(project):
    """An image of the second day pushes one of the first from the list."""
    project.put("2026/11/20/a.png", png(1, bright_rows=4))
    project.put(f"{DAY}/b.png", png(1, bright_rows=20))
    made = threshold_model("nchw", 1, 3, size=SIZE)
    (project.folder / "three.onnx").write_bytes(made.data)
    (project.folder / "three.yaml").write_text(made.contract_yaml)
    a, b = project.run().run, project.run(f"model.path={project.folder}/three.onnx").run
    found = compared(project, a, b, top=1)
    assert [(key.rpartition("/")[2], pair.partition) for key, pair in found.pairs.items()] == [
        ("b.png", f"date={NAME}")
    ]


def test_the_gate_of_a_comparison_is_a_sentence_for_each_class(two):
    project, a, b = two
    found = compared(project, a, b)
    assert found.failures({"class_1": 0.0}) == []
    assert found.failures({"class_1": 0.5, "class_9": 0.5}) == [
        "mean Dice of class_1 is 0.0000, below --min-dice 0.5",
        "mean Dice of class_9 is unknown: no image that was compared has it",
    ]


@pytest.mark.slow
def test_the_command_writes_a_page_and_is_a_gate(two):
    """Exit code 5 below the limit, 2 for a class that neither side nor the contract has; 0 without a limit."""
    project, a, b = two
    fine = project.command("compare", "job.yaml", a, b)
    low = project.command("compare", "job.yaml", a, b, "--min-dice", "class_2=0.9")
    wrong = project.command("compare", "job.yaml", a, b, "--min-dice", "nucleus=0.9")
    assert (fine.returncode, low.returncode, wrong.returncode) == (0, 5, 2), fine.stderr + low.stderr + wrong.stderr
    assert "mean Dice of class_2 is 0.0000, below --min-dice 0.9" in low.stderr
    assert "the classes are class_1, class_2" in wrong.stderr
    page = last_json(fine)["page"].removeprefix("file://")
    assert page.endswith("-comparison.html")
    with open(page, "rb") as file:
        assert b"data:image/jpeg" in file.read()
