"""Request bodies that come in pieces: framed by us, as long as was said, given up when nobody wants them."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable, Iterator

import pytest

from broker_core.adapters.clock import SystemClock
from broker_core.adapters.egress import Egress
from broker_core.adapters.upstream import HttpAnswer, HttpLine, HttpsUpstream
from broker_core.dev.upstream import Response, SampleUpstream
from broker_core.errors import UpstreamError
from broker_core.ports import Clock, Destination, Patience, WireRequest
from tests.fakes_keys import ManualClock
from tests.scripted import HEAD, OK, Script, holding, read_head, scripted

CHUNKED = ("Transfer-Encoding", "chunked")
PATIENCE = Patience(20, 20, 20)


def length(size: int) -> tuple[str, str]:
    return "Content-Length", str(size)


def line_to(port: int, patience: Patience = PATIENCE, clock: Clock | None = None) -> HttpLine:
    """A line in the open to this machine."""
    upstream = HttpsUpstream(Egress(["127.0.0.1/32"]), clock or SystemClock())
    return upstream.connect(Destination("127.0.0.1", port, tls=False), patience, "ws")


def post(line: HttpLine, body: bytes | Iterable[bytes], *framing: tuple[str, str]) -> HttpAnswer:
    return line.send(WireRequest("POST", "/x", [("Host", "a.test"), *framing], body))


@pytest.fixture
def secure(upstream: SampleUpstream) -> Iterator[HttpLine]:
    """A line to the sample upstream, over TLS."""
    client = HttpsUpstream(Egress(["127.0.0.0/8", "::1/128"]), SystemClock(), upstream.ca_file)
    line = client.connect(Destination("localhost", upstream.port), PATIENCE, "ws")
    yield line
    line.close()


class TestFraming:
    """What is on the wire is what the headers say."""

    @pytest.mark.parametrize(
        ("framing", "pieces"),
        [
            (CHUNKED, [b"one", b"", b"two"]),
            (CHUNKED, []),
            (length(6), [b"one", b"", b"two"]),
            (length(0), []),
            (CHUNKED, [b"0\r\n\r\n", b"x" * 200_000]),
        ],
    )
    def test_pieces_arrive_as_one_body(
        self, upstream: SampleUpstream, secure: HttpLine, framing: tuple[str, str], pieces: list[bytes]
    ) -> None:
        """Chunked or by length; an empty piece ends nothing, and a piece that looks like an end is none."""
        assert post(secure, iter(pieces), framing).status == 200
        assert [request.body for request in upstream.requests] == [b"".join(pieces)]

    def test_a_whole_body_is_chunked_where_the_headers_say_so(self, upstream: SampleUpstream, secure: HttpLine) -> None:
        """Bytes are one piece."""
        post(secure, b"whole", CHUNKED)
        assert upstream.requests[0].body == b"whole"

    def test_a_piece_leaves_before_the_next_one_is_asked_for(self) -> None:
        """Nothing is collected: an upload of any size needs one piece of memory."""
        arrived, got = threading.Event(), []

        def serve(connection: socket.socket) -> None:
            got.append(read_head(connection))
            arrived.set()
            connection.recv(100)
            connection.sendall(OK)

        def pieces() -> Iterator[bytes]:
            yield b"first"
            assert arrived.wait(20)
            yield b"second"

        with scripted(serve) as server:
            line = line_to(server.port)
            assert post(line, pieces(), CHUNKED).status == 200
            line.close()
        assert got[0].endswith(b"5\r\nfirst\r\n")

    @pytest.mark.parametrize("pieces", [[b"12345"], [b"1234", b"56789ab"], []], ids=["fewer", "more", "none"])
    @pytest.mark.parametrize("whole", [True, False], ids=["whole", "pieces"])
    def test_another_length_than_was_said_ends_the_exchange(
        self, upstream: SampleUpstream, secure: HttpLine, pieces: list[bytes], whole: bool
    ) -> None:
        """The rest would be read as a next request; what is missing would be taken from one."""
        with pytest.raises(UpstreamError, match="not as long") as refused:
            post(secure, b"".join(pieces) if whole else iter(pieces), length(8))
        secure.close()

        assert refused.value.__context__ is None
        assert [request for request in upstream.requests if len(request.body) >= 8] == []  # cut off, to any reader

    @pytest.mark.parametrize("framing", [[], [CHUNKED, length(3)], [length(3), length(4)], [CHUNKED, CHUNKED]])
    def test_no_framing_and_two_framings_are_refused(
        self, upstream: SampleUpstream, secure: HttpLine, framing: list[tuple[str, str]]
    ) -> None:
        """Two servers on the way would disagree about where the request ends (smuggling)."""
        with pytest.raises(UpstreamError):
            post(secure, b"abc", *framing)
        secure.close()
        assert upstream.requests == []

    def test_what_the_iterator_raises_is_raised(self, upstream: SampleUpstream, secure: HttpLine) -> None:
        """It is the caller's own; and half a request is not a request."""

        def pieces() -> Iterator[bytes]:
            yield b"half"
            raise KeyError("the caller's")

        with pytest.raises(KeyError):
            post(secure, pieces(), CHUNKED)
        secure.close()
        assert upstream.requests == []


