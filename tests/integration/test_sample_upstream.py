"""The sample upstream: correct HTTP/1.1 over TLS, a record of what came, and on demand answers that no server gives."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from broker_core.dev.upstream import RawResponse, Response, SampleUpstream
from broker_core.dev.upstream_hostile import BOMB_BYTES, BREAKING, ECHOES, LIMITS
from tests.sentinel import Search, Sentinel, text_sentinel
from tests.waiting import wait_until


@pytest.fixture
def connection(upstream: SampleUpstream) -> Iterator[http.client.HTTPSConnection]:
    """A client that trusts the upstream's CA."""
    with closing(_connect(upstream)) as client:
        yield client


def _connect(upstream: SampleUpstream, host: str = "localhost") -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(upstream.ca_file))
    return http.client.HTTPSConnection(host, upstream.port, timeout=10, context=context)


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request("GET", path)
    response = connection.getresponse()
    return response, response.read()


def _refuse(upstream: SampleUpstream) -> None:
    with closing(_connect(upstream)) as client, pytest.raises(ssl.SSLCertVerificationError):
        client.connect()


def _echoed(body: bytes) -> Any:
    return json.loads(body)


class TestRecords:
    def test_echo_tells_what_came(self, connection: http.client.HTTPSConnection) -> None:
        """``/echo`` answers with method, query, headers and body as JSON."""
        connection.request("POST", "/echo?a=1&a=2", body=b"hello", headers={"X-Api-Key": "k"})
        seen = _echoed(connection.getresponse().read())
        assert (seen["method"], seen["query"], seen["body"]) == ("POST", "a=1&a=2", "hello")
        assert ["X-Api-Key", "k"] in seen["headers"]

    def test_requests_are_recorded(self, upstream: SampleUpstream, connection: http.client.HTTPSConnection) -> None:
        """A request is there for the test to look at: headers in any case, parameters decoded."""
        _get(connection, "/anything?q=a%20b")
        (received,) = upstream.wait_for(1)
        assert (received.path, received.parameters) == ("/anything", [("q", "a b")])
        assert received.header("hOST") == f"localhost:{upstream.port}"

    def test_repeated_headers_stay_apart(self, upstream: SampleUpstream) -> None:
        """Two headers of one name are two, in order: a test can see an injection that was shadowed."""
        with closing(_connect(upstream)) as client:
            client.putrequest("GET", "/echo")
            client.putheader("Authorization", "first")
            client.putheader("authorization", "second")
            client.endheaders()
            client.getresponse().read()
        assert upstream.requests[0].headers_named("Authorization") == ["first", "second"]

    def test_a_chunked_request_body_is_read(
        self, upstream: SampleUpstream, connection: http.client.HTTPSConnection
    ) -> None:
        """A body in chunks arrives whole."""
        connection.request("POST", "/echo", body=iter([b"one ", b"two"]), encode_chunked=True)
        connection.getresponse().read()
        assert upstream.requests[0].body == b"one two"

    def test_a_record_does_not_print_what_it_holds(
        self, upstream: SampleUpstream, connection: http.client.HTTPSConnection
    ) -> None:
        """The repr of a record shows no header, query or body."""
        connection.request("POST", "/echo?sentinel-q", body=b"sentinel-b", headers={"X": "sentinel-h"})
        connection.getresponse().read()
        assert "sentinel" not in repr(upstream.requests)

    def test_waiting_for_too_much_fails(self, upstream: SampleUpstream) -> None:
        """``wait_for`` gives up at its deadline and says how many came."""
        with pytest.raises(TimeoutError, match="0 of 1"):
            upstream.wait_for(1, seconds=0.01)


