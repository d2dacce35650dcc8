"""`unet-batch`, and scripts of the tests, in processes that are forked from one that has imported the package.

Such a process has its own arguments, folder, environment, streams and exit code. Only the imports, which take more than
a second, were done before. Tests of the start itself use `python -m unet_batch`.

As a script: the server. It forks for each connection to its socket, and ends when its stdin closes.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

PROGRAM = "unet-batch"
LATE = ("unet_batch.on_ray.", "unet_batch.architectures", "unet_batch.__main__")
"""Not imported by the server: what loads Ray or PyTorch, and what runs when it is imported."""
SOCKET = "FORKED_SOCKET"
"""Names the server's socket to the program that `folder_with_program` has."""


class Forked:
    """A process that runs `unet-batch`, or a script, with some words; it has few of the methods of `Popen`."""

    def __init__(
        self,
        *words: str | Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        streams: Sequence[IO[Any]] = (),
        new_session: bool = False,
    ) -> None:
        """words: begin with PROGRAM, or with the path of a script. streams: stdin, stdout and stderr; else none."""
        self._words = [str(word) for word in words]
        surroundings = {"folder": str(folder or Path.cwd()), "environment": dict(environment or os.environ)}
        request = json.dumps({"words": self._words, **surroundings, "new_session": new_session}).encode()
        self._code: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(os.environ.get(SOCKET) or server())
        with open(os.devnull, "r+") as nothing:
            descriptors = [stream.fileno() for stream in streams or [nothing] * 3]
            socket.send_fds(self._connection, [len(request).to_bytes(8, "big")], descriptors)
        self._connection.sendall(request)
        self.pid = int.from_bytes(self._connection.recv(8), "big")

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit code; negative: the signal that ended it. Raises TimeoutExpired."""
        if self._code is None:
            self._connection.settimeout(timeout_s)
            try:
                answer = self._connection.recv(8)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self._words, timeout_s or 0) from None
            assert len(answer) == 8, "the server of forked processes has ended"
            self._connection.close()
            self._code = int.from_bytes(answer, "big", signed=True)
        return self._code

    def poll(self) -> int | None:
        """The exit code, None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)


def command(
    *words: str | Path, folder: Path | None = None, environment: Mapping[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """A process without a terminal: its exit code and what it printed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, open(os.devnull) as nothing:
        process = Forked(*words, folder=folder, environment=environment, streams=(nothing, out, err))
        try:
            code = process.wait(timeout_s)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        for stream in (out, err):
            stream.seek(0)
        return subprocess.CompletedProcess(list(words), code, out.read(), err.read())


def processes_of_session(session: int) -> dict[int, str]:
    """Command lines of the living processes of a session, by their ids."""
    listed = subprocess.run(["ps", "-eo", "sid=,stat=,pid=,args="], capture_output=True, text=True, check=True).stdout
    found = (line.split(None, 3) for line in listed.splitlines())
    return {int(pid): args for sid, state, pid, args in found if sid == str(session) and not state.startswith("Z")}


def wait_for_session(session: int, timeout_s: float) -> None:
    """Wait until all processes of a session have ended."""
    give_up = time.monotonic() + timeout_s
    while left := processes_of_session(session):
        assert time.monotonic() < give_up, left
        time.sleep(0.1)


def folder_with_program() -> Path:
    """A folder with an executable `unet-batch` that is such a process, where SOCKET is in the environment."""
    program = Path(server()).with_name(PROGRAM)
    if not program.exists():
        program.write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
            "import forked\nsys.exit(forked.program())\n"
        )
        program.chmod(0o755)
    return program.parent


def program() -> int:
    """What that executable does: its caller's streams, folder and environment are those of the process."""
    code = Forked(PROGRAM, *sys.argv[1:], streams=(sys.stdin, sys.stdout, sys.stderr)).wait()
    return code if code >= 0 else 128 - code


@functools.cache
def server() -> str:
    """The socket of the server, which the first call starts and which ends with this process."""
    path = f"{tempfile.mkdtemp(prefix='forked-')}/socket"
    process = subprocess.Popen([sys.executable, __file__, path], stdin=subprocess.PIPE, start_new_session=True)
    atexit.register(process.stdin.close)
    give_up = time.monotonic() + 60
    while not os.path.exists(path):
        assert process.poll() is None, "the server of forked processes did not start"
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return path


def serve(path: str) -> NoReturn:
    """Import the package, then fork for each connection."""
    import unet_batch

    for module in pkgutil.walk_packages(unet_batch.__path__, "unet_batch."):
        if not module.name.startswith(LATE):
            __import__(module.name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets children that have ended
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as ready:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)
        for source in (listening, sys.stdin):
            ready.register(source, selectors.EVENT_READ)
        while all(key.fileobj is listening for key, _ in ready.select()):
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _attend(connection)
            connection.close()
    os._exit(0)


def _attend(connection: socket.socket) -> NoReturn:
    """Run one process; tell its id, and at its end its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(connection, 8, 3)
    request = b""
    while len(request) < int.from_bytes(head, "big"):
        request += connection.recv(1 << 16)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(**json.loads(request), streams=streams)
    for stream in streams:
        os.close(stream)
    connection.sendall(pid.to_bytes(8, "big"))
    _, status = os.waitpid(pid, 0)
    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
    os._exit(0)


def _become(
    words: list[str], folder: str, environment: dict[str, str], streams: list[int], *, new_session: bool
) -> NoReturn:
    """Take over the surroundings of a new process, and run it."""
    if new_session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    script = words[0] != PROGRAM
    sys.argv = words
    sys.path[:1] = [os.path.dirname(words[0]) if script else folder]  # as with `python SCRIPT` and with `-m`
    sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if script:
        runpy.run_path(words[0], run_name="__main__")
    else:
        from unet_batch.cli.main import main

        main()
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1])
