"""Puts on a local disk that have not ended: names of their temporary files, their locks, and whose they are.

A put writes a temporary file beside the object and holds a lock while it replaces it. A killed process leaves both.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unet_batch.store.objects import Object

TEMPORARY = ".put-"
"""Prefix of temporary files of active puts, and of locks; these are not objects."""
FOREIGN_PUT_S = 3600.0
"""A put of another machine without a write for this long is dead: even 5 GiB take only minutes."""

_LOCK = re.compile(r"\.put-[0-9a-f]{16}\.lock")
_PUT = re.compile(r"\.put-[0-9a-f]{16}\.(?:(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<began>\d+)-)?[0-9a-z-]+")


def temporary_beside(path: str) -> str:
    """A temporary name for a put of this process, in the same folder. It contains host and process of its owner."""
    return f"{_hidden(path)}.{_mark()}{secrets.token_hex(6)}"


@contextmanager
def locked(path: str) -> Iterator[None]:
    """An exclusive lock for replacing this file, on this machine or over NFS."""
    lock_path = _hidden(path) + ".lock"
    while True:
        with open(lock_path, "ab") as lock:  # opened for writing: NFS locks need that
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.fstat(lock.fileno()).st_nlink:
                continue  # removed by its last holder: later holders lock another file
            try:
                yield
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(lock_path)
            return


def host() -> str:
    """This machine's name and PID namespace; processes of other hosts and containers cannot be checked."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def began(pid: int) -> str:
    """The kernel's start time of a process of this machine, because PIDs are reused.

    Field 22 of proc(5)'s stat; empty for a dead process, `?` without /proc.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return "" if Path("/proc/self").exists() else "?"


def version_of(found: os.stat_result) -> str:
    """The version text of a file."""
    return f"size:{found.st_size},mtime:{found.st_mtime_ns}"


def _hidden(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, TEMPORARY + hashlib.sha256(os.fsencode(name)).hexdigest()[:16])


def _mark() -> str:
    pid = os.getpid()
    since = began(pid)
    return f"{_short(host())}-{pid}-{since}-" if since.isdigit() else ""


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def leftover(path: str, *, remove: bool) -> Object | None:
    """The file of a put or a lock whose process has died; None if it may live. remove: delete it."""
    try:
        found = os.stat(path, follow_symlinks=False)
        name = os.path.basename(path)
        if _LOCK.fullmatch(name):
            dead = _is_free(path, remove=remove)
        else:
            dead = _is_dead(name, found)
            if dead and remove:
                os.unlink(path)
    except FileNotFoundError:
        return None  # the put has ended meanwhile
    return Object("file://" + path, found.st_size, version_of(found)) if dead else None


def _is_dead(name: str, found: os.stat_result) -> bool:
    put = _PUT.fullmatch(name)
    if put is None or not stat.S_ISREG(found.st_mode):
        return False  # not one of our files
    if put["host"] == _short(host()):
        return began(int(put["pid"])) not in (put["began"], "?")
    return time.time() - found.st_mtime > FOREIGN_PUT_S


def _is_free(path: str, *, remove: bool) -> bool:
    with open(path, "r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        free = os.fstat(lock.fileno()).st_nlink > 0
        if free and remove:
            os.unlink(path)
        return free
