"""Why PyTorch could not convert a network to ONNX, and where in the network: one sentence each.

Recognises the errors of PyTorch's exporter by their texts (its classes are private), and knows replacements for some
operators.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OURS = Path(__file__).parent

ALTERNATIVES: dict[str, tuple[str | None, str]] = {
    "cummax": (None, "use a max pooling"),
    "cumprod": ("CumProd", "use exp(cumsum(log(x))) for positive values"),
    "erfinv": (None, "use a polynomial in its place"),
    "histc": (None, "compare with each edge and sum"),
    "kthvalue": ("TopK", "use topk"),
    "linalg_inv": (None, "compute the inverse beforehand and store it as a buffer"),
    "median": ("TopK", "use sort, or topk"),
    "mode": (None, "use one comparison and sum per value"),
    "nanmedian": ("TopK", "use sort, or topk, on values that are numbers"),
    "rrelu": ("LeakyRelu", "use LeakyReLU with the mean of both slopes, which is what evaluation does"),
    "searchsorted": (None, "use bucketize, or compare and sum"),
}
"""PyTorch's function → ONNX's operator for it, if any, and what to use instead. Each fails with PyTorch 2.13 and
onnxscript 0.7."""


@dataclass(frozen=True, slots=True)
class CodePlace:
    """The place of an operation in the user's network."""

    module: str
    """Path of the module, such as `encoder.levels.0`; empty for the network itself."""
    kind: str
    """Class of the module, without its package."""
    line: str | None
    """File and line of the user's code, if known."""

    def __str__(self) -> str:
        module = f"module {self.module}" if self.module else "the network itself"
        kind = f" ({self.kind})" if self.kind else ""
        line = f", {self.line}" if self.line else ""
        return module + kind + line


def place_of(meta: Mapping[str, Any]) -> CodePlace:
    """The place of a node of an exported program, from the node's `meta`."""
    stack = [entry for key, entry in (meta.get("nn_module_stack") or {}).items() if not key.startswith("_empty")]
    module, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else kind.__name__
    return CodePlace(str(module), kind.rpartition(".")[2], user_line(meta.get("stack_trace") or ""))


def noted_place(node: Any) -> CodePlace:
    """The place of a node of an ONNX graph, from the exporter's note; without a line of code."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "['', '']"))
    kinds = ast.literal_eval(notes.get("pkg.torch.onnx.class_hierarchy", "['', '']"))
    return CodePlace(str(scopes[-2]), str(kinds[-2]).rpartition(".")[2], None)


def user_line(stack_trace: str) -> str | None:
    """`file:line` of the innermost frame of a printed trace outside PyTorch and container modules."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack_trace)
    own = [f"{Path(file).name}:{line}" for file, line in frames if not _foreign(file)]
    return own[-1] if own else None


def error_line(error: BaseException) -> str | None:
    """`file:line` of the innermost frame of an error in the user's code."""
    own = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not _foreign(frame.filename) and Path(frame.filename).parent != _OURS
    ]
    return own[-1] if own else None


def brief(error: BaseException) -> str:
    """An error as a phrase: its class and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def capture_problem(error: Exception, axes: Mapping[int, str]) -> str:
    """Why `torch.export` could not capture a network. axes: names of the open axes by number."""
    text = str(error)
    line = error_line(error)
    at = f" ({line})" if line else ""
    frozen = re.findall(r"marked (\S+) as dynamic but your code specialized it to be a constant \((\d+)\)", text)
    if frozen:
        sizes = " and ".join(f"{_axis(marked, axes)} axis at {size}" for marked, size in frozen)
        return (
            f"the network fixes its {sizes}: it uses a size as a plain number, as in view(2, ...) or "
            "int(x.shape[0]) (write -1, or x.shape[0] itself), or has a parameter of that size"
        )
    if "data-dependent" in text:
        return (
            f"the network branches on the values of its pixels{at}, which a graph cannot do: use torch.where, or "
            "move the branch out of the network"
        )
    if "Constraints violated" in text:
        guards = [row.strip(" -") for row in text.splitlines() if "guard" in row]
        return f"the network accepts some sizes only: {guards[0] if guards else brief(error)}"
    return f"PyTorch cannot capture the network{at}: {brief(error)}"


def conversion_problem(error: Exception) -> str:
    """Why a captured network could not be written as ONNX."""
    chain = _chain(error)
    node = _node_in_work(chain)
    if node is None:
        return f"PyTorch's exporter cannot write the network as ONNX: {brief(chain[-1])}"
    name = _function(node)
    what = f"{name} in {place_of(node.meta)} cannot be written as ONNX"
    if any("No ONNX function found" in str(e) for e in chain):
        return f"{what}: {_advice(name)}"
    return f"{what} ({brief(chain[-1])}): {_advice(name)}"


def _advice(name: str) -> str:
    if name not in ALTERNATIVES:
        return "remove it from the network, or replace it by other operators"
    operator, instead = ALTERNATIVES[name]
    since = _first_opset(operator) if operator else None
    if since is None:
        return f"no opset has an operator for it; {instead}"
    return f"ONNX has {operator} since opset {since}, but PyTorch's exporter does not use it here; {instead}"


def _first_opset(operator: str) -> int | None:
    import onnx

    since = [s.since_version for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == ("", operator)]
    return min(since, default=None)


def _node_in_work(chain: list[BaseException]) -> Any:
    """The program's node that the exporter was converting: found in the frames of its errors."""
    from torch.fx import Node

    for error in chain:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            node = frame.f_locals.get("node")
            if isinstance(node, Node):
                return node
    return None


def _function(node: Any) -> str:
    """The function that the user's code called, such as `cumprod`; the node may be only a part of it."""
    called = node.meta.get("torch_fn")
    return str(called[1]).rpartition(".")[2] if called else str(node.target)


def _axis(marked: str, axes: Mapping[int, str]) -> str:
    number = re.search(r"size\(\)\[(\d+)\]", marked)
    return axes.get(int(number[1]), marked) if number else marked


def _chain(error: BaseException) -> list[BaseException]:
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found


def _foreign(file: str) -> bool:
    parts = Path(file).parts
    return "torch" in parts or file.startswith("<")


def file_for_module(path: str, attribute: str) -> str:
    """The message for a path of a Python file in place of a module."""
    folder, name = os.path.split(os.path.normpath(path.removesuffix(".py")))
    outside = os.path.isabs(folder) or folder.startswith(os.pardir)
    start = f"start in {folder} and " if outside else ""
    module = name if outside or not folder else ".".join([*folder.split(os.sep), name])
    return (
        f"{path} is a file, but MODULE:FACTORY needs a module: {start}write {module}:{attribute or 'FACTORY'} (modules "
        "in the working directory are found too)"
    )


def wanted_arguments(make: Any, args: Mapping[str, Any]) -> str:
    """The arguments that a factory takes, as the end of a message; empty where the given ones fit its signature."""
    try:
        signature = inspect.signature(make).replace(return_annotation=inspect.Signature.empty)
    except (TypeError, ValueError):  # a class of C has none
        return ""
    try:
        signature.bind(**args)
    except TypeError:
        return f". Its arguments are {signature}: give each one that has no default as --arg NAME=VALUE"
    return ""


def names_for(channels: int, names: tuple[str, ...]) -> str:
    """What to do about class names that are not as many as the channels."""
    if channels == 1 and len(names) == 2:
        return f"one channel scores one class against the rest, so name only that class: {names[1]}"
    if channels == 2 and len(names) == 1:
        return f"two channels have a name each, also the background: background,{names[0]}"
    return "write one per channel"
