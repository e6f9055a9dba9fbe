"""The way out: one request on one connection to one pinned address, within one deadline.

It promises what the ``Upstream`` port promises, and in particular what a client library does not do by itself: nothing
is followed, retried, pooled or proxied; the certificate is checked for the name while the address is the pinned one;
the deadline bounds the sum of all waits (a server that drips a byte a minute ends too); and no exception of urllib3,
http.client, ssl or socket gets out, nor stays attached as a context: their texts quote URLs and headers.

urllib3's connection is used below its pool and below its own ``getresponse``, which logs the URL at WARNING when an
answer's headers are malformed. Imports no other adapter: what judges addresses is handed in.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from email.errors import FirstHeaderLineIsContinuationDefect, MissingHeaderBodySeparatorDefect
from os import PathLike
from typing import Protocol, TypeVar, cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import SSLError

from broker_core.errors import BrokerError, ConfigurationError, UpstreamError
from broker_core.ports import Clock, Destination, WireRequest

T = TypeVar("T")
#: seconds that are left; raises TimeoutError when none are
Remaining = Callable[[], float]

MOST_HEAD_BYTES = 131_072
LONGEST_LINE = 65_536
CHUNK = 65_536


class Gate(Protocol):
    """Who says where a line may go."""

    def pin(self, destination: Destination, seconds: float) -> str:
        """The address to connect to. Raises InjectionRefused, UpstreamError."""


class HttpsUpstream:
    """Opens lines. One TLS context for the process: TLS 1.2 or later, the system's trust, and a file of more CAs."""

    def __init__(self, gate: Gate, clock: Clock, ca_file: str | PathLike[str] | None = None) -> None:
        """``gate``: what resolves and judges addresses (``egress.Egress``). Raises ConfigurationError when ``ca_file``
        cannot be used."""
        self._gate = gate
        self._monotonic = clock.monotonic
        self._context = _tls_context(ca_file)

    def connect(self, destination: Destination, seconds: float) -> HttpLine:
        """See the port."""
        ends = self._monotonic() + seconds

        def remaining() -> float:
            left = ends - self._monotonic()
            if left <= 0:
                raise TimeoutError
            return left

        address = self._gate.pin(destination, seconds)
        line = HttpLine(self._connection(destination, address, remaining), remaining)
        line.open()
        return line

    def _connection(self, destination: Destination, address: str, remaining: Remaining) -> _Plain | _Tls:
        if not destination.tls:
            return _Plain(address, destination.port, remaining)
        return _Tls(address, destination.port, remaining, self._context, destination.host)


def _tls_context(ca_file: str | PathLike[str] | None) -> ssl.SSLContext:
    # not ssl.create_default_context: it writes session keys to SSLKEYLOGFILE
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.load_default_certs()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError):
            raise ConfigurationError("BROKER_EGRESS_CA_FILE: not a readable file of PEM certificates") from None
    return context


class _Response(http.client.HTTPResponse):
    """An answer is only read. ``flush`` would reach for a socket that a broken answer has closed: Python 3.13 prints
    that."""

    def flush(self) -> None:
        """Nothing is ever written here."""


class _Plain(HTTPConnection):
    """Plain http, to an allowed loopback address."""

    response_class = _Response

    def __init__(self, address: str, port: int, remaining: Remaining) -> None:
        super().__init__(address, port)
        self._remaining = remaining

    def _new_conn(self) -> socket.socket:
        return _connected(self.host, self.port, self._remaining)


class _Tls(HTTPSConnection):
    """https. ``server_hostname`` alone makes OpenSSL itself check the certificate for the name; ``assert_hostname``
    would switch that off on the shared context."""

    response_class = _Response

    def __init__(self, address: str, port: int, remaining: Remaining, context: ssl.SSLContext, name: str) -> None:
        super().__init__(address, port, ssl_context=context, server_hostname=name)
        self._remaining = remaining

    def _new_conn(self) -> socket.socket:
        return _connected(self.host, self.port, self._remaining)


def _connected(address: str, port: int, remaining: Remaining) -> socket.socket:
    sock = socket.create_connection((address, port), remaining())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(remaining())  # for the handshake, which OpenSSL's binding bounds as a whole
    return sock


class HttpLine:
    """One connection, for one exchange."""

    def __init__(self, connection: _Plain | _Tls, remaining: Remaining) -> None:
        self._connection = connection
        self._remaining = remaining
        self._sock: socket.socket | None = None

    def open(self) -> None:
        """Connect and finish TLS."""
        try:
            translated(self._open)
        except UpstreamError:
            self.close()
            raise

    def _open(self) -> None:
        self._connection.connect()
        self._sock = self._connection.sock
        self._connection.auto_open = 0  # never connect a second time, so never send a second time
        self._connection.sock = cast(socket.socket, _TimedSocket(self._sock, self._remaining))

    def send(self, request: WireRequest) -> HttpAnswer:
        """See the port."""
        return translated(lambda: self._send(request))

    def _send(self, request: WireRequest) -> HttpAnswer:
        connection = self._connection
        reader = cast(_TimedSocket, connection.sock).reader
        connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, text in request.headers:
            connection.putheader(name, text)
        connection.putheader("Connection", "close")  # no second exchange could read what this one left
        connection.endheaders(request.body or None)
        reader.skip_interim()
        response = http.client.HTTPConnection.getresponse(connection)
        reader.is_in_head = False
        if response.status < 200:  # a status line that is spelt in a way which skip_interim does not know
            raise http.client.UnknownProtocol("1xx")
        return HttpAnswer(response, has_body=request.method != "HEAD", close=self.close)

    def close(self) -> None:
        """See the port."""
        sock = self._sock or self._connection.sock
        if sock is not None:
            sock.close()
        self._sock = None


