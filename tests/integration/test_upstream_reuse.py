"""Which connections are used again (pitfall 25): those that a complete, clean answer left, by the same workspace, to
the same address under the same name, for seconds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpLine, HttpsUpstream
from broker_core.adapters.upstream_pool import AGE_SECONDS, IDLE_SECONDS, MOST, MOST_EACH
from broker_core.dev.upstream import RawResponse, Response, SampleUpstream
from broker_core.errors import InjectionRefused, UpstreamError
from broker_core.ports import Destination, Patience, WireRequest
from tests.fakes_keys import ManualClock
from tests.scripted import HEAD, OK, Script, answering, read_head, scripted
from tests.waiting import wait_until

PATIENCE = Patience(3600, 3600, 3600)
ALLOW = ["127.0.0.0/8"]


class Names:
    """A resolver whose answers a test changes."""

    def __init__(self) -> None:
        self.addresses = ["127.0.0.1"]

    def __call__(self, host: str, port: int, **_: Any) -> Sequence[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


class Way:
    """The way out with a clock and names of its own."""

    def __init__(self, server: SampleUpstream | Script) -> None:
        self.clock, self.names, self.server = ManualClock(), Names(), server
        self._tls = isinstance(server, SampleUpstream)
        ca_file = server.ca_file if isinstance(server, SampleUpstream) else None
        self.upstream = HttpsUpstream(Egress(ALLOW, self.names), self.clock, ca_file)

    def line(self, name: str = "upstream.test", pool: str = "ws") -> HttpLine:
        name = name if self._tls else "127.0.0.1"
        return self.upstream.connect(Destination(name, self.server.port, self._tls), PATIENCE, pool)

    def ask(self, name: str = "upstream.test", pool: str = "ws", method: str = "GET", path: str = "/x") -> bytes:
        """One exchange, read to its end."""
        line = self.line(name, pool)
        try:
            return b"".join(line.send(WireRequest(method, path, [("Host", name)])).chunks())
        finally:
            line.close()


@pytest.fixture
def way(upstream: SampleUpstream) -> Iterator[Way]:
    """To the sample upstream, over TLS."""
    made = Way(upstream)
    yield made
    made.upstream.close()


class TestReused:
    """When one is used again."""

    def test_a_complete_answer_leaves_the_connection(self, way: Way, upstream: SampleUpstream) -> None:
        """Three requests, one handshake."""
        assert [way.ask() for _ in range(3)] == [b'{"ok": true}'] * 3
        assert (upstream.connections_accepted, len(upstream.requests)) == (1, 3)

    def test_chunks_too(self, way: Way, upstream: SampleUpstream) -> None:
        """Their end is in the framing as well."""
        upstream.route("/x", lambda _: Response(200, body=iter([b"a", b"b"])))
        assert [way.ask(), way.ask()] == [b"ab", b"ab"]
        assert upstream.connections_accepted == 1

    @pytest.mark.parametrize("status", [204, 404, 500])
    def test_whatever_the_answer_says(self, way: Way, upstream: SampleUpstream, status: int) -> None:
        """A 4xx or 5xx is an answer like another."""
        way.ask(path=f"/status/{status}")
        way.ask(path=f"/status/{status}")
        assert upstream.connections_accepted == 1

    def test_one_at_a_time(self, way: Way, upstream: SampleUpstream) -> None:
        """Two exchanges at once have two connections."""
        lines = [way.line(), way.line()]
        for line in lines:
            assert line.send(WireRequest("GET", "/x", [("Host", "a.test")])).status == 200
            line.close()
        assert upstream.connections_accepted == 2

    def test_an_answer_belongs_to_its_request(self, way: Way, upstream: SampleUpstream) -> None:
        """Twenty in a row on one connection."""
        upstream.route("/y", lambda request: Response(200, body=request.query.encode()))
        assert [way.ask(path=f"/y?{n}") for n in range(20)] == [str(n).encode() for n in range(20)]
        assert upstream.connections_accepted == 1


class TestNeverAcross:
    """Whose connection it is, and where it leads."""

    def test_pitfall_25_another_workspace_has_its_own(self, way: Way, upstream: SampleUpstream) -> None:
        """Nothing that one workspace left on a connection can be read by another."""
        way.ask(pool="ws_a")
        way.ask(pool="ws_b")
        assert upstream.connections_accepted == 2

    def test_another_name_at_the_same_address(self, way: Way, upstream: SampleUpstream) -> None:
        """The certificate was checked for the other one."""
        way.ask("upstream.test")
        way.ask("localhost")
        assert upstream.server_names == ["upstream.test", "localhost"]

    def test_a_name_that_has_moved(self, way: Way, upstream: SampleUpstream) -> None:
        """The kept connection leads to an address that the name no longer has."""
        way.ask()
        way.names.addresses = ["127.0.0.2"]
        with pytest.raises(UpstreamError):  # nobody listens there
            way.ask()
        assert len(upstream.requests) == 1

    def test_a_name_that_has_the_address_still(self, way: Way, upstream: SampleUpstream) -> None:
        """Names with several addresses turn them round: any that passes now will do."""
        way.ask()
        way.names.addresses = ["127.0.0.2", "127.0.0.1"]
        way.ask()
        assert upstream.connections_accepted == 1

    def test_pitfall_16_a_name_that_points_inside_now(self, way: Way, upstream: SampleUpstream) -> None:
        """A kept connection opens no way round the judgement of today's addresses."""
        way.ask()
        way.names.addresses = ["127.0.0.1", "10.0.0.1"]
        with pytest.raises(InjectionRefused):
            way.ask()
        assert len(upstream.requests) == 1


