"""A proxy before PostgreSQL that counts turns on the wire: how often a client spoke again after the server had.

That is what a round trip costs, whatever a driver calls it: a pipelined batch is one turn, a statement that is prepared
before it is run is two. A lone Flush, which psycopg sends behind a Sync, asks nothing: it is no turn.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from sqlalchemy import make_url

#: https://www.postgresql.org/docs/current/protocol-message-formats.html
_FLUSH = b"H\x00\x00\x00\x04"


@dataclass
class _Flow:
    """One client's connection and the server's."""

    client: socket.socket
    server: socket.socket
    turns: int = 0
    server_spoke_last: bool = True


class CountingProxy:
    """Listens on loopback in front of the database at ``url``. A context manager."""

    def __init__(self, url: str) -> None:
        """``url`` as SQLAlchemy writes it, over TCP or a Unix socket."""
        self._target = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._flows: list[_Flow] = []
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="counting-proxy", daemon=True)

    @property
    def url(self) -> str:
        """Where clients connect, without TLS, so that a connection costs no turns beyond PostgreSQL's own."""
        query = {"sslmode": "disable", "gssencmode": "disable"}
        port = self._listener.getsockname()[1]
        return self._target.set(host="127.0.0.1", port=port, query=query).render_as_string(hide_password=False)

    @property
    def turns(self) -> int:
        """Turns so far, of all connections."""
        return sum(flow.turns for flow in self._flows)

    @contextmanager
    def counting(self) -> Iterator[list[int]]:
        """Count the block's turns; the list holds the number once the block has ended."""
        before, counted = self.turns, [0]
        yield counted
        counted[0] = self.turns - before

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join(timeout=20)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, None)
            selector.register(self._woken, selectors.EVENT_READ, None)
            while self._step(selector):
                pass
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]  # only sockets are registered

    def _step(self, selector: selectors.BaseSelector) -> bool:
        for key, _ in selector.select():
            if key.fileobj is self._woken:
                return False
            if key.fileobj is self._listener:
                self._accept(selector)
            elif isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() != -1:
                self._pass_on(selector, key.data, key.fileobj)
        return True

    def _accept(self, selector: selectors.BaseSelector) -> None:
        client, _ = self._listener.accept()
        flow = _Flow(client, self._connect())
        self._flows.append(flow)
        for end in (flow.client, flow.server):
            selector.register(end, selectors.EVENT_READ, flow)

    def _connect(self) -> socket.socket:
        host, port = self._target.query.get("host") or self._target.host or "127.0.0.1", self._target.port or 5432
        if not str(host).startswith("/"):
            return socket.create_connection((str(host), port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _pass_on(self, selector: selectors.BaseSelector, flow: _Flow, source: socket.socket) -> None:
        from_client = source is flow.client
        try:
            data = source.recv(65536)
            if from_client and data.replace(_FLUSH, b""):
                flow.turns += flow.server_spoke_last
                flow.server_spoke_last = False
            if data:
                flow.server_spoke_last = flow.server_spoke_last or not from_client
                (flow.server if from_client else flow.client).sendall(data)
        except OSError:
            data = b""
        if not data:
            for end in (flow.client, flow.server):
                selector.unregister(end)
                end.close()
