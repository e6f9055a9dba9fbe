"""The HTTP surface for tests, on a ``Live`` App: in this process, or over a real socket.

In this process a request is a function call (``web.get("/byok/affected", role="admin")``); ``web.serve()`` gives the
root URL of a server on loopback, for what needs sockets: streams, broken connections, other clients.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from starlette.datastructures import State

from broker_core.adapters.clock import SystemClock
from broker_core.api.jwks import Jwks
from broker_core.api.main import dress, routed
from broker_core.api.surface import Surface
from broker_core.api.tokens import TokenVerifier
from tests.live import Live
from tests.tokens import AUDIENCE, ISSUER, Platform
from tests.waiting import wait_until


@dataclass
class Web:
    """One application, and whoever calls it."""

    live: Live
    api: FastAPI
    platform: Platform
    _portal: BlockingPortal = field(repr=False)
    _closing: ExitStack = field(repr=False)

    def token(self, **claims: Any) -> str:
        """A token for the live workspace: ``scope=…`` or ``role=…``, and any other claim."""
        return self.platform.token(**{"workspace": self.live.workspace, **claims})

    def headers(self, **claims: Any) -> dict[str, str]:
        """Request headers with such a token."""
        return {"Authorization": f"Bearer {self.token(**claims)}"}

    def request(
        self,
        method: str,
        path: str,
        *,
        scope: str | None = None,
        role: str | None = None,
        workspace: str | None = None,
        **options: Any,
    ) -> httpx.Response:
        """One request, of a caller with this scope or role; with neither, without a token. ``path`` below /api/v1, or
        from the root where it begins with ``/api`` or is a probe's. ``options`` are httpx's."""
        said = {"scope": scope, "role": role, "workspace": workspace}
        claims = {name: value for name, value in said.items() if value is not None}
        headers = {**(self.headers(**claims) if scope or role else {}), **options.pop("headers", {})}
        url = path if path.startswith("/api/") or path in ("/healthz", "/readyz", "/metrics") else f"/api/v1{path}"
        return self._portal.call(self._send, method, url, headers, options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET; see ``request``."""
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """POST; see ``request``."""
        return self.request("POST", path, **options)

    def serve(self) -> str:
        """The root URL of a server on loopback, which runs until the test ends."""
        return self._closing.enter_context(served(self.api))

    async def _send(self, method: str, url: str, headers: dict[str, str], options: dict[str, Any]) -> httpx.Response:
        # a client for each request: nothing is left open between them
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.api), base_url="http://broker.test") as client:
            return await client.request(method, url, headers=headers, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.close()


#: applications that no test has: to make one takes longer than most tests of it
_idle: list[FastAPI] = []


def _undressed(closing: ExitStack) -> FastAPI:
    """An application on no surface, back among the idle ones at the end, without what the test gave it."""
    api = _idle.pop() if _idle else routed()
    routes = list(api.router.routes)

    def give_back() -> None:
        api.router.routes[:] = routes
        api.openapi_schema = None
        api.state = State()
        api.user_middleware.clear()
        api.middleware_stack = None
        _idle.append(api)

    closing.callback(give_back)
    return api


def web_on(live: Live, **replaced: Any) -> Web:
    """The application on an App; close it. ``replaced`` parts of the surface: ``rates=…``, ``tokens=…``."""
    platform = Platform()
    closing = ExitStack()
    clock = SystemClock()
    tokens = TokenVerifier(Jwks(platform.jwks, clock), issuer=ISSUER, audience=AUDIENCE, clock=clock)
    parts = {"tokens": tokens, **replaced}
    parts.setdefault("rates", getattr(live.app, "rates", None))
    api = _undressed(closing)
    dress(api, Surface(live.app, **parts))
    return Web(live, api, platform, closing.enter_context(start_blocking_portal()), closing)


@contextmanager
def served(api: Any, *, received_bytes: int | None = None, **changed: Any) -> Iterator[str]:
    """An ASGI application behind uvicorn on a port of loopback; gives the root URL. ``received_bytes``: what the kernel
    may hold for it of one connection, where it is not to be as much as the kernel likes."""
    from broker_core.api.server import configuration

    config = configuration(api, **changed)
    server = _Server(config)
    with _socket() as listening:
        if received_bytes is not None:
            listening.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, received_bytes
            )  # each connection has it from here
        port = listening.getsockname()[1]
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), name="web")
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            assert server.started
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


class _Server(uvicorn.Server):
    """A server in a thread: signals are the test run's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _socket() -> Any:
    from broker_core.api.server import listening

    return listening("127.0.0.1", 0)
