"""Pitfall 26: what an upstream may send is bounded in every part: status line, headers, interim answers, the framing
around a body, and time."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterable, Iterator

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.adapters.upstream_exchange import MOST_FRAMING_BYTES, MOST_HEAD_BYTES, MOST_HEADERS, MOST_LINES_BYTES
from broker_core.errors import UpstreamError
from broker_core.ports import Destination, Patience, WireRequest
from tests.scripted import HEAD, read_head, scripted

PATIENCE = Patience(20, 20, 20)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def ask(answer: Iterable[bytes], patience: Patience = PATIENCE) -> tuple[int, int, bytes]:
    """The status, the number of headers and the body of an answer that comes in these pieces."""

    def serve(connection: socket.socket) -> None:
        read_head(connection)
        for piece in answer:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    with scripted(serve) as server:
        upstream = HttpsUpstream(Egress(["127.0.0.1/32"]), SystemClock())
        line = upstream.connect(Destination("127.0.0.1", server.port, tls=False), patience, "ws")
        try:
            got = line.send(WireRequest("GET", "/x", [("Host", "a.test")]))
            return got.status, len(got.headers), b"".join(got.chunks())
        finally:
            line.close()


def reason(answer: Iterable[bytes], patience: Patience = PATIENCE) -> str:
    with pytest.raises(UpstreamError) as failed:
        ask(answer, patience)
    assert failed.value.__context__ is None
    return failed.value.reason


def forever(piece: bytes, first: bytes = b"") -> Iterator[bytes]:
    return itertools.chain([first], itertools.repeat(piece * 100))


class TestHead:
    """The status line, the headers, and what comes before them."""

    @pytest.mark.parametrize(
        "flood",
        [
            forever(b"x", b"HTTP/1.1 200 "),
            forever(b"x"),
            forever(b"x", HEAD + b"X: "),
            forever(b"x", HEAD),
            forever(b"X: 1\r\n", HEAD),
            forever(b" folded\r\n", HEAD + b"X: 1\r\n"),
            forever(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
            forever(b"HTTP/1.1 103 Early Hints\r\nLink: </" + b"a" * 10_000 + b">\r\n\r\n"),
        ],
        ids=["reason", "status line", "value", "name", "headers", "folds", "interim answers", "large interim answers"],
    )
    def test_a_flood_ends(self, flood: Iterator[bytes]) -> None:
        """Each of these would go on for ever."""
        assert reason(flood) == "upstream_unreachable"

    @pytest.mark.parametrize(("count", "fits"), [(MOST_HEADERS, True), (MOST_HEADERS + 1, False)])
    def test_so_many_headers(self, count: int, fits: bool) -> None:
        """A hundred, as from the caller."""
        answer = [HEAD + b"X: 1\r\n" * (count - 1) + b"Content-Length: 0\r\n\r\n"]
        if fits:
            assert ask(answer) == (200, count, b"")
        else:
            assert reason(answer) == "upstream_unreachable"

    def test_a_large_head_that_fits(self) -> None:
        """What correct servers send at most passes."""
        value = b"x" * (MOST_LINES_BYTES // 2)
        assert ask([HEAD + b"X: " + value + b"\r\nContent-Length: 2\r\n\r\nok"]) == (200, 2, b"ok")

    def test_interim_answers_that_fit(self) -> None:
        """A few are passed over, however they are cut."""
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n" * 5
        whole = hints + HEAD + b"Content-Length: 2\r\n\r\nok"
        assert ask(whole[at : at + 7] for at in range(0, len(whole), 7)) == (200, 1, b"ok")

    @pytest.mark.parametrize(
        "line",
        [
            b"HTTP/1.1 099 X",
            b"HTTP/1.1 1000 X",
            b"HTTP/1.1 20 X",
            b"HTTP/1.1 2x0 X",
            b"HTTP/1.1 +200 X",
            b"HTTP/1.1  200 X",
            b"http/1.1 200 X",
            b"HTTP/3.0 200 X",
            b"HTTP/1.1.1 200 X",
            b" HTTP/1.1 200 X",
            b"ICY 200 OK",
            b"HTTP/1.1 101 Switching Protocols",
        ],
    )
    def test_no_status_line(self, line: bytes) -> None:
        """One way to write it, and no guessing."""
        assert reason([line + b"\r\nContent-Length: 0\r\n\r\n"]) == "upstream_unreachable"

    @pytest.mark.parametrize(
        "header",
        [b"X : 1", b"X", b": 1", b"X\x001: 1", b"Content-Length: 1, 2", b"Content-Length: +1", b"Content-Length: 1_0",
         b"Content-Length: 0x1", b"Content-Length: " + b"9" * 30, b"Content-Length: "],
    )  # fmt: skip
    def test_no_header(self, header: bytes) -> None:
        """What two readers could read in two ways is read in none."""
        assert reason([HEAD + header + b"\r\n\r\nx"]) == "upstream_unreachable"

    @pytest.mark.parametrize("coding", [b"gzip, chunked", b"identity", b"xchunked", b"chunked, chunked", b"gzip"])
    def test_another_transfer_coding_is_withheld(self, coding: bytes) -> None:
        """Nothing can be redacted in what is not undone."""
        assert reason([HEAD + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n"]) == "response_withheld"


class TestFraming:
    """Chunks, their extensions, and trailers."""

    @pytest.mark.parametrize(
        "flood",
        [
            forever(b"1;" + b"e" * 5_000 + b"\r\nx\r\n", CHUNKED),
            forever(b"1;" + b"e" * 200 + b"\r\nx\r\n", CHUNKED),
            forever(b"e", CHUNKED + b"1;"),
            forever(b"0", CHUNKED),
            forever(b"X: 1\r\n", CHUNKED + b"0\r\n"),
            forever(b"x", CHUNKED + b"0\r\nX: "),
        ],
        ids=["long extensions", "extensions", "one extension", "zeros", "trailers", "one trailer"],
    )
    def test_a_flood_around_a_body_ends(self, flood: Iterator[bytes]) -> None:
        """A body that is nearly all framing: no cap on the body's size would ever end it."""
        assert reason(flood) == "upstream_unreachable"

    def test_a_byte_at_a_time_is_no_flood(self) -> None:
        """A correct server may send the smallest chunks there are."""
        assert len(ask([CHUNKED, b"1\r\nx\r\n" * 20_000, b"0\r\n\r\n"])[2]) == 20_000

    def test_extensions_and_trailers_that_fit(self) -> None:
        """They are no part of the body, and no headers."""
        chunks = b"2;name=value\r\nab\r\n" * 100 + b"0;last\r\nX-Trailer: 1\r\n\r\n"
        assert ask([CHUNKED + chunks]) == (200, 1, b"ab" * 100)

    @pytest.mark.parametrize(
        "chunk",
        [b"-1\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n", b" 1\r\nx\r\n", b"1_0\r\nx\r\n", b"1\nx\r\n", b"1\r\nxy\r\n",
         b"f" * 21 + b"\r\nx", b"1\r\nx\n\r", b"1 ;\r\nx\r\n", b"\r\n"],
    )  # fmt: skip
    def test_no_chunk(self, chunk: bytes) -> None:
        """Neither a size that Python's ``int`` would take, nor bytes where a chunk should have ended."""
        assert reason([CHUNKED + chunk + b"0\r\n\r\n"]) == "upstream_unreachable"

    @pytest.mark.parametrize("cut", [b"", b"5\r\nab", b"5\r\nabcde", b"5\r\nabcde\r\n", b"5\r\nabcde\r\n0\r\n"])
    def test_a_cut_body_is_no_body(self, cut: bytes) -> None:
        """An early end is told from the end."""
        assert reason([CHUNKED + cut]) == "upstream_unreachable"

    def test_what_is_held_at_a_time_is_bounded(self) -> None:
        """The limits are small, whatever the size of the body."""
        assert max(MOST_LINES_BYTES, MOST_HEAD_BYTES, MOST_FRAMING_BYTES) <= 131_072


