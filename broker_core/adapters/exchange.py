"""One HTTP request to the platform, on a connection of its own: notices go out so, and the token keys come in.

Promises: https, or plain http to a literal loopback address; bounded as a whole (name, connecting, TLS, an answer that
drips, its head too); nothing is followed or sent twice; no proxy, netrc or certificate of the environment. Imports no
other adapter but ``tls``.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import closing, suppress
from http.client import HTTPException
from os import PathLike
from typing import TypeVar
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ProtocolError
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from broker_core.adapters.tls import client_context

Read = TypeVar("Read")


class Endpoint:
    """A URL of the platform's. It may hold a token, so it is never shown."""

    def __init__(
        self, url: str, ca_file: str | PathLike[str] | None = None, *, connect_seconds: float, wait_seconds: float
    ) -> None:
        """``ca_file``: CAs trusted beside the system's. ``connect_seconds``: for each address that is tried, and each
        wait of its TLS; ``wait_seconds``: for each single wait of the exchange. Raises ValueError for what is no URL or
        plain http off loopback, and ConfigurationError for a file that holds no CAs."""
        parts = urlsplit(url)
        is_tls, host = parts.scheme == "https", (parts.hostname or "").lower()
        # a name can come to point elsewhere
        self._host = "127.0.0.1" if not is_tls and host == "localhost" else host
        if not is_tls and not _is_loopback(self._host):
            raise ValueError("plain http leads to loopback only")
        self._port = parts.port or (443 if is_tls else 80)
        self._target = parse_url(url).request_uri
        self._context = client_context(ca_file) if is_tls else None
        self._connect_seconds = connect_seconds
        self._wait_seconds = wait_seconds

    def request(
        self,
        method: str,
        headers: Mapping[str, str],
        read: Callable[[BaseHTTPResponse], Read],
        *,
        seconds: float,
        body: bytes | None = None,
    ) -> Read:
        """Send it once, and return what ``read`` makes of the answer.

        Raises TimeoutError when it is not over in ``seconds``, what ``read`` raises, OSError or urllib3's HTTPError.
        """
        connection = self._connection(min(seconds, self._connect_seconds))
        exchange = _Exchange(connection, min(seconds, self._wait_seconds))
        answer: Future[Read] = Future()

        def run() -> None:
            try:
                answer.set_result(exchange.run(method, self._target, headers, body, read))
            except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
                answer.set_exception(error)

        # a thread of its own: a lookup cannot be cut short, and what drips ends each single wait in time
        try:
            threading.Thread(target=run, name="exchange", daemon=True).start()
        except RuntimeError:
            raise OSError("this process has no thread left") from None
        try:
            return answer.result(seconds)
        except BaseException:
            exchange.abort()
            raise

    def _connection(self, seconds: float) -> HTTPConnection:
        if self._context is None:
            return HTTPConnection(self._host, self._port, timeout=seconds)
        return HTTPSConnection(self._host, self._port, timeout=seconds, ssl_context=self._context)


class _Exchange:
    """One request, which another thread may end."""

    def __init__(self, connection: HTTPConnection, wait_seconds: float) -> None:
        self._connection = connection
        self._wait_seconds = wait_seconds
        self._is_over = threading.Event()
        #: kept here: http.client forgets the connection's own where the answer ends with it
        self._socket: socket.socket | None = None

    def run(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
        read: Callable[[BaseHTTPResponse], Read],
    ) -> Read:
        """Send it, and read the answer."""
        try:
            self._connection.connect()
            self._socket = self._connection.sock
            if self._socket is None or self._is_over.is_set():
                raise TimeoutError
            self._socket.settimeout(self._wait_seconds)
            self._connection.timeout = self._wait_seconds  # which getresponse() sets again
            self._connection.request(
                method, target, body=body, headers=headers, preload_content=False, decode_content=False
            )
            with closing(self._connection.getresponse()) as answer:
                return read(answer)
        except HTTPException as error:
            raise ProtocolError(type(error).__name__) from None  # as urllib3's pools do; its text quotes the answer
        finally:
            self._connection.close()

    def abort(self) -> None:
        """End it: what waits on the socket raises. A connection that is still being opened ends by its own limit."""
        self._is_over.set()
        if self._socket is not None:
            with suppress(OSError):
                # SSLSocket's own would first drop the TLS object
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
