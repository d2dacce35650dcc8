"""moto's server with puts that take turns. Usage: python tests/moto_server.py PORT

moto looks whether a key exists and stores the object in two steps. Between them another thread can do the same, so two
puts with `If-None-Match: *` can both succeed, which S3 excludes.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main


def let_puts_take_turns() -> None:
    """Look and store under one lock. The body of the request has arrived before."""
    put, turn = S3Response.put_object, threading.Lock()

    def put_object(self: S3Response) -> Any:
        with turn:
            return put(self)

    S3Response.put_object = put_object  # type: ignore[method-assign]


if __name__ == "__main__":
    let_puts_take_turns()
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
