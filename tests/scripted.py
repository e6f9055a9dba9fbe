"""A server of bare sockets on loopback, for what no correct HTTP server does: it answers early, stops reading, says
more than it was asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HEAD = b"HTTP/1.1 200 OK\r\n"
OK = HEAD + b"Content-Length: 2\r\n\r\nok"


class Script:
    """A running server. ``serve`` is called with each connection, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, name="script", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._run, args=(connection,), name="scripted", daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        try:
            self._serve(connection)
        except OSError:
            return  # the client went away

    def close(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        finally:
            self._listener.close()
        for connection in self.connections:
            connection.close()


@contextmanager
def scripted(serve: Callable[[socket.socket], None]) -> Iterator[Script]:
    """Serve for the length of the block."""
    script = Script(serve)
    try:
        yield script
    finally:
        script.close()


def read_head(connection: socket.socket) -> bytes:
    """What comes up to the end of a head, and what came with it; empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    return data


def answering(*answers: bytes) -> Callable[[socket.socket], None]:
    """Answer one request (of no body) after another on each connection, then wait for its end."""

    def serve(connection: socket.socket) -> None:
        for answer in answers:
            if not read_head(connection):
                return
            connection.sendall(answer)
        connection.recv(1)

    return serve


def holding(until: threading.Event) -> Callable[[socket.socket], None]:
    """Neither read nor answer, until told."""

    def serve(_: socket.socket) -> None:
        until.wait(30)

    return serve