class HttpAnswer:
    """See the port."""

    def __init__(self, response: http.client.HTTPResponse, has_body: bool, close: Callable[[], None]) -> None:
        self.status = response.status
        self.reason = _visible(response.reason)
        self.headers: Sequence[tuple[str, str]] = _checked_headers(response)
        self._response = response
        self._has_body = has_body and response.status not in (204, 304)
        self.close = close

    def chunks(self) -> Iterator[bytes]:
        """See the port."""
        while self._has_body and (chunk := translated(self._read)):
            yield chunk

    def _read(self) -> bytes:
        chunk = self._response.read1(CHUNK)
        if not chunk and self._response.length:
            raise http.client.IncompleteRead(b"")  # read1 takes an early end for the end
        return chunk


def _checked_headers(response: http.client.HTTPResponse) -> list[tuple[str, str]]:
    """The headers, unfolded. Refuses an answer that two readers could read in two ways."""
    message = response.msg
    broken = (MissingHeaderBodySeparatorDefect, FirstHeaderLineIsContinuationDefect)
    if any(isinstance(defect, broken) for defect in message.defects):
        raise UpstreamError("the upstream's answer is not valid HTTP")
    lengths = set(message.get_all("content-length", []))
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]{1,18}", length.strip()) for length in lengths):
        raise UpstreamError("the upstream's answer is not valid HTTP")
    codings = [coding.strip().lower() for coding in message.get_all("transfer-encoding", [])]
    if codings and codings != ["chunked"]:
        # http.client would hand a gzip transfer coding on as it is, and nothing could be redacted in it
        raise UpstreamError("the answer's transfer coding is not one that we read", code="response_withheld")
    return [(name, _visible(re.sub(r"[\r\n]+[ \t]*", " ", text))) for name, text in message.items()]


def _visible(text: str) -> str:
    """Without controls: some reader drops them, and what it then reads must be what was looked through."""
    return re.sub(r"[\x00-\x08\x0a-\x1f\x7f]", "", text)


class _TimedSocket:
    """Stands where http.client expects a socket; gives every wait what is left of the deadline."""

    def __init__(self, sock: socket.socket, remaining: Remaining) -> None:
        self._sock = sock
        self._remaining = remaining
        self.reader = _Reader(_Raw(sock, remaining), CHUNK)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._sock.settimeout(self._remaining())
            view = view[self._sock.send(view) :]

    def makefile(self, _mode: str) -> _Reader:
        return self.reader

    def close(self) -> None:
        """Left to the line: http.client closes before the body was read."""


class _Raw(io.RawIOBase):
    def __init__(self, sock: socket.socket, remaining: Remaining) -> None:
        self._sock = sock
        self._remaining = remaining

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # what BufferedReader passes
        self._sock.settimeout(self._remaining())
        return self._sock.recv_into(buffer)


class _Reader(io.BufferedReader):
    """Counts the bytes of the head, so that a flood of headers ends, and skips interim answers."""

    is_in_head = True
    _head_bytes = 0
    _put_back = b""

    def readline(self, size: int | None = -1, /) -> bytes:
        if self._put_back:
            line, self._put_back = self._put_back, b""
            return line
        line = super().readline(LONGEST_LINE + 1 if size is None or size < 0 else min(size, LONGEST_LINE + 1))
        self._head_bytes += len(line) if self.is_in_head else 0
        if len(line) > LONGEST_LINE or self._head_bytes > MOST_HEAD_BYTES:
            raise http.client.LineTooLong("head")
        return line

    def skip_interim(self) -> None:
        """Read past 1xx answers (RFC 9110 §15.2); http.client knows 100 alone. 101 would change the protocol."""
        while re.match(rb"HTTP/1\.[0-9] 1[0-9][0-9]\b", line := self.readline()):
            if line[9:12] == b"101":
                raise http.client.UnknownProtocol("101")
            while self.readline() not in (b"\r\n", b"\n", b""):
                pass
        self._put_back = line


def translated(work: Callable[[], T]) -> T:
    """Do it; whatever a library raises becomes an UpstreamError with a code of ours. It is raised after the foreign
    exception was let go, so that not even its context holds one."""
    try:
        return work()
    except BrokerError:
        raise
    except Exception as error:  # noqa: BLE001 - none may pass: their texts can hold the value
        code = _code(error)
    raise UpstreamError(_MESSAGES[code], code=code)


def _code(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "upstream_timeout"
    return "upstream_tls" if isinstance(error, (ssl.SSLError, SSLError)) else "upstream_unreachable"


_MESSAGES = {
    "upstream_timeout": "the upstream did not answer in time",
    "upstream_tls": "TLS with the upstream failed, or its certificate is not valid for the host",
    "upstream_unreachable": "the upstream could not be reached, or did not answer in valid HTTP",
}
