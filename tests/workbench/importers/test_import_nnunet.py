"""Result folders of nnU-Net v2: its label maps, its settings, and a sentence for what cannot be equal.

nnU-Net's own predictions are in `recorded_nnunet.npz`; `record_nnunet.py` made them with nnunetv2 2.8.1.
"""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_models import differing_share, label_maps, mean_dice_of_four_commands
from nnunet_folder import ARCHITECTURE, CONFIGURATION, DATASET, PLANS, pictures, write_folder, write_pictures

from unet_batch.errors import JobError, ModelRefused
from unet_batch.imaging.preprocess import normalize, whole
from unet_batch.workbench.draft.explore import explore
from unet_batch.workbench.draft.source import ModelRequest
from unet_batch.workbench.importers.imported import Imported, Options
from unet_batch.workbench.importers.sources import read_source
from unet_batch.workbench.importers.write import ImportReport, write

torch = pytest.importorskip("torch")
pytest.importorskip("dynamic_network_architectures")

pytestmark = pytest.mark.oracle

RECORDED = np.load(Path(__file__).with_name("recorded_nnunet.npz"))
PICTURES = ("large", "odd", "small", "wide", "bordered")


def recorded(suffix: str = "") -> dict[str, np.ndarray]:
    """nnU-Net's label maps by the names of the pictures' files."""
    return {f"{name}.png": RECORDED[name + suffix] for name in PICTURES}


