"""The way out: one request on one connection to one pinned address, within one deadline.

It promises what the ``Upstream`` port promises, and in particular what a client library does not do by itself: nothing
is followed, retried or proxied; the certificate is checked for the name while the address is the pinned one; the
deadline bounds the sum of all waits (a server that drips a byte a minute ends too); a connection is used again only
under the rules of ``upstream_pool``, and never for another workspace.

The parts: ``upstream_wire`` (socket, TLS, waiting), ``upstream_exchange`` (HTTP/1.1, by h11), ``upstream_line`` (who
may end it, and which errors get out), ``upstream_pool``. There is no HTTP client below: each of them would bring pools,
retries, logs and exceptions of its own, all of which quote what was sent. Imports no other adapter but ``tls``: what
judges addresses is handed in.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from os import PathLike
from typing import Protocol

from broker_core.adapters.tls import client_context
from broker_core.adapters.upstream_line import HttpAnswer, HttpLine, translated
from broker_core.adapters.upstream_pool import Place, Pool
from broker_core.adapters.upstream_wire import Seconds, Timing, Wire, opened
from broker_core.ports import Clock, Destination, Patience

__all__ = ["Gate", "HttpAnswer", "HttpLine", "HttpsUpstream"]


class Gate(Protocol):
    """Who says where a line may go."""

    def addresses(self, destination: Destination, seconds: float) -> Sequence[str]:
        """Every address of it, all of which passed; the first is the one to connect to. Raises InjectionRefused,
        UpstreamError."""


class HttpsUpstream:
    """Opens lines. One TLS context for the process: TLS 1.2 or later, the system's trust, and a file of more CAs."""

    def __init__(self, gate: Gate, clock: Clock, ca_file: str | PathLike[str] | None = None) -> None:
        """``gate``: what resolves and judges addresses (``egress.Egress``). Raises ConfigurationError when ``ca_file``
        cannot be used."""
        self._gate = gate
        self._monotonic = clock.monotonic
        self._context = client_context(ca_file)
        self._pool = Pool(clock.monotonic)
        self._finish = weakref.finalize(self, self._pool.close)

    def connect(self, destination: Destination, patience: Patience, pool: str) -> HttpLine:
        """See the port. Names are resolved and judged every time, also where a connection is used again: its address
        must still be one of the name's."""
        timing = Timing(self._monotonic, patience)
        connecting = timing.answer()
        addresses = translated(lambda: self._gate.addresses(destination, connecting()))
        places = [Place(pool, address, destination.port, destination.host, destination.tls) for address in addresses]
        kept = self._pool.take(places)
        place, wire = kept or (places[0], translated(lambda: self._open(places[0], connecting)))
        reopen = (lambda: self._open(place, timing.answer())) if kept else None
        return HttpLine(wire, timing, reopen, lambda wire: self._pool.put(place, wire))

    def close(self) -> None:
        """Close the connections that are kept. Safe more than once; lines that are under way end by themselves."""
        self._finish()

    def _open(self, place: Place, seconds: Seconds) -> Wire:
        context = self._context if place.tls else None
        return Wire(opened(place.address, place.port, context, place.name, seconds), self._monotonic())
