"""A sample upstream on loopback TLS that records what it received: the demo injects into it, tests attack with it.

Correct HTTP/1.1 with keep-alive for its ordinary routes; and for a test that needs an answer no correct server gives, a
``RawResponse`` sends its bytes as they are and closes. It serves 127.0.0.1 only, with a certificate of a CA made on the
spot, whose file (a certificate, no key) is in the system's temp while it runs.

Routes: ``/echo`` (what came, as JSON), ``/status/<n>``, ``/redirect?to=``, ``/sse?events=``, ``/slow?chunks=&seconds=``
(a chunk every ``seconds``), ``/hang`` (no answer while it runs), ``/reset`` (RST instead of an answer), ``/gzip`` (an
encoded echo), ``/hostile/<name>`` (see ``upstream_hostile``); any other path answers ``{"ok": true}``. ``route`` adds
or replaces one.

Imports ``places``, ``upstream_hostile``, ``upstream_routes``, ``upstream_server``; trustme when it starts.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, Self

from broker_core.dev import places
from broker_core.dev.upstream_hostile import HOSTILE
from broker_core.dev.upstream_routes import BUILT_IN, RawResponse, Received, Response, Route, as_json
from broker_core.dev.upstream_server import Server

__all__ = ["NAMES", "RawResponse", "Received", "Response", "SampleUpstream", "as_json"]

NAMES = ("localhost", "upstream.test", "127.0.0.1")
Certificate = Literal["trusted", "self-signed", "expired"]
_ROUTES = {**BUILT_IN, **{f"/hostile/{name}": route for name, route in HOSTILE.items()}}

#: it must also have begun before it ended
_EXPIRED = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC))


class SampleUpstream:
    """A running upstream. A context manager; its threads are daemons."""

    def __init__(self, *, names: Sequence[str], tls: bool, certificate: Certificate) -> None:
        """Use ``start``."""
        self.names = tuple(names)
        self.tls = tls
        self._directory = places.fresh("upstream")
        #: the CA to trust for it (PEM); with ``self-signed`` a CA that did not sign its certificate
        self.ca_file = self._directory / "ca.pem"
        #: the name each TLS handshake asked for (SNI); None if it named none
        self.server_names: list[str | None] = []
        context = self._certify(certificate)
        self.requests: list[Received] = []
        self.connections_accepted = 0
        self.handshakes_completed = 0
        self._routes: dict[str, Route] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._server = Server(self, context if tls else None)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="sample-upstream", daemon=True).start()

    @classmethod
    def start(
        cls, names: Sequence[str] = NAMES, *, tls: bool = True, certificate: Certificate = "trusted"
    ) -> SampleUpstream:
        """Start one on 127.0.0.1. ``names`` stand in its certificate; ``certificate`` other than ``trusted`` is for
        tests of a client's refusal."""
        return cls(names=names, tls=tls, certificate=certificate)

    @property
    def host(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def url(self) -> str:
        """``https://<first name>:<port>``, without a path."""
        return self.url_for(self.host)

    def url_for(self, name: str, path: str = "") -> str:
        """The URL under another of its names. ``upstream.test`` resolves nowhere: pin the address 127.0.0.1."""
        return f"{'https' if self.tls else 'http'}://{name}:{self.port}{path}"

    def route(self, path: str, answer: Route) -> None:
        """Answer this exact path by calling ``answer``, until ``clear``."""
        self._routes[path] = answer

    def wait_for(self, count: int, seconds: float = 10.0) -> list[Received]:
        """The requests, once there are at least ``count``. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, seconds):
                raise TimeoutError(f"{len(self.requests)} of {count} requests within {seconds:g} s")
            return list(self.requests)

    def clear(self) -> None:
        """Forget requests, counters and added routes; what is still on its way in is not recorded either."""
        self._server.forget()
        with self._changed:
            self.requests.clear()
            self.server_names.clear()
            self.connections_accepted = self.handshakes_completed = 0
        self._routes.clear()

    def close(self) -> None:
        """Stop, cut every open connection, remove the CA's file. May be called again."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_all()
        places.remove(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _certify(self, certificate: Certificate) -> ssl.SSLContext:
        import trustme

        authority = trustme.CA(organization_name="AxioRank sample upstream")
        authority.cert_pem.write_to_path(self.ca_file)
        signer = trustme.CA() if certificate == "self-signed" else authority
        begins, ends = _EXPIRED if certificate == "expired" else (None, None)
        issued = signer.issue_cert(*self.names, not_before=begins, not_after=ends)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        issued.configure_cert(context)
        return context

    def accepted(self, since: int) -> None:
        """For the server: count a connection."""
        with self._changed:
            self.connections_accepted += since == self._server.cleared

    def asked_for(self, name: str | None, since: int) -> None:
        """For the server: record the name that a handshake asked for."""
        with self._changed:
            if since == self._server.cleared:
                self.server_names.append(name)

    def shook_hands(self, since: int) -> None:
        """For the server: count a handshake."""
        with self._changed:
            self.handshakes_completed += since == self._server.cleared

    def answer(self, request: Received, since: int) -> Response | RawResponse:
        """For the server: record a request and answer it."""
        with self._changed:
            if since == self._server.cleared:
                self.requests.append(request)
                self._changed.notify_all()
        route = self._routes.get(request.path) or _ROUTES.get(request.path)
        if route is not None:
            return route(request)
        if request.path.startswith("/status/"):
            status = int(request.path.removeprefix("/status/"))
            return as_json({"status": status}, status)
        if request.path == "/hang":
            self._closing.wait()
            return RawResponse()
        return as_json({"ok": True})
