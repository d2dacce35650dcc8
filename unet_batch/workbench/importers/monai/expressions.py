"""Texts of a MONAI bundle that begin with `$`, as plain values where they are plain arithmetic.

MONAI evaluates them as Python. Here a text is parsed, and only numbers, texts, lists, references (`@name`), the
constants of a table and a few operations give a value. Nothing is imported, called or evaluated.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

CONSTANTS: Mapping[str, str] = {
    "CommonKeys.IMAGE": "image",
    "CommonKeys.LABEL": "label",
    "CommonKeys.PRED": "pred",
    "BlendMode.CONSTANT": "constant",
    "BlendMode.GAUSSIAN": "gaussian",
    "ForwardMode.EVAL": "eval",
    "ForwardMode.TRAIN": "train",
}
"""Constants of `monai.utils`, by their last two names (monai/utils/enums.py)."""
LONGEST = 1000
"""Characters of an expression that is looked at, and entries of a list that it makes."""
LARGEST = 10**9
"""Largest number that an operation may give."""
_NAME = "_reference_"
_REFERENCE = re.compile(r"@([A-Za-z_]\w*(?:(?:::|#)\w+)*)")
_OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class NotPlain(Exception):
    """An expression is something else than plain arithmetic."""


def evaluated(text: str, value_of: Callable[[str], Any]) -> Any:
    """The value of a text that begins with `$`.

    value_of: the value of a reference, `@` included; it may raise NotPlain. Raises NotPlain for everything that is not
    a number, text, list, tuple (which becomes a list), reference, constant of `CONSTANTS`, operation of numbers, sum
    of texts or of lists, or `len`.
    """
    names: dict[str, str] = {}

    def named(found: re.Match[str]) -> str:
        name = f"{_NAME}{len(names)}"
        names[name] = found[0]
        return name

    body = text[1:].strip()
    if len(body) > LONGEST:
        raise NotPlain
    try:
        tree = ast.parse(_REFERENCE.sub(named, body), mode="eval")
        return _value(tree.body, lambda name: value_of(names[name]) if name in names else _none())
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise NotPlain from error


def _value(node: ast.expr, value_of: Callable[[str], Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        if isinstance(node.value, str) and _NAME in node.value:
            raise NotPlain  # a reference inside of a text
        return node.value
    if isinstance(node, ast.Name):
        return value_of(node.id)
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each, value_of) for each in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(_value(node.operand, value_of))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _operation(node.op, _value(node.left, value_of), _value(node.right, value_of))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "len" and len(node.args) == 1 and not node.keywords:
        found = _value(node.args[0], value_of)
        if isinstance(found, list | str) or (isinstance(found, Mapping) and "_target_" not in found):
            return len(found)
    if isinstance(node, ast.Attribute):
        names = ast.unparse(node).split(".")
        constant = ".".join(names[-2:])
        if constant in CONSTANTS and names[:-2] in ([], ["monai", "utils"], ["monai", "utils", "enums"]):
            return CONSTANTS[constant]
    raise NotPlain


def _operation(operation: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(operation, ast.Add) and type(left) is type(right) and isinstance(left, str | list):
        found = left + right
        if len(found) > LONGEST:
            raise NotPlain
        return found
    result = _OPERATIONS[type(operation)](_number(left), _number(right))
    if not abs(result) <= LARGEST:
        raise NotPlain
    return result


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotPlain
    return value


def _none() -> Any:
    raise NotPlain
