"""The U-Net of 2015, with unpadded convolutions, from tiles to rows: held against PyTorch on the whole picture."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from unet_batch.errors import ContractError
from unet_batch.imaging.preprocess import fit
from unet_batch.imaging.tiling import Canvas
from unet_batch.model.contract import find_contract, resolve
from unet_batch.model.model import Model
from unet_batch.records import Source, Unit
from unet_batch.session.model_files import read_model
from unet_batch.session.opening import open_session
from unet_batch.session.session import Device
from unet_batch.spec import SessionSpec, TilingSpec
from unet_batch.worker.loaded import Entry, Loaded, PixelBuffer
from unet_batch.worker.tiles import picture

pytest.importorskip("torch", reason="PyTorch is not installed")
import unpadded

pytestmark = pytest.mark.oracle
DEPTH = 3
"""Margin 44, and sides of 8 · n + 4."""
DAY, NAME = "2026/11/21", "2026-11-21"


@cache
def network():
    return unpadded.network(DEPTH)


@cache
def file(size: int | None) -> bytes:
    return unpadded.as_onnx(network(), size=size)


def resolved(size: int | None, *, contract: str | None = None, tiling: TilingSpec | None = None) -> tuple[bytes, Model]:
    found = read_model(file(size), "unpadded.onnx", None)
    text = (contract or unpadded.contract(DEPTH)).encode()
    return found.data, resolve(find_contract(found, text, "unpadded.yaml"), found, tiling or TilingSpec())


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(sum(size)).integers(0, 256, (*size, 1), np.uint8)


def expected(image_hwc: np.ndarray, mode: str = "reflect") -> np.ndarray:
    """PyTorch's scores of the whole picture with its border, (K, H, W) of the picture's size."""
    margin, multiple = unpadded.margin(DEPTH), 2**DEPTH
    step = (unpadded.smallest_side(DEPTH) - 2 * margin) % multiple
    more = [(step - side) % multiple for side in image_hwc.shape[:2]]
    pads = [(margin, margin + extra) for extra in more]
    whole = np.pad(image_hwc.astype(np.float32) / 255, (*pads, (0, 0)), mode=mode)
    height, width = image_hwc.shape[:2]
    return unpadded.scores(network(), whole)[:, :height, :width]


def stitched(image_hwc: np.ndarray, size: int | None, tiling: TilingSpec, contract: str | None = None) -> np.ndarray:
    """The scores of a picture, tile by tile as in a run: (K, H, W)."""
    data, model = resolved(size, contract=contract, tiling=tiling)
    content, geometry = fit(
        image_hwc,
        model.contract.input,
        tile_hw=model.tile_hw,
        source_hw=image_hwc.shape[:2],
        margin=model.contract.output.margin,
    )
    buffer = PixelBuffer()
    offset = buffer.add(content)
    height, width = image_hwc.shape[:2]
    entry = Entry(0, 0, 1, height, width, content.dtype.str, content.shape, offset, geometry, largest=255)
    unit = Unit("u", "p", "images", (Source("k", "v"),), "f")
    found = picture(Loaded(unit, (entry,), buffer.joined()), entry, geometry, model, tiling, largest_side=None)
    canvas = Canvas(geometry.fitted_hw, found.output_hw, tiling, halo=found.halo)
    session = open_session(data, model, SessionSpec(), Device(1))
    for box in found.boxes:
        canvas.add(box, session.run(np.ascontiguousarray(found.tile(box)[None]))[0])
    return canvas.finished()[:, :height, :width]


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    return bool((found.argmax(axis=0) == wanted.argmax(axis=0)).all())


@pytest.mark.parametrize("size", [(70, 101), (28, 28), (129, 57)])
@pytest.mark.parametrize("tiling", [TilingSpec(), TilingSpec(overlap=0), TilingSpec(overlap=0.5, blend="constant")])
def test_tiles_give_the_masks_of_the_whole_picture(size: tuple[int, int], tiling: TilingSpec) -> None:
    """Pixel by pixel, for sizes that do not divide: the picture is padded once, and tiles share their halos."""
    image = noise(size)
    assert same(stitched(image, 116, tiling), expected(image))  # 116 gives 28 x 28


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (43, 20)])
def test_a_picture_smaller_than_the_margin_is_mirrored_more_than_once(size: tuple[int, int]) -> None:
    """As NumPy's reflect does."""
    image = noise(size)
    assert same(stitched(image, 116, TilingSpec()), expected(image))


