"""How far an allowed difference moves labels: the framework's step in place of ours, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from models import threshold_model
from PIL import Image

from unet_batch.imaging.resize import resize
from unet_batch.workbench.draft.allowed import sizes_on
from unet_batch.workbench.importers.difference import Difference, Way
from unet_batch.workbench.importers.monai.ways import blended_logits, nearest_back, on_masks, resized
from unet_batch.workbench.importers.nnunet_ways import in_one_mask, masked_statistics, without_holes

SIZES = ((64, 96), (48, 40), (70, 33))


@pytest.fixture
def folder(tmp_path):
    """Three gray pictures of noise with a black border."""
    rng = np.random.default_rng(0)
    (tmp_path / "pics").mkdir()
    for number, (height, width) in enumerate(SIZES):
        image = rng.integers(1, 256, (height, width)).astype(np.uint8)
        image[:6] = image[:, :9] = 0
        Image.fromarray(image).save(tmp_path / "pics" / f"{number}.png")
    return tmp_path


def put(folder, *, settings: dict | None = None, **fields):
    """The threshold model, with other values in the input of its contract."""
    made = threshold_model(channels=1, **(settings or {}))
    spec = made.contract.input.model_copy(update=fields)
    contract = made.contract.model_copy(update={"input": spec})
    (folder / "m.onnx").write_bytes(made.data)
    (folder / "m.yaml").write_text(type(made)(made.data, contract).contract_yaml)


def measured(folder, way: Way | None, job: dict | None = None):
    [size] = sizes_on(str(folder / "pics"), folder / "m.onnx", job or {}, [Difference("it differs", way)])
    return size


SAME = Way(values=lambda pixels_hwc, normalise: normalise(pixels_hwc))
"""What this package does, said in the other way."""


@pytest.mark.parametrize(
    ("fields", "job"),
    [
        ({}, {}),
        ({"crop": "nonzero"}, {}),
        ({"multiple": 16}, {}),
        ({"height": 32, "width": 32}, {"tiling": {"overlap": 0.5}, "tta": "mirror"}),
    ],
)
def test_our_own_step_said_as_a_way_changes_nothing(folder, fields, job):
    """With a crop, with padding, with tiles and flips."""
    put(folder, settings={"size": 32} if "height" in fields else None, **fields)
    size = measured(folder, SAME, job)
    assert (size.share, size.pictures) == (0, 3)


def test_a_resize_that_is_ours_changes_nothing(folder):
    """`stretch`, and the way back."""
    put(folder, settings={"size": 32}, fit="stretch", height=32, width=32, kernel="torch_bilinear")
    ours = Way(values=lambda pixels, normalise: normalise(resize(pixels, (32, 32), "torch_bilinear")))
    assert measured(folder, ours).share == 0


def test_the_share_is_that_of_the_pixels_that_change(folder):
    """A step that makes everything dark removes all that is bright."""
    put(folder)
    bright = [(np.array(Image.open(path)) > 127.5) for path in sorted((folder / "pics").iterdir())]
    size = measured(folder, Way(values=lambda pixels, normalise: 0 * normalise(pixels)))
    assert size.share == pytest.approx(sum(b.sum() for b in bright) / sum(b.size for b in bright))
    assert size.largest == pytest.approx(max(b.mean() for b in bright))
    assert str(size).startswith(f"it differs; it changes {size.share:.3%} of the labels of 3 pictures")


def test_what_cannot_be_computed_is_said(folder):
    put(folder)
    assert str(measured(folder, None)) == "it differs; how much cannot be computed from pictures"

    def broken(*_):
        raise ImportError("no scikit-image")

    size = measured(folder, Way(decided=broken))
    assert str(size) == "it differs; how much cannot be computed here (no scikit-image)"
    assert size.share is None


# MONAI's and nnU-Net's steps ------------------------------------------------------------------------------------------


def test_fractions_that_a_resize_keeps_matter_near_the_threshold_only(folder):
    """Half a gray level on noise: some pixels, and few."""
    put(folder, settings={"size": 32}, fit="stretch", height=32, width=32, kernel="torch_bilinear")
    size = measured(folder, resized((32, 32), "torch_bilinear", normalised_first=False))
    assert 0 <= size.share < 0.01


def test_a_way_back_by_the_nearest_pixel_moves_borders(folder):
    put(folder, settings={"size": 32}, fit="stretch", height=32, width=32, kernel="torch_bilinear")
    assert 0.01 < measured(folder, nearest_back()).share < 0.5


def test_logits_come_back_from_probabilities():
    """Within float32, for a sigmoid and for a softmax but for a number per pixel."""
    logits = np.random.default_rng(0).normal(0, 3, (3, 5, 7)).astype(np.float32)
    one = blended_logits(sigmoid=True)
    np.testing.assert_allclose(one.tile(1 / (1 + np.exp(-logits))), logits, atol=1e-3)
    np.testing.assert_allclose(one.blended(logits), 1 / (1 + np.exp(-logits)), atol=1e-6)
    shares = np.exp(logits) / np.exp(logits).sum(axis=0)
    other = blended_logits(sigmoid=False)
    difference = other.tile(shares) - logits
    np.testing.assert_allclose(difference, np.broadcast_to(difference[:1], logits.shape), atol=1e-4)
    np.testing.assert_allclose(other.blended(logits), shares, atol=1e-6)


def test_a_statistic_of_a_part_is_that_of_numpy():
    """nnU-Net: mean and deviation of the pixels inside, 0 outside; a hole is inside."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 255, (12, 14, 2)).astype(np.uint8)
    pixels[:, :4] = 0
    pixels[5:7, 8:10] = 0
    found = masked_statistics([True, False]).values(pixels, lambda source: source.astype(np.float32))
    inside = pixels[:, 4:, 0].astype(np.float64)
    np.testing.assert_allclose(found[:, 4:, 0], (inside - inside.mean()) / inside.std(), atol=1e-5)
    assert not found[:, :4, 0].any()
    np.testing.assert_array_equal(found[..., 1], pixels[..., 1])


