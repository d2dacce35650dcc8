"""Fitting and normalising: where every pixel goes, and what number it becomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unet_batch.contract import CtWindow, Divide, MeanStd, ModelInput, Percentile, Raw, Scale, ZScore
from unet_batch.errors import ContractError, ImageError, Reason
from unet_batch.imaging import preprocess
from unet_batch.imaging.preprocess import LARGEST, Geometry, fit, source_value
from unet_batch.imaging.resize import resize


def spec(**fields: Any) -> ModelInput:
    return ModelInput(**{"color": "bands", "channels": 1, **fields})


def picture(height: int, width: int, channels: int = 1, dtype: type[Any] = np.uint8) -> NDArray[Any]:
    values = np.random.default_rng(5).integers(0, 256 if dtype is np.uint8 else 65536, (height, width, channels))
    return values.astype(dtype)


def whole(image_hwc: NDArray[Any]) -> Geometry:
    size = image_hwc.shape[0], image_hwc.shape[1]
    return Geometry(size, size, 0, 0, size)


def normalize(image_hwc: NDArray[Any], geometry: Geometry, contract: ModelInput) -> NDArray[Any]:
    """Normalise a source that declares the full depth of its dtype."""
    return preprocess.normalize(image_hwc, geometry, contract, largest=LARGEST[image_hwc.dtype.name])


def padded(image_hwc: NDArray[Any], contract: ModelInput, **how: Any) -> tuple[NDArray[Any], Geometry]:
    """A fitted and padded picture, without normalisation."""
    content, geometry = fit(image_hwc, contract, **how)
    return normalize(content, geometry, contract.model_copy(update={"normalize": Raw()})), geometry


def reason_of(error: pytest.ExceptionInfo[ImageError]) -> Reason:
    return error.value.reason


def test_stretch_resizes_to_the_contracts_size_with_its_kernel():
    """The aspect ratio is not kept and nothing is padded."""
    image = picture(30, 50, 3)

    fitted, geometry = fit(image, ModelInput(fit="stretch", height=16, width=24), tile_hw=(16, 24), source_hw=(30, 50))

    np.testing.assert_array_equal(fitted, resize(image, (16, 24), "pil_bilinear_u8"))
    assert geometry == Geometry((30, 50), (16, 24), 0, 0, (16, 24))


@pytest.mark.parametrize(
    ("source_hw", "resized_hw", "top", "left"),
    [
        ((480, 640), (480, 640), 80, 0),
        ((720, 1280), (360, 640), 140, 0),
        ((100, 200), (320, 640), 160, 0),
        ((641, 333), (640, 332), 0, 154),
        ((427, 640), (427, 640), 106, 0),
        ((1, 3000), (1, 640), 319, 0),
    ],
)
def test_letterbox_follows_ultralytics(source_hw, resized_hw, top, left):
    """Golden, by hand at 640: sides round(n · r), halves of the remainder around them, the odd pixel last."""
    image, contract = np.zeros((*source_hw, 1), np.uint8), spec(fit="letterbox", height=640, width=640)

    _, geometry = fit(image, contract, tile_hw=None, source_hw=source_hw)

    assert geometry == Geometry(source_hw, resized_hw, top, left, (640, 640))


def test_letterbox_surrounds_the_resized_picture_with_the_pad_value():
    """The content is the resized picture, all else is padding."""
    image, contract = picture(10, 20), spec(fit="letterbox", height=32, width=32, pad_value=114.0, pad_units="source")

    fitted, geometry = padded(image, contract, tile_hw=None, source_hw=(10, 20))

    np.testing.assert_array_equal(fitted[geometry.content], resize(image, (16, 32), "pil_bilinear_u8"))
    assert (fitted[:8] == 114).all()
    assert (fitted[24:] == 114).all()


def test_letterbox_without_scale_up_leaves_a_small_picture_as_it_is():
    """The ratio is capped at 1."""
    image, contract = picture(10, 20), spec(fit="letterbox", height=32, width=32, scale_up=False)

    fitted, geometry = padded(image, contract, tile_hw=None, source_hw=(10, 20))

    np.testing.assert_array_equal(fitted[geometry.content], image)
    assert (geometry.top, geometry.left, geometry.resized_hw) == (11, 6, (10, 20))


def test_a_picture_decoded_at_reduced_scale_has_the_geometry_of_its_source():
    """Scales refer to the source, not to the decoded size."""
    contract = spec(fit="letterbox", height=64, width=64)

    _, reduced = fit(picture(101, 126), contract, tile_hw=None, source_hw=(403, 501))

    assert reduced == fit(picture(403, 501), contract, tile_hw=None, source_hw=(403, 501))[1]


@pytest.mark.parametrize(
    ("size_hw", "tile_hw", "fitted_hw"),
    [
        ((30, 40), None, (32, 48)),
        ((32, 48), None, (32, 48)),
        ((30, 40), (64, 32), (64, 48)),
        ((70, 40), (60, 40), (80, 48)),
    ],
)
def test_pad_fills_right_and_bottom_to_a_multiple_and_at_least_a_tile(size_hw, tile_hw, fitted_hw):
    """The picture stays in the upper left corner."""
    image = picture(*size_hw)

    fitted, geometry = padded(
        image, spec(fit="pad", multiple=16, pad_value=7.0, pad_units="source"), tile_hw=tile_hw, source_hw=size_hw
    )

    np.testing.assert_array_equal(fitted[: size_hw[0], : size_hw[1]], image)
    assert int(fitted.astype(int).sum() - image.astype(int).sum()) == 7 * (fitted.size - image.size)
    assert geometry == Geometry(size_hw, size_hw, 0, 0, fitted_hw)


@pytest.mark.parametrize(
    ("size_hw", "tile_hw", "top", "left", "fitted_hw"),
    [
        ((30, 41), (64, 64), 17, 11, (64, 64)),
        ((100, 41), (64, 64), 0, 11, (100, 64)),
        ((100, 90), (64, 64), 0, 0, (100, 90)),
        ((30, 33), None, 1, 7, (32, 48)),
    ],
)
def test_tile_pads_small_pictures_on_all_sides_as_monai(size_hw, tile_hw, top, left, fitted_hw):
    """The smaller half of an odd remainder comes first; large pictures stay as they are."""
    image = picture(*size_hw)

    fitted, geometry = padded(image, spec(fit="tile", multiple=16), tile_hw=tile_hw, source_hw=size_hw)

    assert geometry == Geometry(size_hw, size_hw, top, left, fitted_hw)
    np.testing.assert_array_equal(fitted[geometry.content], image)
    assert int(fitted.astype(int).sum()) == int(image.astype(int).sum())


@pytest.mark.parametrize(("size_hw", "tile_hw"), [((64, 64), (64, 64)), ((32, 48), None)])
def test_none_passes_the_picture_itself(size_hw, tile_hw):
    """Not even a copy."""
    image = picture(*size_hw)

    fitted, geometry = fit(image, spec(fit="none", multiple=16), tile_hw=tile_hw, source_hw=size_hw)

    assert fitted is image
    assert geometry == whole(image)


@pytest.mark.parametrize(("size_hw", "tile_hw"), [((64, 65), (64, 64)), ((128, 128), (64, 64)), ((32, 40), None)])
def test_none_refuses_every_other_size(size_hw, tile_hw):
    """fit: none never resizes or pads."""
    with pytest.raises(ImageError, match="the model takes") as error:
        fit(picture(*size_hw), spec(fit="none", multiple=16), tile_hw=tile_hw, source_hw=size_hw)

    assert reason_of(error) == Reason.IMAGE_SIZE_MISMATCH


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "pad", "tile"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_fitting_keeps_the_source_dtype_and_pads_nothing(mode, dtype):
    """Pixels cross to the session as they were decoded; padding is what normalisation adds."""
    image, contract = picture(20, 31, 1, dtype), spec(fit=mode, height=32, width=48)

    content, geometry = fit(image, contract, tile_hw=(32, 48), source_hw=(20, 31))

    assert content.dtype == dtype
    assert content.shape == (*geometry.resized_hw, 1)
    assert geometry.fitted_hw == (32, 48)


@pytest.mark.parametrize(
    ("fields", "tile_hw", "fault"),
    [
        ({"fit": "stretch"}, None, "needs a size"),
        ({"fit": "letterbox", "height": 30, "width": 32, "multiple": 16}, None, "must each be a multiple of"),
        ({"fit": "stretch", "height": 32, "width": 32}, (64, 64), "smaller than a tile"),
    ],
)
def test_a_contract_no_picture_can_fit_is_an_error_of_the_job(fields, tile_hw, fault):
    """An impossible contract is not a rejection."""
    with pytest.raises(ContractError, match=fault):
        fit(picture(20, 20), spec(**fields), tile_hw=tile_hw, source_hw=(20, 20))


@pytest.mark.parametrize(
    ("image", "fields", "reason"),
    [
        (picture(8, 8, 2), {}, Reason.IMAGE_CHANNELS_MISMATCH),
        (picture(8, 8)[:, :, 0], {}, Reason.IMAGE_CHANNELS_MISMATCH),
        (picture(8, 8).astype(np.float64), {}, Reason.IMAGE_MODE_NOT_SUPPORTED),
        (picture(0, 8), {}, Reason.IMAGE_SIZE_MISMATCH),
        (picture(8, 8), {"pad_value": -1000.0, "pad_units": "source"}, Reason.IMAGE_MODE_NOT_SUPPORTED),
        (picture(8, 8), {"pad_value": 0.5, "pad_units": "source"}, Reason.IMAGE_MODE_NOT_SUPPORTED),
        (picture(8, 8), {"padding": "refuse"}, Reason.IMAGE_SIZE_MISMATCH),
    ],
)
def test_a_picture_the_model_cannot_take_is_a_rejection(image, fields, reason):
    """Channels, dtype, no pixels, and padding that its dtype cannot hold."""
    with pytest.raises(ImageError) as error:
        padded(image, spec(fit="tile", **fields), tile_hw=(16, 16), source_hw=(8, 8))

    assert reason_of(error) == reason


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_unit_divides_by_the_largest_value_of_the_source_dtype(dtype, largest):
    """The divisor does not depend on the values in the picture."""
    image = np.array([[[0], [1], [largest // 2], [largest]]], dtype)

    normal = normalize(image, whole(image), spec(normalize=Divide()))

    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal[0, :, 0], np.array([0, 1, largest // 2, largest]) / largest, atol=1e-6)


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_mean_std_is_per_channel_and_within_1e_6_of_float64(dtype, largest):
    """(x / max - mean) / std, ImageNet's numbers."""
    image, mean, std = picture(40, 33, 3, dtype), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    normal = normalize(image, whole(image), ModelInput(normalize=MeanStd(mean=mean, std=std)))

    np.testing.assert_allclose(normal, (image / largest - np.array(mean)) / np.array(std), atol=1e-6, rtol=0)
    assert normal.flags.c_contiguous


