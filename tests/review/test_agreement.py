"""Agreement over many images: every image in one place, figures by hand, and an order that changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.imaging.masks import edges, rle
from unet_batch.review.agreement import OK, OTHER_SIZE, Agreement, CountedImages, Masks, MasksOrReason, agree_on

SIDE = 4


def masks(labels_hw: np.ndarray) -> Masks:
    """The masks of a label map: letters are classes, a dot is none."""
    found = {str(name): labels_hw == name for name in np.unique(labels_hw) if name != "."}
    return Masks({name: edges(rle(mask), mask.shape) for name, mask in found.items()}, labels_hw.shape)


def predicted(levels: str, size: int = SIDE) -> Masks:
    """A prediction whose first pixels have the classes that the letters name."""
    return masks(np.array(list(levels.ljust(size * size, "."))).reshape(size, size))


def of(*pairs: tuple[MasksOrReason, MasksOrReason], top: int = 10) -> Agreement:
    found = Agreement(top)
    for i, (a, b) in enumerate(pairs):
        found.add(f"k{i}", agree_on(a, b))
    return found


def keys(images) -> list[str]:
    return [image.key for image in images]


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
    """Compared, or told with what both sides say and the first such image."""
    corrupt, timeout = "decode.corrupt", "decode.timeout"
    found = of(
        (predicted("x"), predicted("x")),
        (predicted("x"), corrupt),
        (predicted("x"), corrupt),
        (corrupt, predicted("x")),
        (corrupt, timeout),
        (corrupt, corrupt),
        (predicted("x"), predicted("x", size=2)),
    )

    assert found.compared == 1
    assert found.not_compared == {
        (OK, corrupt): CountedImages(2, "k1"),
        (corrupt, OK): CountedImages(1, "k3"),
        (corrupt, timeout): CountedImages(1, "k4"),
        (corrupt, corrupt): CountedImages(1, "k5"),
        (OK, OTHER_SIZE): CountedImages(1, "k6"),
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
    wide, tall = np.full((2, 4), "x"), np.full((4, 2), "x")
    empty = Masks({}, (9, 11))

    assert agree_on(masks(wide), masks(tall)) == (OK, OTHER_SIZE)
    assert agree_on(masks(wide), masks(np.full((2, 4), "y"))).flipped_px == 8
    assert agree_on(masks(wide), empty).pixels == agree_on(empty, masks(wide)).pixels == 8
    assert agree_on(empty, empty).pixels == 99


def test_a_label_image_can_be_a_side():
    """Truth from files is compared as the masks of a run are: 3 of 16 pixels differ from the prediction."""
    truth = np.full((SIDE, SIDE), ".")
    truth[0] = "x"
    found = of((masks(truth), predicted("xxxxxxy")))

    assert (found.flipped_px, found.confusion) == (3, {(None, "x"): 2, (None, "y"): 1})
    assert found.classes["x"].overlap.dice == 2 * 4 / (4 + 6)


SAID = st.one_of(
    st.sampled_from(["decode.corrupt", "decode.timeout"]), st.builds(predicted, st.text("xy.", max_size=SIDE * SIDE))
)


@given(st.lists(st.tuples(SAID, SAID), max_size=12), st.randoms())
def test_the_order_of_images_changes_nothing(pairs, random):
    """Partitions may be read in any order; the examples alone are the first ones."""
    images = [(f"k{i:02}", agree_on(a, b)) for i, (a, b) in enumerate(pairs)]
    trees = []
    for _ in range(2):
        found = Agreement(top=3)
        for key, compared in images:
            found.add(key, compared)
        tree = {**found.to_json(), "worst": keys(found.most_flipped)}
        tree["not_compared"] = [(entry["a"], entry["b"], entry["images"]) for entry in tree["not_compared"]]
        tree["confusion"] = {(entry["a"], entry["b"]): entry["pixels"] for entry in tree["confusion"]}
        tree["classes"] = {(n, k): v for n, figures in tree["classes"].items() for k, v in figures.items()}
        trees.append(tree)
        random.shuffle(images)

    assert trees[0].pop("classes") == pytest.approx(trees[1].pop("classes"))
    assert trees[0] == trees[1]


@given(st.lists(st.tuples(SAID, SAID), max_size=12))
def test_no_image_is_lost_or_counted_twice(pairs):
    """The places of images add up to the images."""
    found = of(*pairs)

    assert found.compared + sum(there.images for there in found.not_compared.values()) == len(pairs)
