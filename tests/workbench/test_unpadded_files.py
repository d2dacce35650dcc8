"""What is done to files of networks with unpadded convolutions: inspected, packed, tuned; their margin is found."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from unet_batch.errors import JobError, ModelRefused
from unet_batch.gate.parity import Tolerance
from unet_batch.model.contract import find_contract, resolve
from unet_batch.model.model import Model, ModelFile
from unet_batch.planning.survey import window_of
from unet_batch.session.model_files import read_model
from unet_batch.spec import TilingSpec
from unet_batch.workbench.inspect import inspect
from unet_batch.workbench.packing.pack import PackSpec, pack
from unet_batch.workbench.quantize import QuantizeSpec, quantize
from unet_batch.workbench.sample import archive_tiles
from unet_batch.workbench.tune import tile_of

pytest.importorskip("torch", reason="PyTorch is not installed")
import unpadded

pytestmark = pytest.mark.oracle
DEPTH = 3


@cache
def file(size: int | None, *, declared: bool = True) -> ModelFile:
    return read_model(unpadded.as_onnx(unpadded.network(DEPTH), size=size, declared=declared), "unpadded.onnx", None)


def model(size: int | None) -> Model:
    found = file(size)
    return resolve(find_contract(found, unpadded.contract(DEPTH).encode(), "c.yaml"), found, TilingSpec())


@pytest.mark.parametrize(("size", "side"), [(None, 260), (116, 116)])
def test_inspection_finds_the_margin_and_the_sides(size: int | None, side: int) -> None:
    """By shape inference at several sizes, or at the size of the file."""
    found = inspect(file(size).data, "unpadded.onnx")
    assert found.tile_hw == (side, side)
    expected = (
        f"the output of a tile of {side}x{side} is {side - 88}x{side - 88}: its convolutions are unpadded, with a "
        "margin of 44 on each side; sides are 8 · n + 4"
    )
    assert expected in found.findings


@pytest.mark.parametrize(("size", "declared"), [(None, True), (116, True), (116, False)])
def test_the_drafted_contract_fits_its_file(size: int | None, declared: bool) -> None:
    """Margin, multiple, remainder and the mirrored border are in it."""
    found = file(size, declared=declared)
    text = inspect(found.data, "unpadded.onnx").contract.replace("class_", "c")
    drafted = resolve(find_contract(found, text.encode(), "draft"), found, TilingSpec()).contract
    assert (drafted.output.margin, drafted.input.padding) == (44, "reflect")
    assert (drafted.input.multiple, drafted.input.remainder) == (8, 4)


def test_a_file_that_loses_a_row_gets_no_margin() -> None:
    """With tiles of 114 a level is 51 high: where its output belongs is unknown."""
    found = inspect(unpadded.as_onnx(unpadded.network(DEPTH), size=114, declared=False), "odd.onnx")
    assert "margin" not in found.contract
    assert any("loses a row or column of 51x51" in finding for finding in found.findings)


def test_a_file_is_packed_with_its_margin() -> None:
    """Pre- and postprocessing do not change sizes; the packed contract keeps margin and sides."""
    packed = pack(file(116).data, model(116), PackSpec())
    assert packed.model.contract.output.margin == 44
    again = read_model(packed.data, "packed.onnx", None)
    assert resolve(find_contract(again, None, ""), again, TilingSpec()).contract.output.margin == 44


def test_a_border_that_no_source_value_gives_cannot_be_packed() -> None:
    """The packed graph normalises the border too."""
    text = unpadded.contract(DEPTH, padding="constant", normalize={"kind": "scale", "scale": 2.0, "offset": 0.3})
    found = file(116)
    taken = resolve(find_contract(found, text.encode(), "c.yaml"), found, TilingSpec())
    with pytest.raises(ModelRefused, match="its border of 0 after normalisation is not a uint8 value"):
        pack(found.data, taken, PackSpec())


def test_tiles_for_measurements_have_a_side_that_the_model_takes() -> None:
    """256 and the margin, rounded up to 8 · n + 4."""
    assert tile_of(model(None), None) == (348, 348)
    assert tile_of(model(116), None) == (116, 116)
    with pytest.raises(JobError, match="a side of tiles of 256x256 is not a multiple of 8 plus 4"):
        tile_of(model(None), (256, 256))


def test_tiles_of_a_sample_have_their_halo(project) -> None:
    """Calibration and comparison get what a run sends to the session."""
    (project.folder / "model.onnx").write_bytes(file(None).data)
    (project.folder / "model.yaml").write_text(unpadded.contract(DEPTH))
    project.fill("2026/11/21", 2)
    sample = archive_tiles(project.prepared(), window_of("all"), 2)
    assert sample.tiles_nhwc.shape == (2, 124, 124, 1)  # 32 and twice 44, rounded up to 8 · n + 4
    # Row 44 is the picture's first; the rows before it are its mirror image.
    np.testing.assert_array_equal(sample.tiles_nhwc[:, 43, 44:76], sample.tiles_nhwc[:, 45, 44:76])


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_a_file_is_quantised_with_its_margin(kind) -> None:
    """Tiles are larger than their output; the comparison is of the output."""
    side = model(None).contract.input.side(100)
    tiles = [np.random.default_rng(n).random((side, side, 1)).astype(np.float32) for n in range(4)]
    asked = QuantizeSpec(kind=kind, tolerance=Tolerance(max_flipped=0.2, min_dice=0.5))
    made = quantize(file(None).data, model(None), tiles, asked)
    assert made.model.contract.output.margin == model(None).contract.output.margin
    assert 0 <= made.report.parity.flipped_share < 0.2