class TestConnections:
    def test_one_connection_carries_many_requests(self, upstream: SampleUpstream) -> None:
        """Keep-alive: three requests, one accept, one handshake."""
        with closing(_connect(upstream)) as client:
            for _ in range(3):
                _get(client, "/echo")
        assert (len(upstream.requests), upstream.connections_accepted, upstream.handshakes_completed) == (3, 1, 1)

    def test_the_asked_name_is_recorded(self, upstream: SampleUpstream) -> None:
        """The name in the TLS handshake is there for the test to look at."""
        with closing(_connect(upstream)) as client:
            _get(client, "/echo")
        assert upstream.server_names == ["localhost"]

    def test_a_client_that_distrusts_completes_no_handshake(self, upstream: SampleUpstream) -> None:
        """A connection that ends over the certificate counts as accepted, with no request."""
        client = http.client.HTTPSConnection("localhost", upstream.port, context=ssl.create_default_context())
        with closing(client), pytest.raises(ssl.SSLCertVerificationError):
            client.connect()
        wait_until(lambda: upstream.connections_accepted == 1)
        assert upstream.requests == []

    def test_a_silent_client_holds_up_nobody(
        self, upstream: SampleUpstream, connection: http.client.HTTPSConnection
    ) -> None:
        """While one client never speaks TLS, another is served."""
        with socket.create_connection(("127.0.0.1", upstream.port)):
            assert _get(connection, "/echo")[0].status == 200

    @pytest.mark.parametrize("certificate", ["self-signed", "expired"])
    def test_a_bad_certificate_is_refused(self, certificate: Any) -> None:
        """With a certificate of another CA, or an expired one, a client that checks goes away."""
        with SampleUpstream.start(certificate=certificate) as bad:
            _refuse(bad)

    def test_another_name_is_refused(self) -> None:
        """A certificate for another name only does not do for this one."""
        with SampleUpstream.start(names=("elsewhere.test",)) as other:
            _refuse(other)

    def test_plain_http_without_tls(self) -> None:
        """``tls=False`` serves plain HTTP."""
        with SampleUpstream.start(tls=False) as plain:
            assert plain.url == f"http://localhost:{plain.port}"
            with closing(http.client.HTTPConnection("localhost", plain.port, timeout=10)) as client:
                assert _get(client, "/echo")[0].status == 200


class TestRoutes:
    @pytest.mark.parametrize("status", [201, 404, 503])
    def test_status(self, connection: http.client.HTTPSConnection, status: int) -> None:
        """``/status/<n>`` answers with that status."""
        assert _get(connection, f"/status/{status}")[0].status == status

    def test_an_answer_without_a_body_keeps_the_connection(self, connection: http.client.HTTPSConnection) -> None:
        """204 has neither body nor length, and the next request is answered."""
        response, body = _get(connection, "/status/204")
        assert (response.headers["Content-Length"], body) == (None, b"")
        assert _get(connection, "/echo")[0].status == 200

    def test_head_has_headers_only(self, connection: http.client.HTTPSConnection) -> None:
        """HEAD gives the length of what GET would send, and the next request is answered."""
        connection.request("HEAD", "/echo")
        response = connection.getresponse()
        assert (int(response.headers["Content-Length"]) > 0, response.read()) == (True, b"")
        assert _get(connection, "/echo")[0].status == 200

    def test_redirect(self, connection: http.client.HTTPSConnection) -> None:
        """``/redirect?to=`` points there."""
        response, _ = _get(connection, "/redirect?to=https%3A%2F%2Felsewhere.test%2F")
        assert (response.status, response.headers["Location"]) == (302, "https://elsewhere.test/")

    def test_events(self, connection: http.client.HTTPSConnection) -> None:
        """``/sse`` sends server-sent events, chunked."""
        response, body = _get(connection, "/sse?events=2")
        assert response.headers["Content-Type"] == "text/event-stream"
        assert body == b'id: 0\ndata: {"n": 0}\n\nid: 1\ndata: {"n": 1}\n\n'

    def test_slow_chunks(self, connection: http.client.HTTPSConnection) -> None:
        """``/slow`` drips its chunks."""
        assert _get(connection, "/slow?chunks=2&seconds=0.001")[1] == b"chunk 0\nchunk 1\n"

    def test_reset(self, connection: http.client.HTTPSConnection) -> None:
        """``/reset`` answers with a reset connection."""
        with pytest.raises(ConnectionResetError):
            _get(connection, "/reset")

    def test_hang_ends_with_the_server(self) -> None:
        """``/hang`` answers nothing; closing the server cuts it off, and does not wait for it."""
        with SampleUpstream.start() as server, closing(_connect(server)) as client:
            client.request("GET", "/hang")
            server.wait_for(1)
            server.close()
            with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
                client.getresponse()

    def test_gzip(self, connection: http.client.HTTPSConnection) -> None:
        """``/gzip`` encodes its answer whatever the client accepts."""
        response, body = _get(connection, "/gzip")
        assert (response.headers["Content-Encoding"], body[:2]) == ("gzip", b"\x1f\x8b")