def test_one_mean_serves_all_channels():
    """A single value is meant for every channel."""
    image = picture(4, 4, 3)

    normal = normalize(image, whole(image), ModelInput(normalize=MeanStd(mean=(0.5,), std=(0.5,))))

    np.testing.assert_allclose(normal, image / 127.5 - 1, atol=1e-6)


def test_scale_multiplies_first():
    """Golden: x · 2 - 3."""
    image = np.array([[[5], [0]]], np.uint16)

    assert normalize(image, whole(image), spec(normalize=Scale(scale=2.0, offset=-3.0)))[0, :, 0].tolist() == [7, -3]


def test_a_narrow_window_far_from_zero_keeps_its_digits():
    """Within 1e-6 of float64 at level 60000 of 16 bits, and clipped at both ends."""
    image = np.array([[[0], [59950], [59975], [60013], [60050], [65535]]], np.uint16)

    normal = normalize(image, whole(image), spec(normalize=CtWindow(center=60000.0, width=100.0, low=-1.0, high=1.0)))

    np.testing.assert_allclose(normal[0, :, 0], [-1, -1, -0.5, 0.26, 1, 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("per_channel", [False, True])
def test_percentiles_are_numpys_of_the_content_alone(per_channel):
    """Linear interpolation; padding of 60000 changes nothing."""
    image = picture(20, 20, 2, np.uint16)
    rule = Percentile(lower=2.0, upper=90.0, low=-1.0, high=1.0, per_channel=per_channel)
    contract = spec(channels=2, normalize=rule, pad_value=60000.0, pad_units="source")

    normal = normalize(image, Geometry((20, 20), (20, 20), 6, 6, (32, 32)), contract)

    low, high = np.percentile(image, [2, 90], axis=(0, 1) if per_channel else None)
    np.testing.assert_allclose(normal[6:26, 6:26], np.clip((image - low) / (high - low) * 2 - 1, -1, 1), atol=1e-6)


def test_a_flat_picture_has_finite_percentiles_and_z_scores():
    """No division by zero: the low end, and zero."""
    image = np.full((4, 4, 1), 9, np.uint8)

    assert (normalize(image, whole(image), spec(normalize=Percentile(low=0.5))) == 0.5).all()
    assert (normalize(image, whole(image), spec(normalize=ZScore())) == 0).all()
    assert (normalize(image * 0, whole(image), spec(normalize=ZScore(nonzero=True))) == 0).all()


@pytest.mark.parametrize("per_channel", [False, True])
def test_z_scores_use_the_population_std_of_the_content_alone(per_channel):
    """Padding changes nothing; without per_channel all channels share their statistics."""
    image = picture(20, 20, 2)
    contract = spec(channels=2, normalize=ZScore(per_channel=per_channel), pad_units="source")

    normal = normalize(image, Geometry((20, 20), (20, 20), 0, 0, (32, 32)), contract)

    over = (0, 1) if per_channel else None
    np.testing.assert_allclose(normal[:20, :20], (image - image.mean(over)) / image.std(over), atol=1e-6)


def test_nonzero_z_scores_leave_zeros_alone():
    """Golden: 1 and 3 have mean 2 and std 1; the zeros are neither counted nor changed."""
    image = np.array([[[0], [1], [3], [0]]], np.uint8)

    assert normalize(image, whole(image), spec(normalize=ZScore(nonzero=True)))[0, :, 0].tolist() == [0, -1, 1, 0]


@pytest.mark.oracle
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("nonzero", [False, True])
def test_z_scores_equal_monai(per_channel, nonzero):
    """Within 1e-6 of NormalizeIntensity."""
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("monai.transforms")
    image = picture(16, 24, 2) // 4 * (picture(16, 24, 2) > 99)

    rule = ZScore(per_channel=per_channel, nonzero=nonzero)
    normal = normalize(image.astype(np.uint8), whole(image), spec(channels=2, normalize=rule))

    monai = transforms.NormalizeIntensity(nonzero=nonzero, channel_wise=per_channel)
    wanted = monai(torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1))).numpy()
    np.testing.assert_allclose(normal.transpose(2, 0, 1), wanted, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_integer_model_gets_the_pixels_themselves(dtype):
    """Graphs that normalise inside take the source dtype, contiguous."""
    image = picture(8, 9, 3, dtype)[:, ::-1]

    normal = normalize(image, whole(image), ModelInput(dtype=np.dtype(dtype).name, normalize=Raw()))

    np.testing.assert_array_equal(normal, image)
    assert normal.dtype == dtype
    assert normal.flags.c_contiguous


def test_an_integer_model_refuses_another_dtype():
    """16 bits are never converted to 8."""
    image = picture(4, 4, 1, np.uint16)

    with pytest.raises(ImageError, match="the model takes uint8") as error:
        normalize(image, whole(image), spec(dtype="uint8", normalize=Raw()))

    assert reason_of(error) == Reason.IMAGE_MODE_NOT_SUPPORTED


def test_an_integer_model_with_a_normalisation_is_a_contract_error():
    """Fractions do not fit into integers."""
    image = picture(4, 4)

    with pytest.raises(ContractError, match="cannot hold normalize unit"):
        normalize(image, whole(image), spec(dtype="uint8", normalize=Divide()))


def test_a_half_precision_model_gets_float16_or_a_rejection():
    """65535 does not fit into float16: it would become infinity."""
    small, large = np.array([[[1000]]], np.uint16), np.array([[[65535]]], np.uint16)

    assert normalize(small, whole(small), spec(dtype="float16", normalize=Raw())).dtype == np.float16
    with pytest.raises(ImageError, match="do not fit into float16") as error:
        normalize(large, whole(large), spec(dtype="float16", normalize=Raw()))
    assert reason_of(error) == Reason.IMAGE_NON_FINITE


# Padding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [Divide(), MeanStd(mean=(0.5,), std=(0.2,)), ZScore(), CtWindow(center=99.0, width=50.0)]
)
@pytest.mark.parametrize("value", [0.0, -2.5])
def test_padding_is_a_value_after_normalisation(rule, value):
    """After mean_std or zscore, 0 is the mean of the training data, not black."""
    image, contract = picture(5, 7), spec(normalize=rule, pad_value=value, pad_units="normalized")

    content, geometry = fit(image, contract, tile_hw=(16, 16), source_hw=(5, 7))
    normal = normalize(content, geometry, contract)

    np.testing.assert_array_equal(normal[geometry.content], normalize(image, whole(image), contract))
    outside = np.ones((16, 16, 1), bool)
    outside[geometry.content] = False
    assert set(normal[outside].tolist()) == {value}


