"""What `score` drafted its job from, kept in the job's folder: another model or option is then never passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unet_batch.errors import JobError
from unet_batch.store.objects import canonical
from unet_batch.workbench.draft.source import FACTORY, Asked, Brought
from unet_batch.workbench.files import replace_file

KEPT = Path("_work") / "drafted.json"
FLAGS = {
    "weights": "--weights",
    "arguments": "--arg",
    "input_text": "--input",
    "classes": "--classes",
    "normalize": "--normalize",
    "color": "--color",
    "fit": "--fit",
    "activation": "--activation",
}
"""Field of `Asked` → the option that sets it: what changes a draft."""


def remember(asked: Asked, brought: Brought) -> None:
    """Keep what the draft in `asked.out` was made from. Raises JobError if the folder cannot be written."""
    tree = {"model": _named(asked), "said": _said(asked), "files": _files(asked) if brought.path != asked.model else {}}
    replace_file(asked.out / KEPT, json.dumps(tree, indent=1).encode())


def check_same(asked: Asked) -> None:
    """Raise JobError if the job in `asked.out` was drafted from another model, or files or options that differ now.

    Options that are not given now stay as they were. Nothing is checked in a folder without the record.
    """
    try:
        tree: dict[str, Any] = json.loads((asked.out / KEPT).read_bytes())
        model, said, files = tree["model"], tree["said"], tree["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    job = asked.out / "job.yaml"
    again = "choose another --out, or say --force to draft it again"
    if model != _named(asked):
        raise JobError(f"{job} scores with {model.removeprefix('file://')}, not with {asked.model}: {again}")
    for field, value in _said(asked).items():
        if value and value != said.get(field):
            flag, before = FLAGS[field], said.get(field)
            raise JobError(
                f"{job} was drafted {f'with {flag} {_text(before)}' if before else f'without {flag}'}, and now it is "
                f"{flag} {_text(value)}: correct the contract in {asked.out} and leave the option out, or say --force "
                "to draft it again"
            )
    now = _files(asked) if files else {}
    changed = sorted(name for name in files.keys() | now.keys() if files.get(name) != now.get(name))
    if changed:
        raise JobError(f"{changed[0]} has changed since the model in {asked.out} was made from it: {again}")


def _named(asked: Asked) -> str:
    """MODEL as one text, whatever the working directory."""
    is_factory = "://" not in asked.model and not Path(asked.model).exists() and FACTORY.fullmatch(asked.model)
    return asked.model if is_factory else canonical(asked.model)


def _said(asked: Asked) -> dict[str, Any]:
    """The options of FLAGS, as JSON has them."""
    found = {name: getattr(asked, name) for name in FLAGS}
    found["weights"] = None if asked.weights is None else canonical(str(asked.weights))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _files(asked: Asked) -> dict[str, list[int]]:
    """Path → size and time of the files that a model was exported, imported or merged from."""
    path = Path(asked.model.removeprefix("file://")).expanduser()
    found = [Path(f"{asked.model.partition(':')[0].replace('.', '/')}.py")] if not path.exists() else [path]
    if path.is_dir():
        found = sorted(path.rglob("*"))
    elif path.is_file():  # external data lies beside it, under a name that begins with the model's
        found = sorted(entry for entry in path.parent.iterdir() if entry.name.startswith(path.stem))
    if asked.weights is not None:
        found.append(asked.weights)
    return {
        str(entry.resolve()): [entry.stat().st_size, entry.stat().st_mtime_ns] for entry in found if entry.is_file()
    }


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).removeprefix("file://")
