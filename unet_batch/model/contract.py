"""Checks a contract against the declarations of its file: tensors, axes and tile sizes.

The caller reads the bytes; no session is opened. Real files have odd declarations (the batch's symbol on the height,
unnamed axes, names with `:0`), so only numbers are compared, not the symbols of open axes.
"""

from __future__ import annotations

from typing import Any

import yaml

from unet_batch.contract import Contract
from unet_batch.errors import ContractError, JobError, ModelRefused
from unet_batch.model import graph
from unet_batch.model.against_graph import against_graph
from unet_batch.model.margin import Sides
from unet_batch.model.meaning import meaning
from unet_batch.model.model import Layout, Model, ModelFile, Tensor
from unet_batch.model.tile_size import AXES, UNKNOWN_MULTIPLE, Size, margin_of, sizes, unplaceable
from unet_batch.spec import TilingSpec
from unet_batch.strict import MAX_MESSAGE, parse_yaml, short, validate

MAX_CONTRACT_BYTES = 1 << 16
"""Largest contract; one with a thousand classes has 20 kB."""
METADATA_KEY = "unet_batch.contract"

_FLOATS = ("float16", "float32", "float64")
_NUMBERS = (*_FLOATS, "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
MOST_CLASSES = 1000
"""Most class names in a draft; a file may declare a billion channels."""
_MOST_CHANNELS = 16
"""In a draft, a fixed axis up to this size is taken for channels, a larger one for pixels."""


def find_contract(file: ModelFile, text: bytes | None, where: str) -> Contract:
    """The contract in a YAML file (text, found at `where`), else the one in the model's metadata.

    Raises ContractError for an unreadable contract, and, with a draft in its message, if there is no contract.
    """
    if text is None and METADATA_KEY in file.metadata:
        text, where = file.metadata[METADATA_KEY].encode(), f"metadata {METADATA_KEY} of {file.uri}"
    if text is None:
        raise ContractError(
            f"{file.uri} has no contract: write one to {where}, starting from this draft, which holds only what "
            f"the file declares:\n\n{draft(file, activation=_activation(file))}"
        )
    try:
        return validate(Contract, parse_yaml(text, where, max_bytes=MAX_CONTRACT_BYTES), where)
    except JobError as error:
        raise ContractError(str(error)) from error


def _activation(file: ModelFile) -> str | None:
    """The activation of the first output by its last operator; None if unknown."""
    try:
        return meaning(graph.read(file.data, file.uri), file.outputs[0].name).activation if file.outputs else None
    except ModelRefused:
        return None


def resolve(contract: Contract, file: ModelFile, tiling: TilingSpec) -> Model:
    """The model of a file and its contract. Raises ContractError with a phrase for every mismatch."""
    problems: list[str] = []
    source = _choose(file.inputs, contract.input.name, "input", problems)
    target = _choose(file.outputs, contract.output.name, "output", problems)
    if len(file.inputs) > 1:
        names = ", ".join(t.name for t in file.inputs)
        problems.append(f"the model needs all of its {len(file.inputs)} inputs ({names}): export it with one input")
    if source is None or target is None:
        raise _mismatch(file, problems)

    declared = contract.input.layout
    _check_tensor(source, declared, contract.input.channels, "input", problems)
    if source.dtype != contract.input.dtype:
        problems.append(f"input {source.name} is {source.dtype}, but input.dtype says {contract.input.dtype}")
    fixed_hw = (source.fixed("height", declared), source.fixed("width", declared))
    known_hw, tile_hw = sizes(contract.input, fixed_hw, tiling.size, problems)

    rank_3 = contract.output.decided and len(target.shape) == 3
    rank_2 = contract.output.classifies and len(target.shape) == 2
    layout: Layout = contract.output.layout or ("nhw" if rank_3 else "nk" if rank_2 else declared)
    model = Model(
        sha256=file.sha256,
        contract=contract.model_copy(
            update={"input": contract.input.model_copy(update={"height": known_hw[0], "width": known_hw[1]})}
        ),
        input_name=source.name,
        output_name=target.name,
        tile_hw=tile_hw,
        batch=source.fixed("batch", declared) or target.fixed("batch", layout),
        output_layout=layout,
    )
    _check_tensor(target, layout, model.planes, "output", problems)
    if target.dtype not in (_NUMBERS if contract.output.decided else _FLOATS):
        problems.append(f"output {target.name} is {target.dtype}, which cannot be {contract.output.activation}")
    if layout == "nhw" and model.planes > 1:
        problems.append(f"output.layout nhw has no channel axis, but the contract names {model.planes} classes")
    if target.fixed("batch", layout) not in (None, model.batch):
        problems.append(f"the batch axis is fixed at {model.batch} in the input and at {target.shape[0]} in the output")
    returned: Size = target.fixed("height", layout), target.fixed("width", layout)
    if contract.output.classifies:
        problems += _no_scores(target, returned)
    elif len(target.shape) == 2:
        problems.append(
            f"output {target.name} is {list(target.shape)}, one score per class and image, and no mask: for a "
            "classifier, write output.label_from: class_scores"
        )
    elif tile_hw is not None and (strange := unplaceable(tile_hw, returned, contract.output.margin)):
        problems.append(strange)
    if not problems:
        problems += against_graph(model, file.data, file.uri, returned)
    if problems:
        raise _mismatch(file, problems)
    return model


def draft(
    file: ModelFile, *, multiple: int | None = None, activation: str | None = None, unpadded: Sides | None = None
) -> str:
    """A contract as YAML text with the file's declarations; other fields are marked to be checked.

    multiple, activation, unpadded: from the graph, if known. Declared sizes show a margin too.
    """
    source, target = (tensors[0] if tensors else Tensor("", "float32", ()) for tensors in (file.inputs, file.outputs))
    layout = _guess_layout(source)
    channels = source.fixed("channels", layout) or 3
    height, width = source.fixed("height", layout), source.fixed("width", layout)
    rank_2, rank_3 = len(target.shape) == 2, len(target.shape) == 3
    output_layout = "nk" if rank_2 else "nhw" if rank_3 else _guess_layout(target, otherwise=layout)
    classifies = rank_2 or (target.fixed("height", output_layout), target.fixed("width", output_layout)) == (1, 1)
    classes = target.fixed("channels", output_layout) or 2
    labels = (rank_3 or target.dtype not in _FLOATS) and not classifies
    declared = 0 if classifies else _declared_margin(source, target, layout, output_layout)
    margin = unpadded.margin if unpadded else declared
    sides = {"multiple": multiple or UNKNOWN_MULTIPLE} if not unpadded else {"multiple": unpadded.multiple}
    sides |= {"remainder": unpadded.remainder} if unpadded and unpadded.remainder else {}
    entries: dict[str, dict[str, Any]] = {
        "input": {
            "name": source.name,
            "layout": layout,
            "dtype": source.dtype,
            "color": {1: "gray", 3: "rgb"}.get(channels, "bands"),
            "channels": channels,
            **({"height": height, "width": width} if height and width else {}),
            **(sides if unpadded or not (height and width) else {}),
            "fit": "stretch" if classifies else "tile",
            **({"padding": "reflect"} if margin else {}),
            "normalize": {"kind": "unit" if source.dtype in _FLOATS else "none"},
        },
        "output": {
            "name": target.name,
            "layout": output_layout,
            "activation": "labels" if labels else activation or "logits",
            "classes": [f"class_{k}" for k in range(2 if labels else min(classes, MOST_CLASSES))],
            **({"margin": margin} if margin else {}),
            **({"label_from": "class_scores"} if classifies else {}),
        },
    }
    return (
        f"# Draft, read from {file.uri}. The file does not declare these fields, so check each:\n"
        "# input.color, fit, multiple, normalize; output.activation (logits, softmax, sigmoid, labels, masks) and "
        "classes.\n" + yaml.safe_dump(entries, sort_keys=False)
    )


def _no_scores(target: Tensor, returned: Size) -> list[str]:
    """Why an output cannot be one score per class and image."""
    if len(target.shape) == 2 or all(side in (None, 1) for side in returned):
        return []
    found = f"output {target.name} is {list(target.shape)}, a mask, but output.label_from class_scores"
    return [f"{found} is for classifiers, which return (N, K) or (N, K, 1, 1): leave it out"]


def _declared_margin(source: Tensor, target: Tensor, layout: str, output_layout: str) -> int:
    """The margin that the declared sizes of input and output show; 0 if there is none, or if they are open."""
    height, width = source.fixed("height", layout), source.fixed("width", layout)
    returned: Size = target.fixed("height", output_layout), target.fixed("width", output_layout)
    if not (height and width) or unplaceable((height, width), returned) is None:
        return 0
    return margin_of((height, width), returned) or 0


def _choose(tensors: tuple[Tensor, ...], name: str | None, word: str, problems: list[str]) -> Tensor | None:
    names = ", ".join(t.name for t in tensors) or "none"
    if name is None and len(tensors) == 1:
        return tensors[0]
    if name is None:
        problems.append(f"the model has {len(tensors)} {word}s ({names}): choose one with {word}.name")
        return None
    chosen = next((t for t in tensors if t.name == name), None)
    if chosen is None:
        problems.append(f"the model has no {word} named {name}; it has: {names}")
    return chosen


def _check_tensor(tensor: Tensor, layout: str, channels: int, word: str, problems: list[str]) -> None:
    """Check rank and channel axis against a layout; nothing is checked if the file declares no shape."""
    if tensor.shape and len(tensor.shape) != len(AXES[layout]):
        problems.append(
            f"{word} {tensor.name} has {len(tensor.shape)} axes, {list(tensor.shape)}, "
            f"but {word}.layout {layout} has {len(AXES[layout])}"
        )
        return
    fixed = tensor.fixed("channels", layout)
    if fixed not in (None, channels):
        said = "input.channels" if word == "input" else "output.classes"
        other = "nhwc" if layout == "nchw" else "nchw"
        hint = f" (with {word}.layout {other} it would fit)" if tensor.fixed("channels", other) == channels else ""
        problems.append(f"{word} {tensor.name} is {layout} with {fixed} channels, but {said} says {channels}{hint}")


def _guess_layout(tensor: Tensor, otherwise: str = "nchw") -> str:
    """The only layout whose channel axis is small and fixed, else `otherwise`."""
    small = [name for name in ("nchw", "nhwc") if 0 < (tensor.fixed("channels", name) or 0) <= _MOST_CHANNELS]
    return small[0] if len(small) == 1 else otherwise


def _mismatch(file: ModelFile, problems: list[str]) -> ContractError:
    return ContractError(f"{file.uri} does not match its contract: {short('; '.join(problems), MAX_MESSAGE)}")
