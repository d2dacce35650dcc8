"""Models whose output lacks a margin: the border around a picture, and where tiles start."""

from __future__ import annotations

import numpy as np
import pytest

from unet_batch.contract import Contract, ModelInput, ModelOutput
from unet_batch.errors import ContractError, ImageError
from unet_batch.imaging.preprocess import Geometry, fit, normalize
from unet_batch.imaging.tiling import Box, Canvas, Halo, grid, starts
from unet_batch.spec import TilingSpec

PAPER = Halo(92, 16)


def spec(**fields) -> ModelInput:
    taken = {"color": "gray", "channels": 1, "multiple": 16, "remainder": 12, "padding": "reflect"}
    return ModelInput.model_validate(taken | fields)


def geometry(size_hw: tuple[int, int], taken: ModelInput, tile_hw: tuple[int, int] | None = (572, 572)) -> Geometry:
    return fit(np.zeros((*size_hw, 1), np.uint8), taken, tile_hw=tile_hw, source_hw=size_hw, margin=92)[1]


def test_the_papers_tiles_start_at_multiples_of_sixteen() -> None:
    """388 of 572 are output: neighbours share their halos, and outputs overlap by 4 so that pooling stays aligned."""
    assert starts(1156, 388, 0.25, halo=PAPER) == [0, 384, 768]
    assert starts(388, 388, 0.25, halo=PAPER) == [0]


