"""What plans.json and dataset.json of nnU-Net v2 say: one configuration, its network, its normalisation, its labels.

Plain values only. Names of classes are looked up in tables here, never imported from a file's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unet_batch.contract import CtWindow, Normalize, Percentile, Raw, Scale, ZScore
from unet_batch.errors import ModelRefused

PLANS, DATASET = "plans.json", "dataset.json"
NETWORKS: Mapping[str, str] = {
    "dynamic_network_architectures.architectures.unet.PlainConvUNet": "PlainConvUNet",
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet": "ResidualEncoderUNet",
}
"""Name in the plans → class in `dynamic_network_architectures.architectures.unet`."""
MODULES: Mapping[str, str] = {
    "torch.nn.modules.conv.Conv2d": "Conv2d",
    "torch.nn.Conv2d": "Conv2d",
    "torch.nn.modules.instancenorm.InstanceNorm2d": "InstanceNorm2d",
    "torch.nn.InstanceNorm2d": "InstanceNorm2d",
    "torch.nn.modules.batchnorm.BatchNorm2d": "BatchNorm2d",
    "torch.nn.BatchNorm2d": "BatchNorm2d",
    "torch.nn.modules.dropout.Dropout2d": "Dropout2d",
    "torch.nn.Dropout2d": "Dropout2d",
    "torch.nn.LeakyReLU": "LeakyReLU",
    "torch.nn.modules.activation.LeakyReLU": "LeakyReLU",
    "torch.nn.ReLU": "ReLU",
    "torch.nn.modules.activation.ReLU": "ReLU",
}
"""Name in the plans → class in `torch.nn`."""
OLD_NETWORKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
"""Class in plans without `architecture` → argument that takes the convolutions or blocks of a stage."""

USUAL: Mapping[str, str] = {
    "preprocessor_name": "DefaultPreprocessor",
    "label_manager": "LabelManager",
}
"""Settings that name a class of nnU-Net, and the class that is understood."""
_READ = frozenset({
    *("inherits_from", "previous_stage", "patch_size", "spacing", "normalization_schemes", "use_mask_for_norm"),
    *("preprocessor_name", "architecture", "UNet_class_name", "UNet_base_num_features", "n_conv_per_stage_encoder"),
    *("n_conv_per_stage_decoder", "pool_op_kernel_sizes", "conv_kernel_sizes", "unet_max_num_features"),
    *("resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_probabilities"),
    "resampling_fn_probabilities_kwargs",
})  # fmt: skip
"""Keys of a configuration that count here."""
_OF_TRAINING = frozenset({
    *("data_identifier", "batch_size", "median_image_size_in_voxels", "batch_dice", "next_stage"),
    *("num_pool_per_axis", "resampling_fn_seg", "resampling_fn_seg_kwargs"),
})  # fmt: skip
"""Keys of a configuration that nnU-Net 2.8 does not read when it predicts."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The network of a configuration."""

    class_name: str
    """A value of `NETWORKS`."""
    arguments: Mapping[str, Any]
    """Plain values."""
    modules: Mapping[str, str]
    """Arguments that are classes: values of `MODULES`."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What the channels of the network mean."""

    names: tuple[str, ...]
    """By channel: the labels without `ignore`, or the regions without the background."""
    regions: bool
    """Whether channels are regions, which may overlap, and not labels."""


def configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with the values that it inherits. Raises ModelRefused if it is missing or inherits itself."""
    known = plans.get("configurations")
    if not isinstance(known, Mapping):
        raise ModelRefused(f"{PLANS} has no configurations: it is not a file of nnU-Net v2")
    merged: dict[str, Any] = {}
    visited: list[str] = []
    following: Any = name
    while following is not None:
        if not isinstance(following, str):
            raise ModelRefused(f"{PLANS}: inherits_from must be a name, not {following!r}")
        if following in visited or not isinstance(known.get(following), Mapping):
            why = "inherits from itself" if following in visited else "is not there"
            raise ModelRefused(f"{PLANS}: the configuration {following} {why}; there are {', '.join(map(str, known))}")
        visited.append(following)
        merged = {**known[following], **merged}
        following = known[following].get("inherits_from")
    return merged


def foreign_parts(plans: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What the plans say that is not nnU-Net's own, a sentence each: classes of others, and keys that are not known."""
    sentences = []
    for key, usual in USUAL.items():
        said = found.get(key, plans.get(key, usual))
        if said not in (None, usual):
            sentences.append(f"its {key} is {said}, and here {usual} is computed")
    unknown = sorted(str(key) for key in found.keys() - _READ - _OF_TRAINING)
    if unknown:
        few = ", ".join(unknown[:4]) + (" …" if len(unknown) > 4 else "")
        sentences.append(f"its plans hold settings that nnU-Net 2.8 does not have ({few}), and they are not applied")
    return sentences


def architecture(found: Mapping[str, Any]) -> Architecture:
    """The network of a configuration. Raises ModelRefused for names outside of the tables and for odd arguments."""
    said = found.get("architecture")
    if said is None:
        said = _of_old_plans(found)
    if not isinstance(said, Mapping) or not isinstance(said.get("arch_kwargs"), Mapping):
        raise ModelRefused(f"{PLANS}: architecture holds no arch_kwargs")
    name = said.get("network_class_name")
    if not isinstance(name, str) or name not in NETWORKS:
        raise ModelRefused(f"{PLANS}: the network {name!r} is none of {', '.join(NETWORKS)}, so it is not built")
    arguments = dict(said["arch_kwargs"])
    modules: dict[str, str] = {}
    classes = said.get("_kw_requires_import") or []
    if not isinstance(classes, list) or not all(isinstance(key, str) for key in classes):
        raise ModelRefused(f"{PLANS}: _kw_requires_import must be a list of names, not {classes!r}")
    for key in classes:
        value = arguments.pop(key, None)
        if value is None:
            arguments[key] = None
        elif isinstance(value, str) and value in MODULES:
            modules[key] = MODULES[value]
        else:
            raise ModelRefused(f"{PLANS}: {key} {value!r} is none of {', '.join(MODULES)}, so it is not built")
    return Architecture(NETWORKS[name], arguments, modules)


