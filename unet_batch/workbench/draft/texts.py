"""A draft as text: the contract and the job file, with a comment beside every line that is not certain."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import yaml

from unet_batch import __version__
from unet_batch.workbench.draft.explore import Explored
from unet_batch.workbench.draft.known import Known
from unet_batch.workbench.draft.look import Seen

WIDTH = 30
"""Column where comments begin, if the value is shorter."""
ORDER = (
    "name", "layout", "dtype", "color", "channels", "height", "width", "multiple", "remainder",
    "series_channels", "crop", "fit", "kernel",
    "padding", "pad_value", "pad_units", "source_max", "scale_up", "exif", "alpha", "reduced_jpeg", "normalize",
    "activation", "classes", "background", "threshold", "margin",
)  # fmt: skip
EVERY = 1.0
"""`limits.max_rejected` that holds nothing back."""
DEFAULT_PROVIDERS = ("cpu",)
FEW_IMAGES = 100
"""Below it, one rejected image is allowed: the usual 1 % would allow none."""


def contract_yaml(explored: Explored, sheet: str) -> str:
    """The text of the contract. sheet: path of the contact sheet."""
    guesses = len(explored.draft.guesses)
    lines = [
        f"# What {explored.source_model.path} expects and returns, drafted by unet-batch {__version__}.",
        f"# {guesses} line(s) are guesses, marked as such: {sheet} shows what they do. Correct them here."
        if guesses
        else "# Nothing in it is a guess.",
    ]
    for section in ("input", "output"):
        lines.append(f"{section}:")
        fields = {name.partition(".")[2]: known for name, known in explored.draft.fields.items()}
        mine = [name for name in ORDER if f"{section}.{name}" in explored.draft.fields]
        mine += [name for name in fields if name not in ORDER and f"{section}.{name}" in explored.draft.fields]
        lines += [_line(2, name, explored.draft.fields[f"{section}.{name}"]) for name in mine]
    return "\n".join(lines) + "\n"


def job_tree(explored: Explored, *, output: str, contract: str | None, providers: tuple[str, ...]) -> dict[str, Any]:
    """The job file as a tree. contract: its path where it does not lie beside the model."""
    tree = dict(explored.job)
    if contract is not None:
        tree["model"] = {**tree["model"], "contract": contract}
    tree["output"] = {"uri": output}
    tree["limits"] = {**tree.get("limits", {}), "max_rejected": allowed_rejections(explored.seen)}
    if providers != DEFAULT_PROVIDERS:  # left out, a recommendation may choose the provider
        tree["session"] = {**tree.get("session", {}), "providers": list(providers)}
    order = ("name", "model", "input", "output", "window", "tiling")
    return {key: tree[key] for key in (*order, *tree) if key in tree}


def allowed_rejections(seen: Seen) -> int | float:
    """`limits.max_rejected`: 1 % as usual, one image of a few, and room for as many as were met among those tried."""
    if seen.rejected:
        met = len(seen.rejected) / (len(seen.rejected) + len(seen.pictures))
        return min(1.0, max(0.02, math.ceil(met * 1.5 * 100) / 100))
    return 1 if seen.images < FEW_IMAGES else 0.01


def job_yaml(tree: Mapping[str, Any], explored: Explored) -> str:
    """The text of the job file."""
    notes = {
        "model.engine": "what `unet-batch model optimize` recommends on this machine; before it ran, ONNX Runtime",
        "limits.max_rejected": "images that may be rejected before nothing is published: a count, or a share (0.01)",
        "session.providers": "[cuda] must run on CUDA, or nothing starts; `unet-batch doctor` shows what runs here",
        "output.uri": "predictions/ is the table; reports/ and _work/ lie beside it",
        "input.exclude": "files of this job inside the archive",
        "tiling.size": "side of the tiles that large pictures are cut into; leave it out to score pictures whole",
        "check.images": "this file is not fp32, and a comparison needs check.reference: the fp32 file it was made from",
    }
    met, allowed = len(explored.seen.rejected), tree["limits"]["max_rejected"]
    if isinstance(allowed, float) and allowed == EVERY:
        notes["limits.max_rejected"] = "images are published whatever number is rejected; usual is 0.01"
    elif met:
        tried = met + len(explored.seen.pictures)
        notes["limits.max_rejected"] = f"guessed: {met} of {tried} images tried cannot be scored; usual is 0.01"
    lines = [
        f"# Drafted by unet-batch {__version__}. `unet-batch schema` lists every key.",
        f"# Relative paths are relative to the folder in which unet-batch runs; this file was written in {os.getcwd()}",
    ]
    for key, value in tree.items():
        if not isinstance(value, Mapping):
            lines.append(_plain(0, key, value, notes.get(key, "")))
            continue
        lines.append(f"{key}:")
        for name, inner in value.items():
            lines.append(_plain(2, name, inner, notes.get(f"{key}.{name}", "")))
        if key == "input":
            lines += [f"  # {hint}" for hint in explored.seen.hints]
    return "\n".join(lines) + "\n"


def _line(indent: int, name: str, known: Known) -> str:
    return _plain(indent, name, known.value, known.comment)


def _plain(indent: int, name: str, value: object, comment: str) -> str:
    text = f"{' ' * indent}{name}: {flow(value)}"
    return f"{text.ljust(WIDTH)} # {' '.join(comment.split())}" if comment else text


def flow(value: object) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()