def changed(tree: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at `a/b/c`."""
    made: dict[str, Any] = copy.deepcopy(dict(tree))
    inner = made
    *above, last = path.split("/")
    for name in above:
        inner = inner[name]
    inner[last] = value
    return made


def plans(path: str, value: Any) -> dict[str, Any]:
    """Plans with another value in the configuration 2d."""
    return changed(PLANS, f"configurations/2d/{path}", value)


def read(folder: Path, options: Options | None = None) -> Imported:
    return read_source(folder, options or Options())[1]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImportReport, Path]:
    """A folder with two folds as an ONNX file."""
    folder = tmp_path_factory.mktemp("nnunet")
    row, found = read_source(write_folder(folder / "model"), Options())
    return write(row.name, found, folder / "model.onnx"), folder


@pytest.fixture(scope="module")
def masks(imported: tuple[ImportReport, Path]) -> dict[str, np.ndarray]:
    """The label maps of a job with the imported file and its settings."""
    _, folder = imported
    write_pictures(folder / "pictures")
    return label_maps(folder / "model.onnx", folder / "pictures", folder / "table")


# Against nnU-Net ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_label_maps_are_those_of_nnunet_with_float32_sums(masks: dict[str, np.ndarray]) -> None:
    """Larger and smaller pictures than the patch, odd sizes, and one with a black border; two folds, four flips."""
    assert differing_share(masks, recorded("_float32")) <= 1e-4


@pytest.mark.slow
def test_label_maps_differ_from_nnunet_by_its_float16_sums_only(masks: dict[str, np.ndarray]) -> None:
    """nnU-Net adds tiles up in float16; its own maps with float32 sums differ from these by the same share."""
    assert differing_share(masks, recorded()) <= 1e-3
    assert differing_share(recorded("_float32"), recorded()) == pytest.approx(2.1e-4, rel=0.1)


@pytest.mark.slow
@pytest.mark.more_models
def test_four_commands_lead_to_overlays_and_a_dice(tmp_path: Path) -> None:
    """nnU-Net's recorded label maps are the truth."""
    write_folder(tmp_path / "nnUNetTrainer__nnUNetPlans__2d")
    write_pictures(tmp_path / "pictures")
    dice = mean_dice_of_four_commands(tmp_path, "nnUNetTrainer__nnUNetPlans__2d", recorded("_float32"))
    assert set(dice) == {"nucleus", "border"}
    assert min(dice.values()) >= 0.999


@pytest.mark.slow
def test_another_grid_gives_other_label_maps(imported: tuple[ImportReport, Path]) -> None:
    """The comparison above can fail: MONAI's placement and Gaussian flip labels of the same file."""
    _, folder = imported
    archive = folder / "one"
    archive.mkdir()
    (archive / "large.png").write_bytes((folder / "pictures" / "large.png").read_bytes())
    found = label_maps(folder / "model.onnx", archive, folder / "other", placement="stride", blend="gaussian")
    assert differing_share(found, {"large.png": RECORDED["large_float32"]}) > 0.01


@pytest.mark.slow
def test_the_sheet_of_init_shows_the_whole_ensemble_with_its_mirroring(
    imported: tuple[ImportReport, Path], masks: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mask of the sheet is that of the run, which is the mean of two folds and four passes."""
    report, folder = imported
    few = folder / "few"
    few.mkdir()
    for name in ("odd.png", "small.png"):  # small enough to be on the sheet as a whole
        (few / name).write_bytes((folder / "pictures" / name).read_bytes())
    monkeypatch.setattr("unet_batch.workbench.importers.write.export", _written_before(report, folder / "model.onnx"))
    explored = explore(ModelRequest(str(folder / "model"), folder / "drafted"), str(few))
    assert explored.job["tta"] == "mirror"
    for picture, scored in zip(explored.seen.pictures, explored.final.scored, strict=True):
        assert scored.labels_hw is not None
        assert differing_share({picture.name: scored.labels_hw}, {picture.name: masks[picture.name]}) == 0


def _written_before(report: ImportReport, file: Path) -> Callable[..., Any]:
    """In place of the export: the same file, which takes seconds to make."""

    def export(spec: Any, *_: Any) -> Any:
        spec.out.parent.mkdir(parents=True, exist_ok=True)
        spec.out.write_bytes(file.read_bytes())
        return report.exported

    return export


@pytest.mark.slow
def test_contract_and_job_hold_what_the_folder_says(imported: tuple[ImportReport, Path]) -> None:
    """Patch, normalisation, crop and classes belong to the contract; the sliding window and mirroring to the job."""
    report, folder = imported
    contract = report.exported.contract
    assert contract is not None
    assert (contract.input.height, contract.input.width, contract.input.multiple) == (48, 64, 4)
    assert (contract.input.color, contract.input.crop, contract.input.exif) == ("rgb", "nonzero", "ignore")
    assert contract.output.classes == ("background", "nucleus", "border")
    assert report.imported.job == {
        "tiling": {"overlap": 0.5, "placement": "even", "blend": "gaussian_nnunet"},
        "tta": "mirror",
    }
    assert (folder / "model.job.yaml").is_file()
    assert not [fact.field for fact in report.imported.facts if fact.how == "guessed"]


SCHEMES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ZScoreNormalization": lambda x: (x - x.mean((0, 1))) / np.maximum(x.std((0, 1)), 1e-8),
    "RGBTo01Normalization": lambda x: x / 255,
    "RescaleTo01Normalization": lambda x: (x - x.min((0, 1))) / (x.max((0, 1)) - x.min((0, 1))),
    "CTNormalization": lambda x: (np.clip(x, 10.0, 240.0) - 110.0) / 40.0,
    "NoNormalization": lambda x: x,
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_normalisation_is_the_formula_of_nnunet(tmp_path: Path, scheme: str) -> None:
    """In float64, from the classes of nnunetv2 2.8.1."""
    folder = write_folder(tmp_path / "model", plans=plans("normalization_schemes", [scheme] * 3), folds=("0",))
    picture = pictures()["odd"]
    found = normalize(picture, whole(picture.shape[:2]), read(folder).contract.input, largest=255.0)
    np.testing.assert_allclose(found, SCHEMES[scheme](picture.astype(np.float64)), atol=2e-6, rtol=1e-6)


# The folder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "tta"),
    [((0, 1), "mirror"), ((0,), "mirror_vertical"), ((1,), "mirror_horizontal"), (None, None), ((), None)],
)
def test_mirroring_axes_become_tta(tmp_path: Path, axes: tuple[int, ...] | None, tta: str | None) -> None:
    """Axis 0 is that of the rows. Trainers without mirroring store none."""
    folder = write_folder(tmp_path / "model", folds=("0",), checkpoint={"inference_allowed_mirroring_axes": axes})
    assert read(folder).job.get("tta") == tta


def test_every_fold_is_a_member_in_the_order_of_its_number(tmp_path: Path) -> None:
    """`fold_all` counts only where there is no other, as in nnU-Net; --weights takes a single checkpoint."""
    several = write_folder(tmp_path / "several", folds=("10", "2", "all"))
    facts = {fact.field: fact.value for fact in read(several).facts}
    assert facts["folds"] == "fold_2, fold_10"
    alone = write_folder(tmp_path / "alone", folds=("all",))
    assert len(read(alone).networks) == 1
    chosen = read(several, Options(weights=several / "fold_10" / "checkpoint_final.pth"))
    assert len(chosen.networks) == 1


def test_a_configuration_inherits(tmp_path: Path) -> None:
    """As `nnUNetv2_plan_experiment` is told to make variants of a configuration."""
    tree = changed(PLANS, "configurations/2d_wide", {"inherits_from": "2d", "patch_size": [48, 96]})
    checkpoint = {"init_args": {"configuration": "2d_wide"}}
    found = read(write_folder(tmp_path / "model", plans=tree, folds=("0",), checkpoint=checkpoint))
    assert (found.contract.input.height, found.contract.input.width) == (48, 96)


def test_plans_of_early_versions_describe_their_network_in_other_words(tmp_path: Path) -> None:
    """Before nnU-Net 2.4 plans had `UNet_class_name`; the same weights fit into the same network."""
    old = {key: value for key, value in CONFIGURATION.items() if key != "architecture"} | {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "n_conv_per_stage_encoder": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "unet_max_num_features": 12,
        "conv_kernel_sizes": [[3, 3]] * 3,
        "pool_op_kernel_sizes": [[1, 1], [2, 2], [2, 2]],
    }
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, 16, 16), np.float32))
    new_folder = write_folder(tmp_path / "new", folds=("0",))
    old_folder = write_folder(tmp_path / "old", plans=changed(PLANS, "configurations/2d", old), folds=("0",))
    one, other = (read(folder).networks[0](image) for folder in (new_folder, old_folder))
    assert torch.equal(one, other)


def test_residual_encoders_are_read(tmp_path: Path) -> None:
    """nnU-Net's presets ResEnc M, L and XL."""
    network = {key: value for key, value in ARCHITECTURE.items() if key != "n_conv_per_stage"}
    network["n_blocks_per_stage"] = [1, 1, 1]
    tree = plans("architecture/arch_kwargs", network)
    name = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    tree = changed(tree, "configurations/2d/architecture/network_class_name", name)
    folder = write_folder(tmp_path / "m", plans=tree, folds=("0",), network=network, kind="ResidualEncoderUNet")
    assert read(folder).origin == "nnunetv2.nnUNetTrainer.ResidualEncoderUNet"


def test_the_ignore_label_is_no_class(tmp_path: Path) -> None:
    """It marks pixels that the training left out."""
    tree = changed(DATASET, "labels/ignore", 3)
    found = read(write_folder(tmp_path / "model", dataset=tree, folds=("0",)))
    assert found.contract.output.classes == ("background", "nucleus", "border")


# What cannot be equal -----------------------------------------------------------------------------------------------


REGIONS = {
    **changed(DATASET, "labels", {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}),
    "regions_class_order": [1, 2, 3],
}
DIFFERENT = {
    "spacing": ({"plans": plans("spacing", [0.5, 0.5])}, "resampled to a spacing of \\[0.5, 0.5\\]"),
    "volumes": ({"plans": changed(PLANS, "image_reader_writer", "SimpleITKIO")}, "volumes that SimpleITKIO reads"),
    "mask": ({"plans": plans("use_mask_for_norm", [True] * 3)}, "use_mask_for_norm"),
    "regions": ({"dataset": REGIONS}, "its regions are painted over each other"),
    "trainer": ({"checkpoint": {"trainer_name": "nnUNetTrainerMyLoss"}}, "its trainer nnUNetTrainerMyLoss is not"),
    "preprocessor": (
        {"plans": plans("preprocessor_name", "MyPreprocessor")},
        "its preprocessor_name is MyPreprocessor",
    ),
    "manager": ({"plans": changed(PLANS, "label_manager", "MyManager")}, "its label_manager is MyManager"),
    "key": ({"plans": plans("gamma_correction", 2)}, "settings that nnU-Net 2.8 does not have \\(gamma_correction\\)"),
    "resampling": ({"plans": plans("resampling_fn_data", "mine")}, "its resampling_fn_data is mine, which is not"),
    "back": ({"plans": plans("resampling_fn_probabilities", ["f"])}, "its resampling_fn_probabilities is .'f'., which"),
    "sigmoid": ({"dataset": REGIONS}, "averaged as probabilities, and nnU-Net averages logits"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_cannot_be_equal_is_refused_by_name(tmp_path: Path, case: str) -> None:
    """Before the export; --allow-difference is the way on."""
    settings, sentence = DIFFERENT[case]
    row, found = read_source(write_folder(tmp_path / "model", folds=("0",), **settings), Options())
    with pytest.raises(ModelRefused, match=f"{sentence}.*--allow-difference"):
        write(row.name, found, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_regions_become_masks_that_may_overlap(tmp_path: Path) -> None:
    """The sigmoid follows the mean of the folds, which is one of logits."""
    found = read(write_folder(tmp_path / "model", dataset=REGIONS))
    assert found.contract.output.activation == "sigmoid"
    assert found.contract.output.classes == ("whole", "core", "tip")
    image = torch.from_numpy(np.random.default_rng(0).random((1, 3, 16, 16), np.float32))
    folds = read(write_folder(tmp_path / "folds")).networks
    expected = torch.sigmoid(sum(fold(image) for fold in folds) / 2)
    torch.testing.assert_close(found.networks[0](image), expected)


@pytest.mark.parametrize(
    "trainer", ["nnUNetTrainer", "nnUNetTrainer_250epochs", "nnUNetTrainerNoMirroring", "nnUNetTrainerDA5"]
)
def test_trainers_of_nnunet_that_only_train_otherwise_make_no_difference(tmp_path: Path, trainer: str) -> None:
    """They build the same network."""
    folder = write_folder(tmp_path / "model", folds=("0",), checkpoint={"trainer_name": trainer})
    assert read(folder).differences == ()


REFUSED = {
    "cascade": (plans("previous_stage", "2d_lowres"), "second stage of a cascade"),
    "volume": (plans("patch_size", [32, 48, 64]), "that of a 3-D configuration"),
    "axes": (changed(PLANS, "transpose_forward", [0, 2, 1]), "transpose_forward .* swaps the axes"),
    "way back": (changed(PLANS, "transpose_backward", [0, 2, 1]), "transpose_backward .* swaps the axes"),
    "schemes": (
        plans("normalization_schemes", ["ZScoreNormalization"]),
        "has 1 normalization_schemes, but .* 3 channel",
    ),
    "circle": (plans("inherits_from", "2d"), "the configuration 2d inherits from itself"),
    "mixed": (
        plans("normalization_schemes", ["ZScoreNormalization", "CTNormalization", "CTNormalization"]),
        "different normalisations .* choose the nearest with --normalize",
    ),
    "own": (plans("normalization_schemes", ["MyNorm"] * 3), "MyNorm is not one of nnU-Net's own"),
    "missing": ({**PLANS, "configurations": {"3d_fullres": CONFIGURATION}}, "the configuration 2d is not there"),
    "arguments": (plans("architecture/arch_kwargs/n_stages", 7), "PlainConvUNet cannot be built with its arguments"),
    "code": (plans("architecture/network_class_name", "os.system"), "the network 'os.system' is none of"),
    "operator": (plans("architecture/arch_kwargs/conv_op", "os.system"), "conv_op 'os.system' is none of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_imported_is_refused_by_name(tmp_path: Path, case: str) -> None:
    """No class is imported because a file names it."""
    tree, sentence = REFUSED[case]
    with pytest.raises(ModelRefused, match=sentence):
        read(write_folder(tmp_path / "model", plans=tree, folds=("0",)))


def test_the_size_of_averaged_probabilities_is_measured_without_mirroring_only(tmp_path: Path) -> None:
    """With it, the mean of the passes is no longer to be taken apart."""
    for axes, known in (((0, 1), False), ((), True)):
        checkpoint = {"inference_allowed_mirroring_axes": axes}
        folder = write_folder(tmp_path / str(known), dataset=REGIONS, folds=("0",), checkpoint=checkpoint)
        [found] = [each for each in read(folder).differences if "averaged as probabilities" in each.text]
        assert (found.way is not None) == known


def test_channels_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """And not in the order of the file."""
    names = {"2": "B", "0": "R", "1": "G"}
    folder = write_folder(tmp_path / "a", dataset=changed(DATASET, "channel_names", names), folds=("0",))
    assert read(folder).contract.input.color == "rgb"
    gap = changed(DATASET, "channel_names", {"0": "R", "1": "G", "3": "B"})
    with pytest.raises(ModelRefused, match=r"numbered 0, 1, 3, not 0 to 2"):
        read(write_folder(tmp_path / "b", dataset=gap, folds=("0",)))


def test_channels_in_files_of_their_own_and_postprocessing_are_remarked(tmp_path: Path) -> None:
    """nnU-Net's habits that a run here does not share."""
    names = {"0": "DAPI", "1": "FITC", "2": "TRITC"}
    folder = write_folder(tmp_path / "model", dataset=changed(DATASET, "channel_names", names), folds=("0",))
    (folder / "crossval_results_folds_0").mkdir()
    (folder / "crossval_results_folds_0" / "postprocessing.pkl").write_bytes(b"")
    files, postprocessing = read(folder).notes
    assert "DAPI, FITC, TRITC: nnU-Net may read them from 3 files" in files
    assert "postprocessing.pkl is not applied" in postprocessing


@pytest.mark.parametrize("above", [".", "nnUNet_results"])
def test_a_folder_of_results_names_the_models_inside(tmp_path: Path, above: str) -> None:
    """Of a data set, or of all data sets."""
    write_folder(tmp_path / "nnUNet_results" / "Dataset001_Tiny" / "nnUNetTrainer__nnUNetPlans__2d", folds=("0",))
    outer = tmp_path / "nnUNet_results" / ("Dataset001_Tiny" if above == "." else "")
    with pytest.raises(ModelRefused, match=r"holds some: write one of .*001_Tiny/nnUNetTrainer__nnUNetPlans__2d"):
        read(outer)


@pytest.mark.parametrize("name", ["resample_torch_simple", "no_resampling_hack"])
def test_resampling_of_nnunet_makes_no_difference_at_a_spacing_of_one(tmp_path: Path, name: str) -> None:
    """Its functions return an image that has its size."""
    folder = write_folder(tmp_path / "model", plans=plans("resampling_fn_data", name), folds=("0",))
    assert read(folder).differences == ()


DAMAGED = {
    "spacing": [1.0, "x", [], [1.0], [1.0, 0.0], [1.0, None], [[1], 1.0], {"a": 1}, [True, True]],
    "use_mask_for_norm": [1, True, "yes", [True], {"0": True}],
    "normalization_schemes": [None, {}, 1],
    "patch_size": [[None, 1], 3],
    "architecture/arch_kwargs/strides": [[[1, 1], "x"], [[1]]],
    "architecture/_kw_requires_import": ["conv_op", [[1]]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGED.items() for value in values])
def test_damaged_plans_are_one_sentence(tmp_path: Path, folder_of_one: Path, key: str, value: Any) -> None:
    """The file and the key."""
    folder = tmp_path / "model"
    shutil.copytree(folder_of_one, folder)
    (folder / "plans.json").write_text(json.dumps(plans(key, value)))
    with pytest.raises(ModelRefused, match=rf"plans\.json.*{key.rpartition('/')[2].removeprefix('_')}"):
        read(folder)


@pytest.fixture(scope="module")
def folder_of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one fold."""
    return write_folder(tmp_path_factory.mktemp("one") / "model", folds=("0",))


@pytest.mark.parametrize("axes", [0, "01", {"0": 1}, [[0]], [None], [0.5]])
def test_damaged_axes_of_a_checkpoint_are_one_sentence(tmp_path: Path, axes: Any) -> None:
    """The checkpoint, and the key."""
    folder = write_folder(tmp_path / "model", folds=("0",), checkpoint={"inference_allowed_mirroring_axes": axes})
    with pytest.raises(ModelRefused, match=r"checkpoint_final\.pth: inference_allowed_mirroring_axes .* no numbers"):
        read(folder)


def test_labels_with_a_gap_are_refused(tmp_path: Path) -> None:
    """nnU-Net's channels are its labels."""
    with pytest.raises(ModelRefused, match="not 0 to 2"):
        read(write_folder(tmp_path / "m", dataset=changed(DATASET, "labels/border", 5), folds=("0",)))


class _Planted:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_a_checkpoint_that_holds_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    """Only tensors, plain values and NumPy's numbers are read, and the numbers as None."""
    marker = tmp_path / "ran"
    folder = write_folder(tmp_path / "model", folds=("0",), checkpoint={"logging": _Planted(marker)})
    with pytest.raises(ModelRefused, match="can only be read by running code of the file"):
        read(folder)
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Planted(marker)))
    assert marker.exists()


def test_another_checkpoint_is_named_where_the_final_one_is_missing(tmp_path: Path) -> None:
    """A training that goes on has a best one."""
    folder = write_folder(tmp_path / "model", folds=("0",))
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    with pytest.raises(JobError, match=r"there is fold_0/checkpoint_best.pth"):
        read(folder)


def test_a_folder_without_checkpoints_says_what_is_missing(tmp_path: Path) -> None:
    """A training that did not finish has checkpoint_best.pth only."""
    with pytest.raises(JobError, match=r"holds no fold_\*/checkpoint_final.pth: give a checkpoint with --weights"):
        read(write_folder(tmp_path / "model", folds=()))