class TestTime:
    """Seconds, by our clock."""

    def test_idle_for_seconds_at_most(self, way: Way, upstream: SampleUpstream) -> None:
        """Less than the five seconds after which common servers close theirs."""
        way.ask()
        way.clock.seconds += IDLE_SECONDS - 0.1
        way.ask()
        way.clock.seconds += IDLE_SECONDS
        way.ask()
        assert (upstream.connections_accepted, IDLE_SECONDS < 5) == (2, True)

    def test_a_minute_in_all(self, way: Way, upstream: SampleUpstream) -> None:
        """However busy it is, the certificate is looked at again within a minute."""
        for _ in range(int(AGE_SECONDS)):
            way.ask()
            way.clock.seconds += 1
        way.ask()
        assert upstream.connections_accepted == 2


class TestNotClean:
    """What leaves a connection that is not used again."""

    @pytest.mark.parametrize(
        "answer",
        {
            "close": HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok",
            "close among others": HEAD + b"Connection: x, Close\r\nContent-Length: 2\r\n\r\nok",
            "http/1.0": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
            "408": b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n",
            "two framings": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "a byte more": OK + b"x",
            "an answer more": OK + OK,
            "an empty line more": OK + b"\r\n",
            "204 with a length": b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\n",
            "304 with a length": b"HTTP/1.1 304 Not\r\nContent-Length: 2\r\n\r\n",
        }.items(),
        ids=lambda item: item[0],
    )
    def test_pitfall_25_this_answer(self, answer: tuple[str, bytes]) -> None:
        """What another reader could read otherwise, and what says or does that it ends."""
        with scripted(answering(answer[1], OK)) as server:
            way = Way(server)
            way.ask()
            way.ask()
            assert len(server.connections) == 2

    def test_head(self) -> None:
        """A server that sends a body after HEAD in error sends the next answer with it."""
        with scripted(answering(OK, OK)) as server:
            way = Way(server)
            way.ask(method="HEAD")
            assert (way.ask(), len(server.connections)) == (b"ok", 2)

    def test_head_as_it_should_be(self) -> None:
        """Whether a body comes after it all the same cannot be known yet."""
        head = OK.removesuffix(b"ok")
        with scripted(answering(head, head)) as server:
            way = Way(server)
            way.ask(method="HEAD")
            way.ask(method="HEAD")
            assert len(server.connections) == 2

    @pytest.mark.parametrize("reads", [0, 1])
    def test_an_answer_that_was_not_read_to_its_end(self, way: Way, upstream: SampleUpstream, reads: int) -> None:
        """The rest is still on its way."""
        upstream.route("/x", lambda _: Response(200, body=b"x" * 1_000_000))
        line = way.line()
        chunks = line.send(WireRequest("GET", "/x", [("Host", "a.test")])).chunks()
        for _ in range(reads):
            next(chunks)
        line.close()
        way.ask()
        assert upstream.connections_accepted == 2

    def test_a_broken_answer(self, way: Way, upstream: SampleUpstream) -> None:
        """An error ends the connection."""
        upstream.route("/y", lambda _: RawResponse([HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz"]))
        with pytest.raises(UpstreamError):
            way.ask(path="/y")
        way.ask()
        assert upstream.connections_accepted == 2

    def test_a_line_that_sent_nothing(self, way: Way, upstream: SampleUpstream) -> None:
        """Only a complete answer leaves a connection; none was given here."""
        way.line().close()
        way.ask()
        assert upstream.connections_accepted == 2


class TestWhileIdle:
    """An idle connection is looked at before it is used."""

    def test_closed_by_the_server(self) -> None:
        """Another one is opened; nobody notices."""

        def once(connection: socket.socket) -> None:
            read_head(connection)
            connection.sendall(OK)
            connection.close()

        with scripted(once) as server:
            way = Way(server)
            way.ask()
            _until_readable(way)
            assert (way.ask(), len(server.connections)) == (b"ok", 2)

    def test_pitfall_25_an_answer_that_nobody_asked_for(self) -> None:
        """It would be taken for the next one's: the connection is thrown away with it."""
        poisoned = HEAD + b"Content-Length: 8\r\n\r\npoisoned"
        go = threading.Event()

        def serve(connection: socket.socket) -> None:
            read_head(connection)
            connection.sendall(OK)
            if go.wait(20):
                connection.sendall(poisoned)
            connection.recv(1)

        with scripted(serve) as server:
            way = Way(server)
            way.ask()
            go.set()
            _until_readable(way)
            assert (way.ask(), len(server.connections)) == (b"ok", 2)

    def test_closed_between_connecting_and_sending(self) -> None:
        """The key is asked in between. Nothing was written, so a new connection is the first attempt, not a second."""
        go, heads = threading.Event(), []

        def serve(connection: socket.socket) -> None:
            heads.append(read_head(connection))
            connection.sendall(OK)
            if go.wait(20):
                connection.close()

        with scripted(serve) as server:
            way = Way(server)
            way.ask()
            line = way.line()
            go.set()
            wait_until(lambda: line._wire is not None and not line._wire.is_quiet())
            answer = line.send(WireRequest("GET", "/second", [("Host", "a.test")]))
            assert (answer.status, len(server.connections), len(heads)) == (200, 2, 2)
            line.close()

    def test_closed_while_the_body_was_waited_for(self) -> None:
        """The agent's first byte may be long in coming: the connection is looked at after it, not before."""
        go = threading.Event()

        def serve(connection: socket.socket) -> None:
            read_head(connection)
            connection.sendall(OK)
            if go.wait(20):
                connection.close()

        with scripted(serve) as server:
            way = Way(server)
            way.ask()
            line = way.line()

            def pieces() -> Iterator[bytes]:
                go.set()
                wait_until(lambda: line._wire is not None and not line._wire.is_quiet())
                yield b"abc"

            headers = [("Host", "a.test"), ("Content-Length", "3")]
            assert line.send(WireRequest("POST", "/second", headers, pieces())).status == 200
            assert len(server.connections) == 2
            line.close()

    def test_pitfall_19_what_fails_on_a_kept_connection_is_not_sent_again(self) -> None:
        """The value goes out once, whatever comes of it."""
        heads = []

        def serve(connection: socket.socket) -> None:
            heads.append(read_head(connection))
            connection.sendall(OK)
            heads.append(read_head(connection))
            connection.close()

        with scripted(serve) as server:
            way = Way(server)
            way.ask()
            with pytest.raises(UpstreamError):
                way.ask(path="/y")
            assert ([b"/y" in head for head in heads], len(server.connections)) == ([False, True], 1)


class TestHowMany:
    """Bounded, for each workspace and in all."""

    def _fill(self, way: Way, count: int, pool: Callable[[int], str]) -> None:
        lines = [way.line(pool=pool(n)) for n in range(count)]
        for line in lines:
            b"".join(line.send(WireRequest("GET", "/x", [("Host", "a.test")])).chunks())
        for line in lines:
            line.close()

    def test_of_one_workspace(self, way: Way) -> None:
        """More are closed."""
        self._fill(way, MOST_EACH + 3, lambda _: "ws")
        assert len(way.upstream._pool._idle) == MOST_EACH

    def test_of_all(self, way: Way) -> None:
        """The oldest makes room."""
        self._fill(way, MOST + 3, lambda n: f"ws_{n}")
        assert len(way.upstream._pool._idle) == MOST
        assert way.upstream._pool._idle[-1].place.pool == f"ws_{MOST + 2}"

    def test_closing_the_way_out_closes_them(self, way: Way, upstream: SampleUpstream) -> None:
        """And what comes back later."""
        way.ask()
        line = way.line()
        b"".join(line.send(WireRequest("GET", "/x", [("Host", "a.test")])).chunks())
        way.upstream.close()
        line.close()
        assert way.upstream._pool._idle == []


def _until_readable(way: Way) -> None:
    """Wait until what the server did has reached the kept connection."""
    (kept,) = way.upstream._pool._idle
    wait_until(lambda: _is_readable(kept.wire._sock))


def _is_readable(sock: socket.socket) -> bool:
    import select

    return bool(select.select([sock], [], [], 0)[0])