@pytest.mark.parametrize(("mode", "numpy_mode"), [("reflect", "reflect"), ("edge", "edge")])
@pytest.mark.parametrize("size_hw", [(5, 7), (1, 3), (16, 2)])
def test_padding_may_mirror_or_repeat_the_picture(mode, numpy_mode, size_hw):
    """As numpy.pad does, also where the padding is wider than the picture."""
    image, contract = picture(*size_hw), spec(padding=mode)

    content, geometry = fit(image, contract, tile_hw=(16, 16), source_hw=size_hw)
    normal = normalize(content, geometry, contract)

    sides = [(geometry.top, 16 - size_hw[0] - geometry.top), (geometry.left, 16 - size_hw[1] - geometry.left), (0, 0)]
    np.testing.assert_allclose(normal, np.pad(image, sides, mode=numpy_mode) / 255, atol=1e-6)


def test_a_pad_value_needs_its_units():
    """114 in an older contract is in source units; after normalisation it would be far out of range."""
    with pytest.raises(ValueError, match="pad_units: source"):
        spec(pad_value=114.0)


def test_a_source_value_that_normalisation_turns_into_the_padding_is_found():
    """The pad value of a packed graph: the same value in every channel, or None."""
    assert source_value(spec(), "uint8") == 0
    assert source_value(spec(normalize=MeanStd(mean=(0.2,), std=(1.0,))), "uint8") == 51
    assert source_value(spec(normalize=CtWindow(center=100.0, width=50.0)), "uint16") == 0
    assert source_value(ModelInput(normalize=MeanStd(mean=(0.485, 0.456, 0.406), std=(0.2, 0.2, 0.2))), "uint8") is None


