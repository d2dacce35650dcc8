"""Agreement over many images: every image in one place, figures by hand, and partitions that add up to the whole."""

from __future__ import annotations

from dataclasses import astuple, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.imaging.masks import rle
from unet_batch.table.agreement import Agreement, Found
from unet_batch.table.pairs import OK, ClassMask, Obstacle, Row

SIDE = 4


def predicted(levels: str, *, runs: bool = True, confidence: float | None = None, size: int = SIDE) -> Row:
    """A prediction whose first pixels have the classes that the letters name; a dot is no class."""
    pixels = np.array(list(levels.ljust(size * size, "."))).reshape(size, size)
    classes = {
        name: ClassMask(
            area := int((pixels == name).sum()),
            area / pixels.size,
            (size, size) if runs else None,
            rle(pixels == name) if runs else None,
        )
        for name in set(levels) - {"."}
    }
    return Row("memory://a/x.png", None, 0, OK, size * size, confidence, classes)


def rejected(reason: str) -> Row:
    return Row("memory://a/x.png", None, 0, reason, 0, None, {})


def of(*pairs: tuple[Row | None, Row | None], top: int = 10) -> Agreement:
    return Agreement.of([(f"k{i}", a, b) for i, (a, b) in enumerate(pairs)], top=top)


def keys(images) -> list[str]:
    return [image.key for image in images]


def test_two_images_by_hand():
    """x has 2 + 4 pixels in A and 4 + 4 in B, of which 2 + 4 are shared; 2 of 32 pixels flip."""
    found = of((predicted("xx"), predicted("xxxx")), (predicted("xxxx"), predicted("xxxx")))

    assert (found.compared, found.unchanged, found.pixels, found.flipped_px) == (2, 1, 32, 2)
    x = found.classes["x"]
    assert (x.area_a_px, x.area_b_px, x.area_change) == (6, 8, pytest.approx(1 / 3))
    assert (x.dice, x.mean_dice) == (12 / 14, (2 / 3 + 1) / 2)
    assert (x.images_a, x.images_b, x.appears, x.disappears) == (2, 2, 0, 0)


def test_a_class_that_appears_and_one_that_disappears_are_counted_by_image():
    """y comes in one image of three, x goes in two."""
    found = of(
        (predicted("xx"), predicted("yy")), (predicted("x"), predicted("")), (predicted("x"), predicted("x"))
    ).to_json(rankings=False)["classes"]

    assert (found["x"]["images_a"], found["x"]["images_b"]) == (3, 1)
    assert (found["x"]["disappears_share"], found["y"]["appears_share"]) == (2 / 3, 1 / 3)
    assert (found["x"]["appears_share"], found["y"]["disappears_share"]) == (0.0, 0.0)
    assert (found["y"]["area_change"], found["y"]["dice"], found["y"]["mean_dice"]) == (None, 0.0, 0.0)


def test_every_image_lies_in_one_place():
    """Compared, changed in its verdict, rejected alike, or not comparable for one reason."""
    broken = predicted("x")
    broken.classes["x"] = ClassMask(1, 1 / 16, (SIDE, SIDE), "no runs")
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
    }


def test_the_confidence_is_that_of_images_which_have_one_on_both_sides():
    """0.5 → 0.75 and nothing else; without any there is no change."""
    found = of(
        (predicted("x", confidence=0.5), predicted("x", confidence=0.75)),
        (predicted("x"), predicted("x", confidence=0.1)),
    )

    assert (found.with_confidence, found.confidence_change) == (1, 0.25)
    assert of((predicted("x"), predicted("x"))).confidence_change is None


def test_the_rankings_keep_the_worst_images_and_leave_out_perfect_ones():
    """By share of flipped pixels, and by Dice: an image that lost one pixel of a large class is far down in both."""
    pairs = [
        (predicted("xxxxxxxx"), predicted("xxxx")),  # 4 flips, Dice 8 / 12
        (predicted("x"), predicted("")),  # 1 flip, Dice 0
        (predicted("x"), predicted("x")),  # none
        (predicted("xx"), predicted("")),  # 2 flips, Dice 0 of the larger class
    ]

    assert keys(of(*pairs).most_flipped) == ["k0", "k3", "k1"]
    assert keys(of(*pairs).lowest_dice) == ["k3", "k1", "k0"]
    assert keys(of(*pairs, top=1).most_flipped) == ["k0"]
    assert keys(of(*pairs, top=0).lowest_dice) == []


def test_by_area_alone_nothing_of_the_masks_is_left():
    """Areas, images and confidence stay; shares of pixels and Dice are unknown, not 0."""
    found = of(
        (predicted("xx", runs=False), predicted("x", confidence=0.5)), (predicted(""), predicted("x"))
    ).by_area_alone()

    assert (found.compared, found.by_area, found.flipped_share, found.most_flipped) == (2, 2, None, ())
    x = found.classes["x"]
    assert (x.area_a_px, x.area_b_px, x.appears, x.dice, x.mean_dice) == (2, 2, 1, None, None)
    assert keys(found.lowest_dice) == ["k1", "k0"]


def class_figures(found: Agreement) -> dict[tuple[str, int], float]:
    return {(name, i): value for name, c in found.classes.items() for i, value in enumerate(astuple(c))}


ROWS = st.one_of(
    st.none(),
    st.sampled_from(["decode.corrupt", "decode.timeout"]).map(rejected),
    st.builds(
        predicted,
        st.text("xy.", max_size=SIDE * SIDE),
        runs=st.booleans(),
        confidence=st.sampled_from([None, 0.25, 0.5]),  # sums of these are exact in any order
    ),
)


@given(st.lists(st.tuples(ROWS, ROWS), max_size=12), st.integers(0, 12))
def test_partitions_add_up_to_the_whole(pairs, cut):
    """However the images are divided, all figures and both rankings are the same."""
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
