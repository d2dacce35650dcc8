"""Reads result folders of nnU-Net v2: plans.json, dataset.json and fold_*/checkpoint_final.pth, for 2-D configurations.

The network is built from an allow-list of classes and plain arguments. nnU-Net itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_batch.contract import Contract, Normalize
from unet_batch.errors import JobError, ModelRefused
from unet_batch.strict import validate
from unet_batch.workbench.export.weights import Weights, WeightsFile, place_weights, read_weights
from unet_batch.workbench.importers.difference import Difference
from unet_batch.workbench.importers.folder import package, peek, read_settings
from unet_batch.workbench.importers.import_settings import ImportSettings
from unet_batch.workbench.importers.imported import Fact, Imported, Options
from unet_batch.workbench.importers.monai.ways import blended_logits
from unet_batch.workbench.importers.nnunet_plans import (
    DATASET,
    PLANS,
    Architecture,
    Labels,
    architecture,
    channel_names,
    configuration,
    foreign_parts,
    labels_of,
    normalisation,
    side_multiple,
)
from unet_batch.workbench.importers.nnunet_ways import in_one_mask, masked_statistics, resampled
from unet_batch.workbench.importers.wrappers import mean_of, with_sigmoid

CHECKPOINT = "checkpoint_final.pth"
RESAMPLING = "resample_data_or_seg_to_shape"
"""nnU-Net's usual resampling of images, with cubic splines."""
RESAMPLINGS = frozenset({RESAMPLING, "resample_torch_simple", "resample_torch_fornnunet", "no_resampling_hack"})
"""nnU-Net's own functions (nnunetv2 2.8, preprocessing/resampling): pictures of the right spacing pass unchanged."""
PICTURES = "NaturalImage2DIO"
"""nnU-Net's reader of PNG, BMP and TIFF pictures."""
SAME_NETWORK = re.compile(
    r"nnUNetTrainer(_(\d+epochs?|NoMirroring|onlyMirror01|DASegOrd0|noDummy2DDA|1500ep|DA5)|NoMirroring|NoDA|DA5|DA5ord0"
    r"|DA5Segord0|CELoss|DiceLoss|DiceCELoss_noSmooth|Topk10Loss|Topk10LossLS01|DiceTopK10Loss|NoDeepSupervision"
    r"|CosAnneal|Adam|AdamW|Adam1en3|Adam3en4|VanillaAdam|VanillaAdam1en3|VanillaAdam3en4|Adan|Adan1en3|Adan3en4|Adan1en1"
    r"|AdanCosAnneal|_probabilisticOversampling(_\d+)?|_warmup)*"
)
"""nnU-Net's own trainers that change only the training (nnunetv2 2.8); others may build another network."""
TTA: Mapping[frozenset[int], str] = {
    frozenset(): "none",
    frozenset({0, 1}): "mirror",
    frozenset({0}): "mirror_vertical",
    frozenset({1}): "mirror_horizontal",
}
"""`inference_allowed_mirroring_axes`, counted from the first axis of the picture → `tta`."""
TILING = {"overlap": 0.5, "placement": "even", "blend": "gaussian_nnunet"}
"""The predictor's defaults: tile_step_size 0.5 and use_gaussian."""


def recognises(source: Path) -> bool:
    """Whether a folder has plans with configurations, and a dataset."""
    return "configurations" in peek(source, PLANS) and "labels" in peek(source, DATASET)


