"""Strict YAML: duplicate keys, unknown keys and wrong types are errors of one sentence each.

Works on trees and pydantic models, independent of the job. Messages never repeat a value whose key looks secret.
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


MAX_YAML_BYTES = 1 << 20
MAX_VALUES = 100_000
"""Most values of a tree, with every alias expanded: ten lines of aliases can expand to a billion values."""
VALUE_CHARS = 100
"""A text counts as one value for each 100 characters."""
MAX_DEPTH = 50
MAX_TEXT = 300
"""Characters of a foreign text in one sentence."""
MAX_NAME = 80
"""Characters of a key in a message."""
MAX_MESSAGE = 2000
"""Characters of a message."""


def parse_yaml(text: bytes, where: str, *, max_bytes: int = MAX_YAML_BYTES) -> dict[str, Any]:
    """A mapping from YAML text. Raises JobError for duplicate keys, and for texts or trees that are too large."""
    if len(text) > max_bytes:
        raise JobError(f"{where} has {len(text)} bytes; at most {max_bytes} are read")
    try:
        tree = _load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise JobError(f"{where} is not valid YAML: {short(' '.join(str(error).split()))}") from error
    if not isinstance(tree, dict):
        raise JobError(f"{where} must hold a mapping (key: value), not {type(tree).__name__}")
    return tree


def validate(model: type[S], tree: Mapping[str, Any], where: str) -> S:
    """The model instance of a tree. Raises JobError that names each wrong key and the nearest valid one."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        sentences = "; ".join(_sentence(model, e) for e in error.errors()[:5])
        raise JobError(f"{where}: {short(sentences, MAX_MESSAGE)}") from None


def set_value(tree: dict[str, Any], override: str) -> None:
    """Write the value of `section.key=value` into a tree. Raises JobError."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise JobError(f"--set {override!r} is not of the form section.key=value")
    try:
        # A single value cannot refer to an anchor, so a leading * belongs to a glob.
        plain = not text.strip() or text.lstrip().startswith("*")
        value = text.strip() if plain else _load(text.encode())
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        raise JobError(f"--set {path}: the value is not valid YAML: {short(' '.join(str(error).split()))}") from error
    node: Any = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise JobError(f"--set {path}: {key} is a value, not a section")
    node[keys[-1]] = value


def short(text: str, most: int = MAX_TEXT) -> str:
    """The text, or its beginning and its length."""
    return text if len(text) <= most else f"{text[: most - 40]}… ({len(text)} characters)"


def _load(text: bytes) -> Any:
    """The tree of a YAML text, if it is within the limits. Raises YAMLError and ValueError."""
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Number of values of a node with all aliases expanded, and their depth. Raises ValueError beyond the limits.

    An alias is the same node object: it is measured once and counted at each use.
    """
    if id(node) not in known:
        known[id(node)] = MAX_VALUES, MAX_DEPTH  # placeholder: only a node that contains itself reads it
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        values, depth = 1 + (len(node.value) // VALUE_CHARS if isinstance(node, yaml.ScalarNode) else 0), 0
        for part in inner:
            more, deeper = _measure(part, known)
            values, depth = values + more, max(depth, deeper + 1)
            if values > MAX_VALUES or depth > MAX_DEPTH:
                what = f"more than {MAX_VALUES} values" if values > MAX_VALUES else f"more than {MAX_DEPTH} levels"
                raise ValueError(f"with all aliases expanded it has {what}; use fewer aliases")
        known[id(node)] = values, depth
    return known[id(node)]


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys (SafeLoader keeps the last one)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                message = f"the key {short(repr(key))} is written twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            if isinstance(key, str | int | float | bool):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _sentence(model: type[BaseModel], error: Any) -> str:
    path = [short(str(p), MAX_NAME) for p in error["loc"]]
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
    got = "" if secret or isinstance(error["input"], dict | BaseModel) else f" (got {_shown(error['input'])})"
    return f"{where}: {short(message[0].lower() + message[1:])}{got}"


def _shown(value: object) -> str:
    """A value as written, shortened."""
    if isinstance(value, str):
        return short(repr(value[: 2 * MAX_TEXT]) if len(value) > 2 * MAX_TEXT else repr(value))
    if isinstance(value, list | tuple | dict) and len(value) > MAX_TEXT:
        return f"{type(value).__name__} of {len(value)} values"
    return short(repr(value))


def _names(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Field names at a path of the tree; of a discriminated union, the names of all members."""
    models: list[type[BaseModel]] = [model]
    for key in path:
        inner: list[type[BaseModel]] = []
        for m in models:
            if key in m.model_fields:
                inner += _models_in(m.model_fields[key].annotation)
        models = inner or models  # the path also contains a union's tag, which is not a field
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in get_args(annotation) for m in _models_in(part)]