def _of_old_plans(found: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of plans before nnU-Net 2.4, which have `UNet_class_name` (2.8 plans_handler.py)."""
    name = found.get("UNet_class_name")
    try:
        convolutions = OLD_NETWORKS[str(name)]
        per_stage = list(found["n_conv_per_stage_encoder"])
        most = found["unet_max_num_features"]
        return {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
            "arch_kwargs": {
                "n_stages": len(per_stage),
                "features_per_stage": [
                    min(found["UNet_base_num_features"] * 2**stage, most) for stage in range(len(per_stage))
                ],
                "conv_op": "torch.nn.Conv2d",
                "kernel_sizes": found["conv_kernel_sizes"],
                "strides": found["pool_op_kernel_sizes"],
                convolutions: per_stage,
                "n_conv_per_stage_decoder": found["n_conv_per_stage_decoder"],
                "conv_bias": True,
                "norm_op": "torch.nn.InstanceNorm2d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    except (KeyError, TypeError) as error:
        raise ModelRefused(f"{PLANS} says neither architecture nor all of an old plan's network: {error}") from error


def side_multiple(strides: Any) -> tuple[int, int]:
    """What height and width of a tile must be a multiple of: the product of all strides per axis."""
    multiples = [1, 1]
    for stride in strides if isinstance(strides, list) else []:
        pair = [stride, stride] if isinstance(stride, int) else stride
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) and n > 0 for n in pair)):
            raise ModelRefused(f"{PLANS}: strides {stride!r} are not those of a 2-D network")
        multiples = [m * n for m, n in zip(multiples, pair, strict=True)]
    return multiples[0], multiples[1]


def normalisation(plans: Mapping[str, Any], schemes: Sequence[Any]) -> Normalize | str:
    """The contract's rule for the schemes of all channels, or why there is none."""
    if len(set(map(str, schemes))) != 1:
        return f"its channels have different normalisations ({', '.join(map(str, schemes))})"
    scheme = str(schemes[0])
    if scheme == "CTNormalization":
        return _window(plans, len(schemes))
    known: dict[str, Normalize] = {
        "ZScoreNormalization": ZScore(per_channel=True),
        "RGBTo01Normalization": Scale(scale=1 / 255),
        "RescaleTo01Normalization": Percentile(lower=0.0, upper=100.0, per_channel=True),
        "NoNormalization": Raw(),
    }
    return known.get(scheme, f"its normalisation {scheme} is not one of nnU-Net's own")


def _window(plans: Mapping[str, Any], channels: int) -> Normalize | str:
    """nnU-Net's CT rule: clip to two percentiles of the foreground, then (x − mean) / std."""
    key = "foreground_intensity_properties_per_channel"
    found = plans.get(key, plans.get("foreground_intensity_properties_by_modality"))
    try:
        each = [
            tuple(float(found[str(n)][name]) for name in ("percentile_00_5", "percentile_99_5", "mean", "std"))
            for n in range(channels)
        ]
    except (KeyError, TypeError, ValueError):
        return f"{PLANS} has no {key} for each channel, which its CTNormalization needs"
    if len(set(each)) != 1:
        return "its channels have CT windows with different numbers"
    lower, upper, mean, std = each[0]
    if not upper > lower:
        return "its CT window is empty"
    std = max(std, 1e-8)
    return CtWindow(
        center=(lower + upper) / 2, width=upper - lower, low=(lower - mean) / std, high=(upper - mean) / std
    )


def labels_of(dataset: Mapping[str, Any]) -> Labels:
    """The channels of the output. Raises ModelRefused for labels that are not 0, 1, 2 … in some order."""
    said = dataset.get("labels")
    if not isinstance(said, Mapping) or "background" not in said:
        raise ModelRefused(f"{DATASET} has no labels with a background")
    kept = {str(name): value for name, value in said.items() if name != "ignore"}
    if any(isinstance(value, list) and len(value) > 1 for value in kept.values()):
        return Labels(tuple(name for name in kept if name != "background"), regions=True)
    numbers = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in kept.items()}
    if odd := [value for value in numbers.values() if isinstance(value, bool) or not isinstance(value, int)]:
        raise ModelRefused(f"{DATASET}: a label must be a number or a list of numbers, not {odd[0]!r}")
    ordered = sorted(numbers, key=lambda name: numbers[name])
    if [numbers[name] for name in ordered] != list(range(len(ordered))):
        raise ModelRefused(f"{DATASET}: the labels are {numbers}, not 0 to {len(ordered) - 1}")
    return Labels(tuple(ordered), regions=False)


def channel_names(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the input channels, in the order of their numbers. Raises ModelRefused."""
    said = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(said, Mapping) or not said:
        raise ModelRefused(f"{DATASET} has no channel_names")
    numbered = {str(key): str(value) for key, value in said.items()}
    if set(numbered) != {str(n) for n in range(len(numbered))}:
        raise ModelRefused(f"{DATASET}: channel_names are numbered {', '.join(numbered)}, not 0 to {len(numbered) - 1}")
    return tuple(numbered[str(n)] for n in range(len(numbered)))
