"""The transforms before and after the network of a MONAI bundle: what they mean, step by step.

What is not understood is refused by name, never skipped. What is understood and cannot be done here is a difference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unet_batch.errors import ModelRefused
from unet_batch.workbench.importers.difference import Difference, Way
from unet_batch.workbench.importers.monai.config import BundleConfig, Component, is_float32, plain
from unet_batch.workbench.importers.monai.intensity import TRANSFORMS, Intensity
from unet_batch.workbench.importers.monai.ways import on_masks, resized

UNDERSTOOD = (
    *("LoadImage", "EnsureChannelFirst", "EnsureType", "ToTensor", "CastToType", "ToDevice", "Transpose", "Resize"),
    *("DivisiblePad", *TRANSFORMS),
)
_HARMLESS = ("keys", "allow_missing_keys", "device", "data_type", "track_meta", "wrap_sequence")
_LOADING = (
    *("keys", "allow_missing_keys", "image_only", "dtype", "reader", "reverse_indexing", "ensure_channel_first"),
    *("simple_keys", "prune_meta_pattern", "prune_meta_sep", "expanduser", "meta_keys", "meta_key_postfix"),
    "overwriting",
)
_NOT_DONE = frozenset({"KeepLargestConnectedComponent", "FillHoles", "RemoveSmallObjects", "LabelFilter"})
"""Steps after the network that are understood and not done here."""
_FOREGROUND = re.compile(r"\$lambda(\w+):\1\[1:\]")
"""Code that leaves the background out of masks that are one channel for each class; without its blanks."""
_PAD_MODES: Mapping[str, str] = {"constant": "constant", "reflect": "reflect", "edge": "edge", "replicate": "edge"}
_SAVING = frozenset({"SaveImage", "EnsureType", "ToDevice", "ToTensor", "CastToType", "DeleteItems", "SelectItems"})
"""Steps after the network that do not change which class a pixel has."""


@dataclass(slots=True)
class Before:
    """The pipeline before the network."""

    intensity: Intensity
    image_key: str | None = None
    """Key of the image in MONAI's dictionaries; None for transforms without keys."""
    loaded: bool = False
    transposed: bool = True
    """Whether the network sees (C, W, H): MONAI reads pictures with the width first."""
    resized_hw: tuple[int, int] | None = None
    kernel: Literal["torch_bilinear", "nearest"] = "torch_bilinear"
    divisible: int | None = None
    """What sides are padded to a multiple of."""
    padding: dict[str, Any] = field(default_factory=dict)
    """Fields of the contract's input for that padding."""
    differences: list[Difference] = field(default_factory=list)


def before(config: BundleConfig, channels: int) -> Before:
    """The pipeline `preprocessing`. Raises ModelRefused for the first step that is not understood."""
    steps = list(config.steps("preprocessing"))
    found = Before(Intensity(channels), _image_key(steps))
    for step in steps:
        if not _concerns(step, found):
            continue
        if step.name not in UNDERSTOOD:
            raise ModelRefused(
                f"{step.where}: {step.target} is not understood, and no step is left out. Understood are "
                f"{', '.join(UNDERSTOOD)}, also as dictionary transforms"
            )
        if step.name == "LoadImage":
            _load(step, found)
        elif not found.loaded:
            raise ModelRefused(f"{step.where}: {step.target} comes before LoadImage")
        elif step.name in TRANSFORMS:
            if found.divisible is not None:
                raise ModelRefused(f"{step.where}: {step.target} after DivisiblePad is not understood")
            found.intensity.add(step)
        elif step.name == "DivisiblePad":
            _pad(step, found)
        elif step.name == "Resize":
            _resize(step, found)
        elif step.name == "Transpose":
            step.only(*_HARMLESS, "indices")
            if step.take("indices") not in ([0, 2, 1], [0, 1, 2]):
                raise ModelRefused(f"{step.where}: indices {step.take('indices')!r} move the channels")
            if step.take("indices") == [0, 2, 1]:
                found.transposed = not found.transposed
                _not_between(step, found)
        elif step.name == "EnsureChannelFirst":
            step.only(*_HARMLESS, "strict_check", "channel_dim")
            if step.take("channel_dim") not in (None, "no_channel", -1):
                raise ModelRefused(f"{step.where}: channel_dim {step.take('channel_dim')!r} is not that of a picture")
        else:
            step.only(*_HARMLESS, "dtype")
            if not is_float32(step):
                raise ModelRefused(f"{step.where}: {step.target} to {step.arguments['dtype']!r}, not float32")
    if not found.loaded:
        raise ModelRefused(f"{config.name}: preprocessing loads no image with LoadImage")
    return found


def _image_key(steps: list[Component]) -> str | None:
    """MONAI's evaluator takes `image`; in a file without that key, it is the first one that is loaded."""
    loaded: list[str] = [key for step in steps if step.name == "LoadImage" for key in _keys(step) if key is not None]
    return "image" if "image" in loaded else loaded[0] if loaded else None