class TestOwnRoutes:
    def test_an_added_route_answers(self, upstream: SampleUpstream, connection: http.client.HTTPSConnection) -> None:
        """A test answers a path as it likes, from what was received."""
        upstream.route("/x", lambda received: Response(202, [("X-Seen", received.method)], b"done"))
        response, body = _get(connection, "/x")
        assert (response.status, response.headers["X-Seen"], body) == (202, "GET", b"done")

    def test_chunks_leave_as_they_come(self, upstream: SampleUpstream, connection: http.client.HTTPSConnection) -> None:
        """A streamed chunk arrives before the next one is made."""
        arrived: list[bytes] = []

        def chunks() -> Iterator[bytes]:
            yield b"first"
            wait_until(lambda: arrived, what="the client to have the first chunk")
            yield b"second"

        upstream.route("/x", lambda _: Response(200, (), chunks()))
        connection.request("GET", "/x")
        response = connection.getresponse()
        arrived.append(response.read1())
        assert (arrived, response.read()) == ([b"first"], b"second")

    def test_raw_bytes_go_out_as_they_are(
        self, upstream: SampleUpstream, connection: http.client.HTTPSConnection
    ) -> None:
        """A raw answer may say anything, status line included."""
        upstream.route("/x", lambda _: RawResponse([b"HTTP/1.1 299 Odd\r\nX: 1\r\n", b"Content-Length: 2\r\n\r\nok"]))
        response, body = _get(connection, "/x")
        assert (response.status, response.reason, body) == (299, "Odd", b"ok")

    def test_a_raw_answer_may_break_off(
        self, upstream: SampleUpstream, connection: http.client.HTTPSConnection
    ) -> None:
        """A raw answer that promises more than it has ends in the middle."""
        upstream.route("/x", lambda _: RawResponse([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"]))
        with pytest.raises(http.client.IncompleteRead):
            _get(connection, "/x")

    def test_a_route_that_fails_ends_the_connection_silently(
        self,
        upstream: SampleUpstream,
        connection: http.client.HTTPSConnection,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """An exception in a route closes the connection and prints nothing: it could hold what was injected."""

        def fail(_: object) -> Response:
            raise ValueError("sentinel")

        upstream.route("/x", fail)
        with pytest.raises(http.client.RemoteDisconnected):
            _get(connection, "/x")
        assert capfd.readouterr() == ("", "")

    def test_clear_forgets(self, upstream: SampleUpstream, connection: http.client.HTTPSConnection) -> None:
        """``clear`` forgets requests, counters and added routes."""
        upstream.route("/x", lambda _: Response(202))
        _get(connection, "/x")
        upstream.clear()
        assert (upstream.requests, upstream.connections_accepted, upstream.handshakes_completed) == ([], 0, 0)
        assert _get(connection, "/x")[0].status == 200

    def test_clear_forgets_what_is_on_its_way(
        self, upstream: SampleUpstream, connection: http.client.HTTPSConnection
    ) -> None:
        """A request that began before is answered, and stands in nobody else's records; the next one does."""
        _get(connection, "/x")
        connection.putrequest("POST", "/x")
        connection.putheader("Content-Length", "4")
        connection.endheaders()
        upstream.clear()
        connection.send(b"1234")
        response = connection.getresponse()
        assert (response.status, response.read(), upstream.requests) == (200, b'{"ok": true}', [])
        _get(connection, "/x")
        assert len(upstream.requests) == 1

    def test_clear_forgets_who_is_at_the_door(self, upstream: SampleUpstream) -> None:
        """A connection that was opened before is counted nowhere, and what comes on it is not recorded."""
        with socket.create_connection(("127.0.0.1", upstream.port)) as early:
            upstream.clear()
            context = ssl.create_default_context(cafile=str(upstream.ca_file))
            with context.wrap_socket(early, server_hostname="localhost") as secured:
                secured.sendall(b"GET /x HTTP/1.1\r\nConnection: close\r\n\r\n")
                while secured.recv(4096):
                    pass
        assert (upstream.requests, upstream.server_names) == ([], [])
        assert (upstream.connections_accepted, upstream.handshakes_completed) == (0, 0)

    def test_a_body_that_breaks_off_is_no_request(self, upstream: SampleUpstream) -> None:
        """Nothing is recorded of it."""
        with closing(_connect(upstream)) as client:
            client.putrequest("POST", "/x")
            client.putheader("Content-Length", "9")
            client.endheaders(b"1234")
            client.sock.shutdown(socket.SHUT_WR)
            while client.sock.recv(4096):
                pass
        assert upstream.requests == []


def _everything(upstream: SampleUpstream, path: str, value: Sentinel) -> bytes:
    """What a route sends for this credential until it closes, chunks joined, and decoded where it is compressed."""
    with closing(_connect(upstream)) as client:
        client.putrequest("GET", path)
        client.putheader("Authorization", b"Bearer " + value.value)
        client.putheader("Connection", "close")
        client.endheaders()
        with client.sock.makefile("rb") as answer:
            sent = answer.read()
    body = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", sent.partition(b"\r\n\r\n")[2])
    return b"\n".join((sent, body, *(_decoded(body, wbits) for wbits in (31, 15, -15))))


def _decoded(body: bytes, wbits: int) -> bytes:
    decoded = b""
    while body:
        machine = zlib.decompressobj(wbits=wbits)
        try:
            decoded, body = decoded + machine.decompress(body), machine.unused_data
        except zlib.error:
            break
    return decoded if wbits != 31 or decoded[:2] != b"\x1f\x8b" else _decoded(decoded, wbits)


class TestHostile:
    @pytest.mark.parametrize("name", sorted(ECHOES.keys() - {"digests"}))
    def test_an_echo_echoes(self, upstream: SampleUpstream, name: str) -> None:
        """Each echo gives the credential back in a form that the tests' search knows: else it would test nothing."""
        value = text_sentinel("credential", pieces=1)
        assert Search([value])(name, _everything(upstream, f"/hostile/{name}", value))

    @pytest.mark.parametrize("name", sorted(LIMITS))
    def test_a_limit_answers(self, upstream: SampleUpstream, name: str) -> None:
        """Each limit answers, and not with the credential as it is."""
        value = text_sentinel("credential", pieces=1)
        sent = _everything(upstream, f"/hostile/{name}", value).partition(b"\r\n\r\n")
        assert (sent[0][:15], value.value in sent[0]) == (b"HTTP/1.1 200 OK", False)

    @pytest.mark.parametrize("name", sorted(BREAKING))
    def test_a_breaking_answer_begins(self, upstream: SampleUpstream, name: str) -> None:
        """Each breaking answer sends something, and ends when the client goes away."""
        with closing(_connect(upstream)) as client:
            client.request("GET", f"/hostile/{name}")
            assert client.sock.recv(16)

    def test_the_bomb_is_small_on_the_wire(self, upstream: SampleUpstream) -> None:
        """A thousand times smaller than what it decodes to."""
        with closing(_connect(upstream)) as client:
            assert len(_get(client, "/hostile/bomb")[1]) < BOMB_BYTES // 900


def test_the_ca_file_goes_with_the_server() -> None:
    """The CA's file is there while the server runs, and no longer."""
    with SampleUpstream.start() as server:
        assert server.ca_file.read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    assert not server.ca_file.exists()