def read(source: Path, options: Options) -> Imported:
    """The ensemble of all folds.

    Raises ModelRefused for cascades, 3-D configurations and what is outside of the allow-lists, JobError without the
    package dynamic_network_architectures.
    """
    plans, dataset = read_settings(source / PLANS), read_settings(source / DATASET)
    files = [read_weights(path) for path in _checkpoints(source, options)]
    trained = _Trained(files[0])
    found = configuration(plans, trained.configuration)
    _refuse_other_shapes(plans, found, trained.configuration)
    channels, labels = channel_names(dataset), labels_of(dataset)
    network = architecture(found)
    built = [_network(network, len(channels), len(labels.names), file) for file in files]

    said = ImportSettings(options, f"{PLANS}: {trained.configuration}")
    said.add("folds", ", ".join(file.path.parent.name for file in files), "the folders", "read")
    differences = _differences(plans, dataset, found, labels, trained)
    rule = _normalize(plans, found, said, differences, len(channels))
    color = said.color(len(channels), _color(channels), f"{DATASET}: channel_names")
    patch_hw = _patch(found)
    said.add("input.height and width", f"{patch_hw[0]} x {patch_hw[1]}", f"{said.source}: patch_size", "read")
    meaning = said_of(labels, said)
    said.source = DATASET
    names, background = said.classes(len(labels.names), meaning, key="labels", names=labels.names)
    if background is not None:  # nnU-Net demands that label 0 is the background
        said.facts[-1] = Fact("output.background", names[background], f"{DATASET}: labels", "read")
    job = _job(trained, said)
    tree = {
        "input": {
            "color": color,
            "channels": len(channels),
            "height": patch_hw[0],
            "width": patch_hw[1],
            "multiple": max(side_multiple(network.arguments.get("strides"))),
            "crop": "nonzero",
            "fit": "tile",
            "exif": "ignore",
            "normalize": rule.model_dump(),
        },
        "output": {"activation": meaning, "classes": list(names), "background": background},
    }
    said.add("input.crop", "nonzero", "nnU-Net's preprocessor", "default")
    said.add("input.exif", "ignore", "nnU-Net's reader (scikit-image)", "default")
    modules = [module for module, _ in built]
    return Imported(
        networks=(with_sigmoid(mean_of(modules)),) if labels.regions else tuple(modules),
        contract=validate(Contract, tree, "the contract of the imported model"),
        origin=f"nnunetv2.{trained.trainer}.{network.class_name}",
        job=job,
        facts=(
            Fact("network", f"{network.class_name}, {trained.configuration}", f"{PLANS}: architecture", "read"),
            *said.facts,
        ),
        differences=tuple(differences),
        notes=_notes(source, channels),
        weights=tuple(weights for _, weights in built),
        size_hw=patch_hw,
    )


class _Trained:
    """What the first checkpoint says about the training, as nnU-Net reads it."""

    def __init__(self, file: WeightsFile) -> None:
        tree = file.tree if isinstance(file.tree, Mapping) else {}
        arguments = tree.get("init_args")
        name = arguments.get("configuration") if isinstance(arguments, Mapping) else None
        if not isinstance(name, str) or "network_weights" not in tree:
            raise ModelRefused(f"{file.path} is no checkpoint of nnU-Net v2: it has no network_weights or init_args")
        self.configuration = name
        self.trainer = str(tree.get("trainer_name"))
        axes = tree.get("inference_allowed_mirroring_axes")
        self.where = f"{file.path.parent.name}/{file.path.name}"
        if axes is not None and not (isinstance(axes, list | tuple) and all(type(axis) is int for axis in axes)):
            raise ModelRefused(f"{self.where}: inference_allowed_mirroring_axes {axes!r} are no numbers of axes")
        self.mirrored = frozenset(axes or ())


def said_of(labels: Labels, said: ImportSettings) -> Any:
    """The activation: logits of labels, or sigmoid of regions."""
    said.source = DATASET
    return said.activation("sigmoid" if labels.regions else "logits", "labels")


def _checkpoints(source: Path, options: Options) -> list[Path]:
    """The checkpoint of every fold, in order; `fold_all` only where it is the only one, as in nnU-Net."""
    if options.weights is not None:
        return [options.weights]
    numbered = [
        (int(path.parent.name.removeprefix("fold_")), path)
        for path in source.glob(f"fold_*/{CHECKPOINT}")
        if path.parent.name.removeprefix("fold_").isdecimal()
    ]
    found = [path for _, path in sorted(numbered)] or list(source.glob(f"fold_all/{CHECKPOINT}"))
    if not found:
        others = sorted(source.glob("fold_*/checkpoint_*.pth"))
        there = f" (there is {others[0].relative_to(source)})" if others else ""
        raise JobError(f"{source} holds no fold_*/{CHECKPOINT}: give a checkpoint with --weights{there}")
    return found


