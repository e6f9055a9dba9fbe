"""Streams over real sockets: what passes before the rest is there, and what the upstream sees when they end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpsUpstream
from broker_core.dev.upstream import RawResponse, Received, Response, SampleUpstream
from broker_core.errors import ClientGone, InjectionRefused, UpstreamError
from broker_core.inject import Call, Cancellation
from broker_core.inject.stream import BrokeredStream
from tests.databases import plain
from tests.fakes_keys import ManualClock
from tests.live import AGENT, Live
from tests.scripted import OK, read_head, scripted
from tests.waiting import wait_until

VALUE = "ghp_0123456789abcdefABCDEF"
MASK = "«redacted:secret.github»".encode()


@pytest.fixture
def stored(live: Live) -> Live:
    """A bearer for the sample upstream, under a customer's key."""
    live.connect(live.customer())
    live.store(value=VALUE)
    return live


def stream(live: Live, path: str, cancellation: Cancellation | None = None, **given: Any) -> BrokeredStream:
    asked = {"url": f"https://{live.target}{path}", "secret": "github", **given}
    return live.app.injector.stream(Call(live.workspace, AGENT, None, **asked), cancellation)


def outcome(live: Live, stream: BrokeredStream) -> tuple[str | None, str | None]:
    """What the audit log says of it."""
    with psycopg.connect(plain(live.environment["BROKER_DATABASE_URL"])) as connection:
        row = connection.execute("SELECT outcome, code FROM audit_log WHERE id = %s", [stream.audit_id]).fetchone()
    assert row is not None
    return row[0], row[1]


class Ticking:
    """A route that sends a line every moment, as long as somebody takes them."""

    def __init__(self) -> None:
        self.gone = threading.Event()
        self._stop = threading.Event()

    def __call__(self, _: Received) -> Response:
        return Response(200, [("Content-Type", "text/event-stream")], self._ticks())

    def _ticks(self) -> Iterator[bytes]:
        try:
            while not self._stop.wait(0.01):
                yield b"data: tick\n\n"
        finally:
            self.gone.set()

    def stop(self) -> None:
        self._stop.set()


@pytest.fixture
def ticking(stored: Live) -> Iterator[Ticking]:
    """The route ``/ticks``."""
    route = Ticking()
    stored.upstream.route("/ticks", route)
    yield route
    route.stop()


def test_an_event_reaches_the_consumer_before_the_upstream_ends(stored: Live) -> None:
    """The upstream sends its second event only when the consumer has the first."""
    taken = threading.Event()

    def events() -> Iterator[bytes]:
        yield b"data: first\n\n"
        assert taken.wait(20)
        yield f"data: {VALUE}\n\n".encode()

    stored.upstream.route("/events", lambda _: Response(200, [("Content-Type", "text/event-stream")], events()))
    answer = stream(stored, "/events")
    chunks = answer.chunks()
    first = next(chunks)
    taken.set()

    assert (first, b"".join(chunks)) == (b"data: first\n\n", b"data: " + MASK + b"\n\n")
    assert outcome(stored, answer)[0] == "ok"


def test_a_stream_that_ended_leaves_its_connection_to_the_next(
    live_with: Callable[..., Live], upstream: SampleUpstream
) -> None:
    """Whole and clean, also of unknown length."""
    way = HttpsUpstream(Egress(["127.0.0.0/8", "::1/128"]), ManualClock(), str(upstream.ca_file))
    live = live_with(upstream=way)
    live.store(value=VALUE)
    for _ in range(2):
        assert len(b"".join(stream(live, "/sse?events=3").chunks()).splitlines()) == 9
    way.close()

    assert (len(upstream.requests), upstream.connections_accepted) == (2, 1)


def _cancels(_: BrokeredStream, cancellation: Cancellation) -> None:
    cancellation.cancel()


def _closes(answer: BrokeredStream, _: Cancellation) -> None:
    answer.close()


