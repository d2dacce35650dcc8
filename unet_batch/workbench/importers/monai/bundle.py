"""Reads MONAI bundles: configs/inference.json or .yaml, configs/metadata.json, models/model.pt.

Only networks of the list below are built, with plain arguments; MONAI's own parser, which runs code of the bundle, is
not used. The network sees what MONAI's reader gives it, the width first, through a transposition in the graph.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet_batch.contract import Contract
from unet_batch.errors import JobError, ModelRefused
from unet_batch.strict import validate
from unet_batch.workbench.export.weights import Weights, load_weights
from unet_batch.workbench.importers.difference import Difference
from unet_batch.workbench.importers.folder import package
from unet_batch.workbench.importers.import_settings import ImportSettings
from unet_batch.workbench.importers.imported import SIDE_PX, How, Imported, Options
from unet_batch.workbench.importers.monai.config import METADATA, BundleConfig, Component, config_file, metadata, plain
from unet_batch.workbench.importers.monai.inferer import Window, window
from unet_batch.workbench.importers.monai.steps import After, Before, after, before, probability
from unet_batch.workbench.importers.monai.targets import NETWORKS as NETS
from unet_batch.workbench.importers.monai.ways import blended_logits, nearest_back
from unet_batch.workbench.importers.monai.workflow import check_workflow, weights_file
from unet_batch.workbench.importers.wrappers import transposed, with_sigmoid, with_softmax

NETWORKS: Mapping[str, int] = {
    "UNet": 0,
    "Unet": 0,
    "AttentionUnet": 0,
    "DynUNet": 0,
    "SegResNet": 0,
    "BasicUNet": 16,
    "FlexibleUNet": 32,
    "SwinUNETR": 32,
    "UNETR": 16,
}
"""Classes of monai.networks.nets that a config may name, and the multiple of its sides; 0: from its arguments."""
_NEEDS_EINOPS = frozenset({"SwinUNETR", "UNETR"})
"""Networks that need a package which MONAI does not install."""


def recognises(source: Path) -> bool:
    """Whether a folder has the configuration of a bundle's inference."""
    return source.is_dir() and config_file(source) is not None


def read(source: Path, options: Options) -> Imported:
    """The model of a bundle.

    Raises ModelRefused for networks, transforms and inferers that are not understood, and for values that would run
    code; JobError if weights or MONAI are missing.
    """
    config = BundleConfig(source)
    definition = _definition(config)
    running = check_workflow(config)
    channels, outputs = (_count(definition, key) for key in ("in_channels", "out_channels"))
    steps, result, tiles = before(config, channels), after(config), window(config)
    multiple = _padded_multiple(steps, result, tiles, _multiple(definition), config)
    network, weights = _network(definition, config, source, options)
    said = ImportSettings(options, config.name)
    said.add("network", f"{definition.target}, {channels} in, {outputs} out", config.name, "read")
    fit = _geometry(said, steps, tiles)
    rule = said.normalize(steps.intensity.rule, channels, " and ".join(steps.intensity.steps) or "no step changes it")
    color = said.color(channels, "rgb" if channels == 3 else None, "MONAI's reader of pictures", how="default")
    meaning, threshold, differences = _meaning(result, outputs, steps, tiles, options, said)
    if meaning in ("softmax", "sigmoid"):
        network = with_sigmoid(network) if meaning == "sigmoid" else with_softmax(network)
    if steps.transposed:
        network = transposed(network)
        said.add("graph", "transposed at both ends", "MONAI reads pictures with the width first", "default")
    names = _names(source, outputs)
    said.source, key = (METADATA, "channel_def") if names else (config.name, "network_def")
    classes, background = said.classes(outputs, meaning, key=key, names=names)
    size = tiles.size_hw(transposed=steps.transposed) if steps.resized_hw is None else steps.resized_hw
    height, width = size or (options.input_chw[1:] if options.input_chw else (SIDE_PX, SIDE_PX))
    tree = {
        "input": {
            "color": color,
            "channels": channels,
            "fit": fit,
            "kernel": steps.kernel,
            "exif": "ignore",
            **({"height": height, "width": width} if size else {"multiple": multiple}),
            "normalize": rule.model_dump(),
            **(tiles.padding or steps.padding),
            **({"source_max": steps.intensity.source_max} if steps.intensity.source_max else {}),
        },
        "output": {
            "activation": meaning,
            "classes": list(classes),
            "background": background,
            "threshold": threshold,
        },
    }
    job: dict[str, Any] = {"tiling": tiles.tiling} if tiles.slides else {}
    if steps.resized_hw is not None and not result.inverted:
        job["output"] = {"geometry": "model"}
        said.add("output.geometry", "model", "postprocessing does not resize back", "read")
    return Imported(
        networks=(network,),
        contract=validate(Contract, tree, "the contract of the imported bundle"),
        origin=f"monai.networks.nets.{definition.name}",
        job=job,
        facts=tuple(said.facts),
        differences=(*steps.differences, *_of_inverse(result, steps), *differences),
        notes=(*running, *steps.intensity.notes, *result.notes, *tiles.notes),
        weights=(weights,),
        size_hw=(height, width),
        any_size=size is None,
    )


