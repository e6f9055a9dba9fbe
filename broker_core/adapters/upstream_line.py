"""A line: one connection for one exchange, which any thread may end.

No exception of h11, ssl or socket gets out of here, nor stays attached as a context: their texts quote headers. Only
what the iterator of a request's body raises passes as it is, since it is the caller's own. Imports no other adapter but
the parts of this one.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import TypeVar

import h11

from broker_core.adapters.upstream_exchange import Exchange, pairs_of, pieces_of, visible
from broker_core.adapters.upstream_wire import Timing, Wire
from broker_core.errors import BrokerError, UpstreamError
from broker_core.ports import WireRequest

T = TypeVar("T")


class HttpLine:
    """See the port."""

    def __init__(
        self, wire: Wire, timing: Timing, reopen: Callable[[], Wire] | None, keep: Callable[[Wire], None]
    ) -> None:
        """``reopen``: for a connection that carried exchanges before, what replaces it if it was closed meanwhile.
        ``keep`` is given a clean connection when the line is done with it."""
        self._wire: Wire | None = wire
        self._timing = timing
        self._reopen = reopen
        self._keep = keep
        self._exchange: Exchange | None = None
        self._is_aborted = False
        self._lock = threading.Lock()  # over which wire is ours: once it is kept for others, no abort may reach it
        self._turn = threading.RLock()  # over the use of the wire: it is not closed under who reads or writes

    def send(self, request: WireRequest) -> HttpAnswer:
        """See the port."""
        with self._turn:
            if self._exchange is not None:
                raise UpstreamError("the line was used")
            pieces = iter(pieces_of(request))
            first = list(islice(pieces, 1))  # it may be long in coming, and a kept connection be gone by then
            wire = translated(self._fresh_wire)
            exchange = self._exchange = Exchange(wire, self._timing)
            translated(lambda: exchange.begin(request))
            if not isinstance(request.body, bytes):
                self._push(exchange, chain(first, pieces))
            head = translated(exchange.head)
        return HttpAnswer(head, self._read, self.close)

    def _push(self, exchange: Exchange, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            if not translated(partial(exchange.push, piece)):
                return  # answered early: the rest is not sent, and the connection not used again
        translated(exchange.finish)

    def _fresh_wire(self) -> Wire:
        """The wire, as it was connected or kept. A kept one that was closed since is replaced while nothing of this
        request was written: a first attempt on a new connection, not a second one."""
        wire = self._owned()
        if self._reopen is not None and not wire.is_quiet():
            wire.close()
            wire = self._reopen()
            with self._lock:
                self._wire = wire
                if self._is_aborted:
                    wire.abort()
        return wire

    def _owned(self) -> Wire:
        if self._wire is None or self._is_aborted:
            raise ConnectionAbortedError
        return self._wire

    def _read(self) -> bytes:
        with self._turn:
            exchange = self._exchange
            if exchange is None or self._wire is None or self._is_aborted:
                raise UpstreamError("the exchange was ended")
            return translated(exchange.read)

    def abort(self) -> None:
        """See the port."""
        with self._lock:
            self._is_aborted = True
            if self._wire is not None:
                self._wire.abort()

    def close(self) -> None:
        """See the port."""
        if not self._turn.acquire(blocking=False):
            self.abort()  # somebody is reading or writing: they are to stop
            self._turn.acquire()
        try:
            with self._lock:
                wire, self._wire = self._wire, None
            if wire is None:
                return
            if self._exchange is not None and self._exchange.is_clean and not self._is_aborted:
                self._keep(wire)
            else:
                wire.close()
        finally:
            self._turn.release()


class HttpAnswer:
    """See the port."""

    def __init__(self, head: h11.Response, read: Callable[[], bytes], close: Callable[[], None]) -> None:
        self.status = head.status_code
        self.reason = visible(head.reason)
        self.headers: Sequence[tuple[str, str]] = pairs_of(head)
        self.close = close
        self._read = read

    def chunks(self) -> Iterator[bytes]:
        """See the port."""
        while chunk := self._read():
            yield chunk


def translated(work: Callable[[], T]) -> T:
    """Do it; whatever a library raises becomes an UpstreamError with a code of ours. It is raised after the foreign
    exception was let go, so that not even its context holds one."""
    try:
        return work()
    except BrokerError:
        raise
    except Exception as error:  # noqa: BLE001 - none may pass: their texts can hold the value
        code = _code(error)
    raise UpstreamError(_MESSAGES[code], code=code)


def _code(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "upstream_timeout"
    if isinstance(error, h11.RemoteProtocolError) and getattr(error, "error_status_hint", 0) == 501:
        return "response_withheld"  # a transfer coding that h11 does not undo: nothing could be redacted in it
    return "upstream_tls" if isinstance(error, ssl.SSLError) else "upstream_unreachable"


_MESSAGES = {
    "upstream_timeout": "the upstream did not answer in time",
    "upstream_tls": "TLS with the upstream failed, or its certificate is not valid for the host",
    "upstream_unreachable": "the upstream could not be reached, or did not answer in valid HTTP",
    "response_withheld": "the answer's transfer coding is not one that we read",
}
