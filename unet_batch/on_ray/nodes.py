"""The nodes of a run's Ray: resources, host names, and whether Ray on this node is alive.

If a driver loses its raylet or the control plane, Ray's native code ends it after 15 to 60 seconds, with exit code 1
and without a message (measured on 2.60). So a run checks them itself, more often.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

LOOK_EVERY_S = 2.0
LOST_AFTER = 3
"""Consecutive failed checks after which Ray counts as lost; a single late answer is allowed."""
KILL_S = 5.0
"""How long the remaining processes of an embedded Ray may take to end."""


def resources(left_out: frozenset[str]) -> dict[str, float]:
    """CPUs and GPUs of all live nodes except left_out."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in left_out]
    return {kind: sum(have.get(kind, 0.0) for have in alive) for kind in ("CPU", "GPU")}


def node_id() -> str:
    """The id of the calling worker's node."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def node_name(node: str) -> str:
    """Host name and address of a node."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    found = next((each for each in nodes if each["NodeID"] == node), {})
    return f"{found.get('NodeManagerHostname', node)} ({found.get('NodeManagerAddress', 'gone')})"


class Pulse:
    """Checks, in a thread, whether the control plane and this node's raylet accept connections."""

    def __init__(self) -> None:
        """For the Ray that this process has joined."""
        import ray

        # Only this object has the socket of this node's raylet; None with ray://, which uses a proxy
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
        """What did not answer LOST_AFTER times in a row; None while all answer."""
        for what, ask in self._asked.items():
            try:
                ask()
                self._missed[what] = 0
            except OSError:
                self._missed[what] += 1
        return next((what for what, missed in self._missed.items() if missed >= LOST_AFTER), None)

    def watch(self, tell: Callable[[str], None], stopping: threading.Event) -> None:
        """Check until the pass stops; report a loss once."""
        while not stopping.wait(LOOK_EVERY_S):
            if (what := self.lost()) is not None:
                tell(what)
                return

    def kill_rest(self) -> None:
        """Kill the remaining processes of an embedded Ray; does nothing for a joined cluster."""

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
