"""The sample upstream's HTTP/1.1: a thread per connection (its TLS, too), keep-alive, buffered writes, TCP_NODELAY.

Who asks ``forget`` gets a clean cut: what a client did before it, however late a thread here comes to it, is told with
the number of the time before. Prints nothing, whatever happens: a request line may hold an injected query parameter.
Imports ``upstream_routes``.
"""

from __future__ import annotations

import io
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Protocol
from urllib.parse import urlsplit

from broker_core.dev.upstream_routes import RawResponse, Received, Response


class Recorder(Protocol):
    """Who is told what happens, and answers. ``since``: how often everything had been forgotten when it began."""

    def accepted(self, since: int) -> None:
        """A connection was accepted."""

    def asked_for(self, name: str | None, since: int) -> None:
        """A TLS handshake asked for this name."""

    def shook_hands(self, since: int) -> None:
        """A TLS handshake was completed."""

    def answer(self, request: Received, since: int) -> Response | RawResponse:
        """The answer to a request that arrived in full."""


@dataclass
class _Client:
    """Who connected. ``since``: when what is on its way from it began; None while nothing is."""

    since: int | None


class Server(ThreadingMixIn, TCPServer):
    """A thread per connection; TLS in that thread, so that a client which never speaks holds up nobody."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, recorder: Recorder, context: ssl.SSLContext | None) -> None:
        self.recorder = recorder
        #: how many times everything was forgotten
        self.cleared = 0
        self._context = context
        self._here = threading.local()
        if context is not None:
            context.sni_callback = lambda _socket, name, _context: recorder.asked_for(name, self._here.since)
        self._open: dict[socket.socket, _Client] = {}
        self._knocks: set[Any] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Connection)

    def forget(self) -> None:
        """Count anew: what clients have sent or opened before this belongs to what was before."""
        self._catch_up()
        with self._lock:
            for connection, client in self._open.items():
                if client.since is None and _is_readable(connection, 0):
                    client.since = self.cleared
            self.cleared += 1

    def begun(self, client: _Client) -> int:
        """When the request began that is on its way from this client: now, if none was."""
        with self._lock:
            if client.since is None:
                client.since = self.cleared
            return client.since

    def ended(self, client: _Client) -> None:
        """Its request was read. To be said before it has the answer, and can send the next."""
        with self._lock:
            client.since = None

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return client_address not in self._knocks

    def process_request(self, request: Any, client_address: Any) -> None:
        client = _Client(self.cleared)
        self.recorder.accepted(self.cleared)
        super().process_request(request, client)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            secured = self._secure(request, self.begun(client_address))
        except OSError:  # the client refused our certificate, or spoke no TLS
            request.close()
            return
        with self._lock:
            self._open[secured] = client_address
        super().process_request_thread(secured, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; and a traceback would print what was injected."""

    def cut_all(self) -> None:
        with self._lock:
            left = list(self._open)
            self._open.clear()
        for connection in left:
            _cut(connection)

    def _catch_up(self) -> None:
        """Accept whatever waits to be: connections are accepted in order, and this one is the last."""
        with socket.socket() as knock:
            knock.settimeout(20)
            knock.bind(("127.0.0.1", 0))
            self._knocks.add(knock.getsockname())
            try:
                knock.connect(self.server_address)
                knock.recv(1)
            finally:
                self._knocks.discard(knock.getsockname())

    def _secure(self, request: socket.socket, since: int) -> socket.socket:
        if self._context is None:
            return request
        self._here.since = since
        secured = self._context.wrap_socket(request, server_side=True)
        self.recorder.shook_hands(since)
        return secured


class _Arriving(io.RawIOBase):
    """What a client sends. Nothing is taken from its socket before ``begun`` was told."""

    def __init__(self, connection: socket.socket, begun: Callable[[], object]) -> None:
        self._connection = connection
        self._begun = begun

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        _is_readable(self._connection)
        self._begun()
        return self._connection.recv_into(buffer)


class _Connection(BaseHTTPRequestHandler):
    """One connection: requests one after another, each written in one piece."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # buffered: headers and a short body leave in one packet
    server: Server
    client_address: _Client  # type: ignore[assignment]  # a name of the base class's; it is passed on and no more

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        arriving = _Arriving(self.connection, lambda: self.server.begun(self.client_address))
        self.rfile = io.BufferedReader(arriving, 65_536)

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        request, since = self._received(), self.server.begun(self.client_address)
        self.server.ended(self.client_address)
        answer = self.server.recorder.answer(request, since)
        if isinstance(answer, RawResponse):
            self._send_raw(answer)
        else:
            self._send(answer)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Nothing: a request line may hold an injected query parameter."""

    def _received(self) -> Received:
        target = urlsplit(self.path)
        body = b"".join(self._body())
        return Received(self.command, target.path, target.query, tuple(self.headers.items()), body)

    def _body(self) -> Iterator[bytes]:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            yield self._exactly(int(self.headers.get("Content-Length", "0")))
            return
        while size := int(self.rfile.readline(1024).split(b";")[0], 16):
            yield self._exactly(size)
            self.rfile.readline(3)
        while self.rfile.readline(65537).strip():
            continue  # trailers

    def _exactly(self, size: int) -> bytes:
        """Raises ConnectionError where the client went away before: that is no request."""
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError
        return body

    def _send(self, answer: Response) -> None:
        bodiless = self.command == "HEAD" or answer.status in (204, 304) or answer.status < 200
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        whole = isinstance(answer.body, bytes)
        if isinstance(answer.body, bytes) and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(answer.body)))
        elif not whole:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if bodiless:
            return
        if isinstance(answer.body, bytes):
            self.wfile.write(answer.body)
        else:
            self._send_chunks(answer.body)

    def _send_chunks(self, body: Iterable[bytes]) -> None:
        self.wfile.flush()
        for chunk in body:
            if chunk:  # an empty chunk would end the body
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _send_raw(self, answer: RawResponse) -> None:
        for chunk in answer.chunks:
            self.wfile.write(chunk)
            self.wfile.flush()
        self.close_connection = True
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            _cut(self.connection, politely=False)


def _is_readable(connection: socket.socket, milliseconds: float | None = None) -> bool:
    """Whether there is something to read, or the end; waits for it, for ever unless told for how long."""
    number = connection.fileno()
    if number < 0 or (isinstance(connection, ssl.SSLSocket) and connection.pending()):
        return True
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(milliseconds))


def _cut(connection: socket.socket, *, politely: bool = True) -> None:
    try:
        if politely:
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        return  # the client was first
