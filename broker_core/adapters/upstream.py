"""The way out: one request on one connection to one pinned address, within one deadline.

It promises what the ``Upstream`` port promises, and in particular what a client library does not do by itself: nothing
is followed, retried or proxied; the certificate is checked for the name while the address is the pinned one; the
deadline bounds the sum of all waits (a server that drips a byte a minute ends too); a connection is used again only
under the rules of ``upstream_pool``, and never for another workspace.

The parts: ``upstream_wire`` (socket, TLS, waiting), ``upstream_exchange`` (HTTP/1.1, by h11), ``upstream_line`` (who
may end it, and which errors get out), ``upstream_pool``. There is no HTTP client below: each of them would bring pools,
retries, logs and exceptions of its own, all of which quote what was sent. Imports no other adapter: what judges
addresses is handed in.
"""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Sequence
from os import PathLike
from typing import Protocol

from broker_core.adapters.upstream_line import HttpAnswer, HttpLine, translated
from broker_core.adapters.upstream_pool import Place, Pool
from broker_core.adapters.upstream_wire import Seconds, Timing, Wire, opened
from broker_core.errors import ConfigurationError
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
        self._context = _tls_context(ca_file)
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


def _tls_context(ca_file: str | PathLike[str] | None) -> ssl.SSLContext:
    # not ssl.create_default_context: it writes session keys to SSLKEYLOGFILE
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.hostname_checks_common_name = False
    _trust_the_system(context)
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError):
            raise ConfigurationError("BROKER_EGRESS_CA_FILE: not a readable file of PEM certificates") from None
    return context


def _trust_the_system(context: ssl.SSLContext) -> None:
    """The places that OpenSSL was built with. Not ``load_default_certs``, which lets SSL_CERT_FILE and SSL_CERT_DIR of
    the environment replace them: whom we trust is a setting of ours, checked at the start."""
    paths = ssl.get_default_verify_paths()
    for kind, path in (("cafile", paths.openssl_cafile), ("capath", paths.openssl_capath)):
        try:
            context.load_verify_locations(**{kind: path})
        except (OSError, ssl.SSLError):
            continue  # most systems have only one of the two
