"""Reads folders of Hugging Face's transformers with a network for semantic segmentation: SegFormer and UperNet.

transformers builds the network from config.json without code of the folder and without downloads.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from unet_batch.contract import Contract
from unet_batch.errors import JobError, ModelRefused
from unet_batch.strict import validate
from unet_batch.workbench.export.weights import Weights, load_weights, nonfinite
from unet_batch.workbench.importers.folder import package, peek, read_settings
from unet_batch.workbench.importers.huggingface_pictures import PROCESSOR, Pictures
from unet_batch.workbench.importers.import_settings import ImportSettings
from unet_batch.workbench.importers.imported import SIDE_PX, Fact, Imported, Options
from unet_batch.workbench.importers.wrappers import with_sigmoid

CONFIG = "config.json"
NETWORKS = {
    "segformer": ("SegformerConfig", "SegformerForSemanticSegmentation"),
    "upernet": ("UperNetConfig", "UperNetForSemanticSegmentation"),
}
"""By `model_type`: the classes of the config and of the network."""
QUERIES = frozenset({"mask2former", "maskformer", "oneformer", "detr", "eomt", "sam", "sam2"})
BACKGROUNDS = frozenset({"background", "bg", "_background_", "unlabeled", "unlabelled", "void", "nothing"})
"""Names of a class that is no object."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def recognises(source: Path) -> bool:
    """Whether a folder has a config of transformers."""
    return "model_type" in peek(source, CONFIG)


def read(source: Path, options: Options) -> Imported:
    """The model of a folder.

    Raises ModelRefused for networks that are not in `NETWORKS`, and for preprocessing that no contract describes;
    JobError if the normalisation is unknown, or transformers is not installed.
    """
    config = read_settings(source / CONFIG)
    _refuse(config, source)
    pictures = Pictures(source)
    said = ImportSettings(options, CONFIG)
    channels = config.get("num_channels", 3)
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise ModelRefused(f"{source / CONFIG}: num_channels must be a positive number, not {channels!r}")
    tree = pictures.tree(channels, said, said.size_hw(channels))
    _refuse_size(config, tree, source)
    network, names, weights = _network(config, source, options.weights)
    meaning = said.activation(options.activation or "logits", said_by="the network")
    if meaning not in ("logits", "sigmoid"):
        raise JobError(f"--activation {meaning} is not what the network returns: it returns logits")
    classes, background = said.classes(len(names), meaning, key="id2label", names=_named(names))
    if options.classes is None and background is not None:
        background = _background(names, pictures, said)
    return Imported(
        networks=(with_sigmoid(network) if meaning == "sigmoid" else network,),
        contract=validate(
            Contract,
            {"input": tree, "output": {"activation": meaning, "classes": list(classes), "background": background}},
            "the contract of the imported model",
        ),
        origin=f"transformers.{NETWORKS[config['model_type']][1]}",
        job={},
        facts=(Fact("network", NETWORKS[config["model_type"]][1], f"{CONFIG}: model_type", "read"), *said.facts),
        notes=pictures.notes(said.facts),
        weights=(weights,),
        size_hw=(tree.get("height", SIDE_PX), tree.get("width", SIDE_PX)),
    )


def _refuse(config: Mapping[str, Any], source: Path) -> None:
    where, kind = source / CONFIG, config["model_type"]
    if kind in QUERIES:
        raise ModelRefused(f"{where}: {kind} returns masks of queries, not scores of classes by pixel")
    if kind not in NETWORKS:
        raise ModelRefused(f"{where}: model_type {kind!r} is none of {', '.join(sorted(NETWORKS))}")
    named = config.get("architectures") or [NETWORKS[kind][1]]
    if named != [NETWORKS[kind][1]]:
        raise ModelRefused(f"{where}: architectures {named} is not {NETWORKS[kind][1]}, so it returns no masks")
    backbone = config.get("backbone_config")
    if any("auto_map" in part for part in (config, backbone) if isinstance(part, Mapping)):
        raise ModelRefused(f"{where}: it names code of the folder (auto_map), which is not run")
    if config.get("backbone") is not None or (kind == "upernet" and not isinstance(backbone, Mapping)):
        raise ModelRefused(f"{where}: the backbone is a name, which would be downloaded: save it as backbone_config")
    if "quantization_config" in config:
        raise ModelRefused(f"{where}: the weights are quantised (quantization_config): save them as float32")
    if (source / "adapter_config.json").exists():
        raise ModelRefused(f"{source} holds an adapter: merge it into the weights, and save the whole model")


