"""The five ways to bring a model: each makes a small trained one, in the form that its framework saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from import_parts.drawn import CLASSES, SIDE, train

from unet_batch.workbench.importers.folder import package

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETWORK = '''"""A small U-Net: colour pictures in, three scores for each pixel out (background, cell, edge)."""

import torch
from torch import nn


def block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU())


class UNet(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.fine, self.coarse = block(3, width), block(width, 2 * width)
        self.both, self.head = block(3 * width, width), nn.Conv2d(width, 3, 1)
        self.shrink, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        fine = self.fine(picture)
        return self.head(self.both(torch.cat([self.grow(self.coarse(self.shrink(fine))), fine], 1)))
'''
"""The file network.py of the way with code of one's own."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way, as its page of the docs goes it."""

    name: str
    """In the names of its pictures, import-NAME-overlay.jpg."""
    page: str
    """In docs/how-to."""
    make: Callable[[Path], None]
    """Puts the trained model into a folder."""
    init: str
    """What follows `unet-batch init`."""


def smp(folder: Path) -> None:
    """segmentation_models_pytorch: a Unet, as `save_pretrained` leaves it."""
    import torch

    torch.manual_seed(0)
    network = package("segmentation_models_pytorch", "segmentation-models-pytorch").Unet(
        "resnet18", encoder_depth=3, encoder_weights=None, classes=3, decoder_channels=(32, 16, 16)
    )
    train(network, lambda pictures: (pictures / 255 - IMAGENET_MEAN) / IMAGENET_STD)
    network.save_pretrained(folder / "my-unet")


def huggingface(folder: Path) -> None:
    """transformers: a SegFormer with its image processor."""
    import torch

    transformers = package("transformers", "transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[24, 48],
        num_attention_heads=[1, 2],
        sr_ratios=[8, 4],
        patch_sizes=[5, 3],
        strides=[2, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
        id2label=dict(enumerate(CLASSES)),
    )
    network = transformers.SegformerForSemanticSegmentation(config)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Any) -> Any:
            return self.network(pixel_values=image).logits

    train(Logits(), lambda pictures: (pictures / 255 - IMAGENET_MEAN) / IMAGENET_STD, steps=200, rate=0.004)
    network.save_pretrained(folder / "my-segformer")
    transformers.SegformerImageProcessor(size={"height": 320, "width": 352}).save_pretrained(folder / "my-segformer")


def monai(folder: Path) -> None:
    """A MONAI bundle with a UNet and a sliding window."""
    import torch
    from monai.networks.nets import UNet

    shape = {"spatial_dims": 2, "in_channels": 3, "out_channels": 3, "channels": [12, 24, 48], "strides": [2, 2]}
    torch.manual_seed(0)
    network = UNet(**shape)
    train(network, lambda pictures: pictures / 255, steps=200)
    image = {"keys": "image"}
    scale = {"a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1, "clip": True}
    steps = [
        {"_target_": "LoadImaged", **image},
        {"_target_": "EnsureChannelFirstd", **image},
        {"_target_": "ScaleIntensityRanged", **image, **scale},
    ]
    window = {"roi_size": [SIDE, SIDE], "sw_batch_size": 4, "overlap": 0.5, "mode": "gaussian"}
    inference = {
        "network_def": {"_target_": "UNet", **shape},
        "preprocessing": {"_target_": "Compose", "transforms": steps},
        "inferer": {"_target_": "SlidingWindowInferer", **window},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            ],
        },
    }
    channels = {str(number): name for number, name in enumerate(CLASSES)}
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
    bundle = folder / "my-bundle"
    for name in ("configs", "models"):
        (bundle / name).mkdir(parents=True)
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference))
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    torch.save(network.state_dict(), bundle / "models" / "model.pt")


def nnunet(folder: Path) -> None:
    """A result folder of nnU-Net v2, configuration 2d, with one fold."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "n_stages": 3,
        "features_per_stage": [12, 24, 48],
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1] * 3,
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "nonlin_kwargs": {"inplace": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
    }
    classes = {"conv_op": torch.nn.Conv2d, "norm_op": torch.nn.InstanceNorm2d, "nonlin": torch.nn.LeakyReLU}
    named = {
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "nonlin": "torch.nn.LeakyReLU",
    }
    network = PlainConvUNet(input_channels=3, num_classes=3, deep_supervision=False, **shape, **classes)
    train(network, zscore)
    results = folder / "nnUNetTrainer__nnUNetPlans__2d"
    (results / "fold_0").mkdir(parents=True)
    (results / "plans.json").write_text(json.dumps(plans({**shape, **named}, [*named, "dropout_op"])))
    dataset = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {name: number for number, name in enumerate(CLASSES)},
        "file_ending": ".png",
        "numTraining": 6,
    }
    (results / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "2d", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, results / "fold_0" / "checkpoint_final.pth")


def zscore(pictures: np.ndarray) -> np.ndarray:
    """Each channel of each picture with mean 0 and deviation 1, (N, H, W, C)."""
    mean, deviation = pictures.mean((1, 2), keepdims=True), pictures.std((1, 2), keepdims=True)
    return np.asarray((pictures - mean) / np.maximum(deviation, 1e-8))


def plans(shape: dict[str, Any], names_of_classes: list[str]) -> dict[str, Any]:
    """plans.json for pictures in colour that are not resampled."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration: dict[str, Any] = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [SIDE, SIDE],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 3,
        "use_mask_for_norm": [False] * 3,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": shape,
            "_kw_requires_import": names_of_classes,
        },
    }
    for what in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = {**resampling, "is_seg": what == "seg"}
    intensities = {"mean": 170.0, "std": 40.0, "percentile_00_5": 50.0, "percentile_99_5": 250.0}
    return {
        "dataset_name": "Dataset001_Cells",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): intensities for channel in range(3)},
        "configurations": {"2d": configuration},
    }


def pytorch(folder: Path) -> None:
    """Code and a state dict of one's own."""
    import torch

    (folder / "network.py").write_text(NETWORK)
    torch.save(own_network().state_dict(), folder / "cells.pt")


def own_network() -> Any:
    """The network of network.py, trained on pictures between 0 and 1."""
    import torch

    torch.manual_seed(0)
    made: dict[str, Any] = {}
    exec(NETWORK, made)
    network = made["UNet"]()
    train(network, lambda pictures: pictures / 255)
    return network


def torchscript(folder: Path) -> None:
    """The network of `pytorch` as a program."""
    import torch

    torch.jit.save(torch.jit.trace(own_network(), torch.zeros(1, 3, SIDE, SIDE)), folder / "my-net.pt")


NAMES = ",".join(CLASSES)
WAYS = (
    Way("smp", "from-smp.md", smp, f"my-unet pictures --yes --classes {NAMES} --normalize imagenet"),
    Way("huggingface", "from-huggingface.md", huggingface, "my-segformer pictures --yes"),
    Way("monai", "from-monai.md", monai, "my-bundle pictures --yes"),
    Way("nnunet", "from-nnunet.md", nnunet, "nnUNetTrainer__nnUNetPlans__2d pictures --yes"),
    Way("pytorch", "from-pytorch.md", pytorch, f"network:UNet pictures --yes --weights cells.pt --classes {NAMES}"),
)
