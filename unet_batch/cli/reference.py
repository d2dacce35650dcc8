"""The reference of job file, contract and table, generated from the code that reads and writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from unet_batch.contract import Contract, Section
from unet_batch.options import EnvRef, Options
from unet_batch.spec import JobSpec


def json_schema() -> dict[str, Any]:
    """JSON Schemas of job file and contract, for editors."""
    return {"job": JobSpec.model_json_schema(), "contract": Contract.model_json_schema()}


def markdown() -> str:
    """Tables of every field: name, type, default, meaning; and of every column of the output."""
    from unet_batch.table.rows import COLUMNS

    lines = ["# Job file", "", *_table(JobSpec, ""), "", "# Contract of a model", "", *_table(Contract, "")]
    lines += ["", "# Columns of the output", "", "| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {_arrow_name(kind)} | {meaning} |" for name, kind, meaning in COLUMNS]
    return "\n".join(lines)


def _table(model: type[BaseModel], prefix: str) -> list[str]:
    return ["| key | type | default | meaning |", "|---|---|---|---|", *_rows(model, prefix)]


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        sections = _sections(field)
        if len(sections) == 1:
            yield f"| **`{key}`** | section | | {field.description or ''} |"
            yield from _rows(sections[0], f"{key}.")
            continue
        yield f"| `{key}` | {_type_name(field)} | {_default(field)} | {field.description or ''} |"
        for section in sections:
            kind = section.model_fields["kind"].default
            yield f"| `{key}: {{kind: {kind}}}` | | | {(section.__doc__ or '').strip()} |"
            yield from (line for line in _rows(section, f"{key}.") if f"`{key}.kind`" not in line)


def _sections(field: FieldInfo) -> list[type[BaseModel]]:
    if field.annotation == Options:
        return []
    found: list[type[BaseModel]] = []

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Section) and annotation is not EnvRef:
            found.append(annotation)
        for part in get_args(annotation):
            walk(part)

    walk(field.annotation)
    return found


def _type_name(field: FieldInfo) -> str:
    return "options" if field.annotation == Options else _name(field.annotation)


def _name(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name(parts[0])
    if origin is Literal:
        return " \\| ".join(f"`{p}`" for p in parts)
    if origin is tuple:
        return f"list of {_name(parts[0])}"
    if origin is dict:
        return "mapping"
    if parts:
        names = [_name(p) for p in parts if p is not type(None)]
        return " or ".join("mapping" if "`" not in n and n.startswith("Unit") else n for n in names)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or value is None:
        return ""
    if isinstance(value, BaseModel):
        return f"`{value.model_dump().get('kind', '')}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def _arrow_name(kind: Any) -> str:
    text = str(kind)
    return (
        "string"
        if text.startswith("dictionary")
        else text
        if len(text) < 40
        else text.split("<", maxsplit=1)[0] + " of structs"
    )
