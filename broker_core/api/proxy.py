"""``/proxy``: any request with a secret on it, streamed both ways. The one endpoint that is written for ASGI itself.

``Axiorank-Upstream-Url`` says where it goes, ``Axiorank-Agent-Id`` and ``Axiorank-Mcp-Server-Id`` who asks,
``Axiorank-Secret`` which secret, where several would fit. The token is in ``Axiorank-Authorization``, else in
``Authorization``; the header that held it goes no further, nor does any ``Axiorank-…``, nor any copy of the token.

An answer of the upstream has ``Axiorank-Audit-Id``; one of ours ``Axiorank-Broker-Error``. ASGI has no reason phrase:
the status has its standard one. The use case is synchronous and runs in a thread (``bridge``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import closing

from anyio import CapacityLimiter, create_task_group, get_cancelled_exc_class, to_thread
from fastapi import APIRouter
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from broker_core import telemetry
from broker_core.api.asked import AGENT, SECRET, SERVER, URL, Asked, bearer_in, lines_of, read_headers
from broker_core.api.bridge import Incoming, Outgoing
from broker_core.api.callers import Caller, admit, doorkeepers
from broker_core.api.front import break_off
from broker_core.api.places import Places
from broker_core.api.surface import Surface
from broker_core.errors import BrokerError, ClientGone, Invalid, UpstreamError
from broker_core.inject import Call, Cancellation
from broker_core.inject.stream import BrokeredStream
from broker_core.rates import Meter

AUDIT_ID = b"Axiorank-Audit-Id"


class Proxy:
    """The endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises BrokerError before the answer has begun."""
        state = scope["app"].state
        surface: Surface = state.surface
        headers = lines_of(scope["headers"])
        caller = await to_thread.run_sync(_admitted, surface, bearer_in(headers), limiter=doorkeepers(state))
        if scope["http_version"] == "1.0":
            raise Invalid({"http": "use HTTP/1.1: in HTTP/1.0 an answer that breaks off looks like a whole one"})
        asked = read_headers(headers)
        if not hasattr(state, "places"):
            state.places = Places(surface.app.settings.stream_places)  # belongs to the event loop that serves
        with state.places.held(caller.workspace_id):
            exchange = Exchange(surface, caller, asked, receive, send)
            is_whole = await exchange.serve(scope["method"], state.places.threads)
        if not is_whole:
            await break_off(scope, receive)


router = APIRouter()
# described in ``described``: what FastAPI would say is that of a function with parameters
router.routes.append(Route("/proxy", Proxy(), include_in_schema=False))


def _admitted(surface: Surface, bearer: str) -> Caller:
    caller = admit(surface, bearer, scope="broker:inject")
    surface.rates.room(caller.workspace_id)
    return caller


class Exchange:
    """One request and its answer."""

    def __init__(self, surface: Surface, caller: Caller, asked: Asked, receive: Receive, send: Send) -> None:
        self._stream = surface.app.injector.stream
        self._workspace_id = caller.workspace_id
        self._asked = asked
        self._gone = threading.Event()
        self._cancellation = Cancellation()
        self._incoming = Incoming(receive, self._stop, is_asked_to_go_on=asked.waits_for_continue)
        self._outgoing = Outgoing(send)
        self._meter = Meter(surface.rates, caller.workspace_id, self._gone.wait)

    async def serve(self, method: str, threads: CapacityLimiter) -> bool:
        """Serve it in a thread, and stop it when the caller goes; False where the answer broke off for another reason.
        Raises BrokerError before the answer has begun."""
        with self._incoming:
            try:
                failure = await self._run(await self._call(method), threads)
            except ClientGone:
                return True
        if failure is None or self._incoming.is_gone:
            return True
        if self._outgoing.has_begun and isinstance(failure, BrokerError):
            return False
        raise failure

    def _stop(self) -> None:
        self._gone.set()
        self._cancellation.cancel()

    async def _call(self, method: str) -> Call:
        asked = self._asked
        body: bytes | Iterable[bytes] = b""
        if asked.has_small_json:
            body = await self._incoming.whole()
        elif asked.body_length != 0:
            body = self._meter.counted(self._incoming.body())
        return Call(
            self._workspace_id,
            asked.own.get(AGENT),
            asked.own.get(SERVER),
            method,
            asked.own[URL],
            asked.headers,
            body,
            body_length=asked.body_length,
            secret=asked.own.get(SECRET),
            traceparent=telemetry.traceparent(),
        )

    async def _run(self, call: Call, threads: CapacityLimiter) -> Exception | None:
        """Gives back what went wrong: raised in here, the task group would wrap it."""
        failure: Exception | None = None
        async with create_task_group() as group:
            group.start_soon(self._incoming.listen)
            try:
                await to_thread.run_sync(self._in_thread, call, limiter=threads)
            except Exception as error:  # noqa: BLE001 - raised by the caller
                failure = error
            except get_cancelled_exc_class():
                self._stop()  # the thread would go on without us
                raise
            group.cancel_scope.cancel()
        return failure

    def _in_thread(self, call: Call) -> None:
        with closing(self._meter), closing(self._stream(call, self._cancellation)) as stream:
            self._incoming.is_enough()
            if not 200 <= stream.status <= 599:
                raise UpstreamError("the answer has a status that is none", code="response_withheld")
            self._outgoing.begin(stream.status, _head(stream))
            for piece in stream.chunks():
                self._outgoing.write(piece)
                self._meter.passed(len(piece))
            self._outgoing.end()


def _head(stream: BrokeredStream) -> list[tuple[bytes, bytes]]:
    headers = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in stream.headers]
    return [*headers, (AUDIT_ID, str(stream.audit_id).encode("ascii"))]
