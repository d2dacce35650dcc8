"""What `scripts/bench model` computes, on models of a few kilobytes."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from models import unet_model
from PIL import Image

from unet_batch.gate.parity import Parity
from unet_batch.model.contract import resolve
from unet_batch.session.model_files import read_model
from unet_batch.session.plain_session import PlainSession
from unet_batch.spec import TilingSpec
from unet_batch.workbench.variants import Variant

PARTS = Path(__file__).resolve().parents[2] / "scripts" / "bench_parts"
SIDE = 32


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of the benchmark, which names the others without a package."""
    monkeypatch.setattr(sys, "path", [str(PARTS), *sys.path])

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture(scope="module")
def tiny():
    return unet_model(SIDE, base=4, levels=2)


@pytest.fixture(scope="module")
def model(tiny):
    return resolve(tiny.contract, read_model(tiny.data, "the model", None), TilingSpec())


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).random((3, SIDE, SIDE, 3), np.float32)


def scores(data: bytes, tiles_nhwc: np.ndarray) -> np.ndarray:
    return next(iter(PlainSession(data).run({"image": tiles_nhwc.transpose(0, 3, 1, 2)}).values()))


def test_shapes_are_red_discs_and_blue_squares(part):
    """What is drawn is what the labels say, and nothing else of the photograph is touched."""
    shapes = part("shapes")
    photo = np.full((64, 64, 3), 128, np.uint8)
    picture, labels = shapes.draw(photo, np.random.default_rng(0))
    assert {int(n) for n in np.unique(labels)} == {0, 1, 2}
    assert (picture[labels == 0] == 128).all()
    red, blue = picture[labels == 1].mean(axis=0), picture[labels == 2].mean(axis=0)
    assert red[0] > red[2] + 40
    assert blue[2] > blue[0] + 40


def test_no_picture_that_judges_was_trained_on(part, tmp_path):
    """The last of the folder judge; the two lists share none."""
    shapes = part("shapes")
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "JPEG")
    for n in range(shapes.HELD_OUT + 5):
        (tmp_path / f"{n:04}.jpg").write_bytes(image.getvalue())
    trained, judges = (shapes.photographs(tmp_path, held_out=kept) for kept in (False, True))
    assert (len(trained), len(judges)) == (5, shapes.HELD_OUT)
    assert not set(trained) & set(judges)


def test_an_actor_says_what_the_file_says(part, tiny, model, tiles):
    """Its outputs are a plain session's, its batches take time, and it knows its peak of memory."""
    acting = part("acting")
    with acting.acting(model, [Variant("fp32", tiny.data, "onnxruntime", "fp32")], tiles) as actors:
        [(way, actor)] = actors
        actor.begin(2)
        assert actor.seconds() > 0
        np.testing.assert_allclose(actor.outputs(), scores(tiny.data, tiles), atol=1e-5)
        assert way.name == "fp32"
        assert actor.peak_bytes > 10e6


@pytest.mark.slow
def test_an_actor_that_dies_is_left_out(part, tiny, model, tiles, capfd):
    """A file that no engine opens ends its own process, and no other."""
    acting = part("acting")
    ways = [Variant(name, data, "onnxruntime", "fp32") for name, data in (("bad", b"no model"), ("good", tiny.data))]
    with acting.acting(model, ways, tiles) as actors:
        assert [way.name for way, _ in actors] == ["good"]
    assert "bad is left out" in capfd.readouterr().err


def test_the_best_of_the_headline_is_verified(part, tiny):
    """The fastest way of all does not count where its masks are others."""
    figures = part("model_figures")
    same = np.eye(3, dtype=np.float32)[:, :, None, None].repeat(2, axis=0)
    other = np.roll(same, 1, axis=1)
    output = tiny.contract.output

    def row(name: str, speed: float, found: np.ndarray):
        way = Variant(name, tiny.data, "onnxruntime", "fp32")
        return figures.Row(way, speed, 1.0, 10**8, Parity.of(same, found, output))

    table = [row("fp32", 1.0, same), row("int8", 2.0, same), row("wrong", 9.0, other)]
    found = figures.headline(table)
    assert (found["best"], found["best_speed"], found["int8_speed"]) == ("int8", 2.0, 2.0)
    assert json.loads(json.dumps(figures.as_json(table)))["wrong"]["verified"] is False
