"""What `score` drafted its job from, kept in the job's folder: another model or option is then never passed over."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from unet_batch.errors import JobError
from unet_batch.store.objects import canonical
from unet_batch.workbench.draft.source import FACTORY, ModelRequest, SourceModel
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
"""Field of `ModelRequest` → the option that sets it: what changes a draft."""


def remember(request: ModelRequest, source_model: SourceModel, *, whole: bool) -> None:
    """Keep what the draft in `request.out` is made from. Raises JobError if the folder cannot be written.

    whole: whether all its files are written; before the first one it is not.
    """
    tree = {
        "whole": whole,
        "model": _named(request),
        "said": _said(request),
        "files": _files(request) if source_model.path != request.model else {},
    }
    replace_file(request.out / KEPT, json.dumps(tree, indent=1).encode())


def forget(request: ModelRequest) -> None:
    """Remove what was kept, after a draft of which nothing is scored yet."""
    (request.out / KEPT).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds files of a job
        (request.out / KEPT).parent.rmdir()


def was_begun(request: ModelRequest) -> bool:
    """Whether a draft of the same model and options was ended between its first file and its last one."""
    try:
        tree: dict[str, Any] = json.loads((request.out / KEPT).read_bytes())
        return tree["whole"] is False and tree["model"] == _named(request) and tree["said"] == _said(request)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_same(request: ModelRequest) -> None:
    """Raise JobError if the job in `request.out` was drafted from another model, or files or options that differ now.

    Options that are not given now stay as they were. Nothing is checked in a folder without the record.
    """
    try:
        tree: dict[str, Any] = json.loads((request.out / KEPT).read_bytes())
        model, said, files = tree["model"], tree["said"], tree["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    job = request.out / "job.yaml"
    again = "choose another --out, or say --force to draft it again"
    if model != _named(request):
        raise JobError(f"{job} scores with {model.removeprefix('file://')}, not with {request.model}: {again}")
    for field, value in _said(request).items():
        if value and value != said.get(field):
            flag, before = FLAGS[field], said.get(field)
            raise JobError(
                f"{job} was drafted {f'with {flag} {_text(before)}' if before else f'without {flag}'}, and now it is "
                f"{flag} {_text(value)}: correct the contract in {request.out} and leave the option out, or say "
                "--force to draft it again"
            )
    now = _files(request) if files else {}
    changed = sorted(name for name in files.keys() | now.keys() if files.get(name) != now.get(name))
    if changed:
        raise JobError(f"{changed[0]} has changed since the model in {request.out} was made from it: {again}")


def _named(request: ModelRequest) -> str:
    """MODEL as one text, whatever the working directory."""
    is_factory = "://" not in request.model and not Path(request.model).exists() and FACTORY.fullmatch(request.model)
    return request.model if is_factory else canonical(request.model)


def _said(request: ModelRequest) -> dict[str, Any]:
    """The options of FLAGS, as JSON has them."""
    found = {name: getattr(request, name) for name in FLAGS}
    found["weights"] = None if request.weights is None else canonical(str(request.weights))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _files(request: ModelRequest) -> dict[str, list[int]]:
    """Path → size and time of the files that a model was exported, imported or merged from."""
    path = Path(request.model.removeprefix("file://")).expanduser()
    found = [Path(f"{request.model.partition(':')[0].replace('.', '/')}.py")] if not path.exists() else [path]
    if path.is_dir():
        found = sorted(path.rglob("*"))
    elif path.is_file():  # external data lies beside it, under a name that begins with the model's
        found = sorted(entry for entry in path.parent.iterdir() if entry.name.startswith(path.stem))
    if request.weights is not None:
        found.append(request.weights)
    return {
        str(entry.resolve()): [entry.stat().st_size, entry.stat().st_mtime_ns] for entry in found if entry.is_file()
    }


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).removeprefix("file://")