def _refuse_other_shapes(plans: Mapping[str, Any], found: Mapping[str, Any], name: str) -> None:
    if found.get("previous_stage") is not None:
        raise ModelRefused(f"{PLANS}: {name} is the second stage of a cascade, and its input is another model's mask")
    _patch(found)
    for key in ("transpose_forward", "transpose_backward"):
        if plans.get(key, [0, 1, 2]) != [0, 1, 2]:
            raise ModelRefused(f"{PLANS}: {key} {plans[key]} swaps the axes of pictures")


def _patch(found: Mapping[str, Any]) -> tuple[int, int]:
    patch = found.get("patch_size")
    if not isinstance(patch, list) or not all(isinstance(side, int) and side > 0 for side in patch):
        raise ModelRefused(f"{PLANS}: patch_size {patch!r} is no list of sides")
    if len(patch) != 2:
        raise ModelRefused(f"{PLANS}: patch_size {patch} is that of a {len(patch)}-D configuration: train or choose 2d")
    return patch[0], patch[1]


def _network(said: Architecture, channels: int, heads: int, file: WeightsFile) -> tuple[Any, Weights]:
    """The network of one fold, with its weights."""
    import torch

    # 0.3 needs nothing but PyTorch and NumPy; 0.4 brings timm, torchvision and often another PyTorch.
    package("dynamic_network_architectures", "'dynamic-network-architectures<0.4'")
    from dynamic_network_architectures.architectures import unet

    modules = {key: getattr(torch.nn, name) for key, name in said.modules.items()}
    try:
        network = getattr(unet, said.class_name)(
            input_channels=channels, num_classes=heads, deep_supervision=False, **{**said.arguments, **modules}
        )
    except Exception as error:  # arguments that do not fit may raise anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise ModelRefused(f"{PLANS}: {said.class_name} cannot be built with its arguments: {why}") from error
    network = network.float().eval().requires_grad_(requires_grad=False)
    return network, place_weights(network, file)


def _normalize(
    plans: Mapping[str, Any],
    found: Mapping[str, Any],
    said: ImportSettings,
    differences: list[Difference],
    channels: int,
) -> Normalize:
    schemes = found.get("normalization_schemes")
    if not isinstance(schemes, list) or not schemes:
        raise ModelRefused(f"{PLANS} has no normalization_schemes")
    if len(schemes) != channels:
        raise ModelRefused(f"{PLANS} has {len(schemes)} normalization_schemes, but {DATASET} has {channels} channel(s)")
    rule = normalisation(plans, schemes)
    if isinstance(rule, str):
        if said.options.normalize is None:
            raise ModelRefused(f"{rule}, which no contract says: choose the nearest with --normalize")
        differences.append(Difference(f"{rule}, which no contract says"))
        return said.normalize(None, len(schemes), "")
    masked = found.get("use_mask_for_norm") or []
    if not isinstance(masked, list) or (any(masked) and len(masked) != len(schemes)):
        raise ModelRefused(f"{PLANS}: use_mask_for_norm {masked!r} does not say true or false for each channel")
    if "ZScoreNormalization" in schemes and any(masked):
        text = (
            "its z-score counts only pixels that are not 0 in some channel (use_mask_for_norm), and here it counts all"
        )
        differences.append(Difference(text, masked_statistics([bool(each) for each in masked])))
    return said.normalize(rule, len(schemes), f"{said.source}: normalization_schemes")