def test_holes_are_what_no_path_leads_out_of():
    """Neighbours share a side: a diagonal gap does not lead out, as in SciPy's binary_fill_holes."""
    picture = """
        ..........
        .####..##.
        .#..#.#..#
        .#.##.#..#
        .###...##.
        ..........
    """
    mask = np.array([[c == "#" for c in line] for line in picture.split()])
    filled = without_holes(mask)
    assert filled[2:4, 2].all()
    assert filled[2:4, 7:9].all()
    assert not filled[0].any()
    assert not filled[:, 5].any()


def test_regions_differ_where_they_overlap():
    scores = np.zeros((3, 2, 2))
    scores[0] = 0.9
    scores[1, 0] = 0.9
    ours, theirs = in_one_mask().decided(None, None, scores)
    assert (ours != theirs).mean() == 0.5


@pytest.mark.oracle
def test_a_step_on_masks_is_monais():
    pytest.importorskip("monai")
    labels = np.array([[1, 0, 2], [2, 0, 0]])
    ours, theirs = on_masks("LabelFilter", {"applied_labels": [1]}).decided(labels, labels, None)
    np.testing.assert_array_equal(ours, labels)
    np.testing.assert_array_equal(theirs, [[1, 0, 0], [0, 0, 0]])


@pytest.mark.oracle
def test_a_resampling_to_one_pixel_is_none():
    pytest.importorskip("torch")
    from unet_batch.workbench.importers.nnunet_ways import resampled

    pixels = np.random.default_rng(0).random((9, 7, 2)).astype(np.float32)
    same = resampled([1.0, 1.0]).values(pixels, lambda source: source)
    np.testing.assert_allclose(same, pixels, atol=1e-6)
    assert resampled([0.5, 2.0]).values(pixels, lambda source: source).shape == (18, 4, 2)
