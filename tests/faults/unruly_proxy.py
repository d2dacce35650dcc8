"""A proxy in front of an object store's server that answers some requests with faults, by a written schedule."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>on schedule</Message></Error>"
ANSWERS = {"503": (503, ERROR % b"SlowDown"), "500": (500, ERROR % b"InternalError")}
NAMED = re.compile(rb'\{"name": "([^"]+)"\}')
SLOW_S = 5.0


class UnrulyProxy(ThreadingHTTPServer):
    """Forwards everything, and plays one fault for each entry of `schedule` whose method and text fit a request."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(behind).netloc
        self.schedule: list[tuple[str, str, str]] = []
        """Method, end of the path, and 503, 500, slow, reset, cut (half the body), or landed (no answer)."""
        self.calls: Counter[str] = Counter()
        """Requests by method and last part of the path."""
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, method: str, path: str) -> str:
        """The fault of a request, taken off the schedule."""
        with self._lock:
            self.calls[f"{method} {path.rpartition('/')[2]}"] += 1
            for entry in self.schedule:
                if entry[0] == method and path.endswith(entry[1]):
                    self.schedule.remove(entry)
                    return entry[2]
        return ""

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that gave up are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: UnrulyProxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        named = NAMED.search(body[:500]) if self.command == "POST" else None  # an upload to GCS
        fault = self.server.fault(self.command, named[1].decode() if named else urlsplit(self.path).path)
        if fault in ANSWERS:
            status, text = ANSWERS[fault]
            self._answer(status, {"Content-Type": "application/xml"}, text)
            return
        if fault == "reset":
            self._hang_up()
            return
        if fault == "slow":
            time.sleep(SLOW_S)
        status, headers, found = self._forwarded(body)
        if fault == "landed":
            self._hang_up()
        elif fault == "cut":
            self._answer(status, headers, found, sent=len(found) // 2)
            self._hang_up()
        else:
            self._answer(status, headers, found)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _forwarded(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        server = http.client.HTTPConnection(self.server.behind, timeout=30)
        try:
            given = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "expect", "connection")}
            server.request(self.command, self.path, body, {**given, "Host": self.server.behind})
            answer = server.getresponse()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            return answer.status, headers, answer.read()
        finally:
            server.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        self.wfile.flush()

    def _hang_up(self) -> None:
        """Close the connection the hard way: the client's next read fails."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def unruly(behind: str) -> Iterator[UnrulyProxy]:
    """A proxy that runs in a thread."""
    proxy = UnrulyProxy(behind)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