class TestEarlyAnswers:
    """A server may answer before it has read everything."""

    @staticmethod
    def _early(connection: socket.socket, answer: bytes, reset: bool) -> None:
        read_head(connection)
        connection.sendall(answer)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    @pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
    def test_the_answer_is_handed_on_and_the_rest_not_sent(self, interim: bytes) -> None:
        """An upload of no end meets a 413: the answer is read, and nothing more is asked of the body."""
        answer = interim + b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"
        with scripted(lambda connection: self._early(connection, answer, reset=False)) as server:
            line = line_to(server.port)
            got = post(line, iter(lambda: b"x" * 65_536, b""), CHUNKED)
            assert (got.status, b"".join(got.chunks())) == (413, b"big")
            line.close()

    def test_a_whole_body_that_is_not_read_to_its_end(self) -> None:
        """The same where the body was given as a whole."""
        with scripted(lambda connection: self._early(connection, OK, reset=False)) as server:
            line = line_to(server.port)
            assert b"".join(post(line, b"x" * 20_000_000, length(20_000_000)).chunks()) == b"ok"
            line.close()

    def test_an_answer_before_a_reset(self) -> None:
        """What it said is read if it is still there; if it is not, it is an error of ours, in either case no hang."""
        with scripted(lambda connection: self._early(connection, OK, reset=True)) as server:
            line = line_to(server.port)
            assert self._result(line) in ("200", "upstream_unreachable")
            line.close()

    @staticmethod
    def _result(line: HttpLine) -> str:
        try:
            return str(post(line, iter(lambda: b"x" * 65_536, b""), CHUNKED).status)
        except UpstreamError as error:
            return error.reason

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"SSH-2.0\r\n\r\n"])
    def test_a_server_that_goes_away_is_an_error(self, answer: bytes) -> None:
        """No answer at all, or none that is HTTP."""
        with scripted(lambda connection: self._early(connection, answer, reset=True)) as server:
            line = line_to(server.port)
            with pytest.raises(UpstreamError) as failed:
                post(line, iter(lambda: b"x" * 65_536, b""), CHUNKED)
            line.close()
        assert (failed.value.reason, failed.value.__context__) == ("upstream_unreachable", None)

    def test_such_a_connection_is_not_used_again(self) -> None:
        """The next request would be read as the rest of this body."""
        with scripted(lambda connection: self._early(connection, OK, reset=False)) as server:
            upstream = HttpsUpstream(Egress(["127.0.0.1/32"]), SystemClock())
            for body in (b"x" * 20_000_000, b""):
                line = upstream.connect(Destination("127.0.0.1", server.port, tls=False), PATIENCE, "ws")
                assert b"".join(post(line, body, length(len(body))).chunks()) == b"ok"
                line.close()
            assert len(server.connections) == 2


class TestTime:
    """What comes first ends it."""

    def test_a_server_that_does_not_read(self) -> None:
        """The idle limit counts while we write."""
        stop = threading.Event()
        with scripted(holding(stop)) as server:
            assert self._failure(server, Patience(20, 20, 0.2), b"x" * 20_000_000) == "upstream_timeout"
            stop.set()

    def test_a_body_that_never_ends(self) -> None:
        """The total counts while the body keeps coming and is read."""
        clock = ManualClock()

        def swallow(connection: socket.socket) -> None:
            while connection.recv(1 << 20):
                pass

        def pieces() -> Iterator[bytes]:
            while True:
                clock.seconds += 1
                yield b"x" * 65_536

        with scripted(swallow) as server:
            line = line_to(server.port, Patience(20, 3600, 3600), clock)
            with pytest.raises(UpstreamError) as failed:
                post(line, pieces(), CHUNKED)
            line.close()
        assert failed.value.reason == "upstream_timeout"

    def test_the_answers_limit_counts_from_the_end_of_the_request(self) -> None:
        """A server that has all and says nothing is given up before the total is over."""
        stop = threading.Event()
        with scripted(holding(stop)) as server:
            assert self._failure(server, Patience(3600, 0.2, 3600), b"") == "upstream_timeout"
            stop.set()

    def test_a_pause_in_the_answers_body(self) -> None:
        """The idle limit counts between two bytes of the answer."""

        def serve(connection: socket.socket) -> None:
            read_head(connection)
            connection.sendall(HEAD + b"Content-Length: 9\r\n\r\nhalf")
            connection.recv(1)

        with scripted(serve) as server:
            line = line_to(server.port, Patience(3600, 20, 0.2), ManualClock())
            chunks = post(line, b"", length(0)).chunks()
            assert next(chunks) == b"half"
            with pytest.raises(UpstreamError) as failed:
                next(chunks)
            line.close()
        assert failed.value.reason == "upstream_timeout"

    def _failure(self, server: Script, patience: Patience, body: bytes) -> str:
        line = line_to(server.port, patience, ManualClock())  # the connecting, which comes first, takes none of it
        with pytest.raises(UpstreamError) as failed:
            post(line, body, length(len(body)))
        line.close()
        return failed.value.reason


def test_the_sample_upstream_may_answer_without_reading(upstream: SampleUpstream, secure: HttpLine) -> None:
    """Over TLS, too, an answer with a long body arrives whole after a long request."""
    upstream.route("/x", lambda _: Response(200, body=b"y" * 3_000_000))
    answer = post(secure, (b"x" * 50_000 for _ in range(60)), CHUNKED)
    assert len(b"".join(answer.chunks())) == 3_000_000
