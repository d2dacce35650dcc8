"""Starts an embedded Ray on this machine, or joins a cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from unet_batch.errors import JobError, RayUnavailable
from unet_batch.job.cores import cores
from unet_batch.job.stopping import children_spared, handlers_kept
from unet_batch.worker.environment import KEEP_PAGES

OBJECT_STORE_BYTES = 1 << 30
"""Object store of an embedded Ray: enough for some tens of loaded units; the default is a third of the memory."""
NO_USAGE_STATS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1"}
"""An embedded Ray sends no usage statistics, and needs no actor to collect them."""
ANSWER_S = 10.0
"""How long a cluster's head may take to accept a connection."""
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""Longest path of a Unix socket."""
SOCKET_NAME_BYTES = len("/ray/session_2026-11-27_13-25-37_123456_1234567/sockets/plasma_store.1")
"""Length of the longest socket name that Ray appends to its folder."""


class Started:
    """A started or joined Ray."""

    def __init__(self, short: tempfile.TemporaryDirectory[str] | None = None) -> None:
        """short: the short link to an embedded Ray's folder, if its path is too long."""
        self._short = short

    def close(self) -> None:
        """Leave the cluster; an embedded Ray ends."""
        import ray

        left = _kill_at_once()
        ray.shutdown()
        for process in left:
            with contextlib.suppress(Exception):  # it has already ended
                process.kill()
        if self._short is not None:
            self._short.cleanup()


def start(address: str | None) -> Started:
    """Join a cluster, or start a Ray on this machine's cores without output on the terminal (it has log files).

    Raises JobError for an address or a folder that cannot be used, RayUnavailable if Ray does not start.
    """
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a late call after shutdown must not start or join a cluster
    return _embedded() if address is None else _joined(address)


def _joined(address: str) -> Started:
    import ray

    _demand_an_answer(address)
    try:
        with _native_stderr_closed(), handlers_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise JobError(f"cannot join a Ray cluster at --address {address}: {_brief(error)}") from error
    return Started()


def _embedded() -> Started:
    import ray

    for name, value in {"RAY_BACKEND_LOG_LEVEL": "fatal", **KEEP_PAGES, **NO_USAGE_STATS}.items():
        os.environ.setdefault(name, value)  # workers inherit it
    variable, folder = _folder()
    short = _short_link(variable, folder)
    try:
        with children_spared(), _native_stderr_closed(), handlers_kept():
            ray.init(
                address="local",  # without it, init joins a running cluster of the machine
                num_cpus=cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=os.path.join(folder if short is None else os.path.join(short.name, "t"), "ray"),
            )
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise JobError(f"Ray cannot work in the folder {folder} ({variable}): {_brief(error)}") from error
    except Exception as error:  # a busy machine, a full disk, a used port, no memory …
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise RayUnavailable(
            f"Ray did not start on this machine, in the folder {folder}: {_brief(error)}; run the same command again, "
            "or use --executor local"
        ) from error
    return Started(short)


def _kill_at_once() -> list[Any]:
    """Make ray.shutdown kill the processes of an embedded Ray at once, instead of SIGTERM and a second of waiting.

    SIGTERM is blocked in them (`children_spared`). Returns their child processes, to be killed afterwards: workers end
    when they lose their raylet, but its agents only after most of a minute.
    """
    import psutil  # Ray brings it
    from ray._private import worker

    node = worker._global_node
    if node is None:
        return []
    kill = node.kill_all_processes
    node.kill_all_processes = lambda **_: kill(check_alive=False, allow_graceful=False)
    started: list[Any] = []
    for process in (entry.process for entries in node.all_processes.values() for entry in entries):
        with contextlib.suppress(psutil.Error):
            started += psutil.Process(process.pid).children(recursive=True)
    return started


def _folder() -> tuple[str, str]:
    """The environment variable with the folder of Ray's files, and the folder, by Ray's rules."""
    for variable in ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",):
        if folder := os.environ.get(variable):
            return variable, os.path.abspath(folder)
    return "its default", "/tmp"  # noqa: S108 - Ray's own


def _short_link(variable: str, folder: str) -> tempfile.TemporaryDirectory[str] | None:
    """A short link to a folder whose path is too long for Ray's sockets; None if the path is short enough.

    The link is in a private folder below /tmp. Raises JobError if it cannot be made.
    """
    if len(os.fsencode(folder)) + SOCKET_NAME_BYTES <= SOCKET_BYTES:
        return None
    try:
        os.makedirs(folder, exist_ok=True)
        short = tempfile.TemporaryDirectory(prefix="ub-", dir="/tmp", ignore_cleanup_errors=True)
        os.symlink(folder, os.path.join(short.name, "t"), target_is_directory=True)
    except OSError as error:
        raise JobError(
            f"the path of {folder} ({variable}) is too long for Ray's sockets, which have {SOCKET_BYTES} bytes, and no "
            f"link to it can be made below /tmp ({_brief(error)}): set RAY_TMPDIR to a folder with a shorter path"
        ) from error
    return short


def _demand_an_answer(address: str) -> None:
    """Raise JobError if a host and port refuse connections; Ray itself would try for minutes. `auto` is not checked."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise JobError(
            f"no answer at --address {address} ({error}): check host and port of the cluster's head (6379 by "
            "default), and that this machine reaches it"
        ) from error


@contextlib.contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Close file descriptor 2, to which Ray's C++ code writes its log level; failed starts still raise."""
    saved = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
