"""Ending an exchange from another thread: at once, wherever it is, and never somebody else's."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpLine, HttpsUpstream
from broker_core.adapters.upstream_wire import Wire, opened
from broker_core.dev.upstream import RawResponse, Response, SampleUpstream
from broker_core.errors import UpstreamError
from broker_core.ports import Destination, Patience, WireRequest
from tests.fakes_keys import ManualClock
from tests.scripted import HEAD, answering, holding, scripted
from tests.waiting import wait_until

#: only an abort can end these within the test's time
HOURS = Patience(3600, 3600, 3600)
GET = WireRequest("GET", "/x", [("Host", "a.test")])


@pytest.fixture
def way(upstream: SampleUpstream) -> Iterator[HttpsUpstream]:
    """The way out, which trusts the sample upstream. No connection that it keeps grows too old in a test."""
    made = HttpsUpstream(Egress(["127.0.0.0/8", "::1/128"]), ManualClock(), upstream.ca_file)
    yield made
    made.close()


def line_to(way: HttpsUpstream, port: int, *, tls: bool = True) -> HttpLine:
    return way.connect(Destination("localhost" if tls else "127.0.0.1", port, tls), HOURS, "ws")


def outcome(work: Callable[[], object], end: Callable[[], None], is_there: Callable[[], object]) -> UpstreamError:
    """Do the work in a thread, and call ``end`` once ``is_there`` has returned."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        is_there()
        end()
        error = future.exception(20)
    assert isinstance(error, UpstreamError)
    return error


class TestAbort:
    """``abort`` wakes whoever waits."""

    def test_it_wakes_who_waits_for_the_head(self, upstream: SampleUpstream, way: HttpsUpstream) -> None:
        """The upstream has the request, and says nothing."""
        line = line_to(way, upstream.port)
        hang = WireRequest("GET", "/hang", [("Host", "a.test")])
        assert outcome(lambda: line.send(hang), line.abort, lambda: upstream.wait_for(1)).reason
        line.close()

    def test_it_wakes_who_waits_for_the_body(self, upstream: SampleUpstream, way: HttpsUpstream) -> None:
        """An event stream that is open and silent."""
        stop, got = threading.Event(), threading.Event()
        upstream.route("/x", lambda _: RawResponse(_silence(HEAD + b"\r\nfirst", stop)))
        line = line_to(way, upstream.port)
        chunks = line.send(GET).chunks()

        def read() -> None:
            for _ in chunks:
                got.set()

        error = outcome(read, line.abort, lambda: got.wait(20))
        stop.set()
        line.close()
        assert (error.reason, error.__context__) == ("upstream_unreachable", None)

    def test_it_wakes_who_sends(self, way: HttpsUpstream) -> None:
        """The upstream does not read."""
        stop, pulled = threading.Event(), threading.Event()

        def pieces() -> Iterator[bytes]:
            yield b"x" * 20_000_000
            pulled.set()

        with scripted(holding(stop)) as server:
            line = line_to(way, server.port, tls=False)
            upload = WireRequest("POST", "/x", [("Host", "a.test"), ("Transfer-Encoding", "chunked")], pieces())
            outcome(lambda: line.send(upload), line.abort, lambda: wait_until(lambda: len(server.connections) == 1))
            assert not pulled.is_set()
            line.close()
            stop.set()

    def test_a_body_that_was_cut_by_it_has_not_ended(self, way: HttpsUpstream) -> None:
        """A body without a length ends with its connection: our own ending of it must not look like that."""
        with scripted(answering(HEAD + b"\r\npart")) as server:
            line = line_to(way, server.port, tls=False)
            chunks = line.send(GET).chunks()
            assert next(chunks) == b"part"
            line.abort()
            with pytest.raises(UpstreamError):
                next(chunks)
            line.close()

    def test_before_the_sending_nothing_is_sent(self, upstream: SampleUpstream, way: HttpsUpstream) -> None:
        """The agent went away while the key was asked."""
        line = line_to(way, upstream.port)
        line.abort()
        with pytest.raises(UpstreamError):
            line.send(GET)
        line.close()
        assert upstream.requests == []

    def test_after_the_end_it_does_nothing(self, upstream: SampleUpstream, way: HttpsUpstream) -> None:
        """The connection may by then carry another exchange; that one is not touched."""
        first = line_to(way, upstream.port)
        assert b"".join(first.send(GET).chunks())
        first.close()
        second = line_to(way, upstream.port)
        answer = second.send(GET)
        first.abort()

        assert b"".join(answer.chunks()) == b'{"ok": true}'
        second.close()
        assert upstream.connections_accepted == 1

    def test_an_aborted_connection_is_not_kept(self, upstream: SampleUpstream, way: HttpsUpstream) -> None:
        """Not even after an answer that had come whole."""
        line = line_to(way, upstream.port)
        assert b"".join(line.send(GET).chunks())
        line.abort()
        line.close()
        again = line_to(way, upstream.port)
        assert again.send(GET).status == 200
        again.close()
        assert upstream.connections_accepted == 2

    def test_closing_in_another_thread_wakes_too(self, upstream: SampleUpstream, way: HttpsUpstream) -> None:
        """Whoever closes under a reader ends the reading first: a socket is never closed while it is in use."""
        line = line_to(way, upstream.port)
        hang = WireRequest("GET", "/hang", [("Host", "a.test")])
        assert outcome(lambda: line.send(hang), line.close, lambda: upstream.wait_for(1)).reason

    def test_aborts_and_closes_from_everywhere(self, upstream: SampleUpstream, way: HttpsUpstream) -> None:
        """Racing threads: each exchange is a whole answer or an error of ours, and nobody gets another's answer."""
        upstream.route("/x", lambda request: Response(200, body=(request.header("X-Label") or "").encode()))

        def exchange(number: int) -> bool:
            line = line_to(way, upstream.port)
            timer = threading.Thread(target=line.abort)
            try:
                if number % 2:
                    timer.start()
                label = f"label-{number}"
                answer = line.send(WireRequest("GET", "/x", [("Host", "a.test"), ("X-Label", label)]))
                assert b"".join(answer.chunks()) == label.encode()
            except UpstreamError:
                return bool(number % 2)
            finally:
                line.close()
                if timer.ident:
                    timer.join()
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(exchange, range(80)))


def _silence(first: bytes, stop: threading.Event) -> Iterator[bytes]:
    yield first
    stop.wait(30)


def test_shutting_down_leaves_tls_in_place(upstream: SampleUpstream) -> None:
    """``SSLSocket.shutdown`` drops the TLS object first, and what is written then goes out as it is: ours does not."""
    context = ssl.create_default_context(cafile=str(upstream.ca_file))
    wire = Wire(opened("127.0.0.1", upstream.port, context, "localhost", lambda: 20.0), 0.0)
    held = wire._sock
    assert isinstance(held, ssl.SSLSocket)
    wire.abort()

    assert held.version() is not None
    with pytest.raises((BrokenPipeError, ConnectionResetError, ssl.SSLError)):  # reset, if its tickets came after that
        wire.write_some(memoryview(b"sentinel"))
    wire.close()
    assert socket.socket.fileno(held) == -1
