"""A job server without a cluster: speaks what Ray's own client speaks, and ends jobs as a test wishes."""

from __future__ import annotations

import asyncio
import io
import threading
import zipfile
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeJobServer:
    """What it was sent, and how it will behave."""

    packages: dict[str, bytes] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of what was submitted."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Answers to questions for jobs."""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    ending: dict[str, Any] = field(default_factory=lambda: {"status": "SUCCEEDED", "driver_exit_code": 0})
    """How a submitted job ends, once its output was streamed."""
    output: list[str] = field(default_factory=lambda: ["published date=2026-11-21\n", '{"ok": 3}\n'])
    breaks_after: int | None = None
    """The first stream of a job breaks after so many pieces."""
    refuses_with: tuple[int, str] | None = None
    """Status and text of every answer."""
    hangs: bool = False
    forgets: bool = False
    """After the first stream it knows no job: its cluster was restarted."""
    url: str = ""

    def package(self, uri: str) -> zipfile.ZipFile:
        """What was uploaded under a URI."""
        return zipfile.ZipFile(io.BytesIO(self.packages[uri.removeprefix("gcs://")]))

    def job(self, job_id: str, status: str, **more: object) -> dict[str, Any]:
        """A job that it knows."""
        self.jobs[job_id] = {"type": "SUBMISSION", "submission_id": job_id, "entrypoint": "", "status": status, **more}
        return self.jobs[job_id]

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application(middlewares=[self._first], client_max_size=64 << 20)
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/gcs/{name}", self._find)
        app.router.add_put("/api/packages/gcs/{name}", self._keep)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{id}", self._details)
        app.router.add_get("/api/jobs/{id}/logs", self._log)
        app.router.add_get("/api/jobs/{id}/logs/tail", self._tail)
        return app

    @web.middleware
    async def _first(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        if self.hangs:
            await asyncio.sleep(3600)
        if self.refuses_with is not None:
            return web.Response(status=self.refuses_with[0], text=self.refuses_with[1])
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def _find(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _keep(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["submission_id"] in self.jobs:
            return web.Response(status=500, text=f"Job with submission_id {body['submission_id']} already exists.")
        self.requests.append(body)
        self.job(body["submission_id"], "RUNNING", entrypoint=body["entrypoint"])
        return web.json_response({"job_id": body["submission_id"], "submission_id": body["submission_id"]})

    async def _details(self, request: web.Request) -> web.Response:
        if request.match_info["id"] not in self.jobs:
            return web.Response(status=404, text="Job does not exist")
        return web.json_response(self.jobs[request.match_info["id"]])

    async def _log(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": "".join(self.output)})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        pieces = self.output[: self.breaks_after]
        for piece in pieces:
            await answer.send_str(piece)
        if self.breaks_after is not None:
            self.breaks_after = None
            if self.forgets:
                self.jobs.clear()
            request.transport.abort()
            return answer
        self.jobs[request.match_info["id"]].update(self.ending)
        return answer


class Served:
    """A context manager: the server answers at its URL, from a thread of its own."""

    def __init__(self, server: FakeJobServer) -> None:
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FakeJobServer:
        self._thread.start()
        self._server.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self._server

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    async def _start(self) -> str:
        self._runner = web.AppRunner(self._server.application(), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = site._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"