@pytest.mark.oracle
@pytest.mark.parametrize("rule", ["mean_std", "zscore"])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_labels_of_a_picture_smaller_than_its_tile_equal_monais(rule, mode):
    """Normalise, pad, network, crop: MONAI's sliding window on a random network, label for label."""
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("monai.transforms")
    sliding = pytest.importorskip("monai.inferers").sliding_window_inference
    image = picture(21, 30, 3)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    torch.manual_seed(4)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 9, padding=4), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 9, padding=4)
    ).eval()
    steps = {
        "mean_std": transforms.NormalizeIntensity(
            subtrahend=np.multiply(mean, 255), divisor=np.multiply(std, 255), channel_wise=True
        ),
        "zscore": transforms.NormalizeIntensity(channel_wise=False),
    }
    normal = steps[rule](torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)))
    padding_mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[mode]
    with torch.no_grad():
        wanted = sliding(normal[None], (40, 40), 1, network, overlap=0.25, padding_mode=padding_mode)[0].argmax(0)

    normalize_by = MeanStd(mean=mean, std=std) if rule == "mean_std" else ZScore()
    contract = ModelInput(normalize=normalize_by, padding=mode)
    content, geometry = fit(image, contract, tile_hw=(40, 40), source_hw=(21, 30))
    tile = normalize(content, geometry, contract)
    with torch.no_grad():
        found = network(torch.from_numpy(tile.transpose(2, 0, 1)[None]))[0].argmax(0)[geometry.content]

    assert (found != wanted).float().mean() == 0