@pytest.mark.parametrize("size", [(70, 101), (5, 5)])
def test_a_model_of_any_size_takes_the_picture_in_one_tile(size: tuple[int, int]) -> None:
    """Or in tiles of `tiling.size`, with the same result."""
    image = noise(size)
    assert same(stitched(image, None, TilingSpec()), expected(image))
    assert same(stitched(image, None, TilingSpec(size=132)), expected(image))


def test_a_constant_border_is_another_result() -> None:
    """What PyTorch says about a picture with a black frame."""
    image = noise((40, 40))
    black = stitched(image, 116, TilingSpec(), unpadded.contract(DEPTH, padding="constant"))
    assert same(black, expected(image, "constant"))
    assert np.abs(black - expected(image)).max() > 0.01


# Whole jobs ---------------------------------------------------------------------------------------------------------


def archive(project, sizes: list[tuple[int, int]], size: int | None) -> dict[str, np.ndarray]:
    (project.folder / "model.onnx").write_bytes(file(size))
    (project.folder / "model.yaml").write_text(unpadded.contract(DEPTH))
    images = {}
    for height, width in sizes:
        out = io.BytesIO()
        images[f"{height}x{width}.png"] = image = noise((height, width))
        Image.fromarray(image[:, :, 0]).save(out, "PNG")
        project.put(f"{DAY}/{height}x{width}.png", out.getvalue())
    return images


@pytest.mark.parametrize("size", [116, None])
def test_a_job_publishes_the_masks_of_the_whole_picture(project, size: int | None) -> None:
    """At source resolution, where they belong: run-length text of every class equals PyTorch's labels."""
    images = archive(project, [(70, 101), (9, 33)], size)
    assert project.run().ok == 2
    rows = {row["image_key"].rpartition("/")[2]: row for row in project.rows(NAME)}
    for name, image in images.items():
        labels = expected(image).argmax(axis=0)
        found = np.zeros_like(labels)
        for area in rows[name]["classes"]:
            found[coco.decode({"size": list(labels.shape), "counts": area["rle"]["counts"]}) == 1] = area["id"]
        np.testing.assert_array_equal(found, labels)


def test_a_model_held_against_another_engine_passes_the_gate(project) -> None:
    """The gate compares tiles with their halos; a reference is another file of the same network."""
    archive(project, [(70, 101)], 116)
    (project.folder / "trusted.onnx").write_bytes(file(None))
    (project.folder / "trusted.yaml").write_text(unpadded.contract(DEPTH))
    assert project.run(f"check.reference={project.folder / 'trusted.onnx'}").ok == 1


# Contracts that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "change", "said"),
    [
        (116, ("margin: 44", "margin: 0"), "is 28x28, which is neither its size nor an integer fraction of it"),
        (116, ("margin: 44", "margin: 0"), "if its convolutions are unpadded, write output.margin: 44"),
        (116, ("margin: 44", "margin: 40"), "neither its size without output.margin 40 nor"),
        (116, ("margin: 44", "margin: 58"), "output.margin 58 leaves nothing of a tile of 116x116"),
        (None, ("remainder: 4", "remainder: 2"), "loses a row or column"),
        (None, ("margin: 44", "margin: 43"), "neither its size without output.margin 43"),
    ],
)
def test_a_wrong_margin_is_refused_before_the_archive_is_touched(
    size: int | None, change: tuple[str, str], said: str
) -> None:
    """The file's own sizes tell."""
    with pytest.raises(ContractError) as caught:
        resolved(size, contract=unpadded.contract(DEPTH).replace(*change))
    assert said in str(caught.value)


def test_a_tile_size_must_be_one_that_the_model_takes() -> None:
    """8 · n + 4."""
    with pytest.raises(ContractError, match=r"tiling.size 128 is not a multiple of 8 plus 4"):
        resolved(None, tiling=TilingSpec(size=128))
