"""The platform's endpoint for notices: ``ports.Notifier`` over HTTP.

Promises: https, or plain http to a literal loopback address; one request on a connection of its own, bounded as a whole
(name, connecting, TLS, an answer that drips); nothing is followed or sent twice; no proxy, netrc or certificate of the
environment; of the answer the status is read and nothing else, so nothing of it can be logged. Imports no other
adapter but ``tls``.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from os import PathLike
from urllib.parse import SplitResult, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError

from broker_core.adapters.tls import client_context
from broker_core.errors import ConfigurationError
from broker_core.events import Notice
from broker_core.notice_signature import EVENT_HEADER, ID_HEADER, SIGNATURE_HEADER, signature
from broker_core.ports import Answer, Clock, Delivery

#: answers of a receiver that can take nothing now, whatever it is sent
_AWAY = frozenset({408, 429, *range(500, 600)})
#: seconds for each single wait; the sum is what ``send`` is given
_ONE_WAIT = 5.0


class Webhook:
    """Signs and sends notices to one URL."""

    def __init__(self, url: str, secret: str, clock: Clock, ca_file: str | PathLike[str] | None = None) -> None:
        """``url`` as ``Settings`` accepts it; it may hold a token, so it is never shown. ``ca_file``: CAs trusted
        beside the system's. Raises ConfigurationError."""
        parts = urlsplit(url)
        self._host, self._port = _place(parts)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._context = client_context(ca_file) if parts.scheme == "https" else None
        self._secret = secret
        self._clock = clock

    def send(self, notice: Notice, seconds: float) -> Delivery:
        """See ``ports.Notifier``."""
        body = notice.body()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "axiorank-secrets-broker",
            "Accept-Encoding": "identity",
            "Connection": "close",
            ID_HEADER: str(notice.id),
            EVENT_HEADER: notice.type.value,
            SIGNATURE_HEADER: signature([self._secret], int(self._clock.now().timestamp()), body),
        }
        exchange = _Exchange(self._connection(min(seconds, _ONE_WAIT)))
        answers: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        # a thread of its own: a lookup cannot be cut short, and what drips ends each single wait in time
        threading.Thread(
            target=lambda: answers.put(_told(lambda: exchange.run(self._target, headers, body))),
            name="webhook",
            daemon=True,
        ).start()
        try:
            return answers.get(timeout=seconds)
        except queue.Empty:
            exchange.abort()
            return Delivery(Answer.AWAY, "timeout")

    def _connection(self, seconds: float) -> HTTPConnection:
        timeout = urllib3.Timeout(connect=seconds, read=seconds)
        if self._context is None:
            return HTTPConnection(self._host, self._port, timeout=timeout.read_timeout)
        return HTTPSConnection(self._host, self._port, timeout=timeout.read_timeout, ssl_context=self._context)


class _Exchange:
    """One request, which another thread may end."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self._is_over = threading.Event()

    def run(self, target: str, headers: dict[str, str], body: bytes) -> int:
        """Send it; returns the answer's status."""
        try:
            self._connection.connect()
            if self._is_over.is_set():
                raise TimeoutError
            self._connection.request("POST", target, body=body, headers=headers, preload_content=False)
            return self._connection.getresponse().status
        finally:
            self._connection.close()

    def abort(self) -> None:
        """End it: what waits on the socket raises. A connection that is still being opened ends by its own limit."""
        self._is_over.set()
        sock = self._connection.sock
        if sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket's own would first drop the TLS object


def _told(run: Callable[[], int]) -> Delivery:
    """An exchange's end as the port says it: no exception gets out, since its text could quote what was sent."""
    try:
        status = run()
    except ssl.SSLError:
        return Delivery(Answer.AWAY, "tls")
    except NewConnectionError:  # in urllib3 a kind of time-out
        return Delivery(Answer.AWAY, "unreachable")
    except (TimeoutError, urllib3.exceptions.TimeoutError):
        return Delivery(Answer.AWAY, "timeout")
    except Exception:  # noqa: BLE001 - no name, refused, reset, no HTTP: whatever it is, nobody took the notice
        return Delivery(Answer.AWAY, "unreachable")
    if 200 <= status < 300:
        return Delivery(Answer.TAKEN, status=status)
    return Delivery(Answer.AWAY if status in _AWAY else Answer.REFUSED, "status", status)


def _place(parts: SplitResult) -> tuple[str, int]:
    """Host and port. Plain http goes to a literal loopback address only: a name can come to point elsewhere."""
    host, tls = (parts.hostname or "").lower(), parts.scheme == "https"
    if not tls:
        host = "127.0.0.1" if host == "localhost" else host
        if not _is_loopback(host):
            raise ConfigurationError("BROKER_WEBHOOK_URL must be https:// off loopback")
    return host, parts.port or (443 if tls else 80)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
