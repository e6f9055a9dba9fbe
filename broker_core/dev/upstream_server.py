"""The sample upstream's HTTP/1.1: a thread per connection (its TLS, too), keep-alive, buffered writes, TCP_NODELAY.

Prints nothing, whatever happens: a request line may hold an injected query parameter. Imports ``upstream_routes``.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Protocol
from urllib.parse import urlsplit

from broker_core.dev.upstream_routes import RawResponse, Received, Response


class Recorder(Protocol):
    """Who is told what happens, and answers."""

    #: how many times everything was forgotten
    cleared: int

    def accepted(self) -> None:
        """A connection was accepted."""

    def shook_hands(self) -> None:
        """A TLS handshake was completed."""

    def answer(self, request: Received, since: int) -> Response | RawResponse:
        """The answer to a request that arrived in full; ``since``: ``cleared`` when it began."""


class Server(ThreadingMixIn, TCPServer):
    """A thread per connection; TLS in that thread, so that a client which never speaks holds up nobody."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, recorder: Recorder, context: ssl.SSLContext | None) -> None:
        self.recorder = recorder
        self._context = context
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Connection)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self.recorder.accepted()
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            secured = self._secure(request)
        except OSError:  # the client refused our certificate, or spoke no TLS
            request.close()
            return
        with self._lock:
            self._open.add(secured)
        super().process_request_thread(secured, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; and a traceback would print what was injected."""

    def cut_all(self) -> None:
        with self._lock:
            left, self._open = self._open, set()
        for connection in left:
            _cut(connection)

    def _secure(self, request: socket.socket) -> socket.socket:
        if self._context is None:
            return request
        secured = self._context.wrap_socket(request, server_side=True)
        self.recorder.shook_hands()
        return secured


class _Connection(BaseHTTPRequestHandler):
    """One connection: requests one after another, each written in one piece."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # buffered: headers and a short body leave in one packet
    server: Server

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        since = self.server.recorder.cleared
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        answer = self.server.recorder.answer(self._received(), since)
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


def _cut(connection: socket.socket, *, politely: bool = True) -> None:
    try:
        if politely:
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        return  # the client was first
