"""The nodes of the Ray that a run uses: what they offer, and what people call them."""

from __future__ import annotations

from typing import Any


def resources(left_out: frozenset[str]) -> dict[str, float]:
    """CPUs and GPUs of the nodes that live, but for some."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in left_out]
    return {kind: sum(have.get(kind, 0.0) for have in alive) for kind in ("CPU", "GPU")}


def node_id() -> str:
    """The node of the worker that calls it."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def node_name(node: str) -> str:
    """Host name and address of a node."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    found = next((each for each in nodes if each["NodeID"] == node), {})
    return f"{found.get('NodeManagerHostname', node)} ({found.get('NodeManagerAddress', 'gone')})"
