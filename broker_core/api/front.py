"""HTTP/1.1 at our own door, read in one way only.

The promise: what some server before us might read differently is refused before anybody looks at it: a length beside
chunks, a line that ends in a bare LF or CR, a header that goes on in the next line, a head without bounds. h11 takes
these (RFC 9112 lets it), and a gateway that passes them on would let an agent write headers of ours. A connection on
which no request comes in time is closed, also where bytes come. And an answer that broke off can be ended so that it
looks broken off (``break_off``), which ASGI has no word for.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import anyio
import h11
from anyio.lowlevel import checkpoint
from starlette.types import Receive, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker_core.api.passage import CutOff
from broker_core.api.problems import MARK

#: seconds for what was sent already to reach the caller, once its answer has broken off
FLUSH_SECONDS = 5.0
#: seconds for a caller to take what was written for it: an answer in one piece of up to 14 MB, or its rest
TAKING_SECONDS = 300.0

_LONGEST_END = 4
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_TWO_READINGS = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|\n[ \t]")
_TRANSPORT = "axiorank.transport"
_PROBLEM = json.dumps({"error": "invalid", "message": "this is no HTTP/1.1 request as it is accepted here"}).encode()


class StrictConnection(h11.Connection):
    """A server's side of a connection."""

    def __init__(self, largest_head: int) -> None:
        super().__init__(h11.SERVER, largest_head)
        self._largest_head = largest_head
        #: bytes of an unfinished head that were looked at: all of them at each byte would be the square of its size
        self._seen = 0

    def next_event(self) -> Any:
        """As h11's. Raises RemoteProtocolError for what is refused here too."""
        if self.their_state is h11.IDLE:
            self._check_head(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._seen = 0
            _check_framing(event)
        return event

    def _check_head(self, received: bytes) -> None:
        begin = max(self._seen - _LONGEST_END, 0)
        found = _END_OF_HEAD.search(received, begin)
        end = found.end() if found else len(received)
        if end > self._largest_head or _TWO_READINGS.search(received, begin, end):
            raise h11.RemoteProtocolError("a head that is not accepted")
        self._seen = end


def _check_framing(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    if {b"content-length", b"transfer-encoding"} <= names:
        raise h11.RemoteProtocolError("two framings")
    if request.http_version == b"1.0" and b"transfer-encoding" in names:
        raise h11.RemoteProtocolError("chunks in HTTP/1.0")
    if request.http_version not in (b"1.0", b"1.1"):
        raise h11.RemoteProtocolError("another version")


class StrictProtocol(H11Protocol):
    """What uvicorn serves a connection with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app_state = {**self.app_state, _TRANSPORT: lambda: self.transport}
        self.conn = StrictConnection(self.config.h11_max_incomplete_event_size or 16 * 1024)
        self._until_request: asyncio.TimerHandle | None = None
        self._until_taken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """The first request is to come."""
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """A request may have come, whole or a piece of it. uvicorn stops its own clock at the first byte."""
        super().data_received(data)
        self._await_request()

    def on_response_complete(self) -> None:
        """The next request is to come, or has."""
        super().on_response_complete()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        super().connection_lost(exc)
        self._stop_clock()
        self._is_taken()

    def pause_writing(self) -> None:
        """The caller takes less than is written. uvicorn would wait for it for ever."""
        super().pause_writing()
        self._until_taken = self.loop.call_later(TAKING_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It took most of it."""
        super().resume_writing()
        self._is_taken()

    def _is_taken(self) -> None:
        if self._until_taken is not None:
            self._until_taken.cancel()
            self._until_taken = None

    def _await_request(self) -> None:
        """Let the clock run from the end of one request's answer to the head of the next, whatever comes between."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_clock()
        elif self._until_request is None:
            self._until_request = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _give_up(self) -> None:
        self.transport.close()  # it ends once what was written is taken
        self._until_request = self.loop.call_later(TAKING_SECONDS, self.transport.abort)

    def _stop_clock(self) -> None:
        if self._until_request is not None:
            self._until_request.cancel()
            self._until_request = None

    def send_400_response(self, msg: str) -> None:
        """Refuse in our own shape; an answer that has begun is broken off instead."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self._is_answering():
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(_PROBLEM))),
                ("Cache-Control", "no-store"),
                (MARK, "true"),
                ("Connection", "close"),
            ]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=_PROBLEM),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete


async def break_off(scope: Scope, receive: Receive) -> None:
    """End the connection of a request whose answer has begun and will not be whole; a caller who does not read is not
    waited for. Raises CutOff where another server serves: it ends the connection then."""
    transport_of = scope.get("state", {}).get(_TRANSPORT)
    if transport_of is None:
        raise CutOff
    transport = transport_of()
    transport.close()
    with anyio.move_on_after(FLUSH_SECONDS):
        while (await receive())["type"] != "http.disconnect":
            pass
    transport.abort()
    await checkpoint()  # the server hears of it before we return
