"""How a driver starts a process of this package that it talks to over a pipe, and how that process ends.

It is started by exec, not by fork: libraries with threads do not work after a fork. Both kinds, worker processes and
those that publish, are started here, with the same guarantees.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection

from unet_batch.job.stopping import SIGNALS


class ChildProcess:
    """A process behind its pipe.

    Its process group is its own, so Ctrl-C in a terminal does not reach it; stop signals are blocked in it, because
    batch systems send them to every process. It ends with its driver, however that ends: its pipe closes then, and its
    module must end when that happens. It imports what its driver can import, and reads nothing from stdin.
    """

    def __init__(
        self,
        module: str,
        environment: Mapping[str, str],
        *,
        stdout: int = subprocess.DEVNULL,
        stderr: int | None = None,
        frame_s: float | None = None,
    ) -> None:
        """Start `python -P -m MODULE DESCRIPTOR`. Raises OSError if no process can be started.

        environment: variables in addition to the driver's, which take precedence. stdout, stderr: as for
        `subprocess.Popen`. frame_s: most seconds that one send or one receive of `pipe` may wait; None: no limit.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if frame_s is not None:
                for way in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                    ours.setsockopt(socket.SOL_SOCKET, way, struct.pack("ll", int(frame_s), 0))
            paths = [os.path.abspath(path or os.curdir) for path in sys.path]
            command = [sys.executable, "-P", "-m", module, str(theirs.fileno())]
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                self.process = subprocess.Popen(  # noqa: S603 - this interpreter and this package
                    command,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env={**environment, **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                    process_group=0,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.pipe = Connection(ours.detach())

    def kill(self) -> None:
        """Kill the process and its children. One that has ended keeps its status."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def has_exited(self) -> bool:
        """Whether the process has ended. It stays a zombie, so that its group id is not reused yet."""
        if not hasattr(os, "waitid"):
            return self.process.poll() is not None
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self, patience_s: float | None = None) -> str:
        """Kill what is left of it and close the pipe; returns `signal SIGSEGV` or `exit status 1`.

        patience_s: how long a killed process may take to end; None: as long as it takes.
        """
        self.kill()
        status = self.process.wait(patience_s)
        self.pipe.close()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