def _concerns(step: Component, found: Before) -> bool:
    """Whether a step works on the image. Raises ModelRefused if it makes the image of something else."""
    made = [step.arguments.get(key) for key in ("name", "names")]
    if found.image_key is not None and any(found.image_key in (n if isinstance(n, list) else [n]) for n in made):
        raise ModelRefused(f"{step.where}: {step.target} makes {found.image_key} of another key")
    return found.image_key is None or found.image_key in _keys(step)


def _keys(step: Component) -> list[Any]:
    """The keys that a dictionary transform works on; [None] without the argument."""
    keys = step.take("keys")
    names = keys if isinstance(keys, list) else [keys]
    if not names or not all(name is None or isinstance(name, str) for name in names):
        raise ModelRefused(f"{step.where}: keys must be a name or a list of names, not {keys!r}")
    return names


def _load(step: Component, found: Before) -> None:
    step.only(*_LOADING)
    reader = step.take("reader")
    if reader is not None and str(reader).lower() != "pilreader":
        raise ModelRefused(f"{step.where}: the reader {reader} reads other files than pictures")
    if not is_float32(step):
        raise ModelRefused(f"{step.where}: {step.target} reads as {step.arguments['dtype']!r}, not float32")
    found.loaded = True
    found.transposed = step.flag("reverse_indexing", default=True)


_RESIZING: Mapping[str, Any] = {"mode": "area", "align_corners": None, "anti_aliasing": False}
"""Arguments of Resize that dictionary transforms also take as a list, and MONAI's defaults."""


def _resize(step: Component, found: Before) -> None:
    step.only(*_HARMLESS, "spatial_size", "size_mode", "mode", "align_corners", "anti_aliasing", "dtype", "lazy",
              "anti_aliasing_sigma")  # fmt: skip
    size = step.take("spatial_size")
    size = [size, size] if isinstance(size, int) else size
    if not isinstance(size, list) or len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
        raise ModelRefused(f"{step.where}: spatial_size {size!r} is no height and width")
    mode, corners, smooth = (_single(step.take(k, d)) for k, d in _RESIZING.items())
    if mode not in ("bilinear", "nearest") or corners or smooth:
        raise ModelRefused(
            f"{step.where}: only mode bilinear or nearest, without align_corners and anti_aliasing, is understood, "
            f"not {mode}"
        )
    if step.take("size_mode", "all") != "all" or step.take("lazy", default=False):
        raise ModelRefused(f"{step.where}: only size_mode all, not lazy, is understood")
    if found.resized_hw is not None:
        raise ModelRefused(f"{step.where}: the image is resized twice")
    found.resized_hw = (size[1], size[0]) if found.transposed else (size[0], size[1])
    found.kernel = "nearest" if mode == "nearest" else "torch_bilinear"
    statistical = found.intensity.is_statistical
    way = resized(found.resized_hw, found.kernel, normalised_first=statistical)
    if statistical:
        steps = " and ".join(found.intensity.steps)
        text = f"{step.target} follows {steps}: here statistics are those of the resized image"
        found.differences.append(Difference(text, way))
    if mode == "bilinear":
        text = (
            f"{step.target}: pixels of 8 and 16 bits are rounded when they are resized, by half a grey level at most, "
            "and MONAI keeps fractions"
        )
        found.differences.append(Difference(text, way))


def _pad(step: Component, found: Before) -> None:
    step.only(*_HARMLESS, "k", "mode", "method", "value", "constant_values", "lazy")
    k = step.take("k")
    sides = set(k) if isinstance(k, list) else {k}
    if len(sides) != 1 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sides):
        raise ModelRefused(f"{step.where}: k must be one positive number for both sides, not {k!r}")
    mode = str(_single(step.take("mode", "constant")))
    value = step.number("value", step.number("constant_values", 0.0))
    if mode not in _PAD_MODES or step.take("method", "symmetric") != "symmetric":
        raise ModelRefused(f"{step.where}: only method symmetric, and the modes {', '.join(_PAD_MODES)} are understood")
    if found.resized_hw is not None or found.divisible is not None or step.take("lazy", default=False):
        raise ModelRefused(f"{step.where}: {step.target} is not understood when lazy, twice, or after a resize")
    found.divisible = sides.pop()
    found.padding = {"padding": _PAD_MODES[mode]}
    if value:
        found.padding |= {"pad_value": value, "pad_units": "normalized"}


def _not_between(step: Component, found: Before) -> None:
    if found.resized_hw is not None:
        raise ModelRefused(f"{step.where}: {step.target} after a resize is not understood")


