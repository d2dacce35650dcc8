"""What an ONNX file says about its contract: shapes, names, operators, metadata, and JSON files beside it.

No picture is looked at. What the file does not say is left to be guessed.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import ModelRefused
from unet_batch.model import graph
from unet_batch.model.contract import draft as declared
from unet_batch.model.meaning import Meaning, meaning
from unet_batch.model.model import ModelFile, Tensor
from unet_batch.store.objects import canonical
from unet_batch.strict import parse_yaml
from unet_batch.workbench.draft.known import OVERLAPPING, Draft, Known, class_names, with_background
from unet_batch.workbench.draft.source import SourceModel
from unet_batch.workbench.inspect import Inspection, inspect

if TYPE_CHECKING:
    from onnx import ModelProto

READ_IN_FILE = "in the model's file"
CLASS_KEYS = ("classes", "class_names", "names", "labels", "id2label")
"""Keys of a file's metadata, and of a config.json beside it, that hold names of classes."""
MOST_CONFIG_BYTES = 1 << 20
_MOVES = frozenset({"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Pad"})
"""Operators that only move values, at the beginning of a graph."""


def from_graph(source_model: SourceModel) -> tuple[Draft, Inspection]:
    """A draft with all that the file says, and its description. Raises ModelRefused for a file that no job can run."""
    found = inspect(source_model.data, canonical(source_model.path))
    if found.refusals:
        raise ModelRefused(
            f"{source_model.path} is refused: {'; '.join(found.refusals)}. Export it as one plain file without these"
        )
    if len(found.inputs) != 1 or len(found.inputs[0].shape) not in (0, 4):
        shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in found.inputs)
        raise ModelRefused(
            f"{source_model.path} takes {shapes or 'nothing'}, not one batch of pictures (four axes): export it with "
            "one input of images"
        )
    model = graph.read(source_model.data, source_model.path)
    target = _scored_output(found, source_model.path)
    several = len(found.outputs) > 1
    if several or found.contract_embedded:
        multiple = None if found.multiple_hw is None else max(found.multiple_hw)
        text = declared(_as_file(found, target), multiple=multiple, activation=meaning(model, target.name).activation)
    else:
        text = found.contract
    tree = parse_yaml(text.encode(), "the draft")
    draft = Draft()
    for section, entries in tree.items():
        for name, value in entries.items():
            draft = draft.put(f"{section}.{name}", Known(value, "read", READ_IN_FILE))
    if several:
        others = tuple(tensor.name for tensor in found.outputs if tensor != target)
        known = Known(target.name, "guessed", f"it looks most like the result of {len(found.outputs)} outputs", others)
        draft = draft.put("output.name", known, over=True)
    draft = _uncertain(draft, found, meaning(model, target.name))
    draft = _normalised_inside(draft, model)
    return _metadata(draft, found, model, source_model), found


def _scored_output(found: Inspection, path: str) -> Tensor:
    """The output that looks like the result: the map with the most pixels, else the scores of a classifier (N, K)."""
    possible = [tensor for tensor in found.outputs if len(tensor.shape) in (0, 2, 3, 4)]
    if not possible:
        shapes = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in found.outputs)
        raise ModelRefused(
            f"{path} returns {shapes}, and none of them is a map of pixels (three or four axes) or a row of scores "
            "(two axes)"
        )

    def pixels(tensor: Tensor) -> tuple[bool, int]:
        sizes = [size for size in tensor.shape[1:] if isinstance(size, int) and size > 16]
        return len(tensor.shape) != 2, int(np.prod(sizes)) if sizes else 0

    return max(possible, key=pixels)  # of equal ones the first


def _as_file(found: Inspection, target: Tensor) -> ModelFile:
    return ModelFile(b"", found.sha256, found.uri, found.inputs, (target,), {})


def _uncertain(draft: Draft, found: Inspection, says: Meaning) -> Draft:
    """Marks what the file does not say."""
    channels = draft.value("input.channels")
    source, layout = found.inputs[0], draft.value("input.layout")
    if source.fixed("channels", layout) is None:
        known = Known(channels, "guessed", "the file leaves the number of channels open", ("1",))
        draft = draft.put("input.channels", known, over=True)
    if channels == 3:
        known = Known("rgb", "guessed", "three channels, in an order that the file does not say", ("bgr",))
        draft = draft.put("input.color", known, over=True)
    elif channels != 1:
        known = Known("bands", "read", f"{channels} channels in the file's order")
        draft = draft.put("input.color", known, over=True)
    if source.dtype.startswith("uint"):
        known = Known({"kind": "none"}, "read", f"the model takes {source.dtype}, so it normalises itself")
    else:
        known = Known({"kind": "unit"}, "guessed", "a file does not say how its training normalised pictures")
    draft = draft.put("input.normalize", known, over=True)
    draft = draft.put("input.fit", _fit(draft), over=True)
    names = draft.value("output.classes")
    known = _activation(draft.value("output.activation"), says)
    if known.value == "logits" and len(names) > 1:
        known = replace(known, others=(OVERLAPPING,))
    draft = draft.put("output.activation", known, over=True)
    found_names = class_names(len(names), draft.value("output.activation"), classifies=draft.classifies)
    draft = draft.put("output.classes", Known(found_names, "guessed", "the file holds no names"), over=True)
    if draft.classifies:  # every class gives a label
        return draft
    return with_background(draft.put("output.background", Known(0, "guessed")))


def _fit(draft: Draft) -> Known:
    """How pictures get the model's size before any was looked at; a classifier scores whole pictures."""
    if not draft.classifies:
        return Known("tile", "default", "no picture was looked at")
    if draft.value("input.height") and draft.value("input.width"):
        return Known("stretch", "guessed", "a classifier scores whole pictures", ("letterbox", "pad"))
    why = "a classifier scores whole pictures, and this one takes any size"
    return Known("pad", "guessed", why, ("stretch, with input.height and input.width",))


