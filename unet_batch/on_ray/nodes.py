"""The nodes of the Ray that a run uses: what they offer, what people call them, and whether this one still lives.

A driver that lost its raylet or its control plane is ended by Ray's native part after 15 to 60 seconds, with exit code
1 and without a word (measured on 2.60). So a run looks itself, sooner.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

LOOK_EVERY_S = 2.0
LOST_AFTER = 3
"""Looks in a row that found nobody: an answer may be late once."""
KILL_S = 5.0
"""How long what is left of an embedded Ray may take to end."""


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


class Pulse:
    """Looks whether the control plane and this node's raylet accept connections, from a thread of its own."""

    def __init__(self) -> None:
        """Of the Ray that this process has joined."""
        import ray

        # The one place that knows the socket of this node's raylet; None behind ray://, where a proxy is asked instead
        self._node: Any = ray._private.worker._global_node
        node = self._node
        self._asked: dict[str, Callable[[], None]] = {}
        self._missed: dict[str, int] = {}
        if node is None:
            return
        host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
        self._asked = {
            f"the control plane (GCS) at {host}:{port}": lambda: socket.create_connection(
                (host.strip("[]"), int(port)), timeout=LOOK_EVERY_S
            ).close(),
            "the raylet of this node": lambda: _reach(node.raylet_socket_name),
        }
        self._missed = dict.fromkeys(self._asked, 0)

    def lost(self) -> str | None:
        """What did not answer several times in a row; None while all answer."""
        for what, ask in self._asked.items():
            try:
                ask()
                self._missed[what] = 0
            except OSError:
                self._missed[what] += 1
        return next((what for what, missed in self._missed.items() if missed >= LOST_AFTER), None)

    def watch(self, tell: Callable[[str], None], stopping: threading.Event) -> None:
        """Look until a pass stops, and tell once what was lost."""
        while not stopping.wait(LOOK_EVERY_S):
            if (what := self.lost()) is not None:
                tell(what)
                return

    def kill_rest(self) -> None:
        """End what is left of an embedded Ray, without asking it; nothing of a cluster that was joined."""

        def kill() -> None:
            with contextlib.suppress(Exception):
                self._node.kill_all_processes(check_alive=False, allow_graceful=False)

        if self._node is not None and self._node.is_head():
            killing = threading.Thread(target=kill, daemon=True)
            killing.start()
            killing.join(KILL_S)


def _reach(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(LOOK_EVERY_S)
        asking.connect(path)
