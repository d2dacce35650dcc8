"""Reads folders of Hugging Face's transformers with a network for semantic segmentation: SegFormer and UperNet.

transformers builds the network from config.json without code of the folder and without downloads: keys that name
either are refused, and its hub is offline meanwhile.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from unet_batch.contract import Contract
from unet_batch.errors import JobError, ModelRefused
from unet_batch.strict import validate
from unet_batch.workbench.export.weights import Weights, load_weights, nonfinite
from unet_batch.workbench.importers.folder import offline, package, peek, read_settings
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
BACKBONES = frozenset(
    {
        *("beit", "bit", "convnext", "convnextv2", "dinov2", "dinov2_with_registers", "focalnet", "hiera"),
        *("maskformer-swin", "pvt_v2", "resnet", "swin", "swinv2", "vitdet"),
    }
)
"""`model_type` of the backbones that UperNet may have: transformers' own, built from their settings alone."""
_ATTENTION = frozenset({"attn_implementation", "_attn_implementation", "_attn_implementation_internal"})
_OF_TRANSFORMERS = frozenset({None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"})
"""Values of `_ATTENTION` that name a way of transformers. The network is built with `eager`, which needs no package."""
_ELSEWHERE = frozenset(
    {
        *("backbone", "backbone_kwargs", "use_pretrained_backbone", "use_timm_backbone", "use_kernels"),
        *("kernel_config", "experts_implementation", "_experts_implementation", "transformers_weights"),
    }
)
"""Keys of which any value but null, false and an empty one may stand for weights or code that is not in the folder."""
_NAMES = frozenset({"id2label", "label2id"})
"""Keys whose entries are the user's words."""
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
    if not isinstance(kind, str):
        raise ModelRefused(f"{where}: model_type must be a name, not {kind!r}")
    if kind in QUERIES:
        raise ModelRefused(f"{where}: {kind} returns masks of queries, not scores of classes by pixel")
    if kind not in NETWORKS:
        raise ModelRefused(f"{where}: model_type {kind!r} is none of {', '.join(sorted(NETWORKS))}")
    named = config.get("architectures") or [NETWORKS[kind][1]]
    if named != [NETWORKS[kind][1]]:
        raise ModelRefused(f"{where}: architectures {named} is not {NETWORKS[kind][1]}, so it returns no masks")
    for key, value in _settings(config):
        _refuse_elsewhere(key, value, where)
    if kind == "upernet":
        backbone = config.get("backbone_config")
        name = backbone.get("model_type") if isinstance(backbone, Mapping) else None
        if not isinstance(name, str) or name not in BACKBONES:
            raise ModelRefused(
                f"{where}: model_type of backbone_config must be one of {', '.join(sorted(BACKBONES))}, not {name!r}"
            )
    if (source / "adapter_config.json").exists():
        raise ModelRefused(f"{source} holds an adapter: merge it into the weights, and save the whole model")


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """The keys at every depth, with their values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key, inner
            if key not in _NAMES:
                yield from _settings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _settings(inner)


def _refuse_elsewhere(key: str, value: Any, where: Path) -> None:
    """Raise ModelRefused for a setting that makes transformers look outside of the folder, or run code of it."""
    if key == "auto_map":
        raise ModelRefused(f"{where}: it names code of the folder (auto_map), which is not run")
    if key == "quantization_config":
        raise ModelRefused(f"{where}: the weights are quantised (quantization_config): save them as float32")
    if key in _ATTENTION and not (value is None or (isinstance(value, str) and value in _OF_TRANSFORMERS)):
        raise ModelRefused(
            f"{where}: {key} {value!r} is no attention of transformers' own, and code of a hub is not fetched: save "
            "the model with attn_implementation eager"
        )
    if key == "backbone" and value:
        raise ModelRefused(f"{where}: the backbone is a name, which would be downloaded: save it as backbone_config")
    if key in _ELSEWHERE and value:
        raise ModelRefused(
            f"{where}: {key} {value!r} names weights or code outside of the weights file, and nothing is fetched: save "
            "the model without it"
        )


def _without_attention(value: Any) -> Any:
    """The settings without the choice of an attention, at every depth."""
    if isinstance(value, Mapping):
        return {
            key: inner if key in _NAMES else _without_attention(inner)
            for key, inner in value.items()
            if key not in _ATTENTION
        }
    return [_without_attention(inner) for inner in value] if isinstance(value, list) else value


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
        with offline(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # progress bars
            settings = config_class.from_dict(_without_attention(config), attn_implementation="eager")
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
                    attn_implementation="eager",
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
