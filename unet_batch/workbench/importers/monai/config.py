"""The configuration of a MONAI bundle as plain values.

MONAI evaluates texts that begin with `$` as Python, and calls whatever `_target_` names. Nothing is called here:
references (`@name`, `@a::b`, `@a#b`) are followed, plain arithmetic is computed (`expressions`), and what would run
code is refused where its value is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_batch.errors import ModelRefused
from unet_batch.workbench.importers.folder import peek, read_settings
from unet_batch.workbench.importers.monai.expressions import NotPlain, evaluated
from unet_batch.workbench.importers.monai.targets import TRANSFORMS, class_of

FOLDER = "configs"
METADATA = "metadata.json"
CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
WORDS = frozenset({"_desc_", "_requires_"})
"""Keys of MONAI's own in a component that change nothing in it: a text, and what else is made before."""
FLOAT32 = frozenset({"float32", "$torch.float32", "$np.float32", "$numpy.float32", "torch.float32", "np.float32"})
MAX_STEPS = 32
"""References that are followed one after the other; more of them run in a circle."""


@dataclass(frozen=True, slots=True)
class Component:
    """A component of the configuration: what `_target_` names, and its arguments, references followed."""

    name: str
    """The class without its modules, and without the ending of MONAI's dictionary transforms."""
    target: str
    """As the file writes it."""
    arguments: Mapping[str, Any]
    where: str
    """File and key, for messages."""

    def take(self, key: str, default: Any = None) -> Any:
        """An argument as a plain value. Raises ModelRefused if it would run code."""
        return plain(self.arguments.get(key, default), f"{self.where}: {key}")

    def only(self, *known: str) -> None:
        """Raises ModelRefused for an argument that is not known."""
        unknown = sorted(self.arguments.keys() - set(known) - WORDS)
        if unknown:
            raise ModelRefused(f"{self.where}: the argument {unknown[0]} of {self.target} is not understood")

    def flag(self, key: str, *, default: bool = False) -> bool:
        """An argument that is true or false. Raises ModelRefused for other values."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise ModelRefused(f"{self.where}: {key} must be true or false, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """An argument that is a number. Raises ModelRefused for other values, or without one."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelRefused(f"{self.where}: {key} must be a number, not {value!r}")
        return float(value)