def _definition(config: BundleConfig) -> Component:
    """The network's component, of a class that may be built. Raises ModelRefused."""
    key = "network_def" if "network_def" in config.tree else "network"
    if key not in config.tree:
        raise ModelRefused(f"{config.name} has neither network_def nor network")
    if key == "network_def" and "network" in config.tree:
        text = str(config.tree["network"]).replace(" ", "")
        if not re.fullmatch(r"\$?@network_def(\.to\(@device\)|\.eval\(\))*", text):
            raise ModelRefused(
                f"{config.name}: network is {config.tree['network']!r}, which is something other than network_def"
            )
    found = config.component(config.tree[key], key, NETS)
    if found.name not in NETWORKS:
        raise ModelRefused(f"{found.where}: {found.target} is none of {', '.join(sorted(NETWORKS))} of MONAI")
    plain(dict(found.arguments), found.where)
    if found.take("spatial_dims", found.arguments.get("dimensions", 3)) != 2:
        raise ModelRefused(f"{found.where}: {found.target} is for volumes: only spatial_dims 2 gives masks of pictures")
    return found


def _network(definition: Component, config: BundleConfig, source: Path, options: Options) -> tuple[Any, Weights]:
    monai = package("monai", "monai")
    if definition.name in _NEEDS_EINOPS:
        package("einops", "einops")
    nets = importlib.import_module(f"{monai.__name__}.networks.nets")
    arguments = {key: value for key, value in definition.arguments.items() if not key.startswith("_")}
    if definition.name == "FlexibleUNet":
        arguments["pretrained"] = False  # true would start a download
    path = options.weights or weights_file(config, source)
    try:
        network = getattr(nets, definition.name)(**arguments)
    except Exception as error:  # arguments that do not fit may raise anything
        said = " ".join(str(error).split())
        raise ModelRefused(f"{definition.where}: {definition.target} cannot be built: {said}") from error
    network = network.float().eval().requires_grad_(requires_grad=False)
    return network, load_weights(network, path)


def _geometry(said: ImportSettings, steps: Before, tiles: Window) -> Any:
    """The contract's fit, and its facts."""
    if steps.resized_hw is not None:
        height, width = steps.resized_hw
        said.add("input.height, width", f"{height} x {width}, {steps.kernel}", f"{said.source}: Resize", "read")
        return said.fit("stretch", f"{said.source}: Resize", how="read")
    if tiles.slides:
        height, width = tiles.size_hw(transposed=steps.transposed) or (0, 0)
        said.add("input.height, width", f"{height} x {width}", f"{said.source}: roi_size", "read")
        said.add("tiling", ", ".join(f"{k} {v}" for k, v in tiles.tiling.items()), f"{said.source}: inferer", "read")
    return said.fit("tile", f"{said.source}: inferer", how="read")


