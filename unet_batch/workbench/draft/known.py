"""What is known of a contract's fields, and where it comes from: the parts of a draft.

Values only; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from unet_batch.contract import Contract, Normalize
from unet_batch.strict import validate

OVERLAPPING = "sigmoid, if classes may overlap (--activation sigmoid)"
"""What logits of several classes may mean besides one class per pixel."""
NAMED = "by its name"
NO_EFFECT = "of no effect: every class counts"
FIRST = "the first class is no finding"
"""Reasons for the background of a draft."""
Origin = Literal["given", "read", "measured", "guessed", "default"]
"""given: by the user. read: from the model's file, its metadata or a file beside it. measured: on pictures of the
archive, and certain. guessed: chosen among values that are all possible. default: of this project."""


@dataclass(frozen=True, slots=True)
class Known:
    """The value of one field, and why it is that."""

    value: Any
    """As in the YAML file."""
    origin: Origin
    why: str = ""
    """Where it was read, or the reason of the guess: a phrase."""
    others: tuple[str, ...] = ()
    """Other possible values, as one would write them; for guesses."""

    @property
    def comment(self) -> str:
        """The text beside the value in a YAML file; empty for defaults."""
        if self.origin == "default":
            return self.why
        text = {"given": "as you said", "read": "read", "measured": "measured", "guessed": "guessed"}[self.origin]
        text += f": {self.why}" if self.why else ""
        return text + (f"; or: {' | '.join(self.others)}" if self.others else "")


@dataclass(frozen=True, slots=True)
class Draft:
    """A contract with the origin of its fields. Keys are `input.normalize`, `output.classes` …"""

    fields: Mapping[str, Known] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether the field is certain enough that nothing else needs to be tried."""
        return name in self.fields and self.fields[name].origin in ("given", "read", "measured")

    def value(self, name: str) -> Any:
        """The value of a field; None if the draft does not hold it."""
        return self.fields[name].value if name in self.fields else None

    def put(self, name: str, known: Known, *, over: bool = False) -> Draft:
        """The draft with this field; a certain field stays unless `over`."""
        if self.has(name) and not over:
            return self
        return replace(self, fields={**self.fields, name: known})

    @property
    def guesses(self) -> dict[str, Known]:
        """The guessed fields."""
        return {name: known for name, known in self.fields.items() if known.origin == "guessed"}

    @property
    def classifies(self) -> bool:
        """Whether the model returns scores of whole pictures instead of masks."""
        return bool(self.value("output.label_from") == "class_scores")

    @property
    def tree(self) -> dict[str, dict[str, Any]]:
        """The contract as a tree."""
        tree: dict[str, dict[str, Any]] = {"input": {}, "output": {}}
        for name, known in self.fields.items():
            section, _, key = name.partition(".")
            tree[section][key] = known.value
        return tree

    def contract(self) -> Contract:
        """The contract. Raises JobError if its fields contradict each other."""
        return validate(Contract, self.tree, "the drafted contract")


def class_names(count: int, activation: str, *, classifies: bool) -> list[str]:
    """Names for classes that nobody has named."""
    if count == 1:
        return ["positive" if classifies else "foreground"]
    if activation == "sigmoid" or classifies:
        return [f"class_{number}" for number in range(count)]
    return ["background", *(["foreground"] if count == 2 else [f"class_{number}" for number in range(1, count)])]


def with_background(draft: Draft) -> Draft:
    """The draft with the reason of its background, where neither the user nor a contract nor an importer has one.

    A class with the name of a background is it; without such a name, class 0 is a guess.
    """
    known, names = draft.fields.get("output.background"), draft.fields.get("output.classes")
    if known is None or names is None or known.why not in ("", NAMED, NO_EFFECT, FIRST) or known.origin == "given":
        return draft
    if len(names.value) == 1 or draft.value("output.activation") in ("sigmoid", "masks"):
        found = Known(0, "default", NO_EFFECT)
    elif names.origin != "guessed" and (place := _named_background(names.value)) is not None:
        found = Known(place, "read", NAMED)
    else:
        found = Known(0, "guessed", FIRST, ("the number of another class", "null if all count"))
    return draft.put("output.background", found, over=True)


def _named_background(names: Sequence[str]) -> int | None:
    return next((n for n, name in enumerate(names) if name.strip("_ ").lower() in ("background", "bg")), None)


def with_answer(draft: Draft, name: str, known: Known) -> Draft:
    """The draft with an answer, and with what follows from it: names that nobody gave, and the background."""
    draft = draft.put(name, known, over=True)
    names = draft.fields.get("output.classes")
    if name == "output.activation" and names is not None and names.origin == "guessed":
        new = class_names(len(names.value), known.value, classifies=draft.classifies)
        draft = draft.put("output.classes", replace(names, value=new), over=True)
    return with_background(draft)


def written(value: Any) -> str:
    """A value as a person would name it: `unit`, `mean_std (ImageNet)`, `background, cell`."""
    if isinstance(value, Mapping):
        rest = {key: entry for key, entry in value.items() if key != "kind" and entry is not None}
        inside = ", ".join(f"{key} {written(entry)}" for key, entry in rest.items())
        return f"{value.get('kind', '')} ({inside})" if inside else str(value.get("kind", ""))
    if isinstance(value, list | tuple):
        return ", ".join(map(written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def normal(rule: Normalize) -> dict[str, Any]:
    """A normalisation as in a YAML file, without the keys that are at their defaults."""
    full = rule.model_dump(mode="json")
    kept = {name: value for name, value in full.items() if value != type(rule).model_fields[name].default}
    return {"kind": full["kind"], **kept}


def of_contract(contract: Contract, where: str) -> Draft:
    """A draft in which every field that differs from its default was read; where: a phrase."""
    draft = Draft()
    for section in ("input", "output"):
        part = getattr(contract, section)
        for name, info in type(part).model_fields.items():
            value = getattr(part, name)
            needed = name in ("layout", "color", "channels", "fit", "normalize", "activation", "classes", "background")
            if not needed and value == info.default:
                continue
            if section == "output" and name == "layout" and value is None:
                continue
            plain = normal(value) if name == "normalize" else list(value) if isinstance(value, tuple) else value
            draft = draft.put(f"{section}.{name}", Known(plain, "read", where))
    return draft