def _color(channels: tuple[str, ...]) -> Any:
    """rgb where the channels are named so; None: by their number."""
    letters = "".join(name[:1].lower() for name in channels)
    return "rgb" if letters == "rgb" else "bands" if len(channels) == 3 and letters == "bgr" else None


def _job(trained: _Trained, said: ImportSettings) -> dict[str, Any]:
    if trained.mirrored not in TTA:
        raise ModelRefused(f"{trained.where}: mirroring axes {sorted(trained.mirrored)} are not those of a picture")
    tta = TTA[trained.mirrored]
    said.add("tta", tta, f"{trained.where}: inference_allowed_mirroring_axes", "read")
    for key, value in TILING.items():
        said.add(f"tiling.{key}", value, "nnUNetPredictor", "default")
    return {"tiling": dict(TILING), **({} if tta == "none" else {"tta": tta})}


def _spacing(found: Mapping[str, Any]) -> tuple[float, ...]:
    """Pixels of a picture by side of a pixel of the network, height and width."""
    said = found.get("spacing")
    if said is None:
        return (1.0, 1.0)
    sides = said if isinstance(said, list) else []
    if len(sides) != 2 or not all(type(side) in (int, float) and side > 0 for side in sides):
        raise ModelRefused(f"{PLANS}: spacing {said!r} is no list of two positive numbers")
    return tuple(float(side) for side in sides)


def _differences(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], found: Mapping[str, Any], labels: Labels, trained: _Trained
) -> list[Difference]:
    """Why masks cannot equal nnU-Net's, a sentence each."""
    differences = []
    reader = dataset.get("overwrite_image_reader_writer") or plans.get("image_reader_writer")
    spacing = _spacing(found)
    if reader != PICTURES:
        text = (
            f"its images are volumes that {reader} reads: nnU-Net normalises and resamples a volume as a whole, and "
            "here each picture counts alone"
        )
        differences.append(Difference(text))
    if spacing != (1.0, 1.0) and reader == PICTURES:
        text = f"its pictures are resampled to a spacing of {list(spacing)} pixels, and here they are not"
        usual = found.get("resampling_fn_data", RESAMPLING) == RESAMPLING
        differences.append(Difference(text, resampled(spacing) if usual else None))
    for key in ("resampling_fn_data", "resampling_fn_probabilities"):
        function = found.get(key, RESAMPLING)
        if not isinstance(function, str) or function not in RESAMPLINGS:
            text = f"its {key} is {function}, which is not nnU-Net's own and may change pictures or scores"
            differences.append(Difference(text))
    if labels.regions:
        order = dataset.get("regions_class_order")
        text = (
            f"its regions are painted over each other in one mask (regions_class_order {order}), and here they stay "
            "masks that overlap"
        )
        differences.append(Difference(text, in_one_mask()))
        text = (
            "the sigmoid of its regions is in the graph, so tiles and mirrored passes are averaged as probabilities, "
            "and nnU-Net averages logits"
        )
        differences.append(Difference(text, None if trained.mirrored else blended_logits(sigmoid=True)))
    if not SAME_NETWORK.fullmatch(trained.trainer):
        text = f"its trainer {trained.trainer} is not nnU-Net's own and may change the network's results"
        differences.append(Difference(text))
    return [*differences, *(Difference(text) for text in foreign_parts(plans, found))]


def _notes(source: Path, channels: tuple[str, ...]) -> tuple[str, ...]:
    """What a user of nnU-Net should know beside the model, a sentence each."""
    notes = []
    count = len(channels)
    if count > 1 and _color(channels) is None:
        notes.append(
            f"{DATASET} names the channels {', '.join(channels)}: nnU-Net may read them from {count} files "
            "(_0000, _0001, …), and here they are the channels of one file"
        )
    if list(source.glob("crossval_results_folds_*/postprocessing.pkl")) or (source / "postprocessing.pkl").is_file():
        notes.append("postprocessing.pkl is not applied, as nnUNetv2_predict does not apply it either")
    return tuple(notes)
