"""What a person writes to describe an export, as values: the input's size, and arguments of a factory.

Knows texts only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from unet_batch.errors import JobError


def parse_input(text: str) -> tuple[int, int, int]:
    """`1x256x256` as channels, height and width. Raises JobError."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise JobError(f"the input {text!r} is not of the form CxHxW, such as 1x256x256")
    return int(found[1]), int(found[2]), int(found[3])


def parse_args(texts: Sequence[str]) -> dict[str, Any]:
    """Arguments of a factory from `name=value` texts; a value is a Python literal, else a plain text.

    Raises JobError for what is not of that form, and for true, false and null, which Python writes otherwise and which
    would be texts (and so true) in silence.
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
            raise JobError(f"the factory argument {text} would be a text: write {name}={meant}")
        try:
            args[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            args[name] = value
    return args