class TestTime:
    """A drip keeps nothing open, wherever it drips."""

    @pytest.mark.parametrize(
        "first",
        [b"", HEAD, HEAD + b"X: ", CHUNKED, CHUNKED + b"1;", CHUNKED + b"ffff\r\n", HEAD + b"\r\n"],
        ids=["status line", "name", "value", "size", "extension", "chunk", "body"],
    )
    def test_a_slow_drip_ends(self, first: bytes) -> None:
        """A byte now and then is within the idle limit; the total ends it."""
        stop = threading.Event()

        def drip() -> Iterator[bytes]:
            yield first
            while not stop.wait(0.02):
                yield b"1"

        assert reason(drip(), Patience(0.3, 20, 20)) == "upstream_timeout"
        stop.set()

    @pytest.mark.parametrize("framing", [CHUNKED, HEAD + b"\r\n"], ids=["chunks", "until the end"])
    def test_a_fast_body_without_an_end(self, framing: bytes) -> None:
        """The total counts also where nothing is ever waited for."""

        def body() -> Iterator[bytes]:
            yield framing
            yield from itertools.repeat(b"10000\r\n" + b"x" * 65_536 + b"\r\n")

        assert reason(body(), Patience(0.3, 20, 20)) == "upstream_timeout"

    def test_a_head_that_drips_ends_with_the_answers_limit(self) -> None:
        """Before the total is over."""
        stop = threading.Event()

        def drip() -> Iterator[bytes]:
            while not stop.wait(0.02):
                yield b"H"

        assert reason(drip(), Patience(3600, 0.3, 3600)) in ("upstream_timeout", "upstream_unreachable")
        stop.set()
