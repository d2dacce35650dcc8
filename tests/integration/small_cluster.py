"""A Ray cluster of several nodes on this machine: on loopback, on free ports, in a folder and in sessions of its own.

`ray stop` ends every Ray of a machine, other people's too; here a node is the processes of one session, and whatever
they started.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

START_S = 60
STARTS = 2
"""Tries to start a node."""
LARGE, CORES = 2, 3
"""Cores of the node `large` of three nodes, and of all of them."""
OBJECT_STORE_BYTES = 100 << 20


class SmallCluster:
    """A head without cores, and worker nodes. `address` is its job server's, `head` its control plane's."""

    def __init__(self, environment: dict[str, str]) -> None:
        """environment: of all nodes, beside this process's own, of which nothing of Ray or AWS is left."""
        # Ray's sockets lie below this folder, and their names may have 107 characters: not the test's own folder.
        self._folder = tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp", ignore_cleanup_errors=True)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))},
            **environment,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_health_check_period_ms": "500",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._cores: dict[str, int] = {}
        """Of each worker node."""
        self._starters: dict[str, subprocess.Popen[bytes]] = {}
        """The first process of each node: ended, and not waited for, so that its number stays the session's."""
        self._next_address = 2
        control, dashboard = free_ports(2)
        self.head, self.address = f"127.0.0.2:{control}", f"http://127.0.0.1:{dashboard}"
        self._start(
            "head",
            ["--head", f"--port={control}", "--num-cpus=0", f"--ray-client-server-port={free_ports(1)[0]}"],
            ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"],
        )

    def add(self, name: str, *, cpus: int, **environment: str) -> None:
        """Start a worker node. environment: of its processes alone, beside that of all nodes."""
        self._start(name, [f"--address={self.head}", f"--num-cpus={cpus}"], **environment)
        self._cores[name] = cpus

    def kill(self, name: str) -> None:
        """End a node at once: its raylet, its agents and its workers."""
        starter = self._starters[name]
        kill_session(starter.pid)
        del self._starters[name]
        self._cores.pop(name, None)
        starter.wait()

    def mend(self) -> list[str]:
        """Start the worker nodes again that have lost their raylet; their names."""
        programs = {pid: words.partition(" ")[0] for pid, words in command_lines().items()}
        lost = {
            name: cpus
            for name, cpus in self._cores.items()
            if not any(programs.get(p, "").endswith("/raylet") for p in processes_of(self._starters[name].pid))
        }
        for name, cpus in lost.items():
            self.kill(name)
            self.add(name, cpus=cpus)
        return list(lost)

    def pids(self, name: str, words: str, *, without: str) -> list[int]:
        """The processes of a node whose command line holds some words and not others."""
        lines, mine = command_lines(), processes_of(self._starters[name].pid)
        return [pid for pid in mine if words in lines.get(pid, "") and without not in lines.get(pid, "")]

    def files_with(self, text: str) -> list[str]:
        """The files below the folder of all nodes that hold a text, zipped ones as they are."""
        wanted, found = text.encode(), []
        for path in Path(self._folder.name).rglob("*"):
            with contextlib.suppress(OSError):  # sockets, and files that go meanwhile
                if path.is_file() and wanted in path.read_bytes():
                    found.append(str(path))
        return found

    def close(self) -> None:
        """End all nodes, in any state, and remove their folder."""
        try:
            for name in list(self._starters):
                self.kill(name)
        finally:
            self._folder.cleanup()

    def _start(self, name: str, *arguments: list[str], **environment: str) -> None:
        """Ray gives a node 30 seconds to start; on a machine that is busy with others, one more try is fair."""
        for _ in range(STARTS):
            said = self._started(name, *arguments, **environment)
            if said is None:
                return
            self.kill(name)
        raise RuntimeError(f"the node {name} did not start: {said[-2000:]}")

    def _started(self, name: str, *arguments: list[str], **environment: str) -> str | None:
        """Start a node; None, or what it said if it did not start."""
        agent, grpc_agent, runtime_agent, metrics = free_ports(4)
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            *[word for words in arguments for word in words],
            f"--node-ip-address=127.0.0.{self._next_address}",  # of 127.0.0.1 Ray makes the machine's outer address
            f"--temp-dir={self._folder.name}/{self._next_address}",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc_agent}",
            f"--runtime-env-agent-port={runtime_agent}",
            f"--metrics-export-port={metrics}",
            "--disable-usage-stats",
        ]
        log = Path(self._folder.name) / f"{name}.log"
        with log.open("w") as out:
            starter = subprocess.Popen(
                command,
                env={**self._environment, **environment},
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=self._folder.name,
            )
        self._starters[name] = starter
        self._next_address += 1
        return None if _exit_code(starter.pid) == 0 else log.read_text()


@contextlib.contextmanager
def three_nodes() -> Iterator[tuple[SmallCluster, dict[str, str]]]:
    """A head without cores, a node with one core and a node with two; and the variables of a process that joins them.

    Every client needs a token: the control plane listens on all interfaces, also if its address is loopback.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("each node has a loopback address of its own, which other systems do not set up")
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("ray[default], which brings the job server, is not installed")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    made = SmallCluster(token)
    try:
        made.add("small", cpus=CORES - LARGE)
        made.add("large", cpus=LARGE)
        wait_for(f"{made.address}/api/version", token["RAY_AUTH_TOKEN"])
        yield made, token
    finally:
        made.close()


@contextlib.contextmanager
def one_node_without_sessions() -> Iterator[tuple[SmallCluster, dict[str, str]]]:
    """A head without cores, and a node with two cores on which no session starts."""
    if not sys.platform.startswith("linux"):
        pytest.skip("each node has a loopback address of its own, which other systems do not set up")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    made = SmallCluster(token)
    try:
        made.add("bad", cpus=LARGE, STRIKE_NO_SESSION="1")
        yield made, token
    finally:
        made.close()


def _exit_code(pid: int) -> int | None:
    """Of a child that ends in time and is not waited for here; None of one that does not."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            return ended.si_status
        time.sleep(0.05)
    return None


def processes_of(session: int) -> list[int]:
    """Processes of a session, and their descendants in other sessions."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    parents = {}
    for line in listed.splitlines():
        pid, parent, state = line.split()
        if not state.startswith("Z"):
            parents[int(pid)] = int(parent)
    found = {pid for pid in parents if _session(pid) == session}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def kill_session(session: int) -> None:
    """End the processes of a session, and their descendants, at once."""
    deadline = time.monotonic() + START_S
    while found := processes_of(session):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {found} do not end")
        time.sleep(0.05)


def command_lines() -> dict[int, str]:
    """Every process with its command line."""
    listed = subprocess.run(["ps", "-e", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return {int(pid): words for pid, _, words in (line.strip().partition(" ") for line in listed.splitlines())}


def free_ports(count: int) -> list[int]:
    """Free ports of loopback."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(url: str, token: str = "") -> None:
    """Wait until something answers at a URL."""
    deadline = time.monotonic() + START_S
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