# Declared depth ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "largest", "divided_by"),
    [
        (np.uint16, 4095.0, 4095),
        (np.uint16, 65535.0, 65535),
        (np.uint8, 1.0, 1),
        (np.float32, 4294967295.0, 4294967295),
    ],
)
@pytest.mark.parametrize("rule", [Divide(), MeanStd(mean=(0.0,), std=(1.0,))])
def test_unit_and_mean_std_divide_by_the_largest_value_of_the_declared_depth(rule, dtype, largest, divided_by):
    """12 bits in a TIFF are divided by 4095 for every dtype."""
    image = np.array([[[1], [0]]], dtype)

    normal = preprocess.normalize(image, whole(image), spec(normalize=rule), largest=largest)

    np.testing.assert_allclose(normal[0, :, 0], [1 / divided_by, 0], rtol=1e-6)


@pytest.mark.parametrize("rule", [Divide(max=4095.0), MeanStd(mean=(0.0,), std=(1.0,), max=4095.0)])
@pytest.mark.parametrize("largest", [None, 65535.0])
def test_a_contract_may_name_the_largest_value_itself(rule, largest):
    """12-bit values in a 16-bit file, and signed integers, which declare none."""
    image = np.array([[[4095]]], np.uint16)

    assert preprocess.normalize(image, whole(image), spec(normalize=rule), largest=largest).tolist() == [[[1.0]]]


