"""The reference of job file, contract, columns, reasons and exit codes, generated from the code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from unet_batch.cli.rejections import ADVICE
from unet_batch.contract import Contract, Section
from unet_batch.errors import ExitCode, Reason
from unet_batch.options import EnvRef, Options
from unet_batch.spec import JobSpec

LONGEST_LIST = 12
"""A longer default is counted, not written out."""


def json_schema() -> dict[str, Any]:
    """JSON Schemas of job file and contract, for editors."""
    return {"job": JobSpec.model_json_schema(), "contract": Contract.model_json_schema()}


def markdown() -> str:
    """All sections of the reference in one text: fields, columns, reasons and exit codes."""
    return "\n\n".join(f"# {heading}\n\n{table}" for heading, table in sections().items())


def sections() -> dict[str, str]:
    """Markdown tables by their headings, each complete without the others."""
    from unet_batch.table.rows import COLUMNS

    columns = [(f"`{name}`", _arrow_name(kind), meaning) for name, kind, meaning in COLUMNS]
    reasons = [(f"`{r}`", *ADVICE[r], "yes" if r.retryable else "no") for r in Reason]
    codes = [(f"{code:d}", f"`{code.label}`", code.meaning) for code in ExitCode]
    return {
        "Job file": "\n".join(_table(JobSpec, "")),
        "Contract of a model": "\n".join(_table(Contract, "")),
        "Columns of the output": _lines(("column", "type", "meaning"), columns),
        "Reasons of a rejection": _lines(("reason", "meaning", "what to do", "tried again by itself"), reasons),
        "Exit codes": _lines(("code", "`exit` in the JSON", "meaning"), codes),
    }


def _lines(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    every = (heading, ["---"] * len(heading), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in every)


def _table(model: type[BaseModel], prefix: str) -> list[str]:
    return ["| key | type | default | meaning |", "|---|---|---|---|", *_rows(model, prefix)]


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key, meaning = f"{prefix}{name}", _one_line(field.description)
        sections = _sections(field)
        if len(sections) == 1:
            yield f"| **`{key}`** | section | | {meaning} |"
            yield from _rows(sections[0], f"{key}.")
            continue
        yield f"| `{key}` | {_type_name(field)} | {_default(field)} | {meaning} |"
        for section in sections:
            kind = section.model_fields["kind"].default
            yield f"| `{key}: {{kind: {kind}}}` | | | {_one_line(section.__doc__)} |"
            yield from (line for line in _rows(section, f"{key}.") if f"`{key}.kind`" not in line)


def _one_line(text: str | None) -> str:
    """A table's row ends at the first line break."""
    return " ".join((text or "").split())


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
        names = list(dict.fromkeys(_name(p) for p in parts if p is not type(None)))
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
    if isinstance(value, tuple) and len(value) > LONGEST_LIST:
        return f"{len(value)} names"
    if isinstance(value, BaseModel):
        return f"`{value.model_dump().get('kind', '')}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def _arrow_name(kind: Any) -> str:
    """The type as a reader of the table sees it; structs by the names of their fields."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _arrow_name(kind.value_type)
    if pa.types.is_list(kind):
        return f"list of {_arrow_name(kind.value_type)}"
    if pa.types.is_struct(kind):
        fields = ", ".join(f"`{field.name}` {_arrow_name(field.type)}" for field in kind)
        return f"struct ({fields})"
    return str(kind)
