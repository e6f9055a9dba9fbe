"""What a hostile upstream may write into the head of its answer."""

from __future__ import annotations

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpAnswer, HttpsUpstream
from broker_core.dev.upstream import RawResponse, SampleUpstream
from broker_core.errors import UpstreamError
from broker_core.ports import Destination, Patience, WireRequest


class Asker:
    """Asks the sample upstream, which answers with given bytes."""

    def __init__(self, server: SampleUpstream) -> None:
        self._server = server

    def answer(self, head: bytes) -> HttpAnswer:
        """The answer to one request."""
        self._server.route("/x", lambda _: RawResponse([head]))
        gate = Egress(["127.0.0.0/8", "::1/128"])
        upstream = HttpsUpstream(gate, SystemClock(), self._server.ca_file)
        line = upstream.connect(Destination("localhost", self._server.port), Patience(20, 20, 20), "ws")
        try:
            return line.send(WireRequest("GET", "/x", [("Host", "localhost")]))
        finally:
            line.close()


@pytest.fixture
def asker(upstream: SampleUpstream) -> Asker:
    """The sample upstream, asked over TLS."""
    return Asker(upstream)


def test_the_reason_holds_no_control(asker: Asker) -> None:
    """One in it would hide a value from the redaction."""
    assert asker.answer(b"HTTP/1.1 200 sk-\x08live\x7f\r\n\r\n").reason == "sk-live"


@pytest.mark.parametrize("control", [b"\x1c", b"\x7f", b"\x08"])
def test_a_header_holds_no_control(asker: Asker, control: bytes) -> None:
    """Whoever drops the control later must not get a value that was not looked for."""
    assert asker.answer(b"HTTP/1.1 200 OK\r\nA: sk-" + control + b"live\tx\r\n\r\n").headers == [("A", "sk-live\tx")]


@pytest.mark.parametrize("control", [b"\0", b"\r", b"\x0b", b"\x0c"])
@pytest.mark.parametrize("line", [b"HTTP/1.1 200 sk-%blive\r\n", b"HTTP/1.1 200 OK\r\nA: sk-%blive\r\n"])
def test_what_could_end_a_line_is_no_answer(asker: Asker, line: bytes, control: bytes) -> None:
    """NUL, and what some readers take for a line's end, are refused in a status line and in a header."""
    with pytest.raises(UpstreamError):
        asker.answer(line % control + b"\r\n")


@pytest.mark.parametrize("line", [b"HTTP/1.1\t101\tSwitching", b"HTTP/1.1  101 Switching", b"HTTP/1.1\t103 Hints"])
def test_an_interim_answer_in_disguise_is_no_answer(asker: Asker, line: bytes) -> None:
    """Whatever stands between the status line's parts, 1xx is not the end of an exchange."""
    with pytest.raises(UpstreamError):
        asker.answer(line + b"\r\n\r\n")
