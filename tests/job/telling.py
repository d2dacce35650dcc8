"""A child process that tells over its pipe how it was started, and ends with it."""

from __future__ import annotations

import json
import os
import signal
import sys
from multiprocessing.connection import Connection

if __name__ == "__main__":
    pipe = Connection(int(sys.argv[1]))
    blocked = sorted(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    told = {"group": os.getpgrp(), "pid": os.getpid(), "blocked": blocked, "stdin": sys.stdin.read()}
    told["variables"] = {name: os.environ.get(name) for name in ("GIVEN", "OURS")}
    pipe.send_bytes(json.dumps(told).encode())
    try:
        pipe.recv_bytes()
    except EOFError:
        sys.exit(7)
