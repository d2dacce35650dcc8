"""From the fitted picture back to the source: masks lie at the right place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.contract import ModelInput, ModelOutput, Raw
from unet_batch.imaging import postprocess
from unet_batch.imaging.postprocess import Prediction, reduce
from unet_batch.imaging.preprocess import Geometry, fit, normalize
from unet_batch.imaging.resize import resize_logits

MODES = ["stretch", "letterbox", "pad", "tile", "none"]
EXCLUSIVE = ModelOutput(classes=("a", "b", "c"), background=None)
OVERLAPPING = ModelOutput(classes=("a", "b", "c"), activation="sigmoid")


def smooth(classes: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(2).normal(size=(classes, 6, 7)).astype(np.float32) * 4
    return resize_logits(coarse, (height, width))


def predict(logits_khw: np.ndarray, output: ModelOutput, geometry: Geometry) -> Prediction:
    return reduce(logits_khw, geometry, output, rle=True, confidence=True)


@pytest.mark.parametrize("size_hw", [(64, 64), (51, 90), (33, 20)])
def test_labels_are_decided_at_source_size(size_hw):
    """Logits are enlarged first and then reduced, with the result of the full frame."""
    logits = smooth(3, 32, 32)

    prediction = predict(logits, EXCLUSIVE, Geometry(size_hw, (32, 32), 0, 0, (32, 32)))

    np.testing.assert_array_equal(prediction.labels_hw, resize_logits(logits, size_hw).argmax(axis=0))


def test_padding_does_not_change_labels_even_at_the_edge():
    """The content is cropped before it is enlarged: extreme logits in the padding change nothing."""
    content, padded = smooth(3, 12, 16), np.full((3, 32, 32), -1e4, np.float32)
    padded[2] = 1e4
    padded[:, 10:22, 8:24] = content

    prediction = predict(padded, EXCLUSIVE, Geometry((30, 41), (12, 16), 10, 8, (32, 32)))

    alone = predict(content, EXCLUSIVE, Geometry((30, 41), (12, 16), 0, 0, (12, 16)))
    np.testing.assert_array_equal(prediction.labels_hw, alone.labels_hw)
    assert prediction.classes == alone.classes


@pytest.mark.parametrize("output", [EXCLUSIVE, OVERLAPPING])
@pytest.mark.parametrize("size_hw", [(40, 40), (67, 45)])
def test_strips_give_what_the_full_frame_gives(monkeypatch, output, size_hw):
    """One row at a time or all at once: the same labels and text, certainty within 1e-6."""
    logits = 1 / (1 + np.exp(-smooth(3, 40, 40)))
    geometry = Geometry(size_hw, (40, 40), 0, 0, (40, 40))
    monkeypatch.setattr(postprocess, "STRIP_BYTES", 1 << 30)
    full = predict(logits, output, geometry)

    monkeypatch.setattr(postprocess, "STRIP_BYTES", 1)
    strips = predict(logits, output, geometry)

    np.testing.assert_array_equal(strips.labels_hw, full.labels_hw)
    assert [c.rle for c in strips.classes] == [c.rle for c in full.classes]
    assert strips.confidence == pytest.approx(full.confidence, abs=1e-6)
    assert strips.entropy == pytest.approx(full.entropy, abs=1e-6)


def fitted_by(mode: str, image: np.ndarray) -> tuple[np.ndarray, Geometry]:
    size_hw = image.shape[0], image.shape[1]
    multiple = 1 if mode == "none" else 16
    contract = ModelInput(color="gray", channels=1, fit=mode, height=96, width=112, multiple=multiple)
    tile_hw = (96, 112) if mode in ("stretch", "letterbox") else None
    content, geometry = fit(image, contract, tile_hw=tile_hw, source_hw=size_hw)
    raw = contract.model_copy(update={"normalize": Raw()})
    return normalize(content, geometry, raw, largest=255.0), geometry


@pytest.mark.parametrize("resolution", [1, 2])
@pytest.mark.parametrize("mode", MODES)
@given(st.integers(70, 150), st.integers(70, 150), st.data())
@settings(max_examples=25, deadline=None)
def test_a_box_comes_back_where_it_was(mode, resolution, height, width, data):
    """Within one pixel of the mask's resolution for every fit, at full and half resolution."""
    top, left = data.draw(st.integers(0, height - 24)), data.draw(st.integers(0, width - 24))
    bottom, right = data.draw(st.integers(top + 24, height)), data.draw(st.integers(left + 24, width))
    image = np.zeros((height, width, 1), np.uint8)
    image[top:bottom, left:right] = 255
    fitted, geometry = fitted_by(mode, image)
    height_out, width_out = (-(-n // resolution) for n in geometry.fitted_hw)

    logits = resize_logits(fitted.transpose(2, 0, 1) - np.float32(127.5), (height_out, width_out))
    (area,) = predict(logits, ModelOutput(classes=("box",)), geometry).classes

    x, y, w, h = area.bbox
    np.testing.assert_allclose((y, x, y + h, x + w), (top, left, bottom, right), atol=resolution)


@pytest.mark.parametrize("mode", MODES)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 2), st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_one_label_everywhere_fills_the_source_for_every_fit(mode, height, width, label, resolution):
    """With padding or resizing: the source's size, and only that label."""
    _, geometry = fitted_by(mode, np.zeros((height, width, 1), np.uint8))
    logits = np.zeros((3, *(-(-n // resolution) for n in geometry.fitted_hw)), np.float32)
    logits[label] = 5

    prediction = predict(logits, EXCLUSIVE, geometry)

    assert prediction.labels_hw.shape == (height, width)
    assert [(c.id, c.area_px) for c in prediction.classes] == [(label, height * width)]