@pytest.mark.parametrize("end", [_cancels, _closes])
def test_a_caller_that_goes_away_ends_the_upstreams_connection(
    stored: Live, ticking: Ticking, end: Callable[[BrokeredStream, Cancellation], None]
) -> None:
    """Whatever way it says so; the row says that the value was released and the answer given up."""
    cancellation = Cancellation()
    answer = stream(stored, "/ticks", cancellation)
    chunks = answer.chunks()
    next(chunks)

    end(answer, cancellation)
    with pytest.raises(ClientGone):
        list(chunks)

    wait_until(ticking.gone.is_set)
    assert outcome(stored, answer) == ("abandoned", "client_gone")


def test_a_stream_that_is_dropped_ends_the_upstreams_connection(stored: Live, ticking: Ticking) -> None:
    """Nobody closed it, and nothing is left of it but the row, for the reconciler."""
    answer = stream(stored, "/ticks")
    next(answer.chunks())
    del answer

    wait_until(ticking.gone.is_set)


def test_a_cancellation_wakes_who_waits_for_the_head(stored: Live) -> None:
    """The upstream has the request and says nothing."""
    cancellation = Cancellation()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stream, stored, "/hang", cancellation)
        stored.upstream.wait_for(1)
        cancellation.cancel()
        assert isinstance(waiting.exception(20), ClientGone)


def test_a_body_in_pieces_is_sent_while_it_comes(live: Live) -> None:
    """The upstream has read of it before the caller has given the rest."""
    read = threading.Event()

    def serve(connection: socket.socket) -> None:
        data = read_head(connection)
        while b"0123456789" not in data:
            data += connection.recv(65_536)
        read.set()
        while b"0\r\n\r\n" not in data[-64:]:
            data += connection.recv(65_536)
        connection.sendall(OK)

    def body() -> Iterator[bytes]:
        yield b"0123456789" * 200
        assert read.wait(20)
        yield b"the rest"

    with scripted(serve) as server:
        live.store(value=VALUE, injectionKind="bearer", targetHost=f"127.0.0.1:{server.port}", agentId=AGENT)
        answer = stream(live, "", url=f"http://127.0.0.1:{server.port}/", method="POST", body=body())
        assert b"".join(answer.chunks()) == b"ok"


@pytest.mark.parametrize("length", [None, 3_000_000])
def test_a_body_in_pieces_arrives_byte_for_byte(stored: Live, length: int | None) -> None:
    """Chunked or with its length."""
    pieces = [bytes([number]) * 30_000 for number in range(100)]
    answer = stream(stored, "/status/200", method="POST", body=iter(pieces), body_length=length)
    list(answer.chunks())

    assert stored.upstream.requests[-1].body == b"".join(pieces)


@pytest.mark.parametrize("text", [VALUE, "{{secret:github}}"])
@pytest.mark.parametrize("length", [None, 100_100])
def test_pitfall_10_a_body_that_is_refused_breaks_off(stored: Live, text: str, length: int | None) -> None:
    """The upstream gets no request that is whole (a careless one takes what it got), and nothing of what was found."""
    body = iter([b"x" * 100_000, text.encode()])
    with pytest.raises(InjectionRefused) as refused:
        stream(stored, "/status/200", method="POST", body=body, body_length=length)

    assert refused.value.reason == "handle_misplaced"
    list(stream(stored, "/status/200").chunks())
    careless = [request.body for request in stored.upstream.requests if request.method == "POST"]
    assert len(careless) <= (length is not None)
    assert all(set(got) == {ord("x")} and len(got) < 100_000 for got in careless)


def test_an_answer_that_breaks_off(stored: Live) -> None:
    """It is an error to its reader, and to the audit log."""
    stored.upstream.route("/half", lambda _: RawResponse([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf\n"]))
    answer = stream(stored, "/half")
    with pytest.raises(UpstreamError):
        list(answer.chunks())

    assert outcome(stored, answer) == ("upstream_failed", "upstream_unreachable")


def test_pitfall_08_gzip_is_decoded_and_redacted(stored: Live) -> None:
    """Although identity was asked for."""
    shown = b"".join(stream(stored, "/gzip").chunks())

    assert (MASK in shown, VALUE.encode() in shown) == (True, False)
