"""Reads the files and the packages that importers need. Runs no code from a folder.

JSON and YAML become plain values; a package that is missing, or cannot be imported, is one sentence.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from unet_batch.errors import JobError, ModelRefused
from unet_batch.strict import MAX_DEPTH, parse_yaml

MAX_SETTINGS_BYTES = 4 << 20
"""Largest settings file that is read; the largest known one (a config with a thousand class names) has 60 kB."""


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file, of plain values only.

    Raises JobError if the file cannot be read, ModelRefused if it is not a mapping or too large.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_SETTINGS_BYTES else b""
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror or error}") from error
    if size > MAX_SETTINGS_BYTES:
        raise ModelRefused(f"{path} has {size} bytes; at most {MAX_SETTINGS_BYTES} are read")
    if path.suffix in (".yaml", ".yml"):
        try:
            return parse_yaml(data, str(path), max_bytes=MAX_SETTINGS_BYTES)
        except JobError as error:
            raise ModelRefused(str(error)) from error
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} is not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ModelRefused(f"{path} must hold a JSON object, not {type(tree).__name__}")
    if _deeper(tree, MAX_DEPTH):
        raise ModelRefused(f"{path} has more than {MAX_DEPTH} levels")
    return tree


def peek(folder: Path, name: str) -> Mapping[str, Any]:
    """The mapping in a JSON file of a folder; empty if there is none, or if it cannot be read."""
    try:
        return read_settings(folder / name) if (folder / name).is_file() else {}
    except (JobError, ModelRefused):
        return {}


def package(name: str, extra: str) -> ModuleType:
    """The imported package of a framework. extra: what `pip install` needs.

    Raises JobError if it is not installed, or fails while it is imported.
    """
    if importlib.util.find_spec(name) is None:
        raise JobError(f"this model needs the package {name}: run `pip install {extra}`")
    try:
        _torchvision()
        return importlib.import_module(name)
    except Exception as error:  # a package whose parts do not fit each other may raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise JobError(f"the package {name} cannot be imported: {said}") from error


@contextmanager
def offline() -> Iterator[None]:
    """Keep the Hugging Face hub's client from the network meanwhile: a request raises an error at once.

    The client reads HF_HUB_OFFLINE from the environment when it is imported, so its own flag is set.
    """
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _torchvision() -> None:
    """Import torchvision, also where its compiled part does not fit the installed torch.

    pip installs torchvision for CUDA beside a torch for CPUs, and its import then ends with "operator torchvision::nms
    does not exist". No network here calls these operators (they are for boxes), so declaring them is enough.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for module in [key for key in sys.modules if key.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        importlib.import_module("torchvision")


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(part, levels - 1) for part in inner)
