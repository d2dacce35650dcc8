"""A sample of an archive: real tiles, as a run would cut them, and where they lie."""

from __future__ import annotations

import numpy as np
import pytest
from models import threshold_model
from PIL import Image
from project_fixture import SIZE

from unet_batch.errors import JobError
from unet_batch.planning.survey import window_of
from unet_batch.workbench.sample import archive_tiles

DAY = "2026/11/21"


def test_tiles_are_what_a_run_would_feed(project):
    """Pixels of the file, normalised by the contract: level / 255 below the bright rows."""
    project.put(f"{DAY}/a.png", level=51)
    sample = archive_tiles(project.prepared(), window_of("all"), 1)
    assert sample.tiles_nhwc.shape == (1, SIZE, SIZE, 1)
    assert sample.tiles_nhwc.dtype == np.float32
    assert sample.tiles_nhwc[0, -1, 0, 0] == pytest.approx(51 / 255)
    assert sample.places == (f"file://{project.folder}/archive/{DAY}/a.png at 0,0",)


def test_images_are_taken_at_equal_distances(project):
    """Three of nine are the first, the fourth and the seventh, not the first three."""
    project.fill(DAY, 9)
    sample = archive_tiles(project.prepared(), window_of("all"), 3)
    assert [place.rpartition("/")[2] for place in sample.places] == [
        "000.png at 0,0",
        "003.png at 0,0",
        "006.png at 0,0",
    ]


def test_an_image_that_cannot_be_read_is_replaced(project):
    """The count is kept as long as there are other images."""
    project.fill(DAY, 4)
    project.put(f"{DAY}/000.png", b"no picture")
    assert len(archive_tiles(project.prepared(), window_of("all"), 2).places) == 2


def test_a_few_large_images_give_several_tiles_each(project):
    """One image of 2 × 2 tiles gives four tiles of different places."""
    path = project.put(f"{DAY}/a.png")
    Image.fromarray(np.arange(4 * SIZE * SIZE, dtype=np.uint8).reshape(2 * SIZE, 2 * SIZE)).save(path)
    sample = archive_tiles(project.prepared("tiling.overlap=0"), window_of("all"), 4)
    assert len(set(sample.places)) == 4


def test_tiles_of_many_sizes_are_cropped_to_one(project):
    """A model of any size and pictures of any size: with one picture of each size, none would be held out."""
    made = threshold_model("nchw", 1, 2)
    (project.folder / "model.onnx").write_bytes(made.data)
    for n, (height, width) in enumerate([(32, 64), (48, 48), (64, 32), (64, 64), (16, 80)]):
        path = project.put(f"{DAY}/{n}.png")
        Image.fromarray(np.full((height, width), 10 * n, np.uint8)).save(path)
    sample = archive_tiles(project.prepared(), window_of("all"), 5)
    assert sample.tiles_nhwc.shape == (3, 32, 48, 1)
    assert [place.rpartition("/")[2] for place in sample.places] == ["0.png at 0,0", "1.png at 0,0", "3.png at 0,0"]


def test_the_commonest_size_is_kept_where_a_model_takes_any(project):
    """A stack has one shape."""
    made = threshold_model("nchw", 1, 2)
    (project.folder / "model.onnx").write_bytes(made.data)
    project.fill(DAY, 3)
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(project.put(f"{DAY}/z.png"))
    assert archive_tiles(project.prepared(), window_of("all"), 4).tiles_nhwc.shape == (3, SIZE, SIZE, 1)


def test_a_window_without_a_readable_image_is_an_error(project):
    """The message names the archive and what to change."""
    project.put(f"{DAY}/a.png", b"no picture")
    with pytest.raises(JobError, match=r"none of 1 images .* another --window"):
        archive_tiles(project.prepared(), window_of("all"), 2)


def test_a_sample_of_nothing_is_an_error(project):
    """Zero tiles calibrate nothing."""
    with pytest.raises(JobError, match="1 or more"):
        archive_tiles(project.prepared(), window_of("all"), 0)
