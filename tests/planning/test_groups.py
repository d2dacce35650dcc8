"""How many images a run plans at a time."""

from __future__ import annotations

import pytest

from unet_batch.planning.groups import FEWEST_IMAGES, IMAGE_BYTES, MEMORY_SHARE, groups, images_at_once

IMAGES = {"a": 5, "b": 5, "c": 20, "d": 1, "e": 1}


@pytest.mark.parametrize(
    ("most_partitions", "most_images", "expected"),
    [
        (None, 100, [["a", "b", "c", "d", "e"]]),
        (2, 100, [["a", "b"], ["c", "d"], ["e"]]),
        (None, 10, [["a", "b"], ["c"], ["d", "e"]]),
        (None, 1, [["a"], ["b"], ["c"], ["d"], ["e"]]),
        (1, 100, [["a"], ["b"], ["c"], ["d"], ["e"]]),
    ],
)
def test_groups_keep_the_order_and_their_bounds(most_partitions, most_images, expected):
    """A partition is never divided, so one may be larger than a group."""
    assert list(groups(IMAGES, most_partitions, most_images)) == expected


def test_no_partition_is_no_group():
    assert list(groups({}, None, 10)) == []


def test_a_group_takes_a_share_of_the_memory_but_not_too_few_images():
    """On Ray every group starts its actors again."""
    assert images_at_once(64 << 30) == (64 << 30) // (MEMORY_SHARE * IMAGE_BYTES)
    assert images_at_once(1 << 30) == images_at_once(None) == FEWEST_IMAGES
