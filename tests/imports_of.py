"""What the modules of a package import, read from their text, and the questions that the tests ask about it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Edges = Mapping[str, set[str]]
"""By module, such as `job.run`: the modules of the package that it imports, in functions and for types, too."""


@dataclass(frozen=True)
class Parsed:
    """What the tests ask about the text of a module."""

    docstring: str | None
    imports: tuple[ast.Import | ast.ImportFrom, ...]
    calls: tuple[ast.Call, ...]
    attributes: tuple[ast.Attribute, ...]


@functools.cache
def parsed(text: str) -> Parsed:
    """Parsed once for all tests: a copy of the package has the same texts, but for the module that a test changed."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    return Parsed(
        ast.get_docstring(tree),
        tuple(node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)),
        tuple(node for node in nodes if isinstance(node, ast.Call)),
        tuple(node for node in nodes if isinstance(node, ast.Attribute)),
    )


def modules_of(package: Path) -> Edges:
    """The imports inside a package."""
    names = {".".join(path.relative_to(package).with_suffix("").parts): path for path in package.rglob("*.py")}
    names = {name.removesuffix(".__init__") or "__init__": path for name, path in names.items()}
    root = package.name
    edges: dict[str, set[str]] = {}
    for name, path in names.items():
        found: set[str] = set()
        for node in parsed(path.read_text()).imports:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == root:
                inner = node.module.removeprefix(root).removeprefix(".")
                for alias in node.names:
                    full = f"{inner}.{alias.name}" if inner else alias.name
                    found.add(full if full in names else inner)
            elif isinstance(node, ast.Import):
                found |= {a.name.removeprefix(f"{root}.") for a in node.names if a.name.startswith(f"{root}.")}
        edges[name] = {other for other in found if other and other != name and other in names}
    return edges


def upward(edges: Edges, layers: Sequence[Collection[str]]) -> list[str]:
    """Imports that do not go down: to a room above, or to another room of the same layer."""
    height = {room: n for n, layer in enumerate(layers) for room in layer}
    return sorted(
        f"{name} imports {other}"
        for name, others in edges.items()
        for other in others
        if (mine := name.split(".")[0]) != (theirs := other.split(".")[0])
        and name != "__init__"
        and (height[theirs] > height[mine] or (height[theirs] == height[mine] and height[mine] > 0))
    )


def circles(edges: Edges) -> list[list[str]]:
    """Modules that import each other, directly or through others, each circle sorted."""
    reach = {name: closure(edges, name) for name in edges}
    found = {tuple(sorted({b for b in reach[a] if a in reach[b]} | {a})) for a in edges if _returns(edges, reach, a)}
    return sorted(list(circle) for circle in found)


def _returns(edges: Edges, reach: Mapping[str, set[str]], name: str) -> bool:
    return any(name in reach[other] for other in edges[name])


def closure(edges: Edges, start: str) -> set[str]:
    """All modules that are imported when one is, itself included."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += edges[name]
    return seen


def libraries(package: Path) -> dict[str, set[str]]:
    """By foreign library: the files, such as `job/run.py`, that import it, in functions and for types, too."""
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        for node in parsed(path.read_text()).imports:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(str(path.relative_to(package)))
    return found
