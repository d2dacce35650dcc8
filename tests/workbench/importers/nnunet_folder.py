"""A result folder of nnU-Net v2 without training, and pictures for it: both depend on nothing but NumPy's generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LABELS = {"background": 0, "nucleus": 1, "border": 2}
PATCH_HW = (48, 64)
SIZES = {"large": (101, 131), "odd": (75, 63), "small": (37, 45), "wide": (33, 160), "bordered": (120, 110)}
"""Name → size of a picture; `bordered` has black rows and columns around its content."""
ARCHITECTURE: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 12],
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3]] * 3,
    "strides": [[1, 1], [2, 2], [2, 2]],
    "n_conv_per_stage": [1] * 3,
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
CONFIGURATION: dict[str, Any] = {
    "data_identifier": "nnUNetPlans_2d",
    "preprocessor_name": "DefaultPreprocessor",
    "batch_size": 2,
    "patch_size": list(PATCH_HW),
    "median_image_size_in_voxels": [100.0, 130.0],
    "spacing": [1.0, 1.0],
    "normalization_schemes": ["ZScoreNormalization"] * 3,
    "use_mask_for_norm": [False] * 3,
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": RESAMPLING,
    "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
    "batch_dice": True,
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": ARCHITECTURE,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset001_Tiny",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "NaturalImage2DIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {
        str(n): {"mean": 110.0, "std": 40.0, "percentile_00_5": 10.0, "percentile_99_5": 240.0} for n in range(3)
    },
    "configurations": {"2d": CONFIGURATION},
}
DATASET: dict[str, Any] = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": LABELS,
    "file_ending": ".png",
    "numTraining": 2,
}


def write_folder(
    folder: Path,
    *,
    plans: Mapping[str, Any] = PLANS,
    dataset: Mapping[str, Any] = DATASET,
    folds: tuple[str, ...] = ("0", "1"),
    checkpoint: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] = ARCHITECTURE,
    kind: str = "PlainConvUNet",
) -> Path:
    """A result folder with random weights. checkpoint: entries of the checkpoints that are changed."""
    import torch

    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for number, fold in enumerate(folds):
        (folder / f"fold_{fold}").mkdir()
        tree = {
            "network_weights": weights(number, network, kind),
            "optimizer_state": {"state": {}, "param_groups": []},
            "logging": {"mean_fg_dice": [np.float32(0.5)], "lrs": [0.01]},
            "_best_ema": np.float64(0.4),
            "current_epoch": 1000,
            "init_args": {"configuration": "2d", "fold": number, "device": torch.device("cuda")},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1),
            **(checkpoint or {}),
        }
        torch.save(tree, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def weights(seed: int, network: Mapping[str, Any] = ARCHITECTURE, kind: str = "PlainConvUNet") -> dict[str, Any]:
    """The state dict of one fold: normal values of a width that keeps the signal, in the order of the keys."""
    import torch
    from dynamic_network_architectures.architectures import unet

    modules = {"conv_op": torch.nn.Conv2d, "norm_op": torch.nn.InstanceNorm2d, "nonlin": torch.nn.LeakyReLU}
    built = getattr(unet, kind)(input_channels=3, num_classes=3, deep_supervision=False, **{**network, **modules})
    state = built.state_dict()
    drawn: dict[int, Any] = {}
    generator = np.random.default_rng(seed)
    for name in sorted(state):
        tensor = state[name]
        if tensor.data_ptr() not in drawn:  # nnU-Net's blocks hold each tensor under two names
            width = np.sqrt(2 / tensor[0].numel()) if tensor.dim() > 1 else 0.1
            middle = 1 if tensor.dim() == 1 and name.endswith("weight") else 0
            values = middle + width * generator.standard_normal(tuple(tensor.shape))
            drawn[tensor.data_ptr()] = torch.from_numpy(values.astype(np.float32))
        state[name] = drawn[tensor.data_ptr()]
    return dict(state)


def pictures() -> dict[str, np.ndarray]:
    """Smooth noise with some structure, uint8 (H, W, 3), by name."""
    found = {}
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        generator = np.random.default_rng(100 + number)
        coarse = generator.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + generator.integers(-20, 21, (height, width, 3))
        picture = np.clip(noisy, 1, 255).astype(np.uint8)
        if name == "bordered":
            inside = np.zeros_like(picture)
            inside[7:-12, 9:-4] = picture[7:-12, 9:-4]
            picture = inside
        found[name] = picture
    return found


def write_pictures(folder: Path) -> list[Path]:
    """The pictures as PNGs."""
    folder.mkdir(parents=True)
    for name, picture in pictures().items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    return sorted(folder.iterdir())
