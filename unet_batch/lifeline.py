"""Child processes that end with their parent, however it ends.

A parent that is killed cannot end its children. So a child watches a pipe whose other end only its parent holds: the
kernel closes it. Nothing is sent or read for this.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import select
import subprocess
import sys
import threading
from pathlib import Path


def end_with(descriptor: int) -> None:
    """End this process, with exit status 0, as soon as the other end of a pipe is closed. Returns at once."""
    threading.Thread(target=_wait, args=(descriptor,), name="lifeline", daemon=True).start()


def _wait(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, 0)  # a closed end is always reported, and data never
    with contextlib.suppress(OSError):
        poll.poll()
        os._exit(0)


def run(
    module: str,
    *arguments: str,
    stdout: int = subprocess.PIPE,
    stderr: int | None = subprocess.PIPE,
    timeout_s: float | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` to its end; the child ends with this process.

    stdout, stderr: as for `subprocess.run`, and captured unless they say otherwise. folder: in which it runs. Raises
    OSError, and subprocess.TimeoutExpired after the child was killed.
    """
    watched, held = os.pipe()
    try:
        command = [sys.executable, "-m", "unet_batch.lifeline", str(watched), module, *arguments]
        return subprocess.run(  # noqa: S603 - this interpreter
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            check=False,
            timeout=timeout_s,
            cwd=folder,
            pass_fds=(watched,),
        )
    finally:
        os.close(watched)
        os.close(held)


def main() -> None:
    """Run the module of the second argument, with those after it, watching the descriptor of the first."""
    descriptor, module = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(descriptor, False)
    end_with(descriptor)
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
