"""What every request passes on its way in and out: alias, size limit, trace, log line, metrics, headers.

The promise: a log line and a span hold the route's template, never a path, a query, a header or a body; whatever goes
wrong inside is answered, and leaves as its class and places alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from opentelemetry.trace import Span, SpanKind
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker_core import telemetry
from broker_core.api import bodies, problems
from broker_core.api.metrics import Metrics
from broker_core.errors import BrokerError, Invalid

VERSION = "/api/v1"
#: its answers are an upstream's: its own limits of size, its own headers
PROXY = f"{VERSION}/proxy"
OPENAPI = "/api/openapi.json"
UNMATCHED = "(none)"
PROBES = ("/healthz", "/readyz", "/metrics")
#: nobody waited for the answer any more
GONE = 499
#: bytes of an unread body that are worth keeping a connection for
_WORTH_READING = 65_536


class Passage:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._metrics = metrics
        self._monotonic = monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, method = self._monotonic(), scope["method"]
        scope = _inner(scope)
        exchange = _Exchange(scope, receive, send, without_body=method == "HEAD")
        self._metrics.begun()
        try:
            with (
                telemetry.continued(Headers(scope=scope).get("traceparent")),
                telemetry.span("http.request", SpanKind.SERVER, http__request__method=_known(method)) as span,
            ):
                try:
                    await self._serve(scope, exchange, span)
                finally:
                    self._note(scope, exchange, method, self._monotonic() - started)
        finally:
            seconds = self._monotonic() - started
            self._metrics.ended(template(scope), _known(method), exchange.status, seconds)

    def _note(self, scope: Scope, exchange: _Exchange, method: str, seconds: float) -> None:
        route = template(scope)
        if route in PROBES and exchange.status < 400:
            return  # every few seconds, of every machine that looks
        telemetry.log().info(
            "http.request",
            method=_known(method),
            route=route,
            status=exchange.status,
            code=exchange.code,
            ms=round(seconds * 1000, 1),
        )

    async def _serve(self, scope: Scope, exchange: _Exchange, span: Span) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except CutOff:
            raise
        except ClientDisconnect:
            pass  # before its body had come: nobody is there to be answered
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not leave as it is
            if not isinstance(error, BrokerError):
                telemetry.log().error("http.bug", exception=telemetry.shape_of(error))
                error = BrokerError("internal")
            await exchange.answer(error)
        span.set_attribute("http.response.status_code", exchange.status)
        if exchange.status >= 500:
            telemetry.fail(span, exchange.code or "internal")


class _Exchange:
    """One request and its answer: counts what comes in, and looks at what goes out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, without_body: bool) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._without_body = without_body
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        #: what is still to come at most, None where nobody said
        self._to_come = None if "transfer-encoding" in headers or not length.isdecimal() else int(length)
        self._room = bodies.most_for(scope["path"])
        #: bytes still to come that are worth keeping the connection for
        self._worth_reading = _WORTH_READING
        self.status = GONE

    @property
    def code(self) -> str | None:
        """The error's code, where the answer is an error of ours."""
        code: str | None = self._scope.get(problems.CODE)
        return code

    async def receive(self) -> Message:
        """The next part of the body. Raises Invalid (``too_large``) before it reads more than may come."""
        if self._room is not None and self._to_come is not None and self._to_come > self._room:
            raise Invalid({"body": "larger than this path takes"}, code="too_large")
        if self._room is not None:
            self._worth_reading = 0  # who wanted it, and answers without it, has given it up
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            if self._to_come is not None:
                self._to_come = max(self._to_come - size, 0)
            if not message.get("more_body", False):
                self._to_come = 0
            if self._room is not None:
                self._room -= size
                if self._room < 0:
                    raise Invalid({"body": "larger than this path takes"}, code="too_large")
        return message

    async def send(self, message: Message) -> None:
        """The next part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._headers(message)}
        elif self._without_body and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        headers = MutableHeaders(raw=list(message.get("headers", [])))
        if self._scope["path"] != PROXY or problems.MARK in headers:
            headers["Cache-Control"] = "no-store"
            headers["X-Content-Type-Options"] = "nosniff"
        if self._to_come is None or self._to_come > self._worth_reading:
            # the server would read the rest of the body, however long, to get to the next request
            headers["Connection"] = "close"
        return headers.raw

    async def answer(self, error: BrokerError) -> None:
        """Answer an error that nobody answered; where the answer has begun it can only be cut off."""
        if self.status != GONE:
            raise CutOff from None
        await problems.response_for(error, self._scope)(self._scope, self.receive, self.send)


class CutOff(Exception):
    """An answer broke off after its head was sent: the server closes the connection, so that nobody takes it as
    whole."""


def template(scope: Scope) -> str:
    """The route's path with its parameters' names, as ``/api/v1/events/{id}``."""
    route: Any = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
    plain = getattr(route, "starlette_route", None)  # an endpoint that is written for ASGI itself
    return getattr(plain or route, "path", UNMATCHED)


def _inner(scope: Scope) -> Scope:
    """The request as the routes know it: with the version in its path, and GET for HEAD. The path is taken as it came:
    none of ours needs an escape, and one could hide what a server before us does not let through."""
    path, inner = scope.get("raw_path", b"").decode("latin-1") or scope["path"], dict(scope)
    inner["path"] = path
    if path.startswith("/api/") and path != OPENAPI and not path.startswith(f"{VERSION}/"):
        inner["path"] = VERSION + path.removeprefix("/api")
        inner.pop("raw_path", None)
    if scope["method"] == "HEAD" and inner["path"] != PROXY:
        inner["method"] = "GET"
    return inner


def _known(method: str) -> str:
    """A method as text of ours: callers may make one up."""
    return method if method in {*problems.METHODS, "OPTIONS"} else "other"