def test_a_halo_counts_as_overlap() -> None:
    """The halo is 0.32 of the tile; only a larger overlap makes outputs overlap."""
    assert starts(2000 // 16 * 16 + 4, 388, 0.0, halo=PAPER) == starts(2000 // 16 * 16 + 4, 388, 0.3, halo=PAPER)
    assert starts(2000 // 16 * 16 + 4, 388, 0.5, halo=PAPER)[1] == 272  # 572 / 2 = 286, rounded down to 16 · n


def test_an_output_smaller_than_the_multiple_still_covers_every_pixel() -> None:
    """Tiles of 188 give 4 x 4: strides of 16 would leave gaps."""
    assert starts(20, 4, 0.25, halo=PAPER) == [0, 4, 8, 12, 16]


def test_the_tile_of_a_box_reaches_into_the_border() -> None:
    """In the padded picture the tile starts where its output starts in the fitted picture."""
    assert Box(384, 0, 388, 388).with_border(92) == (slice(384, 956), slice(0, 572))


@pytest.mark.parametrize("size", [1, 91, 92, 388, 389, 500])
def test_a_fitted_picture_has_whole_tiles_in_step(size: int) -> None:
    """Every tile then starts at a multiple of 16, the last one too. Content lies at the top left."""
    found = geometry((size, 388), spec())
    assert found.fitted_hw[0] >= max(size, 388)
    assert (found.fitted_hw[0] - 388) % 16 == 0
    assert found.fitted_hw[0] - max(size, 388) < 16
    assert (found.top, found.left, found.padded_hw[1]) == (0, 0, 572)
    assert all(box.top % 16 == 0 for box in grid(found.fitted_hw, (388, 388), 0.25, halo=PAPER))


def test_a_model_of_any_size_gets_a_side_that_it_takes() -> None:
    """16 · n + 12 with the border: 500 + 184 = 684 = 16 · 42 + 12."""
    assert geometry((500, 1), spec(), None).padded_hw == (684, 188)


def test_the_border_is_the_mirror_image_also_of_a_picture_smaller_than_it() -> None:
    """As NumPy's reflect, which mirrors the mirror image again; the paper mirrors its borders too."""
    image = np.arange(1, 4, dtype=np.float32).reshape(1, 3, 1)
    taken = spec(multiple=1, remainder=0, normalize={"kind": "none"})
    content, found = fit(image, taken, tile_hw=None, source_hw=(1, 3), margin=4)
    padded = normalize(content, found, taken, largest=None)
    assert padded.shape == (9, 11, 1)
    assert padded[0, :, 0].tolist() == [1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3]


@pytest.mark.parametrize("units", ["normalized", "source"])
def test_a_constant_border_has_its_value(units: str) -> None:
    """Before or after normalisation, as `pad_units` says."""
    taken = spec(multiple=1, remainder=0, padding="constant", pad_value=51.0, pad_units=units)
    content, found = fit(np.full((2, 2, 1), 255, np.uint8), taken, tile_hw=None, source_hw=(2, 2), margin=1)
    padded = normalize(content, found, taken, largest=255)
    assert padded[0, 0, 0] == pytest.approx(0.2 if units == "source" else 51)
    np.testing.assert_array_equal(padded[found.content], 1)


@pytest.mark.parametrize(("mode", "size"), [("stretch", (388, 388)), ("letterbox", (388, 388)), ("pad", (388, 388))])
def test_other_fits_make_the_size_of_the_output(mode: str, size: tuple[int, int]) -> None:
    """The border is added around the resized picture, so that all of it has a mask."""
    found = geometry((300, 388), spec(fit=mode))
    assert (found.fitted_hw, found.padded_hw) == (size, (572, 572))
    assert found.content[1].start >= 92


def test_no_fit_takes_pictures_of_the_outputs_size_only() -> None:
    """The border is no part of the picture."""
    assert geometry((388, 388), spec(fit="none")).padded_hw == (572, 572)
    with pytest.raises(ImageError, match="takes 388 x 388 without the border of 92"):
        geometry((572, 572), spec(fit="none"))


def test_a_resized_picture_needs_a_side_that_the_model_takes() -> None:
    """multiple and remainder are those of the tensor, with its border."""
    with pytest.raises(ContractError, match="must each be a multiple of 16 plus 12"):
        geometry((10, 10), spec(fit="stretch", height=388, width=388), None)
    assert geometry((10, 10), spec(fit="stretch", height=572, width=572), None).fitted_hw == (388, 388)


def test_an_image_of_tiles_with_a_halo_is_put_together_again() -> None:
    """Overlapping outputs that agree give what they agree on."""
    halo, size = Halo(4, 2), (26, 20)
    image = np.random.default_rng(1).random((1, *size), np.float32)
    canvas = Canvas(size, (8, 8), TilingSpec(overlap=0.5), halo=halo)
    for box in grid(size, (8, 8), 0.5, halo=halo):
        canvas.add(box, image[:, *box.slices])
    np.testing.assert_allclose(canvas.finished(), image, rtol=1e-6)


# The contract -------------------------------------------------------------------------------------------------------


def test_a_border_is_mirrored_unless_the_contract_says_otherwise() -> None:
    """As the paper does. Without a margin the default stays a constant."""
    assert Contract(output=ModelOutput(margin=92)).input.padding == "reflect"
    assert Contract.model_validate({"output": {"margin": 92}}).input.padding == "reflect"
    said = Contract.model_validate({"input": {"padding": "constant"}, "output": {"margin": 92}})
    assert said.input.padding == "constant"
    assert Contract().input.padding == "constant"


def test_a_border_cannot_be_refused() -> None:
    """Every image would be rejected."""
    with pytest.raises(ValueError, match=r"input.padding refuse rejects every image, because output.margin 92"):
        Contract.model_validate({"input": {"padding": "refuse"}, "output": {"margin": 92}})


def test_a_remainder_is_below_its_multiple() -> None:
    """572 = 16 · 35 + 12."""
    with pytest.raises(ValueError, match="remainder 28 must be below multiple 16: write 12"):
        spec(remainder=28)
    assert [spec().side(least) for least in (1, 12, 13, 572, 573)] == [12, 12, 28, 572, 588]
    assert spec().takes((572, 188))
    assert not spec().takes((572, 576))


def test_a_contract_without_a_margin_has_the_digest_of_before() -> None:
    """Both fields are left out of digests at their default, and enter with any other value."""
    tree = Contract().for_digests()
    assert "margin" not in tree["output"]
    assert "remainder" not in tree["input"]
    changed = replace_output(Contract(), margin=20).for_digests()
    assert changed["output"]["margin"] == 20


def replace_output(contract: Contract, **fields) -> Contract:
    return contract.model_copy(update={"output": contract.output.model_copy(update=fields)})
