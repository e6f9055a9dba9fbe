"""A connected socket with or without TLS, and the time limits of what happens on it.

Promises: no wait without a limit; ``abort`` from any thread wakes whatever waits here; and bytes that were meant for
TLS never go out without it. The last is why ``read`` and ``write`` of ``ssl.SSLSocket`` are used and not ``recv`` and
``send``: those fall back to the bare socket the moment that the TLS object is gone, and a ``shutdown`` or ``close`` in
another thread takes it away. Imports nothing of ours but the ``Patience`` type.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable

from broker_core.ports import Patience

#: the seconds of the next wait; raises TimeoutError when none are left
Seconds = Callable[[], float]

#: one TLS record: what was written is then known after each, and so is whether the other side still reads
_MOST_AT_ONCE = 16_384


class Timing:
    """The limits of one exchange, counted from now."""

    def __init__(self, monotonic: Callable[[], float], patience: Patience) -> None:
        self._monotonic = monotonic
        self._patience = patience
        self._ends = monotonic() + patience.total

    def answer(self) -> Seconds:
        """Begin a phase that has ``patience.answer`` seconds: the connecting, or the wait for the answer's head."""
        ends = min(self._ends, self._monotonic() + self._patience.answer)
        return lambda: self._until(ends)

    def idle(self) -> float:
        """The seconds of a wait between two bytes. A ``Seconds``."""
        return min(self._until(self._ends), self._patience.idle)

    def _until(self, ends: float) -> float:
        left = ends - self._monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class Wire:
    """One connection. A single thread reads, writes and closes; any thread may abort."""

    def __init__(self, sock: socket.socket, since: float) -> None:
        """``since``: when it was opened, by the monotonic clock."""
        sock.setblocking(False)
        self.since = since
        self._sock = sock
        self._lock = threading.Lock()  # between abort and close: a closed number may by then be somebody else's socket
        self._is_closed = False
        self._is_aborted = False

    def read_some(self, size: int) -> bytes | None:
        """What is there, up to ``size`` bytes; ``b""`` at the end, None where nothing is there yet."""
        try:
            data = self._sock.read(size) if isinstance(self._sock, ssl.SSLSocket) else self._sock.recv(size)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        if not data and self._is_aborted:  # not the upstream's end: a body that ends with its connection has not ended
            raise ConnectionAbortedError
        return data

    def read(self, size: int, seconds: Seconds) -> bytes:
        """Wait until something is there, or the end. Raises TimeoutError, also where there is always something."""
        while True:
            left = seconds()
            data = self.read_some(size)
            if data is not None:
                return data
            self.wait(select.POLLIN, left)

    def write_some(self, data: memoryview) -> int:
        """Write up to a record; how many bytes went, 0 where none can go now."""
        piece = data[:_MOST_AT_ONCE]
        try:
            return self._sock.write(piece) if isinstance(self._sock, ssl.SSLSocket) else self._sock.send(piece)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def wait(self, events: int, seconds: float) -> None:
        """Wait for ``select.POLLIN`` or ``POLLOUT``. Raises TimeoutError, and ConnectionAbortedError once aborted."""
        poll = select.poll()
        poll.register(self._sock, events)
        if not poll.poll(seconds * 1000):
            raise TimeoutError
        if self._is_aborted:
            raise ConnectionAbortedError

    def is_quiet(self) -> bool:
        """Whether an idle connection is still what it should be: open, with nothing to read. (A TLS session ticket is
        taken in on the way, and is nothing.)"""
        try:
            return self.read_some(1) is None
        except Exception:  # noqa: BLE001 - reset, a TLS alert, anything: it is not used
            return False

    def abort(self) -> None:
        """End it from any thread: what waits here raises at once. Closing is left to the thread that uses it."""
        with self._lock:
            if self._is_closed:
                return
            self._is_aborted = True
            try:
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)  # SSLSocket's own would first drop the TLS object
            except OSError:
                return  # the other side was first

    def close(self) -> None:
        """Close it. Safe more than once."""
        with self._lock:
            self._is_closed = True
            try:
                self._sock.close()
            except OSError:
                return  # closed all the same; what the other side did meanwhile is no news


def opened(address: str, port: int, context: ssl.SSLContext | None, name: str, seconds: Seconds) -> socket.socket:
    """Connect, and finish TLS with the certificate checked for ``name``, where there is a context."""
    sock = socket.create_connection((address, port), seconds())
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(seconds())  # for the handshake, which OpenSSL's binding bounds as a whole
        return sock if context is None else context.wrap_socket(sock, server_hostname=name)
    except BaseException:
        sock.close()
        raise
