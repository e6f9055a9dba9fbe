"""Requests that two servers might read in two ways, at our own door: refused, and nothing is decrypted for them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from tests.live import AGENT
from tests.web import Web

VALUE = "ghp_0123456789abcdefghij"
CHUNKED = b"0\r\n\r\n"
HIDDEN = b"GET /api/v1/proxy HTTP/1.1\r\nHost: b\r\n\r\n"


class Door:
    """The application behind its real server, spoken to in bytes."""

    def __init__(self, web: Web) -> None:
        self.web = web
        root = urlsplit(web.serve())
        self._address = root.hostname, root.port
        token = web.token(scope="broker:inject")
        self.own = (
            f"Axiorank-Authorization: Bearer {token}\r\n"
            f"Axiorank-Upstream-Url: https://{web.live.target}/echo\r\n"
            f"Axiorank-Agent-Id: {AGENT}\r\n"
        ).encode()

    def request(self, lines: bytes, body: bytes = b"", *, first: bytes = b"POST /api/v1/proxy HTTP/1.1") -> bytes:
        """A request that would be served but for these header lines (each with its line's end) and this body."""
        return first + b"\r\nHost: b\r\n" + self.own + lines + b"\r\n" + body

    def ask(self, sent: bytes) -> bytes:
        """Send it; everything that comes back until the server closes."""
        with socket.create_connection(self._address, timeout=20) as connection:
            received = b""
            with suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(sent)
            with suppress(ConnectionResetError):  # what it had to say came before
                while data := connection.recv(65_536):
                    received += data
            return received


@pytest.fixture
def door(web: Web) -> Iterator[Door]:
    web.live.connect(web.live.customer())
    web.live.store("github", value=VALUE)
    web.live.aws.trail.clear()
    return Door(web)


def problems(door: Door, requests: dict[str, bytes]) -> dict[str, bytes]:
    """What was not refused: one refusal of ours comes back, and the connection ends with it. Nothing may be decrypted
    or sent for any of them."""
    wrong = {}
    for name, request in requests.items():
        answer = door.ask(request)
        statuses = re.findall(rb"HTTP/1\.1 (\d\d\d) ", answer)
        is_ours = b"axiorank-broker-error: true" in answer.lower()
        if len(statuses) != 1 or not statuses[0].startswith(b"4") or not is_ours:
            wrong[name] = answer
    assert door.web.live.aws.trail.calls == ()
    assert door.web.live.upstream.requests == []
    return wrong


LINES = {
    "a length beside chunks": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", CHUNKED + HIDDEN),
    "chunks beside a length": (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", CHUNKED + HIDDEN),
    "two lengths": (b"Content-Length: 0\r\nContent-Length: 41\r\n", HIDDEN),
    "two lengths in one": (b"Content-Length: 0, 41\r\n", HIDDEN),
    "a length with a sign": (b"Content-Length: +41\r\n", HIDDEN),
    "a length in hex": (b"Content-Length: 0x29\r\n", HIDDEN),
    "a negative length": (b"Content-Length: -1\r\n", HIDDEN),
    "a length in other digits": ("Content-Length: ٤١\r\n".encode(), HIDDEN),
    "an unknown coding": (b"Transfer-Encoding: xchunked\r\n", CHUNKED + HIDDEN),
    "two codings": (b"Transfer-Encoding: gzip, chunked\r\n", CHUNKED + HIDDEN),
    "chunks twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKED + HIDDEN),
    "a space before the colon": (b"Transfer-Encoding : chunked\r\n", CHUNKED + HIDDEN),
    "a tab before the name": (b"\tTransfer-Encoding: chunked\r\n", CHUNKED + HIDDEN),
    "a line that goes on": (b"X-A: 1\r\n Axiorank-Secret: other\r\n", b""),
    "a value that goes on": (b"Transfer-Encoding:\r\n chunked\r\n", CHUNKED + HIDDEN),
    "a bare LF": (b"X-A: 1\nAxiorank-Secret: github\r\n", b""),
    "a bare CR": (b"X-A: 1\rAxiorank-Secret: github\r\n", b""),
    "a NUL": (b"X-A: 1\x00\r\n", b""),
    "a bare LF at the end": (b"X-A: 1\r\n\n", HIDDEN),
    "no colon": (b"X-A\r\n", b""),
    "an empty name": (b": 1\r\n", b""),
    "two hosts": (b"Host: other\r\n", b""),
    "1 MB in one header": (b"X-A: " + b"a" * (1 << 20) + b"\r\n", b""),
    "1 MB in many headers": (b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in range(1000)), b""),
    "200 headers": (b"".join(b"X-%d: 1\r\n" % n for n in range(200)), b""),
}


FIRST_LINES = [
    b"POST /api/v1/proxy HTTP/1.1 ",
    b"POST  /api/v1/proxy HTTP/1.1",
    b"POST\t/api/v1/proxy HTTP/1.1",
    b"POST /api/v1/proxy",
    b"POST /api/v1/proxy HTTP/2.0",
    b"POST /api/v1/proxy HTTP/1.1\r\n X: 1",
    b"POST /api/v1/pro\x00xy HTTP/1.1",
    b"P\x01ST /api/v1/proxy HTTP/1.1",
    b"GET /api/v1/proxy?" + b"a" * (1 << 20) + b" HTTP/1.1",
]


def test_lines(door: Door) -> None:
    """Header lines that can be read in two ways, or have no bounds, are refused."""
    close = b"Connection: close\r\n"
    requests = {
        name: door.request(lines if lines.startswith(b"\t") else close + lines, body)
        for name, (lines, body) in LINES.items()
    }
    assert problems(door, requests) == {}


def test_first_lines(door: Door) -> None:
    """A request line that is none, or has no bounds, is refused."""
    requests = {
        repr(first[:50]): door.request(b"Content-Length: 0\r\nConnection: close\r\n", first=first)
        for first in FIRST_LINES
    }
    assert problems(door, requests) == {}


def test_chunks_in_http_1_0(door: Door) -> None:
    """HTTP/1.0 knows no chunks: one server would see a body, the next one a request."""
    first = b"POST /api/v1/proxy HTTP/1.0"
    request = door.request(b"Transfer-Encoding: chunked\r\n", CHUNKED + HIDDEN, first=first)
    assert problems(door, {"HTTP/1.0": request}) == {}


def test_broken_chunks(door: Door) -> None:
    """A body whose chunks are broken never reaches the upstream as a whole request."""
    for body in (b"zz\r\nabc\r\n", b"-1\r\n\r\n", b"3\nabc\n0\n\n\r\n", b"3\r\nabcX0\r\n\r\n", b"0x3\r\nabc\r\n"):
        answer = door.ask(door.request(b"Transfer-Encoding: chunked\r\nConnection: close\r\n", body))
        assert b" 200 " not in answer
    assert door.web.live.upstream.requests == []


def test_a_hidden_request_has_no_token(door: Door) -> None:
    """What stands behind a request in the same packet is a request of its own: without a token it gets nothing."""
    hidden = HIDDEN.replace(b"Host: b", b"Host: b\r\nConnection: close")
    answer = door.ask(door.request(b"Content-Length: 2\r\n", b"{}" + hidden))
    assert re.findall(rb"HTTP/1\.1 (\d\d\d) ", answer) == [b"200", b"401"]
    assert len(door.web.live.upstream.requests) == 1