@pytest.mark.parametrize("rule", [Divide(), MeanStd(mean=(0.0,), std=(1.0,))])
def test_a_source_without_a_largest_value_is_rejected_where_one_is_needed(rule):
    """Signed integers; the sentence names the key."""
    image = np.array([[[-5.0]]], np.float32)

    with pytest.raises(ImageError, match=r"normalize\.max") as error:
        preprocess.normalize(image, whole(image), spec(normalize=rule), largest=None)
    assert reason_of(error) == Reason.IMAGE_MODE_NOT_SUPPORTED
    assert preprocess.normalize(image, whole(image), spec(normalize=Raw()), largest=None).tolist() == [[[-5.0]]]


def test_a_model_that_divides_in_its_graph_refuses_sources_of_another_depth():
    """A packed graph knows only the dtype of its pixels: 12 bits in a uint16 would be scored 16 times too dark."""
    image, contract = np.zeros((4, 4, 1), np.uint16), spec(dtype="uint16", normalize=Raw(), source_max=65535.0)

    assert preprocess.normalize(image, whole(image), contract, largest=65535.0).dtype == np.uint16
    with pytest.raises(ImageError, match="4095") as error:
        preprocess.normalize(image, whole(image), contract, largest=4095.0)
    assert reason_of(error) == Reason.IMAGE_MODE_NOT_SUPPORTED