def _refuse_size(config: Mapping[str, Any], tree: Mapping[str, Any], source: Path) -> None:
    """Raise ModelRefused for a size of which SegFormer's mask is no whole share."""
    strides = config.get("strides", [4])
    step = strides[0] if isinstance(strides, list) and strides else 4
    height, width = tree.get("height"), tree.get("width")
    if config["model_type"] != "segformer" or not isinstance(step, int) or step < 1 or not height or not width:
        return
    if height % step or width % step:
        near = "x".join(str(-(-side // step) * step) for side in (height, width))
        raise ModelRefused(
            f"{source}: pictures become {height}x{width}, and SegFormer returns a value for {step}x{step} pixels, "
            f"so both sides must be multiples of {step}: give --input {tree['channels']}x{near}; masks then differ "
            "from transformers' own"
        )


def _network(config: Mapping[str, Any], source: Path, chosen: Path | None) -> tuple[Any, tuple[str, ...], Weights]:
    """The network that returns logits, the names of its classes by channel, and its weights file."""
    transformers = package("transformers", "transformers")
    config_class, network_class = (getattr(transformers, name) for name in NETWORKS[config["model_type"]])
    transformers.logging.set_verbosity_error()
    path = chosen or next((source / name for name in WEIGHTS if (source / name).is_file()), None)
    if path is None:
        raise JobError(f"{source} holds neither {' nor '.join(WEIGHTS)}: give the file with --weights")
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # progress bars
            settings = config_class.from_dict(dict(config))
            names = dict(settings.id2label)
            if chosen is not None:
                network, report = network_class(settings), None
            else:
                # Not `load_weights`: transformers renames the keys of older files.
                network, report = network_class.from_pretrained(
                    str(source),
                    config=settings,
                    local_files_only=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # named in the report, and refused below
                    use_safetensors=path.suffix == ".safetensors",
                    weights_only=True,
                    dtype="float32",
                )
    except Exception as error:  # settings that do not fit, or a damaged file, may raise anything
        said = " ".join(str(error).split())
        raise ModelRefused(f"{source}: transformers cannot load the network: {said}") from error
    network = network.float().eval().requires_grad_(requires_grad=False)
    if chosen is not None:
        weights = load_weights(network, chosen)
    else:
        _refuse_misfit(report, network, path)
        weights = Weights(hashlib.sha256(path.read_bytes()).hexdigest(), ())
    if sorted(names) != list(range(len(names))):
        raise ModelRefused(f"{source / CONFIG}: id2label does not name the channels 0 to {len(names) - 1}")
    return _logits(network), tuple(str(names[number]) for number in range(len(names))), weights


def _refuse_misfit(report: Any, network: Any, path: Path) -> None:
    missing, shapes = sorted(report["missing_keys"]), [str(entry[0]) for entry in report["mismatched_keys"]]
    for what, keys in (("misses", missing), ("has other shapes for", sorted(shapes))):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelRefused(f"weights {path} do not match the network: the file {what} {', '.join(keys[:3])}{more}")
    if ill := nonfinite(network.state_dict()):
        raise ModelRefused(f"weights {path} hold NaN or infinity in {', '.join(ill[:3])}: the training diverged")


def _logits(network: Any) -> Any:
    """The network as a module that returns its logits."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Any) -> Any:
            return self.network(pixel_values=image).logits

    return Logits().eval()


def _named(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, each once: repeated ones get their channel's number."""
    return tuple(name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names))


def _background(names: tuple[str, ...], pictures: Pictures, said: ImportSettings) -> int | None:
    """Class 0 where its name says so; None if label 0 was left out in training, or class 0 has another name."""
    said.facts[:] = [fact for fact in said.facts if fact.field != "output.background"]
    if pictures.reduces_labels:
        said.add("output.background", "none", f"{PROCESSOR}: do_reduce_labels", "read")
        return None
    if names[0].lower() in BACKGROUNDS:
        said.add("output.background", names[0], f"{CONFIG}: id2label", "read")
        return 0
    unnamed = names[0] == "LABEL_0"
    said.add("output.background", names[0] if unnamed else "none", "the name of the first class", "guessed")
    return 0 if unnamed else None
