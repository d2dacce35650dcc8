"""Parses the arguments of an export: the input's size, the normalisation, arguments of a factory."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from unet_batch.contract import Divide, MeanStd, Normalize, Percentile, Raw, Scale, ZScore
from unet_batch.errors import JobError
from unet_batch.workbench.export.forms import NORMALIZE_FORMS

IMAGENET = MeanStd(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of RGB values in [0, 1]: torchvision.transforms.v2, ImageNet presets."""


def parse_input(text: str) -> tuple[int, int, int]:
    """`1x256x256` as channels, height and width. Raises JobError."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise JobError(f"the input {text!r} is not of the form CxHxW, such as 1x256x256")
    return int(found[1]), int(found[2]), int(found[3])


def parse_args(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a factory from `name=value` texts; a value is a Python literal, else a plain text.

    Raises JobError for other forms, and for true, false and null: they are not Python literals and would silently
    become non-empty texts.
    """
    args: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise JobError(f"the factory argument {text!r} is not of the form name=value")
        if name in args:
            raise JobError(f"the factory argument {name} is given twice")
        if value in ("true", "false", "null", "none"):
            meant = {"true": "True", "false": "False"}.get(value, "None")
            raise JobError(f"the factory argument {text} would become a text: write {name}={meant}")
        try:
            args[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            args[name] = value
    return args


def parse_normalize(text: str, channels: int) -> Normalize:
    """The normalisation of a text in one of `NORMALIZE_FORMS`. Raises JobError."""
    name, _, numbers = text.strip().partition(":")
    plain: dict[str, Normalize] = {"unit": Divide(), "zscore": ZScore(), "percentile": Percentile(), "none": Raw()}
    try:
        if name in plain and not numbers:
            return plain[name]
        if name == "imagenet" and not numbers:
            if channels != 3:
                raise JobError(f"--normalize imagenet is for 3 channels, not {channels}: write mean_std:…/…")
            return IMAGENET
        if name == "scale":
            factor, _, offset = numbers.partition(",")
            return Scale(scale=float(factor), offset=float(offset or 0))
        if name == "mean_std":
            mean, _, std = numbers.partition("/")
            return MeanStd(mean=_floats(mean), std=_floats(std))
    except (ValueError, ValidationError) as error:
        raise JobError(f"--normalize {text!r} has invalid numbers: write {NORMALIZE_FORMS}") from error
    raise JobError(f"--normalize {text!r} is unknown: write {NORMALIZE_FORMS}")


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))