class BundleConfig:
    """The file configs/inference.json or .yaml of a bundle."""

    def __init__(self, folder: Path) -> None:
        """Raises JobError if the file cannot be read, ModelRefused if it is not a mapping."""
        self.path = config_file(folder) or folder / FOLDER / CONFIGS[0]
        self.name = self.path.name
        self.tree = read_settings(self.path)
        self._values: dict[str, Any] = {}
        """Values of the expressions so far, by text: each is computed once."""

    def at(self, key: str) -> Any:
        """The value of a top-level key, its reference followed; None if there is none."""
        return self._followed(self.tree.get(key), key)

    def value(self, value: Any, where: str) -> Any:
        """A value with its references followed; code stays the text that it is."""
        return self._followed(value, where)

    def plain_or_none(self, value: Any, where: str) -> Any:
        """A value with its references followed; None if it would run code."""
        found = self._followed(value, where)
        return None if isinstance(found, str) and found.startswith(("$", "@", "%")) else found

    def component(self, value: Any, where: str, package: str) -> Component:
        """A value as a component of one of MONAI's packages. Raises ModelRefused for others, and for other modes."""
        value = self._followed(value, where)
        if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
            raise ModelRefused(f"{self.name}: {where} is no component with a _target_, but {_shown(value)}")
        if value.get("_disabled_", False) not in (False, None):
            raise ModelRefused(f"{self.name}: {where} has _disabled_ {value['_disabled_']!r}, which is not understood")
        if value.get("_mode_", "default") != "default":
            raise ModelRefused(f"{self.name}: {where} has _mode_ {value['_mode_']!r}, which is not understood")
        target = value["_target_"]
        name = class_of(target, package)
        if name is None:
            raise ModelRefused(f"{self.name}: {where}: {target} is none of {package}, and no other code is run")
        arguments = {
            key: self._resolved(inner, f"{where}: {key}")
            for key, inner in value.items()
            if key not in ("_target_", "_mode_", "_disabled_")
        }
        return Component(name, target, arguments, f"{self.name}: {where}")

    def steps(self, key: str) -> Iterator[Component]:
        """The transforms of a pipeline, without those that the file disables; none without the key."""
        value = self.at(key)
        if value is None:
            return
        outer = self.component(value, key, TRANSFORMS)
        if outer.name != "Compose":
            raise ModelRefused(f"{self.name}: {key} is {outer.target}, not Compose")
        outer.only("transforms", "map_items", "unpack_items", "log_stats", "lazy")
        if outer.take("lazy", default=False) not in (False, None):
            raise ModelRefused(f"{self.name}: {key} resamples lazily, which is not understood")
        found = self._followed(value.get("transforms", []), key)
        if not isinstance(found, list):
            raise ModelRefused(f"{self.name}: the transforms of {key} are no list, but {_shown(found)}")
        for position, step in enumerate(found):
            where = f"{key}, transform {position + 1}"
            inner = self._followed(step, where)
            disabled = inner.get("_disabled_", False) if isinstance(inner, Mapping) else False
            disabled = self._followed(disabled, where)
            if disabled not in (False, True):
                raise ModelRefused(f"{self.name}: {where} has _disabled_ {disabled!r}, which would run code")
            if not disabled:
                kept = {k: v for k, v in inner.items() if k != "_disabled_"} if isinstance(inner, Mapping) else inner
                component = self.component(kept, where, TRANSFORMS)
                yield Component(_without_d(component.name), component.target, component.arguments, component.where)

    def _followed(self, value: Any, where: str, depth: int = 0) -> Any:
        """A value, or what its references and its plain arithmetic lead to; code stays the text that it is."""
        for _ in range(MAX_STEPS):
            if isinstance(value, str) and value.startswith("$"):
                return self._evaluated(value, where, depth)
            if not (isinstance(value, str) and re.fullmatch(r"[@%][A-Za-z_][\w#:]*", value)):
                return value
            found: Any = self.tree
            for step in re.split(r"::|#", value[1:]):
                try:
                    found = found[int(step)] if isinstance(found, list) else found[step]
                except (KeyError, IndexError, ValueError, TypeError) as error:
                    raise ModelRefused(f"{self.name}: {where} refers to {value}, which is not in the file") from error
            value = found
        raise ModelRefused(f"{self.name}: the references of {where} run in a circle")

    def _evaluated(self, text: str, where: str, depth: int) -> Any:
        if depth > MAX_STEPS:
            raise ModelRefused(f"{self.name}: the references of {where} run in a circle")

        def value_of(reference: str) -> Any:
            found = self._followed(reference, where, depth + 1)
            if isinstance(found, str) and found.startswith(("$", "@", "%")):
                raise NotPlain
            return found

        if text not in self._values:
            try:
                self._values[text] = evaluated(text, value_of)
            except NotPlain:
                self._values[text] = text
        return self._values[text]

    def _resolved(self, value: Any, where: str, depth: int = 0) -> Any:
        """A value with all references inside it followed."""
        if isinstance(value, str) and value.startswith("@") and "_target_" in _mapping(self._followed(value, where)):
            return value  # a reference to a component stays one: `@preprocessing`
        value = self._followed(value, where)
        if depth > MAX_STEPS:
            raise ModelRefused(f"{self.name}: the references of {where} run in a circle")
        if isinstance(value, list):
            return [self._resolved(inner, where, depth + 1) for inner in value]
        if isinstance(value, Mapping):
            return {key: self._resolved(inner, where, depth + 1) for key, inner in value.items()}
        return value


def config_file(folder: Path) -> Path | None:
    """The configuration of a bundle's inference; None if the folder has none."""
    return next((folder / FOLDER / name for name in CONFIGS if (folder / FOLDER / name).is_file()), None)


def metadata(folder: Path) -> Mapping[str, Any]:
    """The bundle's metadata; empty if there are none."""
    return peek(folder / FOLDER, METADATA)


def plain(value: Any, where: str) -> Any:
    """The same value. Raises ModelRefused if it, or something inside it, would run code or is a component."""
    if isinstance(value, str) and value.startswith("$"):
        raise ModelRefused(f"{where} is {_shown(value)}: MONAI would run it as code, and no code of a bundle is run")
    if isinstance(value, str) and value.startswith(("@", "%")):
        raise ModelRefused(f"{where} is {_shown(value)}, which is no plain value of this file")
    if isinstance(value, Mapping):
        if "_target_" in value:
            raise ModelRefused(f"{where} calls {value['_target_']!r}, and no code of a bundle is run")
        for inner in value.values():
            plain(inner, where)
    if isinstance(value, list):
        for inner in value:
            plain(inner, where)
    return value


def is_float32(component: Component) -> bool:
    """Whether an argument `dtype` keeps float32. Known texts are compared, not evaluated."""
    return component.arguments.get("dtype") in (None, *FLOAT32)


def _without_d(name: str) -> str:
    """`ScaleIntensity` for `ScaleIntensityd`, `…D` and `…Dict`, MONAI's names of dictionary transforms."""
    return re.sub(r"(?<=[a-z0-9])(Dict|d|D)$", "", name)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
