"""YAML that is read strictly: duplicate and unknown keys and guessed types are errors, each one sentence long.

Knows trees and the models that describe them; knows no job. A value under a name like a secret's is never repeated.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from unet_batch.errors import JobError

S = TypeVar("S", bound=BaseModel)

SECRET_NAME = re.compile(
    r"secret|token|password|passwd|credential|(^|_)(api|account|access)?_?key$|sas|connection_string", re.IGNORECASE
)


def parse_yaml(text: bytes, where: str) -> dict[str, Any]:
    """A mapping from YAML text; refuses duplicate keys. Raises JobError."""
    try:
        tree = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader underneath
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise JobError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise JobError(f"{where} must hold a mapping (key: value), not {type(tree).__name__}")
    return tree


def validate(model: type[S], tree: Mapping[str, Any], where: str) -> S:
    """The section that a tree describes. Raises JobError naming each wrong key and its nearest valid name."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise JobError(f"{where}: " + "; ".join(_sentence(model, e) for e in error.errors()[:5])) from None


def set_value(tree: dict[str, Any], override: str) -> None:
    """Writes the value of `section.key=value` into a tree. Raises JobError."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise JobError(f"--set {override!r} is not of the form section.key=value")
    try:
        # One value has no anchors to refer to, so a leading * is that of a glob.
        plain = not text.strip() or text.lstrip().startswith("*")
        value = text.strip() if plain else yaml.load(text, Loader=_StrictLoader)  # noqa: S506
    except yaml.YAMLError as error:
        raise JobError(f"--set {path}: the value is not valid YAML: {' '.join(str(error).split())}") from error
    node: Any = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise JobError(f"--set {path}: {key} is a value, not a section")
    node[keys[-1]] = value


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice (plain YAML lets the last one win)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                message = f"the key {key!r} is written twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _sentence(model: type[BaseModel], error: Any) -> str:
    path = [str(p) for p in error["loc"]]
    where = ".".join(path) or "the job"
    if error["type"] == "extra_forbidden":
        names = _names(model, path[:-1])
        near = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"valid here: {', '.join(sorted(names))}"
        return f"unknown key {where}; {hint}"
    if error["type"] == "missing":
        return f"{where} is missing"
    message = error["msg"].removeprefix("Value error, ")
    secret = any(SECRET_NAME.search(p) for p in path) or "options" in path
    got = "" if secret or isinstance(error["input"], dict | BaseModel) else f" (got {error['input']!r})"
    return f"{where}: {message[0].lower() + message[1:]}{got}"


def _names(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Field names at a path of the tree; discriminated unions give the names of all their members."""
    models: list[type[BaseModel]] = [model]
    for key in path:
        inner: list[type[BaseModel]] = []
        for m in models:
            if key in m.model_fields:
                inner += _models_in(m.model_fields[key].annotation)
        models = inner or models  # a union's tag is in the path too, and is no field
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in _models_in(part)]
