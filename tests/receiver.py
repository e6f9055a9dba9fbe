"""A receiver of notices on loopback, as the platform would be, or as it should not be.

It records every request as it came. ``answer`` says what it does: a status, or one of the bad manners below; it may be
changed while it runs.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from broker_core import notice_signature

SECRET = "a-shared-secret-of-the-tests"
#: bad manners, beside a status
HANGS, DRIPS, HUGE, NO_HTTP = "hangs", "drips", "huge", "no http"


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    #: Unix seconds
    at: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        return self.headers["axiorank-id"]

    @property
    def notice(self) -> Any:
        return json.loads(self.body)

    def verify(self, now: float, secret: str = SECRET) -> None:
        """Raises Unauthorized."""
        notice_signature.check([secret], self.headers["axiorank-signature"], self.body, now)


@dataclass
class Receiver:
    """What was received, and how to answer."""

    url: str
    answer: int | str = 204
    requests: list[Received] = field(default_factory=list)
    #: set at the end, so that nothing that hangs outlives the test
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def environment(self) -> dict[str, str]:
        """The settings that lead here."""
        return {"BROKER_WEBHOOK_URL": self.url, "BROKER_WEBHOOK_SECRET": SECRET}


@contextmanager
def receiving(context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Receiver]:
    """A receiver on a port of its own, over TLS where there is a context."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.requests.append(Received(self.path, headers, body))
            _behave(self, receiver)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            """Nothing."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A sender that goes away, or wants another certificate, is part of the tests."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        receiver = Receiver(f"{scheme}://{host}:{server.server_port}/hooks?tenant=1")
        thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.over.set()
            server.shutdown()
            thread.join()


def _behave(handler: BaseHTTPRequestHandler, receiver: Receiver) -> None:
    match receiver.answer:
        case int(status):
            handler.send_response(status)
            if 300 <= status < 400:
                handler.send_header("Location", receiver.url)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        case "hangs":
            receiver.over.wait(60)
        case "drips":
            handler.wfile.write(b"HTTP/1.1 204 No Content\r\n")
            while not receiver.over.wait(0.02):
                handler.wfile.write(b"X-More: of this\r\n")
        case "huge":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
            while not receiver.over.is_set():
                handler.wfile.write(b"x" * 65_536)
        case _:
            handler.wfile.write(b"\0" * 100)
