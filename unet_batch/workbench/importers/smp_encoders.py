"""Normalisations of the encoders of segmentation_models_pytorch (SMP).

A folder of `save_pretrained` does not hold them, and SMP downloads them by encoder. The numbers here are SMP's own,
from the tables in its version 0.4.0 (`encoders/*.py`) and in the packages that these named (pretrainedmodels for DPN,
Inception, SENet and Xception; timm for `timm-efficientnet` and `timm-tf_efficientnet_lite`). All are of RGB in [0, 1].
"""

from __future__ import annotations

import importlib.util
from typing import Any

from unet_batch.contract import MeanStd
from unet_batch.workbench.export.arguments import IMAGENET

HALF = MeanStd(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
DPN = MeanStd(mean=(124 / 255, 117 / 255, 104 / 255), std=(1 / (0.0167 * 255),) * 3)

FAMILIES: tuple[tuple[str, frozenset[str], MeanStd], ...] = (
    ("resnet", frozenset({"imagenet", "ssl", "swsl"}), IMAGENET),
    ("resnext", frozenset({"imagenet", "ssl", "swsl", "instagram"}), IMAGENET),
    ("vgg", frozenset({"imagenet"}), IMAGENET),
    ("senet", frozenset({"imagenet"}), IMAGENET),
    ("se_res", frozenset({"imagenet"}), IMAGENET),
    ("densenet", frozenset({"imagenet"}), IMAGENET),
    ("mobilenet_v2", frozenset({"imagenet"}), IMAGENET),
    ("mobileone", frozenset({"imagenet"}), IMAGENET),
    ("mit_b", frozenset({"imagenet"}), IMAGENET),
    ("efficientnet-b", frozenset({"imagenet"}), IMAGENET),
    ("efficientnet-b", frozenset({"advprop"}), HALF),
    ("timm-efficientnet-", frozenset({"imagenet", "noisy-student", "noisy-student-475"}), IMAGENET),
    ("timm-efficientnet-", frozenset({"advprop"}), HALF),
    ("timm-tf_efficientnet_lite", frozenset({"imagenet"}), HALF),
    ("timm-skres", frozenset({"imagenet"}), IMAGENET),
    ("inception", frozenset({"imagenet", "imagenet+background"}), HALF),
    ("xception", frozenset({"imagenet"}), HALF),
    ("dpn", frozenset({"imagenet", "imagenet+5k"}), DPN),
)
"""Beginning of the encoder's name, names of its pretrained weights, and their normalisation."""


def normalisation(encoder: str, weights: Any) -> MeanStd | None:
    """The normalisation of an encoder with these pretrained weights; None if unknown.

    `tu-` encoders are timm's: their numbers come from the installed timm, which has them without a download.
    """
    if encoder.startswith("tu-"):
        return _of_timm(encoder.removeprefix("tu-")) if weights else None
    if not isinstance(weights, str):
        return None
    known = (found for start, names, found in FAMILIES if encoder.startswith(start) and weights in names)
    return next(known, None)


def _of_timm(name: str) -> MeanStd | None:
    if importlib.util.find_spec("timm") is None:
        return None
    import timm

    if not timm.models.is_model_pretrained(name):
        return None
    found = timm.get_pretrained_cfg(name)
    return None if found is None else MeanStd(mean=tuple(found.mean), std=tuple(found.std))
