"""An S3-protocol server of its own: notes every picture that is read from it, and takes its time for each.

Arguments: a port, and a folder. `reads.txt` there gets one line for each picture; `delay_s.txt`, where it is, says how
long one takes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

Application = Callable[[dict, Callable], Iterable[bytes]]


def noting(application: Application, folder: Path) -> Application:
    """The application, slower for pictures, and with a memory."""
    one_at_a_time = threading.Lock()

    def noted(environ: dict, start_response: Callable) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "GET" and path.endswith(".png"):
            with one_at_a_time, (folder / "reads.txt").open("a") as reads:
                reads.write(f"{path}\n")
            delay = folder / "delay_s.txt"
            time.sleep(float(delay.read_text()) if delay.exists() else 0)
        return application(environ, start_response)

    return noted


if __name__ == "__main__":
    application = DomainDispatcherApplication(create_backend_app)
    run_simple(
        "127.0.0.1",
        int(sys.argv[1]),
        noting(application, Path(sys.argv[2])),
        threaded=True,
        request_handler=MotoRequestHandler,
    )
