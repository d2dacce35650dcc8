"""A server that answers requests for objects as a script says, byte for byte, and remembers what it was asked."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

ETAG = {"ETag": '"e1"', "Last-Modified": "Fri, 27 Nov 2026 16:00:00 GMT"}
SLOW_S = 3.0


@dataclass(frozen=True)
class Answer:
    """What is sent: `ending` says how the connection goes on."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(ETAG))
    body: bytes = b""
    ending: str = "whole"
    """whole, cut (half of the body, closed), cut_reset, stalled (half, then silence), chunked (no length), reset,
    closed or slow (before any answer)."""


@dataclass(frozen=True)
class SentRequest:
    """What came."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.target).path.partition("/")[2].partition("/")[2])

    @property
    def access_key(self) -> str:
        """Who signed the request; empty if unsigned."""
        return self.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]

    @property
    def region(self) -> str:
        return self.headers.get("authorization", "").partition("Credential=")[2].split("/")[2]


def refused(status: int, code: str = "") -> Answer:
    """An error in S3's words; without a code, as a proxy says it."""
    body = (
        f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>on script</Message></Error>" if code else "<p>no</p>"
    )
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


class ScriptedS3(ThreadingHTTPServer):
    """`answer` is called with each request."""

    daemon_threads = True

    def __init__(self, answer: Callable[[SentRequest], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[SentRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that gave up are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedS3

    def _do(self) -> None:
        asked = SentRequest(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
        self.server.asked.append(asked)
        answer = self.server.answer(asked)
        if answer.ending in ("reset", "closed"):
            self._hang_up(hard=answer.ending == "reset")
            return
        if answer.ending == "slow":
            time.sleep(SLOW_S)
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        chunked = answer.ending == "chunked"
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(answer.body)))))
        self.end_headers()
        if self.command == "HEAD":
            return
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(answer.body), answer.body) if chunked else answer.body
        partly = answer.ending in ("cut", "cut_reset", "stalled")
        self.wfile.write(body[: len(body) // 2] if partly else body)
        self.wfile.flush()
        if answer.ending == "stalled":
            time.sleep(SLOW_S)
        if partly:
            self._hang_up(hard=answer.ending == "cut_reset")

    do_GET = do_HEAD = do_POST = _do

    def _hang_up(self, *, hard: bool) -> None:
        if hard:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        if hard:
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def scripted(answer: Callable[[SentRequest], Answer]) -> Iterator[ScriptedS3]:
    """A server that runs in a thread."""
    server = ScriptedS3(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
