"""The ``Upstream`` port: one suite, held by the fake and by the real adapter on loopback TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.errors import InjectionRefused, UpstreamError
from broker_core.ports import Destination, Patience, Upstream, WireRequest
from tests.fakes_inject import named
from tests.fakes_upstream import FakeUpstream

PATIENCE = Patience(20, 20, 20)
CHUNKED = [("Host", "localhost"), ("Transfer-Encoding", "chunked")]


@dataclass
class Subject:
    """An upstream to hold to the contract, where to send, and how many requests arrived."""

    upstream: Upstream
    destination: Destination
    arrived: Callable[[], int]


@pytest.fixture(params=["fake", "real"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """The fake, then the real one."""
    if request.param == "fake":
        fake = FakeUpstream()
        yield Subject(fake, Destination("localhost", 443), lambda: len(fake.sent))
        return
    server = request.getfixturevalue("upstream")
    real = HttpsUpstream(Egress(["127.0.0.0/8", "::1/128"]), SystemClock(), server.ca_file)
    yield Subject(real, Destination("127.0.0.1", server.port), lambda: len(server.requests))


def wire(method: str = "GET", body: bytes = b"") -> WireRequest:
    headers = [("Host", "localhost"), ("X-Test", "sentinel"), ("Content-Length", str(len(body)))]
    return WireRequest(method, "/echo?q=%20x", headers, body)


class TestOneExchange:
    """One line, one request, one answer."""

    def test_the_request_arrives_once_as_it_is(self, subject: Subject) -> None:
        """Target, headers and body are sent as they were given, one time."""
        line = subject.upstream.connect(subject.destination, PATIENCE, "ws")
        answer = line.send(wire("POST", b"hello"))
        shown = b"".join(answer.chunks())
        line.close()

        assert (answer.status, subject.arrived()) == (200, 1)
        assert all(part in shown for part in (b"q=%20x", b"sentinel", b"hello"))

    def test_connecting_sends_nothing(self, subject: Subject) -> None:
        """A line that is opened and closed costs the upstream no request."""
        subject.upstream.connect(subject.destination, PATIENCE, "ws").close()

        assert subject.arrived() == 0

    def test_closing_twice_is_no_error(self, subject: Subject) -> None:
        """Every way out may close."""
        line = subject.upstream.connect(subject.destination, PATIENCE, "ws")
        answer = line.send(wire())
        answer.close()
        answer.close()
        line.close()
        line.close()

    def test_a_closed_line_does_not_send(self, subject: Subject) -> None:
        """Nothing connects a second time behind our back."""
        line = subject.upstream.connect(subject.destination, PATIENCE, "ws")
        line.close()

        with pytest.raises(UpstreamError):
            line.send(wire())
        assert subject.arrived() == 0

    def test_two_lines_do_not_mix(self, subject: Subject) -> None:
        """Each answer belongs to its own request."""
        lines = [subject.upstream.connect(subject.destination, PATIENCE, "ws") for _ in range(2)]
        answers = [line.send(wire("POST", body)) for line, body in zip(lines, (b"first", b"second"), strict=True)]
        shown = [b"".join(answer.chunks()) for answer in answers]
        for line in lines:
            line.close()

        assert (b"first" in shown[0], b"second" in shown[1], b"second" in shown[0]) == (True, True, False)

    def test_headers_are_text_pairs(self, subject: Subject) -> None:
        """An answer's headers are pairs, repeated names and all."""
        line = subject.upstream.connect(subject.destination, PATIENCE, "ws")
        answer = line.send(wire())
        line.close()

        assert all(isinstance(name, str) and isinstance(text, str) for name, text in answer.headers)
        assert named(answer.headers, "transfer-encoding") in ([], ["chunked"])


class TestPieces:
    """A body that comes in pieces."""

    def test_it_arrives_whole(self, subject: Subject) -> None:
        """Piece after piece, chunked where the headers say so."""
        line = subject.upstream.connect(subject.destination, PATIENCE, "ws")
        answer = line.send(WireRequest("POST", "/echo", CHUNKED, iter([b"one ", b"", b"two"])))
        shown = b"".join(answer.chunks())
        line.close()

        assert b"one two" in shown

    def test_what_its_iterator_raises_is_raised(self, subject: Subject) -> None:
        """It ends the exchange, and is the caller's own."""

        def pieces() -> Iterator[bytes]:
            yield b"half"
            raise LookupError("the caller's")

        line = subject.upstream.connect(subject.destination, PATIENCE, "ws")
        with pytest.raises(LookupError):
            line.send(WireRequest("POST", "/echo", CHUNKED, pieces()))
        line.close()
        assert subject.arrived() == 0


class TestAbort:
    """The end, from outside."""

    def test_an_aborted_line_does_not_send(self, subject: Subject) -> None:
        """Whoever asked has gone."""
        line = subject.upstream.connect(subject.destination, PATIENCE, "ws")
        line.abort()
        with pytest.raises(UpstreamError):
            line.send(wire())
        line.close()
        assert subject.arrived() == 0

    def test_an_aborted_answer_ends_with_an_error(self, subject: Subject) -> None:
        """A reader is never told that the body had ended."""
        line = subject.upstream.connect(subject.destination, PATIENCE, "ws")
        answer = line.send(wire())
        line.abort()
        with pytest.raises(UpstreamError):
            b"".join(answer.chunks())
        line.close()

    def test_aborting_what_is_closed_is_no_error(self, subject: Subject) -> None:
        """Who aborts does not know how far it is."""
        line = subject.upstream.connect(subject.destination, PATIENCE, "ws")
        line.close()
        line.abort()


@pytest.mark.parametrize("kind", ["fake", "real"])
def test_a_blocked_destination_is_refused(kind: str) -> None:
    """An address that may not be reached is a refusal, before anything is sent."""
    blocked = InjectionRefused("no", code="destination_blocked")
    upstream: Upstream = (
        FakeUpstream(connect_error=blocked) if kind == "fake" else HttpsUpstream(Egress(), SystemClock())
    )
    with pytest.raises(InjectionRefused) as refused:
        upstream.connect(Destination("127.0.0.1", 443), PATIENCE, "ws")
    assert refused.value.reason == "destination_blocked"