@dataclass(slots=True)
class After:
    """The pipeline after the network."""

    activation: Literal["none", "softmax", "sigmoid"] = "none"
    inverted: bool = False
    """Whether the output is resized back to the image."""
    activated_first: bool = False
    """Whether it is resized after the activation."""
    nearest: bool = False
    """Whether that takes the nearest pixel, or works on classes that were chosen before."""
    argmax: bool = False
    threshold: float | None = None
    """Of the values at that step."""
    where: str | None = None
    """The step that decides; None: no step does."""
    by_class: bool = False
    """Whether it makes one channel for each class."""
    notes: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


def after(config: BundleConfig) -> After:
    """The pipeline `postprocessing`. Raises ModelRefused for the first step that is not understood."""
    found = After()
    for step in _on_output(config):
        if step.name == "Lambda" and _selects_foreground(step, found):
            continue
        if found.where is not None and step.name not in _SAVING | _NOT_DONE | {"Invert"}:
            raise ModelRefused(f"{step.where}: {step.target} after the classes were chosen is not understood")
        if step.name == "Activations":
            _activate(step, found)
        elif step.name == "Invert":
            _invert(step, found)
        elif step.name == "AsDiscrete":
            _decide(step, found)
        elif step.name == "CastToType" and found.where is None and not is_float32(step):
            raise ModelRefused(
                f"{step.where}: {step.target} to {step.arguments['dtype']!r} before the classes are chosen"
            )
        elif step.name in _NOT_DONE:
            found.differences.append(Difference(f"{step.target} is not applied to the masks", _done_by_monai(step)))
        elif step.name not in _SAVING:
            raise ModelRefused(
                f"{step.where}: {step.target} is not understood, and no step is left out. Understood are Activations, "
                f"Invert, AsDiscrete, {', '.join(sorted(_SAVING))}"
            )
    return found


def _on_output(config: BundleConfig) -> Iterator[Component]:
    """Steps that work on the network's output, MONAI's key `pred`."""
    for step in config.steps("postprocessing"):
        names = _keys(step)
        if names[0] is None or "pred" in names:
            yield step
        elif step.name not in _SAVING:
            raise ModelRefused(f"{step.where}: {step.target} makes {names!r}, and only masks of pred are made here")


def _activate(step: Component, found: After) -> None:
    step.only(*_HARMLESS, "softmax", "sigmoid")
    for name in ("softmax", "sigmoid"):
        value = step.take(name, default=False)
        if (value[0] if isinstance(value, list) and len(value) == 1 else value) is True:
            if found.activation != "none":
                raise ModelRefused(f"{step.where}: a second activation is not understood")
            found.activation = "softmax" if name == "softmax" else "sigmoid"
            found.activated_first = not found.inverted
        elif value not in (False, None, [False]):
            raise ModelRefused(f"{step.where}: {name} must be true or false, not {value!r}")


def _invert(step: Component, found: After) -> None:
    step.only(*_HARMLESS, "transform", "orig_keys", "meta_keys", "orig_meta_keys", "meta_key_postfix",
              "nearest_interp", "to_tensor", "post_func")  # fmt: skip
    if step.arguments.get("transform") != "@preprocessing":
        raise ModelRefused(f"{step.where}: only the inverse of @preprocessing is understood")
    if step.arguments.get("post_func") is not None:
        raise ModelRefused(f"{step.where}: post_func of {step.target} is code, and no code of a bundle is run")
    found.inverted = True
    nearest = step.take("nearest_interp", default=True)
    found.nearest = _single(nearest) is not False or found.where is not None


def _decide(step: Component, found: After) -> None:
    step.only(*_HARMLESS, "argmax", "threshold", "to_onehot")
    argmax, threshold = (_single(step.take(name)) for name in ("argmax", "threshold"))
    if argmax not in (None, False, True) or (argmax and threshold is not None):
        raise ModelRefused(f"{step.where}: argmax {argmax!r} with threshold {threshold!r} is not understood")
    if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, int | float)):
        raise ModelRefused(f"{step.where}: threshold must be a number, not {threshold!r}")
    found.argmax, found.threshold = bool(argmax), None if threshold is None else float(threshold)
    if argmax or threshold is not None:
        found.where = step.where
        found.by_class = bool(argmax) and step.take("to_onehot") is not None


def _selects_foreground(step: Component, found: After) -> bool:
    """Whether a Lambda only drops the background from masks of one channel for each class. Its text is compared."""
    step.only(*_HARMLESS, "func", "inv_func", "overwrite")
    text = "".join(str(step.arguments.get("func")).split())
    return found.by_class and _FOREGROUND.fullmatch(text) is not None


def _done_by_monai(step: Component) -> Way | None:
    """The step as MONAI does it; None where its arguments are code."""
    try:
        arguments = plain({key: value for key, value in step.arguments.items() if key not in _HARMLESS}, step.where)
    except ModelRefused:
        return None
    return on_masks(step.name, arguments)


def _single(value: object) -> object:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def probability(threshold: float) -> float:
    """A threshold of logits as one of probabilities."""
    return 1 / (1 + math.exp(-threshold))