def _meaning(
    result: After, outputs: int, steps: Before, tiles: Window, options: Options, said: ImportSettings
) -> tuple[Any, float, list[Difference]]:
    """The contract's activation and threshold, and what cannot be equal."""
    differences: list[Difference] = []
    resized = steps.resized_hw is not None and result.inverted and result.activated_first
    sigmoid = result.activation == "sigmoid" or (result.threshold is not None and not result.argmax and outputs > 1)
    if result.argmax and outputs == 1:
        raise ModelRefused(f"{result.where}: argmax of a single channel is class 0 everywhere")
    if result.activation == "softmax" and (outputs == 1 or result.threshold is not None):
        raise ModelRefused(f"{said.source}: softmax of {outputs} channel(s) with a threshold is not understood")
    if result.activation == "sigmoid" and result.argmax:
        sigmoid = False  # the largest logit has the largest sigmoid
    threshold = 0.5 if result.threshold is None else result.threshold
    if result.activation == "none" and result.threshold is not None:
        threshold = probability(result.threshold)
    if not 0 < threshold < 1:
        raise ModelRefused(f"{result.where}: a threshold of {threshold:g} leaves no pixel, or all of them")
    several = outputs > 1 and sigmoid
    baked = several or (resized and result.activation != "none" and (sigmoid or result.activation == "softmax"))
    if baked and tiles.slides:
        text = (
            f"the {'sigmoid' if sigmoid else 'softmax'} is in the graph, so tiles are averaged as probabilities, and "
            "MONAI averages logits"
        )
        differences.append(Difference(text, blended_logits(sigmoid=sigmoid)))
    found = ("sigmoid" if sigmoid else "softmax") if baked else "logits"
    if options.activation not in (None, found):
        raise JobError(f"--activation {options.activation} contradicts postprocessing of {said.source}: it is {found}")
    said.add("output.activation", found, f"{said.source}: postprocessing", "read" if result.where else "guessed")
    if outputs == 1 or sigmoid:
        how: How = "read" if result.threshold is not None else "guessed"
        said.add("output.threshold", f"{threshold:g}", result.where or f"{said.source}: postprocessing", how)
    return found, threshold, differences


def _of_inverse(result: After, steps: Before) -> list[Difference]:
    """Differences after the network; those of the way back only where there is something to resize back."""
    found = list(result.differences)
    if steps.resized_hw is not None and result.inverted and (result.nearest or steps.kernel == "nearest"):
        text = "Invert takes the nearest pixel of the resized output, and here it is interpolated between pixels"
        found.append(Difference(text, nearest_back()))
    return found


def _names(source: Path, outputs: int) -> tuple[str, ...] | None:
    """Class names of the metadata, by channel; None where they do not fit the network."""
    tree: Any = metadata(source)
    for key in ("network_data_format", "outputs", "pred", "channel_def"):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    if not isinstance(tree, Mapping) or not all(str(key).isdigit() and isinstance(v, str) for key, v in tree.items()):
        return None
    names = tuple(text for _, text in sorted((int(key), text) for key, text in tree.items()))
    if outputs == 1 and len(names) == 2:
        names = names[1:]  # background and the one class
    return names if len(names) == outputs and len(set(names)) == outputs and all(names) else None


def _padded_multiple(steps: Before, result: After, tiles: Window, least: int, config: BundleConfig) -> int:
    """What sides are padded to a multiple of: DivisiblePad's number, else the least that the network takes."""
    if steps.divisible is None:
        return least
    if tiles.slides or steps.divisible % least or not result.inverted:
        raise ModelRefused(
            f"{config.name}: DivisiblePad to {steps.divisible} is understood only with SimpleInferer, with Invert "
            f"after the network, and as a multiple of {least}, which the network needs"
        )
    return steps.divisible


def _count(definition: Component, key: str) -> int:
    value = definition.number(key)
    if value < 1 or value != int(value):
        raise ModelRefused(f"{definition.where}: {key} must be a positive number, not {value:g}")
    return int(value)


def _multiple(definition: Component) -> int:
    """What both sides of an image must be a multiple of."""
    fixed = NETWORKS[definition.name]
    if fixed:
        return fixed
    if definition.name == "SegResNet":
        blocks = definition.take("blocks_down", [1, 2, 2, 4])
        if not isinstance(blocks, list) or not blocks:
            raise ModelRefused(f"{definition.where}: blocks_down must be a list of numbers, not {blocks!r}")
        return int(2 ** (len(blocks) - 1))
    strides = definition.take("strides", [])
    if not isinstance(strides, list):
        return 1
    sides = [stride if isinstance(stride, list) else [stride, stride] for stride in strides]
    if any(len(side) != 2 or not all(type(step) is int and step > 0 for step in side) for side in sides):
        raise ModelRefused(
            f"{definition.where}: strides must be positive numbers, or two of them for each, not {strides!r}"
        )
    return math.lcm(*(math.prod(side[axis] for side in sides) for axis in (0, 1)))