def _activation(declared_one: str, says: Meaning) -> Known:
    """What the graph proves about the output's values; guessed where it proves nothing, and measured later."""
    if declared_one == "labels":
        return Known("labels", "read", READ_IN_FILE)
    if says.activation is not None:
        return Known(says.activation, "read", f"from the operators of the graph, which end in {says.made_by}")
    if says.bounds[0] >= 0 and says.bounds[1] <= 1:
        return Known("masks" if says.decided else "sigmoid", "guessed", "all values lie between 0 and 1")
    return Known("logits", "guessed", "the graph does not say what its values are")


def _normalised_inside(draft: Draft, model: ModelProto) -> Draft:
    """The range of pixels that the graph expects, where its first operators add or multiply constants."""
    step = _first_arithmetic(model, draft.value("input.name"))
    if step is None or draft.has("input.normalize"):
        return draft
    operator, value = step
    size = float(np.abs(value).mean())
    if (operator == "Div" and size >= 100) or (operator == "Mul" and 1 / 300 < size < 1 / 200):
        why = f"the graph itself {'divides' if operator == 'Div' else 'multiplies'} by {size:.4g}, as for 8-bit values"
        return draft.put("input.normalize", Known({"kind": "none"}, "read", why))
    if operator in ("Sub", "Add") and size > 10:
        why = f"the graph itself subtracts {size:.4g}, a mean of 8-bit values"
        return draft.put("input.normalize", Known({"kind": "none"}, "read", why))
    if operator in ("Sub", "Add") and 0.2 < size < 0.8:
        why = f"the graph itself subtracts {size:.4g}, a mean of values from 0 to 1"
        return draft.put("input.normalize", Known({"kind": "unit"}, "read", why))
    return draft


def _first_arithmetic(model: ModelProto, name: str) -> tuple[str, np.ndarray[Any, Any]] | None:
    """The first operator that combines all pixels with a stored constant, and the constant."""
    stored = graph.constants(model)
    for _ in range(20):
        users = [node for node in model.graph.node if name in node.input]
        users = [node for node in users if node.op_type not in ("Shape", "Size")]
        if len(users) != 1:
            return None
        [node] = users
        if node.op_type in ("Add", "Sub", "Mul", "Div"):
            operands = [entry for entry in node.input if entry in stored]
            return (node.op_type, graph.array(stored[operands[0]])) if operands else None
        if node.op_type not in _MOVES:
            return None
        name = node.output[0]
    return None


def _metadata(draft: Draft, found: Inspection, model: ModelProto, source_model: SourceModel) -> Draft:
    """Classes and statistics from the file's metadata and from Hugging Face's JSON files beside it."""
    draft = _from_keys(draft, graph.metadata(model), "in the file's metadata")
    path = source_model.path.removeprefix("file://")
    if "://" in path:
        return draft
    folder = Path(path).expanduser().parent
    draft = _from_keys(draft, _json(folder / "config.json"), f"in {folder / 'config.json'}")
    shown = f"in {folder / 'preprocessor_config.json'}"
    return _preprocessor(draft, _json(folder / "preprocessor_config.json"), shown, found)


def _from_keys(draft: Draft, entries: Mapping[str, Any], where: str) -> Draft:
    names = next((_class_names(entries[key]) for key in CLASS_KEYS if key in entries), None)
    known = draft.value("output.classes")
    if names is not None and len(names) == len(known) and len(set(names)) == len(names):
        draft = draft.put("output.classes", Known(names, "read", where))
    return draft


def _class_names(value: object) -> list[str] | None:
    """Names from a list, a mapping of numbers to names, or a text that holds one of them."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value) if value.lstrip()[:1] in "[{(" else value.split(",")
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if isinstance(value, Mapping):
        try:
            value = [value[key] for key in sorted(value, key=int)]
        except (ValueError, TypeError):
            return None
    if not isinstance(value, Sequence) or not all(isinstance(name, str) for name in value):
        return None
    return [name.strip() for name in value]


def _preprocessor(draft: Draft, entries: Mapping[str, Any], where: str, found: Inspection) -> Draft:
    """Mean, std and size of a preprocessor_config.json, as Hugging Face's image processors write it."""
    mean, std = entries.get("image_mean"), entries.get("image_std")
    factor = entries.get("rescale_factor", 1 / 255)
    rescaled = entries.get("do_rescale", True) and isinstance(factor, float) and abs(factor * 255 - 1) < 1e-3
    if entries.get("do_normalize", mean is not None) and _numbers(mean) and _numbers(std) and rescaled:
        draft = draft.put(
            "input.normalize", Known({"kind": "mean_std", "mean": mean, "std": std}, "read", where), over=True
        )
    elif entries and rescaled and entries.get("do_normalize") is False:
        draft = draft.put("input.normalize", Known({"kind": "unit"}, "read", where), over=True)
    size = entries.get("size")
    if entries.get("do_resize") and isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        height, width = size["height"], size["width"]
        fixed = [found.inputs[0].fixed(axis, draft.value("input.layout")) for axis in ("height", "width")]
        if isinstance(height, int) and isinstance(width, int) and fixed in ([None, None], [height, width]):
            draft = draft.put("input.fit", Known("stretch", "read", where))
            for name, value in (("height", height), ("width", width)):
                draft = draft.put(f"input.{name}", Known(value, "read", where))
    return draft


def _numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(number, int | float) for number in value)


def _json(path: Path) -> Mapping[str, Any]:
    """The mapping of a small JSON file; empty if there is none."""
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            return {}
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
