"""Reads folders of segmentation_models_pytorch (SMP): `model.save_pretrained(folder)`.

The network is built by SMP from the arguments in config.json, without downloads, and gets the weights of the folder.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_batch.contract import Contract, Normalize
from unet_batch.errors import JobError, ModelRefused
from unet_batch.strict import validate
from unet_batch.workbench.export.forms import NORMALIZE_FORMS
from unet_batch.workbench.export.weights import Weights, load_weights
from unet_batch.workbench.importers.folder import offline, package, peek, read_settings
from unet_batch.workbench.importers.import_settings import ImportSettings
from unet_batch.workbench.importers.imported import SIDE_PX, Activation, Fact, Imported, Options
from unet_batch.workbench.importers.smp_encoders import normalisation
from unet_batch.workbench.importers.wrappers import with_sigmoid

CONFIG = "config.json"
NETWORKS = frozenset(
    {
        *("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN"),
        *("UPerNet", "Segformer", "DPT"),
    }
)
"""Classes of SMP that a config may name."""
ACTIVATIONS: dict[str | None, Activation] = {
    None: "logits",
    "identity": "logits",
    "logsoftmax": "logits",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "softmax2d": "softmax",
    "argmax2d": "labels",
}
"""Meaning of SMP's activations. `softmax` without a dimension runs over the channels of a batch, too."""
ENCODER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
"""Names in timm's form `hf-hub:owner/name` would be downloaded."""


def recognises(source: Path) -> bool:
    """Whether a folder has a config of SMP."""
    return {"_model_class", "encoder_name"} <= peek(source, CONFIG).keys()


def read(source: Path, options: Options) -> Imported:
    """The model of a folder.

    Raises ModelRefused for classes and arguments that SMP does not have, and for activations that no contract can
    express; JobError if the normalisation is unknown, or SMP is not installed.
    """
    config = read_settings(source / CONFIG)
    name = config.get("_model_class")
    if not isinstance(name, str) or name not in NETWORKS:
        raise ModelRefused(f"{source / CONFIG}: _model_class {name!r} is none of {', '.join(sorted(NETWORKS))}")
    encoder = config.get("encoder_name")
    if not isinstance(encoder, str) or not ENCODER_NAME.fullmatch(encoder):
        raise ModelRefused(f"{source / CONFIG}: encoder_name {encoder!r} is no name of an encoder")
    activation = _activation(config, source)
    count = _count(config, "classes", 1, source)
    channels = _count(config, "in_channels", 3, source)
    said = ImportSettings(options, CONFIG)
    normalize = _normalize(config, channels, said)
    color = said.color(channels, "rgb" if channels == 3 else None, "SMP's table", how="default")
    network, weights = _network(name, config, source, options.weights)
    meaning = said.activation(activation, said_by="activation")
    if meaning == "sigmoid" and activation == "logits":
        network = with_sigmoid(network)
    classes, background = said.classes(count, meaning, key="classes")
    height, width = said.size_hw(channels) or (SIDE_PX, SIDE_PX)
    fit = said.fit("tile")
    tree = {
        "input": {
            "color": color,
            "channels": channels,
            "fit": fit,
            **({} if fit == "tile" else {"height": height, "width": width}),
            "normalize": normalize.model_dump(),
        },
        "output": {"activation": meaning, "classes": list(classes), "background": background},
    }
    return Imported(
        networks=(network,),
        contract=validate(Contract, tree, "the contract of the imported model"),
        origin=f"segmentation_models_pytorch.{name}({encoder})",
        job={},
        facts=(Fact("network", f"{name}, encoder {encoder}", CONFIG, "read"), *said.facts),
        weights=(weights,),
        size_hw=(height, width),
        output="0" if config.get("aux_params") else options.output,
    )


def _activation(config: Mapping[str, Any], source: Path) -> Activation:
    name = config.get("activation")
    if name is not None and not isinstance(name, str):
        raise ModelRefused(f"{source / CONFIG}: activation must be a name or null, not {type(name).__name__}")
    if name not in ACTIVATIONS:
        raise ModelRefused(
            f"{source / CONFIG}: the activation {name} gives values that no contract describes: save the model with "
            f"one of {', '.join(sorted(filter(None, ACTIVATIONS)))}, or null"
        )
    return ACTIVATIONS[name]


def _normalize(config: Mapping[str, Any], channels: int, said: ImportSettings) -> Normalize:
    encoder, weights = config.get("encoder_name"), config.get("encoder_weights")
    source = f"SMP's table: encoder {encoder}, weights {weights}"
    found = normalisation(str(encoder), weights) if channels == 3 else None
    if found is None and said.options.normalize is None:
        why = (
            f"of {channels} channels is not SMP's"
            if channels != 3
            else f"of the encoder {encoder} with the weights {weights} is not known here"
            if weights
            else "is not known, because the encoder was trained from scratch (encoder_weights: null)"
        )
        raise JobError(
            f"the folder does not hold the normalisation of the training, and that {why}: give it with --normalize "
            f"({NORMALIZE_FORMS})"
        )
    return said.normalize(found, channels, source, how="default")


def _network(name: str, config: Mapping[str, Any], source: Path, chosen: Path | None) -> tuple[Any, Weights]:
    smp = package("segmentation_models_pytorch", "segmentation-models-pytorch")
    make = getattr(smp, name)
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    known = inspect.signature(make.__init__).parameters.keys()
    if unknown := sorted(arguments.keys() - known):
        raise ModelRefused(
            f"{source / CONFIG}: {name} of the installed segmentation_models_pytorch has no argument "
            f"{', '.join(unknown)}: install the version that saved the model"
        )
    try:
        with offline():
            network = make(**{**arguments, "encoder_weights": None})  # its value may start a download
    except Exception as error:  # arguments that do not fit may raise anything
        said = " ".join(str(error).split())
        raise ModelRefused(f"{source / CONFIG}: {name} cannot be built with these arguments: {said}") from error
    network = network.float().eval().requires_grad_(requires_grad=False)
    return network, load_weights(network, chosen or _weights_file(source))


def _weights_file(source: Path) -> Path:
    names = ("model.safetensors", "pytorch_model.bin")
    found = next((source / name for name in names if (source / name).is_file()), None)
    if found is None:
        raise JobError(f"{source} holds neither {' nor '.join(names)}: give the file with --weights")
    return found


def _count(config: Mapping[str, Any], key: str, default: int, source: Path) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelRefused(f"{source / CONFIG}: {key} must be a positive number, not {value!r}")
    return value
