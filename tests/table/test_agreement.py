"""Agreement over many images: every image in one place, figures by hand, and partitions that add up to the whole."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.imaging.masks import rle
from unet_batch.review.agreement import OK, Agreement, ClassMask, Found, Obstacle, Row, agree_rows

SIDE = 4


def predicted(levels: str, *, runs: bool = True, size: int = SIDE) -> Row:
    """A prediction whose first pixels have the classes that the letters name; a dot is no class."""
    pixels = np.array(list(levels.ljust(size * size, "."))).reshape(size, size)
    classes = {
        name: ClassMask(
            int((pixels == name).sum()),
            (size, size) if runs else None,
            rle(pixels == name) if runs else None,
        )
        for name in set(levels) - {"."}
    }
    return Row("memory://a/x.png", None, 0, OK, size * size, classes)


def rejected(reason: str) -> Row:
    return Row("memory://a/x.png", None, 0, reason, 0, {})


def of(*pairs: tuple[Row | None, Row | None], top: int = 10) -> Agreement:
    return Agreement.of([(f"k{i}", a, b) for i, (a, b) in enumerate(pairs)], top=top)


def keys(images) -> list[str]:
    return [image.key for image in images]


def row(masks: dict[str, np.ndarray], *, runs: bool = True, source_px: int = 0) -> Row:
    cells = {n: ClassMask(int(m.sum()), m.shape if runs else None, rle(m) if runs else None) for n, m in masks.items()}
    return Row("memory://a/1.png", None, 0, OK, source_px, cells)


def test_two_images_by_hand():
    """x has 2 + 4 pixels in A and 4 + 4 in B, of which 2 + 4 are shared; 2 of 32 pixels flip."""
    found = of((predicted("xx"), predicted("xxxx")), (predicted("xxxx"), predicted("xxxx")))

    assert (found.compared, found.unchanged, found.pixels, found.flipped_px) == (2, 1, 32, 2)
    x = found.classes["x"]
    assert (x.overlap.area_a_px, x.overlap.area_b_px, x.images_a, x.images_b) == (6, 8, 2, 2)
    assert (x.overlap.dice, x.overlap.iou, x.mean_dice) == (12 / 14, 6 / 8, (2 / 3 + 1) / 2)
    assert found.confusion == {(None, "x"): 2}


def test_an_image_counts_for_a_class_that_either_side_has():
    """y is in one image of three and only in B: its Dice is 0 there, and the other two do not count."""
    found = of(
        (predicted("xx"), predicted("yy")), (predicted("x"), predicted("")), (predicted("x"), predicted("x"))
    ).to_json()["classes"]

    assert (found["x"]["images_a"], found["x"]["images_b"], found["x"]["mean_dice"]) == (3, 1, 1 / 3)
    assert (found["y"]["images_a"], found["y"]["images_b"], found["y"]["dice"], found["y"]["iou"]) == (0, 1, 0.0, 0.0)
    assert found["y"]["mean_dice"] == 0.0


def test_every_image_lies_in_one_place():
    """Compared, changed in its verdict, rejected alike, or not comparable for one reason."""
    broken = predicted("x")
    broken.classes["x"] = ClassMask(1, (SIDE, SIDE), "no runs")
    found = of(
        (predicted("x"), predicted("x")),
        (predicted("x"), rejected("decode.corrupt")),
        (predicted("x"), rejected("decode.corrupt")),
        (rejected("decode.corrupt"), predicted("x")),
        (rejected("decode.corrupt"), rejected("decode.timeout")),
        (rejected("decode.corrupt"), rejected("decode.corrupt")),
        (predicted("x"), predicted("x", size=2)),
        (predicted("x"), broken),
        (None, predicted("x")),
        (predicted("x"), predicted("x", runs=False)),
    )

    assert (found.compared, found.rejected_alike) == (1, 1)
    assert found.changes == {
        (OK, "decode.corrupt"): Found(2, "k1"),
        ("decode.corrupt", OK): Found(1, "k3"),
        ("decode.corrupt", "decode.timeout"): Found(1, "k4"),
    }
    assert found.not_comparable == {
        Obstacle.OTHER_SIZE: Found(1, "k6"),
        Obstacle.NO_MASK: Found(1, "k7"),
        Obstacle.DAMAGED: Found(1, "k8"),
        Obstacle.NO_RUNS: Found(1, "k9"),
    }


def test_the_images_that_differ_most_come_first_and_equal_ones_are_left_out():
    """By share of flipped pixels; of equals, the first key."""
    pairs = [
        (predicted("xxxxxxxx"), predicted("xxxx")),  # 4 flips
        (predicted("x"), predicted("")),  # 1 flip
        (predicted("x"), predicted("x")),  # none
        (predicted("xx"), predicted("")),  # 2 flips
        (predicted(""), predicted("y")),  # 1 flip
    ]

    assert keys(of(*pairs).most_flipped) == ["k0", "k3", "k1", "k4"]
    assert keys(of(*pairs, top=1).most_flipped) == ["k0"]
    assert keys(of(*pairs, top=0).most_flipped) == []


def test_masks_of_another_size_are_not_compared():
    """Also where they have as many pixels; an empty mask fits any."""
    wide, tall = np.ones((2, 4), bool), np.ones((4, 2), bool)

    assert agree_rows(row({"x": wide}), row({"x": tall})) is Obstacle.OTHER_SIZE
    assert agree_rows(row({"x": wide}), row({"y": wide})).flipped_px == 8
    assert agree_rows(row({"x": wide}), row({}, source_px=99)).pixels == 8
    assert agree_rows(row({}, source_px=12), row({}, source_px=12)).pixels == 12


def test_a_side_that_keeps_areas_only_is_not_compared():
    """Equal areas say nothing about pixels."""
    mask = np.ones((2, 4), bool)

    assert agree_rows(row({"x": mask}, runs=False), row({"x": mask})) is Obstacle.NO_RUNS
    assert agree_rows(row({}, source_px=8), row({"x": mask}, runs=False)) is Obstacle.NO_RUNS


def test_runs_that_contradict_their_area_are_not_compared():
    """area_px is what other engines sum up: a row that contradicts itself cannot be trusted."""
    mask = np.ones((2, 2), bool)
    wrong = row({"x": mask})
    wrong.classes["x"] = ClassMask(3, (2, 2), rle(mask))

    assert agree_rows(row({"x": mask}), wrong) is Obstacle.NO_MASK


def class_figures(found: Agreement) -> dict[tuple[str, str], float]:
    return {(name, key): value for name, c in found.classes.items() for key, value in c.to_json().items()}


ROWS = st.one_of(
    st.none(),
    st.sampled_from(["decode.corrupt", "decode.timeout"]).map(rejected),
    st.builds(
        predicted,
        st.text("xy.", max_size=SIDE * SIDE),
        runs=st.booleans(),
    ),
)


@given(st.lists(st.tuples(ROWS, ROWS), max_size=12), st.integers(0, 12))
def test_partitions_add_up_to_the_whole(pairs, cut):
    """However the images are divided, all figures and the images that differ most are the same."""
    images = [(f"k{i:02}", a, b) for i, (a, b) in enumerate(pairs)]
    whole = Agreement.of(images, top=3)
    sums = Agreement.of(images[:cut], top=3) + Agreement.of(images[cut:], top=3)

    exact = [f.name for f in fields(Agreement) if f.name != "classes"]
    assert {name: getattr(sums, name) for name in exact} == {name: getattr(whole, name) for name in exact}
    assert class_figures(sums) == pytest.approx(class_figures(whole))


@given(st.lists(st.tuples(ROWS, ROWS), max_size=12))
def test_no_image_is_lost_or_counted_twice(pairs):
    """The places of images add up to the images."""
    found = of(*pairs)
    elsewhere = [*found.changes.values(), *found.not_comparable.values()]

    assert found.compared + found.rejected_alike + sum(f.images for f in elsewhere) == len(pairs)
